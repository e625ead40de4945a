// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <utility>
#include <vector>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

using Result = std::expected<void, Error>;
using Calls = detail::VcpuCalls;

/// Keeps what the vCPU's VM turns out to have on, which KVM tells by the flags of the events alone.
Result keep_requirements(const Requirements& promised, VcpuState& state) {
    const struct {
        bool promised;
        std::uint32_t flag;
        std::uint32_t capability;
        bool& found;
    } rows[] = {
        {promised.exception_payload, uapi::event_flag::payload, uapi::cap::exception_payload,
         state.requirements.exception_payload},
        {promised.triple_fault_event, uapi::event_flag::triple_fault, uapi::cap::triple_fault_event,
         state.requirements.triple_fault_event},
    };
    state.requirements = promised;
    for (const auto& row : rows) {
        row.found = (state.events.flags & row.flag) != 0;
        if (row.promised && !row.found)
            return std::unexpected(
                Error{.code = Errc::not_prepared, .operation = Operation::events, .detail = row.capability});
    }
    return {};
}

Result xsave(const Calls& calls, VcpuState& state) {
    const auto size = calls.xsave_size();
    if (!size)
        return std::unexpected(size.error());
    state.xsave.resize(*size);
    return calls.call(Operation::xsave,
                      *size > uapi::xsave_size ? uapi::request::get_xsave2 : uapi::request::get_xsave,
                      state.xsave.data());
}

Result xcrs(const Calls& calls, VcpuState& state) {
    if (const auto got = calls.call(Operation::xcrs, uapi::request::get_xcrs, &state.xcrs); !got)
        return got;
    if (state.xcrs.count > state.xcrs.entries.size())
        return std::unexpected(
            Error{.code = Errc::unexpected, .operation = Operation::xcrs, .detail = state.xcrs.count});
    return {};
}

Result lapic(const Calls& calls, VcpuState& state) {
    state.lapic.emplace();
    const auto got = calls.ioctl(calls.vcpu.number, uapi::request::get_lapic, &*state.lapic);
    if (got.value == 0)
        return {};
    state.lapic.reset();
    const auto error = calls.vcpu_failed(Operation::lapic, got);
    if (error.code == Errc::refused) // EINVAL on a vCPU: its APIC is not in the kernel
        return {};
    return std::unexpected(error);
}

Result cpuid(const Calls& calls, VcpuState& state) {
    // Linux 6.1 does not write the count back on success, so the entries that it leaves alone have to be told
    // by what they were: no CPUID has this function.
    constexpr std::uint32_t untouched = 0xffff'ffff;
    detail::CpuidBlock block;
    block.count = uapi::cpuid_limit;
    block.padding = 0;
    for (auto& entry : block.entries)
        entry.function = untouched;
    if (const auto got = calls.call(Operation::cpuid, uapi::request::get_cpuid2, &block); !got)
        return got;
    if (block.count > uapi::cpuid_limit)
        return std::unexpected(
            Error{.code = Errc::unexpected, .operation = Operation::cpuid, .detail = block.count});
    const auto given = std::span{block.entries}.first(block.count);
    state.cpuid.assign(given.begin(), std::ranges::find(given, untouched, &uapi::CpuidEntry::function));
    return {};
}

Result tsc_khz(const Calls& calls, VcpuState& state) {
    const auto got = calls.ioctl(calls.vcpu.number, uapi::request::get_tsc_khz);
    if (got.value < 0)
        return std::unexpected(calls.vcpu_failed(Operation::tsc, got));
    state.tsc_khz = static_cast<std::uint32_t>(got.value);
    return {};
}

/// Feature MSRs, then all others. Many feature MSRs are in both of KVM's lists.
Result msrs(const Calls& calls, VcpuState& state) {
    auto features = calls.msr_list(uapi::request::get_msr_feature_index_list);
    if (!features)
        return std::unexpected(features.error());
    auto others = calls.msr_list(uapi::request::get_msr_index_list);
    if (!others)
        return std::unexpected(others.error());
    std::erase_if(*others, [&](std::uint32_t index) { return std::ranges::contains(*features, index); });
    // The deadline is armed when it is written, against the TSC of then.
    std::ranges::stable_partition(*others, [](auto index) { return index != uapi::msr::tsc_deadline; });

    auto feature_values = calls.read_msrs(*features);
    if (!feature_values)
        return std::unexpected(feature_values.error());
    auto values = calls.read_msrs(*others);
    if (!values)
        return std::unexpected(values.error());
    state.feature_msrs = std::move(*feature_values);
    state.msrs = std::move(*values);
    return {};
}

} // namespace

std::expected<VcpuState, Error> WholeVcpu::save() const {
    std::expected<VcpuState, Error> result{std::in_place};
    auto& state = *result;
    state.vendor = host_.vendor();

    const auto nested_state = [&]() -> Result {
        if (const auto got = nested().nested_state(state.nested); !got)
            return got;
        if (state.nested.vendor() != host_.vendor())
            return std::unexpected(
                Error{.code = Errc::wrong_vendor, .operation = Operation::get_nested_state, .detail = 2});
        // The kernel itself says that it is on, promised or not.
        if ((state.nested.flags() & uapi::state_flag::evmcs) != 0)
            state.requirements.enlightened_vmcs = true;
        return {};
    };
    const auto get = [&](Operation operation, unsigned long request, auto& into) {
        return calls_.call(operation, request, &into);
    };
    namespace request = uapi::request;

    // KVM_GET_MP_STATE first: it accepts a pending INIT or SIPI, which changes all the rest.
    const auto done =
        calls_.complete_io()
            .and_then([&] { return get(Operation::mp_state, request::get_mp_state, state.mp_state); })
            .and_then([&] { return get(Operation::events, request::get_vcpu_events, state.events); })
            .and_then([&] { return keep_requirements(requirements_, state); })
            .and_then([&] { return get(Operation::regs, request::get_regs, state.regs); })
            .and_then([&] { return get(Operation::sregs, request::get_sregs2, state.sregs); })
            .and_then([&] { return xsave(calls_, state); })
            .and_then([&] { return xcrs(calls_, state); })
            .and_then([&] { return get(Operation::debugregs, request::get_debugregs, state.debugregs); })
            .and_then([&] { return lapic(calls_, state); })
            .and_then([&] { return cpuid(calls_, state); })
            .and_then([&] { return nested_state(); })
            .and_then([&] { return tsc_khz(calls_, state); })
            .and_then([&] { return msrs(calls_, state); });
    if (!done)
        result = std::unexpected(done.error());
    return result;
}

} // namespace kvm::vcpu
