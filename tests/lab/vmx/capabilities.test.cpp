// SPDX-License-Identifier: MIT
//
// IA32_FEATURE_CONTROL and the VMX capability MSRs, which user space may narrow before the first run: L1
// reads them.
#include "scenarios.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::must;

/// The VM-exit controls without "save VMX-preemption timer value", which no guest here uses.
constexpr std::uint64_t save_preemption_timer_allowed = std::uint64_t{1} << (32 + 22);

lab::Vm narrowed() {
    auto vm = lab::started(guests::migrate(guests::Vendor::vmx),
                           {.flags = guests::nested_paging, .rounds = lab::migrate_rounds});
    const auto exit = lab::vmx::get_msr(vm.machine, lab::vmx::msr::exit);
    if (!exit || (*exit & save_preemption_timer_allowed) == 0)
        lab::give_up("IA32_VMX_TRUE_EXIT_CTLS has nothing to narrow");
    if (!lab::vmx::set_msr(vm.machine, lab::vmx::msr::exit, *exit & ~save_preemption_timer_allowed))
        lab::give_up("IA32_VMX_TRUE_EXIT_CTLS cannot be narrowed");
    return vm;
}

} // namespace

TEST_CASE(
    "narrowed VMX capabilities and IA32_FEATURE_CONTROL are at the destination what L1 has read before") {
    const auto source = narrowed();
    must(source.machine.run());
    const auto saved = lab::save(source);
    const auto vm = lab::bare_vm();
    lab::restore(vm, saved);
    for (std::uint32_t index = lab::vmx::msr::basic; index <= lab::vmx::msr::vm_functions; ++index) {
        CAPTURE(index);
        CHECK(lab::vmx::get_msr(vm.machine, index) == lab::vmx::get_msr(source.machine, index));
    }
    CHECK((*lab::vmx::get_msr(vm.machine, lab::vmx::msr::exit) & save_preemption_timer_allowed) == 0);
    CHECK(lab::vmx::get_msr(vm.machine, lab::vmx::msr::feature_control) == 5);
    lab::check_goes_on(vm, 2);
}

TEST_CASE("without the feature MSRs L1 finds capabilities that it did not have before") {
    const auto source = narrowed();
    must(source.machine.run());
    const auto saved = lab::save(source);
    const auto vm = lab::bare_vm();
    lab::put_memory(vm, saved.memory);
    must(lab::restore_without(kvm::vcpu::Step::feature_msrs, vm, saved.state));
    CHECK(lab::what_is_wrong(lab::follow(vm.machine), 2, lab::migrate_rounds)
          == "l2_patch_level l1_capabilities");
}

TEST_SUITE_END();
