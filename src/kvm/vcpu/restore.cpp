// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

using namespace detail;

/// Much more often than any instruction exits to user space.
constexpr int completions = 64;

/// What the last instruction still has to do, up to its end. What it does is overwritten.
Result complete_all_io(const VcpuCalls& calls) {
    for (int i = 1; i < completions; ++i)
        if (const auto done = calls.complete_io(); done || done.error().cause != Errc::exit_pending)
            return done;
    return calls.complete_io();
}

Result enable_enlightened_vmcs(const VcpuCalls& calls) {
    std::uint16_t version = 0; // KVM writes it; nobody needs it
    uapi::EnableCap enable{};
    enable.capability = uapi::cap::enlightened_vmcs;
    enable.arguments[0] = reinterpret_cast<std::uintptr_t>(&version);
    auto done = calls.call(uapi::request::enable_cap, &enable);
    if (!done)
        done.error().detail = capability(uapi::cap::enlightened_vmcs);
    return done;
}

Result enable_synic(const VcpuCalls& calls, std::uint32_t number) {
    uapi::EnableCap enable{};
    enable.capability = number;
    auto done = calls.call(uapi::request::enable_cap, &enable);
    if (!done)
        done.error().detail = capability(number);
    return done;
}

Result enable(const VcpuCalls& calls, const Requirements& required) {
    if (required.enlightened_vmcs)
        if (const auto done = enable_enlightened_vmcs(calls); !done)
            return done;
    const auto synic = synic_capability(required.hyperv_synic);
    return synic == 0 ? Result{} : enable_synic(calls, synic);
}

Result do_step(const Row& row, const Restoring& restoring) {
    if (row.restore != nullptr)
        return row.restore(restoring);
    if (!row.is_group()) // the caller's
        return {};
    return restoring.calls.set(row.group.set.number, row.group.bytes(restoring.state).data());
}

/// KVM_SET_XSAVE reads as much as a vCPU's area takes, and says nothing of what is left. Where that is zero,
/// nothing is lost: the guest was permitted a feature and has not used it.
Result check_xsave(const VcpuCalls& calls, std::span<const std::byte> saved) {
    if (saved.size() <= uapi::xsave_size) // every vCPU takes that
        return {};
    const auto size = calls.xsave_size();
    if (!size)
        return std::unexpected(size.error());
    const auto left = saved.subspan(std::min(*size, saved.size()));
    if (std::ranges::all_of(left, [](std::byte byte) { return byte == std::byte{}; }))
        return {};
    return calls.fail(Errc::xsave_too_large, {Detail::Kind::bytes, *size});
}

} // namespace

/// Whether the capabilities are really on. KVM tells by the flags of the events alone.
Result detail::check_capabilities(const Restoring& restoring) {
    const auto& [calls, host, state, report, shift] = restoring;
    uapi::VcpuEvents events{};
    if (const auto got = calls.call(uapi::request::get_vcpu_events, &events); !got)
        return got;
    if (state.requirements.exception_payload && (events.flags & uapi::event_flag::payload) == 0)
        return calls.fail(Errc::not_prepared, capability(uapi::cap::exception_payload));
    if (state.requirements.triple_fault_event && (events.flags & uapi::event_flag::triple_fault) == 0)
        return calls.fail(Errc::not_prepared, capability(uapi::cap::triple_fault_event));
    return {};
}

Result detail::complete_pending_io(const Restoring& restoring) {
    return complete_all_io(restoring.calls);
}

Result detail::clear_nested_state(const Restoring& restoring) {
    if (const auto cleared = restoring.nested().clear_nested_state(); !cleared)
        return std::unexpected(Error{cleared.error()});
    return {};
}

Result detail::enable_vcpu_capabilities(const Restoring& restoring) {
    return enable(restoring.calls, restoring.state.requirements);
}

bool RestoreReport::complete() const noexcept {
    return std::ranges::all_of(refused_msrs, &RefusedMsr::harmless)
           && std::ranges::all_of(derived_msrs, &RefusedMsr::harmless) && !tsc_khz_refused
           && !tsc_offset_refused;
}

Result WholeVcpu::check(const VcpuState& state) const {
    const auto calls = this->calls(Operation::restore);
    if (state.vendor != host_.vendor())
        return calls.fail(nested::Errc::wrong_vendor);
    if (state.nested.is_empty())
        return calls.fail(nested::Errc::no_state);
    if (state.nested.vendor() != host_.vendor())
        return calls.fail(nested::Errc::wrong_vendor, group(Step::nested_state));
    if (const auto malformed = malformed_group(state))
        return calls.fail(Errc::no_vcpu_group, group(*malformed));
    if (const auto fits = compatible(Operation::restore, requirements_, state.requirements); !fits)
        return fits;
    return check_xsave(calls, state.xsave);
}

std::expected<RestoreReport, Error> WholeVcpu::restore(const VcpuState& state) const {
    return restore(state, nullptr);
}

std::expected<RestoreReport, Error> WholeVcpu::restore(const VcpuState& state, const TscShift& shift) const {
    return restore(state, &shift);
}

std::expected<RestoreReport, Error> WholeVcpu::restore(const VcpuState& state, const TscShift* shift) const {
    if (const auto checked = check(state); !checked)
        return std::unexpected(checked.error());
    RestoreReport report;
    const auto calls = this->calls(Operation::restore);
    const Restoring restoring{calls, host_, state, report, shift};
    for (const auto& row : rows)
        if (const auto done = do_step(row, restoring); !done) {
            auto error = done.error();
            error.operation = Operation::restore; // whatever the lower floor was asked to do for it
            error.step = row.step;
            if (row.step > Step::clear_nested_state)
                error.effect = Effect::nested_state_lost;
            return std::unexpected(error);
        }
    return report;
}

std::expected<void, Error> WholeVcpu::abandon() const {
    const auto calls = this->calls(Operation::abandon);
    if (const auto done = complete_all_io(calls); !done)
        return done;
    if (const auto cleared = nested().clear_nested_state(); !cleared)
        return std::unexpected(Error{cleared.error()});
    return {};
}

std::expected<void, Error> WholeVcpu::enable_capabilities() const {
    const auto calls = this->calls(Operation::enable_capabilities);
    return enable(calls, requirements_);
}

} // namespace kvm::vcpu
