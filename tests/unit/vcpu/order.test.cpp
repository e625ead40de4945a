// SPDX-License-Identifier: MIT
//
// The order of a restore. Compiling is most of the test.
#include <algorithm>
#include <array>
#include <string_view>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::vcpu::keeps_restore_order;
using kvm::vcpu::restore_order;
using kvm::vcpu::Step;

constexpr bool before(Step a, Step b) {
    const auto at = [](Step step) {
        return std::ranges::find(restore_order, step, &kvm::vcpu::OrderedStep::step);
    };
    return at(a) < at(b);
}

// What needs what, pair by pair.
static_assert(before(Step::capabilities, Step::events));
static_assert(before(Step::pending_io, Step::memory) && before(Step::clear_nested_state, Step::memory));
static_assert(before(Step::clear_nested_state, Step::cpuid));
static_assert(before(Step::clear_nested_state, Step::feature_msrs));
static_assert(before(Step::memory, Step::nested_state));
static_assert(before(Step::cpuid, Step::vcpu_capabilities) && before(Step::cpuid, Step::feature_msrs));
static_assert(before(Step::vcpu_capabilities, Step::nested_state));
static_assert(before(Step::feature_msrs, Step::sregs) && before(Step::feature_msrs, Step::msrs));
static_assert(before(Step::sregs, Step::lapic) && before(Step::lapic, Step::msrs));
static_assert(before(Step::memory, Step::clock) && before(Step::clock, Step::tsc_offset));
static_assert(before(Step::tsc, Step::tsc_offset)); // changing the frequency moves the TSC
static_assert(before(Step::tsc_offset, Step::lapic) && before(Step::tsc_offset, Step::msrs)); // arm timers
static_assert(before(Step::lapic, Step::irqchips) && before(Step::irqchips, Step::pit));
static_assert(before(Step::pit, Step::first_run));
static_assert(before(Step::regs, Step::events)); // KVM_SET_REGS drops a pending exception
static_assert(before(Step::events, Step::mp_state));
static_assert(before(Step::nested_state, Step::first_run));
static_assert(std::ranges::all_of(restore_order, [](const kvm::vcpu::OrderedStep& ordered) {
    return ordered.step >= Step::nested_state || before(ordered.step, Step::nested_state);
}));

static_assert(keeps_restore_order(std::array{Step::cpuid, Step::sregs, Step::nested_state}));
static_assert(keeps_restore_order({}));
static_assert(!keeps_restore_order(std::array{Step::nested_state, Step::sregs}));
static_assert(!keeps_restore_order(std::array{Step::cpuid, Step::sregs, Step::cpuid}));
static_assert(!keeps_restore_order(std::array{Step::cpuid, Step::cpuid}));

TEST_CASE("every step has a name of its own and a reason") {
    for (const auto& ordered : restore_order) {
        CHECK(name(ordered.step) == ordered.name);
        CHECK_FALSE(ordered.reason.empty());
        CHECK(std::ranges::count(restore_order, ordered.name, &kvm::vcpu::OrderedStep::name) == 1);
    }
}

} // namespace
