// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <iterator>
#include <optional>
#include <span>
#include <vector>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

using Result = std::expected<void, Error>;
using Calls = detail::VcpuCalls;

/// Much more often than any instruction exits to user space.
constexpr int completions = 64;

std::unexpected<Error> mismatch(Errc code, Operation operation, std::uint64_t detail) {
    return std::unexpected{Error{.code = code, .operation = operation, .detail = detail}};
}

/// Whether the capabilities are really on. KVM tells by the flags of the events alone.
Result capabilities(const Calls& calls, const Requirements& required) {
    uapi::VcpuEvents events{};
    if (const auto got = calls.call(Operation::events, uapi::request::get_vcpu_events, &events); !got)
        return got;
    if (required.exception_payload && (events.flags & uapi::event_flag::payload) == 0)
        return mismatch(Errc::not_prepared, Operation::events, uapi::cap::exception_payload);
    if (required.triple_fault_event && (events.flags & uapi::event_flag::triple_fault) == 0)
        return mismatch(Errc::not_prepared, Operation::events, uapi::cap::triple_fault_event);
    return {};
}

/// What the last instruction still has to do, up to its end. What it does is overwritten.
Result pending_io(const Calls& calls) {
    for (int i = 1; i < completions; ++i)
        if (const auto done = calls.complete_io(); done || done.error().code != Errc::exit_pending)
            return done;
    return calls.complete_io();
}

Result cpuid(const Calls& calls, const VcpuState& state) {
    detail::CpuidBlock block;
    block.count = static_cast<std::uint32_t>(state.cpuid.size());
    block.padding = 0;
    std::ranges::copy(state.cpuid, block.entries.begin());
    return calls.call(Operation::cpuid, uapi::request::set_cpuid2, &block);
}

Result hyperv_synic(const Calls& calls, std::uint32_t capability) {
    uapi::EnableCap enable{};
    enable.capability = capability;
    const auto set = calls.ioctl(calls.vcpu.number, uapi::request::enable_cap, &enable);
    if (set.value == 0)
        return {};
    auto error = calls.vcpu_failed(Operation::enlightened_vmcs, set); // the same ioctl
    error.operation = Operation::prepare;
    error.detail = capability;
    return std::unexpected(error);
}

Result enlightened_vmcs(const Calls& calls) {
    std::uint16_t version = 0; // KVM writes it; nobody needs it
    uapi::EnableCap enable{};
    enable.capability = uapi::cap::enlightened_vmcs;
    enable.arguments[0] = reinterpret_cast<std::uintptr_t>(&version);
    return calls.call(Operation::enlightened_vmcs, uapi::request::enable_cap, &enable);
}

Result vcpu_capabilities(const Calls& calls, const Requirements& required) {
    if (required.enlightened_vmcs)
        if (const auto done = enlightened_vmcs(calls); !done)
            return done;
    const auto synic = synic_capability(required.hyperv_synic);
    return synic == 0 ? Result{} : hyperv_synic(calls, synic);
}

bool is_derived(const uapi::Msr& msr) {
    return std::ranges::contains(uapi::msr::derived, msr.index);
}

/// The same MSRs as the vCPU has them now.
std::expected<std::vector<RefusedMsr>, Error> compare(const Calls& calls, std::span<const uapi::Msr> wanted) {
    std::vector<RefusedMsr> result;
    for (const auto& msr : wanted) {
        const auto present = calls.read_msrs({&msr.index, 1});
        if (!present)
            return std::unexpected(present.error());
        result.push_back(
            {.index = msr.index,
             .wanted = msr.value,
             .present = present->empty() ? std::nullopt : std::optional{present->front().value}});
    }
    return result;
}

