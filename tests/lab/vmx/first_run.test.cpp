// SPDX-License-Identifier: MIT
//
// The verdict of the first KVM_RUN after a restore with L2 active: only then does KVM map the pages that a
// vmcs12 refers to. KVM_SET_NESTED_STATE takes them all, whether there is memory behind them or not.
#include "scenarios.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using kvm::vcpu::FirstRun;
using lab::must;
using lab::Vm;
namespace field = lab::vmx::field;

constexpr std::uint64_t without_memory = std::uint64_t{1} << 30;

machine::Exit progress(std::uint32_t round) {
    return machine::PortOut{guests::port::progress, 4, round};
}

kvm::vcpu::VcpuState edited(const kvm::vcpu::VcpuState& good,
                            std::initializer_list<std::pair<lab::vmx::Field, std::uint64_t>> values) {
    lab::Bytes bytes{good.nested.bytes().begin(), good.nested.bytes().end()};
    for (const auto& [where, value] : values)
        lab::vmx::store(bytes, where, value);
    auto state = good;
    state.nested = must(kvm::nested::NestedStateBuffer::parse(bytes));
    return state;
}

/// L1 has L2's accesses to one page treated as accesses to the APIC, and that page is not there.
kvm::vcpu::VcpuState with_apic_page_without_memory(const kvm::vcpu::VcpuState& good) {
    const auto controls = lab::vmx::load(good.nested.bytes(), field::secondary_controls);
    return edited(good, {{field::secondary_controls, controls | lab::vmx::secondary::apic_accesses},
                         {field::apic_access_addr, without_memory}});
}

kvm::vcpu::VcpuState with_msr_bitmap_without_memory(const kvm::vcpu::VcpuState& good) {
    return edited(good, {{field::msr_bitmap, without_memory}});
}

/// L2 has 32-bit PAE paging, without EPT, its page-directory pointers lie where there is no memory, and
/// SREGS2 does not say what they are.
kvm::vcpu::VcpuState with_pdptrs_without_memory(const kvm::vcpu::VcpuState& good) {
    constexpr std::uint64_t efer_lme_lma = 0x500;
    const auto entry = lab::vmx::load(good.nested.bytes(), field::entry_controls);
    auto state = edited(good, {{field::entry_controls, entry & ~std::uint64_t{lab::vmx::entry::ia32e_guest}},
                               {field::guest_ia32_efer, 0},
                               {field::guest_cr3, without_memory}});
    state.sregs.efer &= ~efer_lme_lma;
    state.sregs.cs.l = 0;
    state.sregs.cs.db = 1;
    state.sregs.cr3 = without_memory;
    state.sregs.flags = 0;
    return state;
}

void put(const Vm& vm, const lab::Saved& saved, const kvm::vcpu::VcpuState& state) {
    must(vm.whole().abandon());
    lab::put_memory(vm, saved.memory);
    must(vm.whole().restore(state));
}

} // namespace

TEST_CASE("the first run of a good state of VMX says that it ran, and the exit is the guest's") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto vm = lab::bare_vm();
        lab::restore(vm, saved);
        CHECK(must(vm.whole().first_run()) == FirstRun::ran);
        CHECK(vm.machine.last_exit() == progress(4));
        lab::check_goes_on(vm, 5);
    }
}

TEST_CASE("the first run tells of an APIC-access page without memory behind it, and a good state goes on "
          "after it") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto vm = lab::bare_vm();
        for (int attempt = 0; attempt < 2; ++attempt) { // into a fresh vCPU, and into one that has failed
            put(vm, saved, with_apic_page_without_memory(saved.state));
            CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);
            CHECK(vm.machine.last_exit() == machine::Exit{machine::InternalError{1, 0}});
        }
        lab::restore(vm, saved);
        CHECK(must(vm.whole().first_run()) == FirstRun::ran);
        CHECK(vm.machine.last_exit() == progress(4));
        lab::check_goes_on(vm, 5);
    }
}

TEST_CASE(
    "the first run tells of page-directory pointers of VMX without memory, which kernels say in three ways") {
    const auto saved = lab::save(lab::migrate_guest_at(3, 0));
    const auto bad = with_pdptrs_without_memory(saved.state);

    // Into a vCPU whose last exit was an OUT, so that it shows if the exit reason is left as it is.
    const auto vm = lab::migrate_guest_at(5, 0);
    put(vm, saved, bad);
    const auto first = must(vm.machine.run());
    std::println("note: page-directory pointers without memory: KVM_RUN {}",
                 first == progress(5) ? "leaves the exit reason of the last run"
                                      : "says \"" + machine::describe(first) + "\"");

    for (int attempt = 0; attempt < 2; ++attempt) {
        put(vm, saved, bad);
        CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);
    }
    lab::restore(vm, saved);
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit() == progress(4));
    lab::check_goes_on(vm, 5);
}

TEST_CASE("nothing tells of an MSR bitmap of VMX without memory: KVM lets every access of L2 exit instead") {
    const auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    const auto vm = lab::bare_vm();
    put(vm, saved, with_msr_bitmap_without_memory(saved.state));
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit() == progress(4));
    // At its first RDMSR L2 exits to L1, which does not expect it.
    CHECK(lab::what_is_wrong(lab::follow(vm.machine), 5, lab::migrate_rounds)
          == "L2 exits to L1 with code 0x1f");
}

TEST_SUITE_END();
