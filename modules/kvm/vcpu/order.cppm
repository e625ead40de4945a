// SPDX-License-Identifier: MIT
//
// The order in which a vCPU is restored, as data: WholeVcpu::restore() walks it, and a VMM that restores by
// itself can hold its own order against it at compile time.
module;
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.vcpu:order;
import kvm.nested;

export namespace kvm::vcpu {

/// One group of what makes a vCPU, in the order of restore_order.
enum class Step : std::uint8_t {
    capabilities,       ///< KVM_ENABLE_CAP on the VM: prepare()
    pending_io,         ///< KVM_RUN with immediate_exit
    clear_nested_state, ///< KVM_SET_NESTED_STATE with nothing in it
    memory,             ///< memory slots and their contents: the caller's
    cpuid,              ///< KVM_SET_CPUID2
    vcpu_capabilities,  ///< KVM_ENABLE_CAP on the vCPU
    feature_msrs,       ///< KVM_SET_MSRS with the MSRs of KVM_GET_MSR_FEATURE_INDEX_LIST
    sregs,              ///< KVM_SET_SREGS2
    lapic,              ///< KVM_SET_LAPIC
    tsc,                ///< KVM_SET_TSC_KHZ
    msrs,               ///< KVM_SET_MSRS with the other MSRs
    xcrs,               ///< KVM_SET_XCRS
    xsave,              ///< KVM_SET_XSAVE
    debugregs,          ///< KVM_SET_DEBUGREGS
    regs,               ///< KVM_SET_REGS
    events,             ///< KVM_SET_VCPU_EVENTS
    mp_state,           ///< KVM_SET_MP_STATE
    nested_state,       ///< KVM_SET_NESTED_STATE
    first_run,          ///< KVM_RUN: WholeVcpu::first_run()
};

struct OrderedStep {
    Step step;
    std::string_view name;
    std::string_view reason; ///< why here
};

/// The order that works on every kernel from Linux 6.1 to 7.3.
inline constexpr std::array restore_order = std::to_array<OrderedStep>({
    {Step::capabilities, "capabilities",
     "exception payload, triple fault event and quirks cannot be changed once events have been restored, and "
     "KVM cannot be asked for them later"},
    {Step::pending_io, "pending_io",
     "a vCPU that is not fresh may still owe the end of an instruction, which writes registers and memory"},
    {Step::clear_nested_state, "clear_nested_state",
     "in VMX operation feature MSRs are refused, with L2 active CPUID is (7.x) or goes to L2; and leaving L2 "
     "can write a shadow VMCS back to memory"},
    {Step::memory, "memory",
     "VMX reads the link pointer's VMCS when the nested state is set, and the first run reads the rest"},
    {Step::cpuid, "cpuid",
     "decides which MSRs and control bits there are, the width of addresses, and whether the vCPU may nest"},
    {Step::vcpu_capabilities, "vcpu_capabilities",
     "the enlightened VMCS changes the VMX capabilities, and without it an enlightened nested state is "
     "refused; without the SynIC its MSRs are"},
    {Step::feature_msrs, "feature_msrs",
     "the nested state is checked against the VMX capabilities, and they are frozen by the first run"},
    {Step::sregs, "sregs",
     "EFER.SVME must be set before an SVM state; a later write drops the state or L2's CR0 and CR4 shadows; "
     "the APIC base decides how the APIC page is read"},
    {Step::lapic, "lapic",
     "needs the APIC base, and the TSC deadline MSR is dropped unless the timer is in that mode"},
    {Step::tsc, "tsc", "the TSC is scaled by the frequency that is set when it is written"},
    {Step::msrs, "msrs",
     "the VMX-preemption timer is set against L1's TSC, a pending VM entry takes PAT and DEBUGCTL from here; "
     "IA32_FEATURE_CONTROL = 0 afterwards would drop the nested state"},
    {Step::xcrs, "xcrs", "needs CR4.OSXSAVE's CPUID; tells which parts of the XSAVE area are in use"},
    {Step::xsave, "xsave", "needs CPUID, which decides its size and parts"},
    {Step::debugregs, "debugregs", "DR7 is taken into the nested state when that is set"},
    {Step::regs, "regs", "KVM_SET_REGS drops a pending exception, so it comes before the events"},
    {Step::events, "events",
     "the nested state is checked against SMM, and a later change of SMM drops it silently"},
    {Step::mp_state, "mp_state", "is refused or accepted by what the events say of INIT and SMI"},
    {Step::nested_state, "nested_state",
     "is checked against everything above and takes L2's registers from it: last"},
    {Step::first_run, "first_run",
     "only now KVM maps the pages that the nested state refers to, and can fail without an errno"},
});

constexpr std::string_view name(Step step) noexcept {
    return restore_order[static_cast<std::size_t>(step)].name;
}

/// Whether these steps come in restore_order. Steps may be left out, not swapped and not repeated.
///
///     static_assert(kvm::vcpu::keeps_restore_order(std::array{kvm::vcpu::Step::cpuid,
///     kvm::vcpu::Step::nested_state}));
constexpr bool keeps_restore_order(std::span<const Step> steps) noexcept {
    for (std::size_t i = 1; i < steps.size(); ++i)
        if (steps[i] <= steps[i - 1])
            return false;
    return true;
}

/// A set of steps.
class StepSet {
  public:
    constexpr StepSet() noexcept = default;
    template <std::same_as<Step>... S>
    constexpr StepSet(S... steps) noexcept : bits_{(bit(steps) | ... | 0u)} {}

    constexpr bool contains(Step step) const noexcept { return (bits_ & bit(step)) != 0; }
    constexpr bool operator==(const StepSet&) const = default;

  private:
    static constexpr std::uint32_t bit(Step step) noexcept { return 1u << static_cast<unsigned>(step); }
    std::uint32_t bits_ = 0;
};

} // namespace kvm::vcpu

namespace kvm::vcpu::detail {

consteval bool restore_order_is_complete() {
    for (std::size_t i = 0; i < restore_order.size(); ++i)
        if (restore_order[i].step != static_cast<Step>(i) || restore_order[i].reason.empty())
            return false;
    return restore_order.back().step == Step::first_run;
}
static_assert(restore_order_is_complete());

} // namespace kvm::vcpu::detail