Result msrs(const Calls& calls, const std::vector<uapi::Msr>& all, RestoreReport& report) {
    std::vector<uapi::Msr> writable, derived, refused;
    for (const auto& msr : all)
        (is_derived(msr) ? derived : writable).push_back(msr);

    const auto written = calls.write_msrs(writable);
    if (!written)
        return std::unexpected(written.error());
    for (const auto position : *written)
        refused.push_back(writable[position]);

    auto refusals = compare(calls, refused);
    if (!refusals)
        return std::unexpected(refusals.error());
    std::ranges::copy(*refusals, std::back_inserter(report.refused_msrs));

    auto derivations = compare(calls, derived);
    if (!derivations)
        return std::unexpected(derivations.error());
    std::ranges::copy_if(*derivations, std::back_inserter(report.derived_msrs),
                         [](const RefusedMsr& msr) { return !msr.harmless(); });
    return {};
}

/// A host without TSC scaling takes no frequency but its own, give or take; that is worth a word, not an end.
/// It can refuse even the one that its new vCPUs have: Linux measures its TSC again after KVM was loaded
/// (seen on 6.1). Whether it is that one only the VM can tell: a refused vCPU says that it has what it was
/// asked for.
Result tsc_khz(const Calls& calls, std::uint32_t khz, RestoreReport& report) {
    if (khz == 0)
        return {};
    const auto set = calls.ioctl.with_number(calls.vcpu.number, uapi::request::set_tsc_khz, khz);
    if (set.value == 0)
        return {};
    const auto error = calls.vcpu_failed(Operation::tsc, set);
    if (error.code != Errc::refused)
        return std::unexpected(error);
    const auto of_new_vcpus = calls.ioctl(calls.vm.number, uapi::request::get_tsc_khz); // since Linux 5.18
    report.tsc_khz_refused = of_new_vcpus.value < 0 || static_cast<std::uint32_t>(of_new_vcpus.value) != khz;
    return {};
}

/// KVM reads as much as this vCPU's area takes, whatever the state has.
Result xsave(const Calls& calls, const VcpuState& state) {
    const auto size = calls.xsave_size();
    if (!size)
        return std::unexpected(size.error());
    auto area = state.xsave;
    area.resize(std::max(area.size(), *size));
    return calls.call(Operation::xsave, uapi::request::set_xsave, area.data());
}

Result lapic(const Calls& calls, const VcpuState& state) {
    if (state.lapic) {
        auto registers = *state.lapic;
        return calls.call(Operation::lapic, uapi::request::set_lapic, &registers);
    }
    uapi::Lapic unwanted;
    const auto got = calls.ioctl(calls.vcpu.number, uapi::request::get_lapic, &unwanted);
    if (got.value == 0) // it would stay as it is, which is nobody's state
        return mismatch(Errc::no_vcpu_group, Operation::lapic,
                        static_cast<std::uint64_t>(SectionType::lapic));
    const auto error = calls.vcpu_failed(Operation::lapic, got);
    if (error.code == Errc::refused)
        return {};
    return std::unexpected(error);
}

/// Whether the state has a vmcs12 and L2 does not run.
bool has_vmcs12_at_rest(Phase phase) {
    return phase == Phase::vmx_current_vmcs || phase == Phase::vmx_smm_current_vmcs
           || phase == Phase::vmx_smm_interrupted_l2;
}

/// Once more where KVM spoils what it has just taken. On VMX a vCPU that was in L2 owes that L2's segments to
/// its vmcs12: KVM copies them out of the hardware's VMCS only when somebody asks. Taking the vCPU out of
/// nested operation does not settle the debt, so it falls on the vmcs12 that comes next, whose segments the
/// next GET, VMREAD or VMCLEAR overwrites with those of a VMCS that never ran: zeroes (seen on
/// Linux 6.1, 6.12 and 7.3). Reading back settles it, and what is set then stays.
Result nested_state(const Vcpu<Any, IoctlRef>& vcpu, const NestedStateBuffer& state) {
    const auto set = vcpu.set_nested_state(state);
    if (!set || !has_vmcs12_at_rest(state.phase()))
        return set;
    const auto verified = vcpu.verify_nested_state(state);
    if (verified || verified.error().code != Errc::not_equivalent)
        return verified;
    return vcpu.set_nested_state(state);
}

