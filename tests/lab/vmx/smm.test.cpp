// SPDX-License-Identifier: MIT
//
// System-management mode, entered from L1 and from L2. KVM takes the vCPU out of VMX operation for it, and
// keeps in the nested state what RSM brings back.
#include "scenarios.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::must;
using lab::vmx::smi_port;

/// Also an SMI at PORT_PHASE 1, before L1 has a current VMCS. The guest does not look at this flag.
constexpr std::uint64_t smi_before_vmptrld = 0x100;

lab::Scenario smm_scenario(guests::Image image, std::uint64_t flags) {
    const std::uint32_t first = (flags & smi_before_vmptrld) != 0 ? 1 : 2;
    return {.image = image,
            .parameters = {.flags = flags},
            .machine = {.smm = true},
            .act = [=](const lab::Vm& vm, const machine::PortOut& out) {
                if (out.port == guests::port::phase && out.value >= first)
                    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SMI, 0L, "KVM_SMI");
            }};
}

constexpr const char* told = "0x10:0x1 0x10:0x2 0x28:0x1 0x10:0x3 0x28:0x2 0x21:0x7 0x23:0x12 0x21:0x38 HLT";
constexpr const char* told_before_vmptrld =
    "0x10:0x1 0x28:0x1 0x10:0x2 0x28:0x2 0x10:0x3 0x28:0x3 0x21:0x7 0x23:0x12 0x21:0x38 HLT";

constexpr std::uint16_t smm_guest_mode = 1, smm_vmxon = 2;

struct Expected {
    kvm::nested::Phase phase;
    std::uint32_t size;
    std::uint16_t smm_flags;
};

void check_in_smm(const kvm::vcpu::VcpuState& state, const Expected& expected) {
    CHECK(state.events.smi_smm == 1);
    CHECK(state.nested.phase() == expected.phase);
    CHECK(state.nested.size() == expected.size);
    CHECK(state.nested.flags() == 0); // not GUEST_MODE, even if L2 was interrupted
    CHECK(lab::load<std::uint16_t>(state.nested.bytes(), lab::vmx::smm_flags_at) == expected.smm_flags);
}

} // namespace

TEST_CASE(
    "a guest of VMX moves in the middle of an SMI that interrupted L1, and of one that interrupted L2") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto scenario = smm_scenario(IMAGE(vmx_smm), flags);
        const auto journey = lab::check_survives(scenario, told);
        check_in_smm(journey.stop(smi_port, 1).saved.state,
                     {kvm::nested::Phase::vmx_smm_current_vmcs, 4224, smm_vmxon});
        check_in_smm(journey.stop(smi_port, 2).saved.state,
                     {kvm::nested::Phase::vmx_smm_interrupted_l2, 4224, smm_vmxon | smm_guest_mode});
    }
    const auto scenario = smm_scenario(IMAGE(vmx_smm), guests::nested_paging);
    lab::capture_at("smm-current-vmcs", scenario, smi_port, 1);
    lab::capture_at("smm-from-l2", scenario, smi_port, 2);
}

TEST_CASE("of an SMI in VMX operation without a current VMCS, KVM forgets the flag, and the guest goes on") {
    const auto scenario = smm_scenario(IMAGE(vmx_smm), guests::nested_paging | smi_before_vmptrld);
    CHECK(lab::told_undisturbed(scenario) == told_before_vmptrld);
    auto [source, telling] = lab::run_until(scenario, smi_port, 1);
    const auto saved = lab::save(source);
    check_in_smm(saved.state, {kvm::nested::Phase::vmx_smm_vmxon_only, 128, smm_vmxon});
    lab::capture("smm-vmxon-without-vmcs", source.machine);

    // KVM_SET_NESTED_STATE is done with a state of 128 bytes before it comes to the flags of SMM. Reading
    // back tells.
    const auto vm = lab::destination(scenario, saved);
    lab::put_memory(vm, saved.memory);
    must(vm.whole().restore(saved.state));
    const auto same = vm.whole().nested().verify_nested_state(saved.state.nested);
    if (!same) {
        CHECK(same.error().code == kvm::nested::Errc::not_equivalent);
        CHECK(same.error().detail == lab::vmx::smm_flags_at);
        CHECK(must(vm.whole().nested().nested_state()).phase() == kvm::nested::Phase::vmx_vmxon_only);
    }
    std::println(
        "note: an SMI in VMX operation without a current VMCS: the flag of SMM is {} at the destination",
        same ? "there" : "lost");

    // RSM does not mind to find the vCPU in VMX operation already.
    lab::follow(scenario, vm, telling);
    CHECK(telling.line() == told_before_vmptrld);
}

TEST_CASE("a guest of VMX that moves in the middle of an SMI without its nested state does not return") {
    const auto scenario = smm_scenario(IMAGE(vmx_smm), guests::nested_paging);
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, smi_port, 1) != told);
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, smi_port, 2) != told);
}

TEST_CASE("of a vCPU in SMM the nested state is refused before the events, and taken after them") {
    const auto scenario = smm_scenario(IMAGE(vmx_smm), guests::nested_paging);
    auto [source, telling] = lab::run_until(scenario, smi_port, 2);
    const auto saved = lab::save(source);
    const auto vm = lab::destination(scenario, saved);
    lab::put_memory(vm, saved.memory);
    const auto early = lab::restore_without(kvm::vcpu::Step::events, vm, saved.state);
    REQUIRE_FALSE(early);
    CHECK(early.error().step == kvm::vcpu::Step::nested_state);
    CHECK(early.error().cause == kvm::nested::Errc::refused);

    lab::restore(vm, saved);
    lab::follow(scenario, vm, telling);
    CHECK(telling.line() == told);
}

TEST_CASE("an SMI that is pending when L2 moves is taken at the destination") {
    const auto scenario = smm_scenario(IMAGE(vmx_smm), guests::nested_paging);
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 3);
    scenario.act(source, {.port = guests::port::phase, .size = 4, .value = 3});
    const lab::Caught pending{lab::save(source), telling};
    CHECK(pending.saved.phase() == kvm::nested::Phase::vmx_l2_active);
    CHECK(pending.saved.state.events.smi_pending == 1);
    CHECK(lab::told_after(scenario, pending) == told);
}

TEST_SUITE_END();
