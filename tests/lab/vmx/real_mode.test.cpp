// SPDX-License-Identifier: MIT
//
// An L2 that is not in 64-bit mode.
#include "scenarios.hpp"

TEST_SUITE_BEGIN("vmx");

TEST_CASE("an L2 in real mode moves under a 64-bit L1") {
    const lab::Scenario scenario{.image = IMAGE(vmx_real_mode),
                                 .parameters = {.flags = guests::nested_paging}};
    constexpr const char* told = "0x10:0x1 0x27:0x800 0x27:0x12c0 0x23:0x12 HLT";
    const auto machine = lab::must(machine::Machine::create());
    const auto allowed = lab::vmx::get_msr(machine, lab::vmx::msr::secondary).value_or(0) >> 32;
    if ((allowed & lab::vmx::secondary::unrestricted_guest) == 0) {
        lab::not_offered("IA32_VMX_PROCBASED_CTLS2 does not allow unrestricted guests");
        return;
    }
    const auto journey = lab::check_survives(scenario, told);
    const auto& l2 = journey.stop(guests::port::phase, 1).saved.state;
    constexpr std::uint64_t protection_enabled = 1;
    CHECK(l2.nested.phase() == kvm::nested::Phase::vmx_l2_active);
    CHECK((l2.sregs.cr0 & protection_enabled) == 0);
    CHECK(lab::vmx::load(l2.nested.bytes(), lab::vmx::field::host_ia32_efer) == 0x500);
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1) != told);
}

TEST_SUITE_END();
