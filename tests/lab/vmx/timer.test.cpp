// SPDX-License-Identifier: MIT
//
// The VMX-preemption timer that L1 has armed. KVM keeps its deadline beside the vmcs12, in units of L1's TSC.
#include "scenarios.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::must;

constexpr std::uint64_t half_of_the_time = std::uint64_t{1} << 24; // vmx_timer.S: HALF_BIT
constexpr unsigned deadline_shift = 5; // the rate that KVM gives L1 in IA32_VMX_MISC

std::uint64_t tsc_of(const kvm::vcpu::VcpuState& state) {
    const auto tsc = std::ranges::find(state.msrs, kvm::vcpu::uapi::msr::tsc, &kvm::vcpu::uapi::Msr::index);
    if (tsc == state.msrs.end())
        lab::give_up("no TSC was saved");
    return tsc->value;
}

/// Moves on to the next write, which must be this phase.
void run_to_phase(const lab::Vm& vm, lab::Telling& telling, std::uint32_t phase) {
    const auto out = lab::next_write(vm, telling);
    if (!out || out->port != guests::port::phase || out->value != phase)
        lab::give_up("on the way to phase " + std::to_string(phase) + ": " + telling.line());
}

constexpr const char* in_time = "0x10:0x1 0x10:0x2 0x23:0x34 0x27:0x2 HLT";

} // namespace

// All virtual machines live to the end of the test: to destroy one takes KVM longer than the timer runs.
TEST_CASE(
    "the preemption timer's deadline travels, and it fires neither early nor late by the guest's own clock") {
    const lab::Scenario scenario{.image = IMAGE(vmx_timer), .parameters = {.flags = guests::nested_paging}};
    CHECK(lab::told_undisturbed(scenario) == in_time);

    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
    const auto armed = lab::save(source);
    const auto second = lab::moved(scenario, armed);
    run_to_phase(second, telling, 2);
    const auto half_way = lab::save(second);
    const auto third = lab::moved(scenario, half_way);
    lab::follow(scenario, third, telling);
    CHECK(telling.line() == in_time);

    const auto deadline = lab::vmx::l2_of(armed.state.nested).preemption_timer_deadline();
    REQUIRE(deadline);
    CHECK(lab::vmx::l2_of(half_way.state.nested).preemption_timer_deadline() == deadline);
    const auto left = [&](const lab::Saved& saved) {
        return (*deadline << deadline_shift) - tsc_of(saved.state); // wraps around if the time is over
    };
    CHECK(left(armed) <= 2 * half_of_the_time);
    CHECK(left(half_way) <= half_of_the_time);

    // When L1 runs again there is no deadline.
    const auto l1_again = must(third.whole().save());
    CHECK(lab::load<std::uint32_t>(l1_again.nested.bytes(), lab::vmx::vmx_flags_at) == 0);
}

TEST_CASE("a preemption timer that moves without its deadline starts anew and fires late, or never") {
    const lab::Scenario scenario{.image = IMAGE(vmx_timer), .parameters = {.flags = guests::nested_paging}};
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 2);
    const auto without_deadline = lab::vmx::in_nested([](std::span<std::byte> state) {
        lab::store<std::uint32_t>(state, lab::vmx::vmx_flags_at, 0);
        lab::store<std::uint64_t>(state, lab::vmx::deadline_at, 0);
    });
    CHECK(lab::vmx::told_after_edit(scenario, lab::save(source), telling, without_deadline)
          == "0x10:0x1 0x10:0x2 0x23:0x34 0x27:0x3 HLT");
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 2)
          == "0x10:0x1 0x10:0x2 KVM exit reason 6"); // without EPT there is nothing where L2 looks
}

// Without the library's help KVM lets L2 wait for hours: it looks at the difference without its sign.
TEST_CASE("a preemption timer that ran out while the vCPU stood fires when L2 goes on") {
    const lab::Scenario scenario{.image = IMAGE(vmx_timer), .parameters = {.flags = guests::nested_paging}};
    for (const bool helped : {true, false}) {
        CAPTURE(helped);
        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
        const auto vm_state = must(source.whole_vm().save(source.whole().descriptor()));
        const auto saved = lab::save(source);

        const auto vm = lab::bare_vm();
        lab::put_memory(vm, saved.memory);
        const auto whole = vm.whole();
        auto shift =
            must(vm.whole_vm().restore_clock(vm_state, kvm::vcpu::Downtime::hidden, whole.descriptor()));
        shift.cycles += 4 * half_of_the_time; // as after a downtime that shows
        CHECK(must(whole.restore(saved.state, shift)).preemption_timer_was_over);
        if (!helped)
            must(whole.nested().set_nested_state(saved.state.nested));
        lab::follow(scenario, vm, telling);
        const auto told = telling.line();
        CAPTURE(told);
        CHECK(told.contains("0x23:0x34") == helped);  // the timer
        CHECK(told.contains("0x23:0x12") == !helped); // L2 gave up waiting for it
    }
}

TEST_CASE("JSON carries the deadline of a preemption timer, captured") {
    lab::capture_at("l2-preemption-timer",
                    {.image = IMAGE(vmx_timer), .parameters = {.flags = guests::nested_paging}},
                    guests::port::phase, 1);
}

TEST_SUITE_END();
