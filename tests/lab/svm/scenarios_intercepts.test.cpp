// SPDX-License-Identifier: MIT
//
// L2's exits to L1: instructions, MSRs, page faults, and a triple fault that is pending when the vCPU is
// saved.
#include "support/svm.hpp"

#include "support/scenario.hpp"

#include "support/svm_control.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

namespace control = lab::svm::control;
using lab::must;

constexpr std::uint64_t hlt_intercept = std::uint64_t{1} << 24;

/// What svm_intercepts tells (its source says what it means).
std::string intercepts_told(std::uint64_t flags) {
    return std::format("0x10:0x1 0x23:0x78 0x23:0x72 0x27:0x11c0c101 0x23:0x7c 0x27:0x11c05701 0x23:0x7c "
                       "0x23:{:#x} 0x27:0x11c0da7a 0x10:0x2 0x23:0x7f HLT",
                       flags == guests::nested_paging ? 0x400 : 0x4e);
}

kvm_vcpu_events events_of(const lab::Vm& vm) {
    kvm_vcpu_events events = {};
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS");
    return events;
}

} // namespace

TEST_CASE("what L1 intercepts comes to L1 wherever L2 has moved, and L1 repairs L2's page faults") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_intercepts), .parameters = {.flags = flags}};
        const auto journey = lab::check_survives(scenario, intercepts_told(flags));
        const auto& in_l2 = journey.at(guests::port::phase, 1);
        CHECK(in_l2.phase() == kvm::nested::Phase::svm_l2_active);
        const auto intercepts = lab::svm::control_field<std::uint32_t>(in_l2, control::intercepts_word3);
        CHECK((intercepts & hlt_intercept) != 0);

        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1)
              == "0x10:0x1 HLT");
        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
        lab::Caught forgotten{lab::save(source), telling};
        lab::svm::set_control_field(forgotten.saved, control::intercepts_word3,
                                    static_cast<std::uint32_t>(intercepts & ~hlt_intercept));
        CHECK(lab::told_after(scenario, forgotten) == "0x10:0x1 HLT");
    }
}

// On SVM a triple fault in L2 is an exit of the processor, which KVM hands to L1 at once (the last exit of
// the guest above): it is pending only where KVM itself has to raise the exception that makes a double fault
// a triple fault, or where user space says so.
TEST_CASE("a triple fault that user space makes pending in L2 moves with it, and comes to L1") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_intercepts), .parameters = {.flags = flags}};
        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
        lab::complete_io(source.machine);
        auto events = events_of(source);
        CHECK((events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0);
        events.triple_fault.pending = 1;
        lab::must_ioctl(source.machine.vcpu_fd(), KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
        lab::Caught pending{lab::save(source), telling};
        CHECK(pending.saved.phase() == kvm::nested::Phase::svm_l2_active);
        CHECK(pending.saved.state.events.triple_fault_pending == 1);
        CHECK(lab::told_after(scenario, pending) == "0x10:0x1 0x23:0x7f HLT");

        pending.saved.state.events.triple_fault_pending = 0;
        CHECK(lab::told_after(scenario, pending) == intercepts_told(flags));
    }
}

TEST_SUITE_END();
