// SPDX-License-Identifier: MIT
//
// MSRs that KVM serves and leaves out of its lists of indices: a guest that has set them, or found them set,
// finds them again after a move. lab-msr-scan looks for those that nobody knows of yet.
#include "support/msrs.hpp"

#include "guests/images.hpp"

namespace lab {
guests::Image msrs_guest() {
    return IMAGE(msrs);
}
} // namespace lab

namespace {

using lab::Vm;

/// guests/msrs.S: a row of its list.
struct Row {
    std::uint32_t index;
    std::uint32_t guest_writes;
    std::uint64_t value;
};
static_assert(sizeof(Row) == 16);
constexpr std::size_t list_address = 0x20000, rows_address = list_address + 16;

constexpr Row by_guest(std::uint32_t index, std::uint64_t value) {
    return {index, 1, value};
}
constexpr Row by_user_space(std::uint32_t index, std::uint64_t value) {
    return {index, 0, value};
}

/// A guest with such a list, the MSRs that are not its own to write set.
lab::Scenario scenario_of(std::vector<Row> rows) {
    return {.image = lab::msrs_guest(), .arrange = [rows = std::move(rows)](const Vm& vm) {
                const auto memory = vm.machine.memory();
                lab::store<std::uint64_t>(memory, list_address, rows.size());
                std::ranges::copy(std::as_bytes(std::span{rows}), memory.subspan(rows_address).begin());
                for (const auto& row : rows)
                    if (row.guest_writes == 0 && !lab::set_msr(vm.machine, row.index, row.value))
                        lab::give_up(std::format("KVM_SET_MSRS refuses {:#x}", row.index));
            }};
}

constexpr const char* all_found = "0x10:0x1 0x10:0x2 HLT";

std::string told_if_all_are_lost(std::span<const Row> rows) {
    std::string told = "0x10:0x1";
    for (const auto& row : rows)
        told += std::format(" 0x27:{:#x}", row.index);
    return told + " 0x10:0x2 HLT";
}

/// The whole claim, and that the guest misses each of the MSRs that a save does not know of.
void check_found_again(lab::Scenario scenario, const std::vector<Row>& rows) {
    lab::check_survives(scenario, all_found);
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
    lab::Caught forgotten{lab::save(source), telling};
    lab::forget_msrs(forgotten.saved.state,
                     [&](std::uint32_t index) { return std::ranges::contains(rows, index, &Row::index); });
    CHECK(lab::told_after(scenario, forgotten) == told_if_all_are_lost(rows));
}

constexpr std::uint64_t mcg_cmci_p = 1 << 10;

/// Ten banks and all that KVM has for them, as a VMM would set them up.
std::uint64_t machine_check_capability() {
    constexpr std::uint64_t banks = 10;
    const auto machine = lab::must(machine::Machine::create());
    std::uint64_t supported = 0;
    lab::must_ioctl(machine.system_fd(), KVM_X86_GET_MCE_CAP_SUPPORTED, &supported,
                    "KVM_X86_GET_MCE_CAP_SUPPORTED");
    return (supported & ~0xffull) | banks;
}

} // namespace

TEST_CASE("a guest finds the MTRRs again that it has set") {
    const std::vector rows{
        by_guest(0x200, 0x1'0000'0006),         by_guest(0x201, 0xf'f000'0800), // variable, the first
        by_guest(0x20e, 0x8000'0004),           by_guest(0x20f, 0xf'8000'0800), // and the last
        by_guest(0x250, 0x0606'0505'0404'0101), by_guest(0x258, 0x0101'0404'0505'0606),
        by_guest(0x259, 0x0404'0404'0404'0404), by_guest(0x268, 0x0505'0505'0505'0505),
        by_guest(0x26f, 0x0101'0101'0101'0101), by_guest(0x2ff, 0xc06),
    };
    check_found_again(scenario_of(rows), rows);
}

TEST_CASE("a guest finds its machine-check banks again, and what they have recorded") {
    const auto capability = machine_check_capability();
    // Only user space can record an error, and reset what a new bank has: control 0 is not its default.
    std::vector rows{
        by_guest(0x400, 0),
        by_user_space(0x401, 0xbe00'0000'0080'0400),
        by_user_space(0x402, 0x1234'5000),
        by_user_space(0x403, 0x8c),
        by_guest(0x424, 0), // the last bank
        by_user_space(0x425, 0xbe00'0000'0010'0135),
        by_user_space(0x426, 0x6789'a000),
        by_user_space(0x427, 0x86),
    };
    if ((capability & mcg_cmci_p) != 0)
        rows.push_back(by_guest(0x289, 0x4000'0001)); // MC9_CTL2: CMCI, threshold 1
    auto scenario = scenario_of(rows);
    scenario.arrange = [capability, set = scenario.arrange](const Vm& vm) {
        auto value = capability;
        lab::must_ioctl(vm.machine.vcpu_fd(), KVM_X86_SETUP_MCE, &value, "KVM_X86_SETUP_MCE");
        set(vm);
    };
    check_found_again(scenario, rows);
}

TEST_CASE("a guest finds VM_CR again" * doctest::test_suite("svm")) {
    const std::vector rows{by_guest(0xc001'0114, 0xa)}; // R_INIT and LOCK
    check_found_again(scenario_of(rows), rows);
}

TEST_CASE("a guest finds IA32_DEBUGCTL again, which 6.1 does not list") {
    // Which of its bits KVM keeps depends on the processor, its CPUID and the capability MSRs.
    constexpr std::uint32_t debugctl = 0x1d9;
    using kvm::nested::mask, kvm::nested::DebugCtl;
    constexpr auto freeze_in_smm = mask(DebugCtl::freeze_while_smm), bus_lock = mask(DebugCtl::bld),
                   btf = mask(DebugCtl::btf), lbr = mask(DebugCtl::lbr);
    const auto machine = lab::must(machine::Machine::create());
    for (const auto value : {freeze_in_smm, bus_lock, btf, lbr}) {
        if (!lab::set_msr(machine, debugctl, value) || lab::get_msr(machine, debugctl) != value)
            continue;
        const std::vector rows{by_user_space(debugctl, value)};
        check_found_again(scenario_of(rows), rows);
        return;
    }
    lab::not_offered("IA32_DEBUGCTL keeps none of bits 0, 1, 2, 14 that KVM_SET_MSRS writes");
}
