// SPDX-License-Identifier: MIT
//
// L2's memory by L1's EPT, with a VPID.
#include "scenarios.hpp"

TEST_SUITE_BEGIN("vmx");

TEST_CASE(
    "with a VPID, L2 sees the page that L1 gives it by EPT and INVEPT, wherever both have moved in between") {
    const lab::Scenario scenario{.image = IMAGE(vmx_ept), .parameters = {.flags = guests::nested_paging}};
    const auto journey =
        lab::check_survives(scenario, "0x27:0x11a0 0x23:0x12 0x10:0x1 0x27:0x11b0 0x23:0x12 HLT");

    const auto& state = journey.at(lab::vmx::value_port, 0x11a0);
    CHECK(state.phase() == kvm::nested::Phase::vmx_l2_active);
    CHECK(lab::vmx::load(state.bytes(), lab::vmx::field::virtual_processor_id) == 1);
    const auto controls = lab::vmx::load(state.bytes(), lab::vmx::field::secondary_controls);
    CHECK((controls & lab::vmx::secondary::vpid) != 0);
    CHECK((controls & lab::vmx::secondary::ept) != 0);

    // Without EPT there is nothing at that address: an access to a device.
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, lab::vmx::value_port, 0x11a0)
          == "0x27:0x11a0 KVM exit reason 6");
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1)
          == "0x27:0x11a0 0x23:0x12 0x10:0x1 shutdown (triple fault)");
}

TEST_SUITE_END();
