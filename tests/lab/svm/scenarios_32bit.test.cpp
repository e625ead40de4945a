// SPDX-License-Identifier: MIT
//
// A 32-bit L1, and an L2 that has no paging at all.
#include "support/svm.hpp"

#include "support/scenario.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

/// 32-bit protected mode with paging: CR4.PSE and one page of 4 MiB, which is all of the guest's memory and
/// more (AMD APM Vol. 2, 4-Mbyte pages).
void start_in_32_bits(const lab::Vm& vm) {
    constexpr std::uint32_t present_writable_user_large = 0x87;
    constexpr std::uint64_t cr0_pe_et_ne_pg = 0x80000031, cr4_pse_osfxsr_osxmmexcpt = 0x610;
    lab::store(vm.machine.memory(), guests::l1_cr3, present_writable_user_large);
    auto sregs = lab::get_sregs(vm.machine);
    sregs.cs.l = 0;
    sregs.cs.db = 1;
    sregs.cr0 = cr0_pe_et_ne_pg;
    sregs.cr4 = cr4_pse_osfxsr_osxmmexcpt;
    sregs.efer = 0;
    lab::set_sregs(vm.machine, sregs);
}

} // namespace

TEST_CASE("a 32-bit L1 and its L2 without paging move, and find their modes unchanged") {
    const lab::Scenario scenario{.image = IMAGE(svm_32bit), .arrange = start_in_32_bits};
    const auto journey = lab::check_survives(scenario, "0x10:0x1 0x10:0x2 0x21:0x7 0x23:0x81 0x21:0x38 HLT");
    const auto& l2 = journey.stop(guests::port::phase, 2).saved.state;
    CHECK(l2.nested.phase() == kvm::nested::Phase::svm_l2_active);
    CHECK(l2.nested.size() == lab::svm::state_size);
    CHECK(l2.sregs.cr0 == 0x11);
    CHECK((l2.sregs.efer & 0x500) == 0);
    // L2's VMMCALL comes to no L1.
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 2)
          == "0x10:0x1 0x10:0x2 0x21:0x7 0x2f:0x0 HLT");
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::sregs, guests::port::phase, 2)
          == "0x10:0x1 0x10:0x2 nested_state is refused");
}

TEST_SUITE_END();