template <class T>
Result set(const Calls& calls, Operation operation, unsigned long request, const T& value) {
    T copy = value; // an ioctl takes no pointer to const
    return calls.call(operation, request, &copy);
}

} // namespace

bool RestoreReport::complete() const noexcept {
    return std::ranges::all_of(refused_msrs, &RefusedMsr::harmless)
           && std::ranges::all_of(derived_msrs, &RefusedMsr::harmless) && !tsc_khz_refused;
}

Result WholeVcpu::check(const VcpuState& state) const {
    if (state.vendor != host_.vendor())
        return mismatch(Errc::wrong_vendor, Operation::set_nested_state, 0);
    if (state.nested.is_empty())
        return mismatch(Errc::no_state, Operation::set_nested_state, 0);
    if (state.nested.vendor() != host_.vendor())
        return mismatch(Errc::wrong_vendor, Operation::set_nested_state, 2);
    if (const auto group = malformed_group(state))
        return mismatch(Errc::no_vcpu_group, Operation::parse, static_cast<std::uint64_t>(*group));
    return compatible(requirements_, state.requirements);
}

Result WholeVcpu::put(Step step, const VcpuState& state, RestoreReport& report) const {
    namespace request = uapi::request;
    switch (step) {
    case Step::capabilities:
        return capabilities(calls_, state.requirements);
    case Step::pending_io:
        return pending_io(calls_);
    case Step::clear_nested_state:
        return nested().clear_nested_state();
    case Step::memory: // the caller's
        return {};
    case Step::cpuid:
        return cpuid(calls_, state);
    case Step::vcpu_capabilities:
        return vcpu_capabilities(calls_, state.requirements);
    case Step::feature_msrs:
        return msrs(calls_, state.feature_msrs, report);
    case Step::sregs:
        return set(calls_, Operation::sregs, request::set_sregs2, state.sregs);
    case Step::lapic:
        return lapic(calls_, state);
    case Step::tsc:
        return tsc_khz(calls_, state.tsc_khz, report);
    case Step::msrs:
        return msrs(calls_, state.msrs, report);
    case Step::xcrs: // KVM refuses to set none
        return state.xcrs.count == 0 ? Result{} : set(calls_, Operation::xcrs, request::set_xcrs, state.xcrs);
    case Step::xsave:
        return xsave(calls_, state);
    case Step::debugregs:
        return set(calls_, Operation::debugregs, request::set_debugregs, state.debugregs);
    case Step::regs:
        return set(calls_, Operation::regs, request::set_regs, state.regs);
    case Step::events:
        return set(calls_, Operation::events, request::set_vcpu_events, state.events);
    case Step::mp_state:
        return set(calls_, Operation::mp_state, request::set_mp_state, state.mp_state);
    case Step::nested_state:
        return nested_state(nested(), state.nested);
    case Step::first_run: // the caller's: first_run()
        return {};
    }
    return {};
}

std::expected<RestoreReport, Error> WholeVcpu::restore(const VcpuState& state) const {
    return restore_without({}, state);
}

std::expected<RestoreReport, Error> WholeVcpu::restore_without(StepSet left_out,
                                                               const VcpuState& state) const {
    if (const auto checked = check(state); !checked)
        return std::unexpected(checked.error());
    RestoreReport report;
    for (const auto& ordered : restore_order) {
        if (left_out.contains(ordered.step))
            continue;
        if (const auto done = put(ordered.step, state, report); !done)
            return std::unexpected(done.error());
    }
    return report;
}

Result WholeVcpu::abandon() const {
    return pending_io(calls_).and_then([&] { return nested().clear_nested_state(); });
}

Result WholeVcpu::enable_capabilities() const {
    return vcpu_capabilities(calls_, requirements_);
}

} // namespace kvm::vcpu
