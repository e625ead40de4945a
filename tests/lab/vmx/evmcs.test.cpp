// SPDX-License-Identifier: MIT
//
// Hyper-V's enlightened VMCS: L2's controls lie in a page of L1's memory, whose address KVM does not put into
// the nested state. A capability of the vCPU, to be enabled before it is restored.
#include "scenarios.hpp"

#include "support/capture.hpp"
#include "support/cpuid.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::must;
using lab::Vm;

lab::Scenario enlightened_scenario(guests::Image image) {
    return {.image = image, .requirements = {.enlightened_vmcs = true}, .arrange = [](const Vm& vm) {
                must(vm.whole().enable_capabilities());
                lab::be_hyperv(vm.machine);
            }};
}

bool offered() {
    const auto machine = must(machine::Machine::create());
    if (::ioctl(machine.vm_fd(), KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENLIGHTENED_VMCS) > 0)
        return true;
    lab::not_offered("KVM_CHECK_EXTENSION(KVM_CAP_HYPERV_ENLIGHTENED_VMCS) is 0");
    return false;
}

namespace flag = kvm::nested::uapi::state_flag;

/// Restores, and does not read back. (WholeVcpu::restore() does, and sets what it has spoilt once more.)
Vm set_without_a_look(const lab::Scenario& scenario, const lab::Saved& saved) {
    auto vm = lab::destination(scenario, saved);
    lab::put_memory(vm, saved.memory);
    lab::check_report(must(vm.whole().restore(saved.state)));
    return vm;
}

/// Moves to a new virtual machine at each exit, like lab::migrated_at_every_exit().
lab::Journey moved_without_a_look(const lab::Scenario& scenario) {
    auto vm = lab::start(scenario);
    lab::Telling telling;
    lab::Journey journey;
    while (const auto out = lab::next_write(vm, telling)) {
        auto saved = lab::save(vm);
        vm = set_without_a_look(scenario, saved);
        journey.stops.push_back({*out, std::move(saved)});
    }
    journey.told = telling.line();
    return journey;
}

constexpr const char* told = "0x10:0x1 0x23:0x12 0x10:0x2 0x10:0x3 0x23:0x12 HLT";

} // namespace

TEST_CASE("an L1 with an enlightened VMCS moves with L2 running and outside, and its vmcs12 has no address") {
    if (!offered())
        return;
    const auto scenario = enlightened_scenario(IMAGE(vmx_enlightened));
    CHECK(lab::told_undisturbed(scenario) == told);
    const auto journey = moved_without_a_look(scenario);
    CHECK(journey.told == told);

    const auto& l2 = journey.stop(guests::port::phase, 1).saved.state;
    CHECK(l2.requirements.enlightened_vmcs);
    CHECK(l2.nested.phase() == kvm::nested::Phase::vmx_l2_active);
    CHECK(l2.nested.flags() == (flag::guest_mode | flag::evmcs));
    CHECK(l2.nested.size() == 4224);
    CHECK(lab::load<std::uint64_t>(l2.nested.bytes(), lab::vmx::vmcs12_at) == kvm::nested::uapi::no_address);
    CHECK(lab::vmx::l2_of(l2.nested).enlightened_vmcs());
    CHECK_FALSE(lab::vmx::l2_of(l2.nested).vmcs12_pa().has_value());

    const auto& l1 = journey.at(guests::port::phase, 2);
    CHECK(l1.phase() == kvm::nested::Phase::vmx_current_vmcs);
    CHECK(l1.flags() == flag::evmcs);
    CHECK(l1.size() == 4224);

    lab::capture_at("l2-enlightened-vmcs", scenario, guests::port::phase, 1);
    lab::capture_at("enlightened-vmcs", scenario, guests::port::phase, 2);
}

TEST_CASE(
    "a look at an enlightened state between its SET and the first run spoils it, and another SET heals it") {
    if (!offered())
        return;
    const auto scenario = enlightened_scenario(IMAGE(vmx_enlightened));
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 2);
    const auto saved = lab::save(source);

    // With a current VMCS that is enlightened and not mapped yet, GET takes KVM's own shadow VMCS for L1's
    // and puts that over the vmcs12; the first run writes the result to L1's page. A kernel that has learnt
    // not to is as good.
    const auto looked_at = set_without_a_look(scenario, saved);
    const auto nested = looked_at.whole().nested();
    const auto same = nested.verify_nested_state(saved.state.nested);
    const auto story = [&](const Vm& vm) {
        auto whole = telling;
        lab::follow(scenario, vm, whole);
        return whole.line();
    };
    std::println("note: an enlightened VMCS of L1: KVM_GET_NESTED_STATE before the first run {} it",
                 same ? "does not spoil" : "spoils");
    if (!same)
        CHECK(same.error().code == kvm::nested::Errc::not_equivalent);
    CHECK((story(looked_at) == told) == same.has_value());

    const auto healed = set_without_a_look(scenario, saved);
    static_cast<void>(must(healed.whole().nested().nested_state()));
    must(healed.whole().nested().set_nested_state(saved.state.nested));
    CHECK(story(healed) == told);
}

TEST_CASE("a SET that the kernel refuses does not spoil an enlightened state before its first run") {
    if (!offered())
        return;
    const auto scenario = enlightened_scenario(IMAGE(vmx_enlightened));
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 2);
    const auto saved = lab::save(source);
    const auto vm = set_without_a_look(scenario, saved);

    // No guest has that much memory. Nothing but the vCPU's CPUID says so, and KVM looks before it touches
    // anything: what remains is what the diagnosis of the failure does.
    constexpr std::uint64_t beyond_memory = 1ull << 51;
    lab::Bytes bytes{saved.state.nested.bytes().begin(), saved.state.nested.bytes().end()};
    lab::store<std::uint64_t>(bytes, lab::vmx::vmxon_at, beyond_memory);
    const auto beyond = must(kvm::nested::NestedStateBuffer::parse(bytes));
    const auto refused = vm.whole().nested().set_nested_state(beyond);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == kvm::nested::Errc::refused);
    lab::follow(scenario, vm, telling);
    CHECK(telling.line() == told);
}

TEST_CASE("an enlightened state is refused where the capability is off: by the library, and by the kernel") {
    if (!offered())
        return;
    const auto scenario = enlightened_scenario(IMAGE(vmx_enlightened));
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
    const auto saved = lab::save(source);

    const auto without = lab::bare_vm();
    const auto refused = without.whole().restore(saved.state);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().cause == kvm::vcpu::Errc::not_prepared);
    CHECK(refused.error().detail == kvm::vcpu::capability(KVM_CAP_HYPERV_ENLIGHTENED_VMCS));

    CHECK(lab::told_without(scenario, kvm::vcpu::Step::vcpu_capabilities, guests::port::phase, 1)
          == "0x10:0x1 nested_state is refused");
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1) != told);
}

TEST_SUITE_END();
