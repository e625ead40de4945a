// SPDX-License-Identifier: MIT
//
// The two groups of MSRs.
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <iterator>
#include <optional>
#include <span>
#include <utility>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu::detail {
namespace {

bool is_derived(const uapi::Msr& msr) {
    return std::ranges::contains(uapi::msr::derived, msr.index);
}

/// The same MSRs as the vCPU has them now.
std::expected<std::vector<RefusedMsr>, Error> compare(const VcpuCalls& calls,
                                                      std::span<const uapi::Msr> wanted) {
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

Result restore(const VcpuCalls& calls, const std::vector<uapi::Msr>& all, RestoreReport& report) {
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

} // namespace

Result save_feature_msrs(const Saving& saving) {
    const auto& [calls, host, promised, state] = saving;
    auto features = calls.msr_list(uapi::request::get_msr_feature_index_list);
    if (!features)
        return std::unexpected(features.error());
    auto values = calls.read_msrs(*features);
    if (!values)
        return std::unexpected(values.error());
    state.feature_msrs = std::move(*values);
    return {};
}

Result restore_feature_msrs(const Restoring& restoring) {
    return restore(restoring.calls, restoring.state.feature_msrs, restoring.report);
}

/// Many feature MSRs are in both of KVM's lists.
Result save_msrs(const Saving& saving) {
    const auto& [calls, host, promised, state] = saving;
    auto features = calls.msr_list(uapi::request::get_msr_feature_index_list);
    if (!features)
        return std::unexpected(features.error());
    auto others = calls.msr_list(uapi::request::get_msr_index_list);
    if (!others)
        return std::unexpected(others.error());
    std::erase_if(*others, [&](std::uint32_t index) { return std::ranges::contains(*features, index); });
    // The deadline is armed when it is written, against the TSC of then.
    std::ranges::stable_partition(*others, [](auto index) { return index != uapi::msr::tsc_deadline; });
    auto values = calls.read_msrs(*others);
    if (!values)
        return std::unexpected(values.error());
    state.msrs = std::move(*values);
    return {};
}

Result restore_msrs(const Restoring& restoring) {
    const auto& all = restoring.state.msrs;
    if (restoring.shift == nullptr || restoring.report.tsc_offset_refused)
        return restore(restoring.calls, all, restoring.report);
    // The TSC is set by its offset; written as an MSR it would move again.
    auto others = all;
    std::erase_if(others, [](const uapi::Msr& msr) { return msr.index == uapi::msr::tsc; });
    return restore(restoring.calls, others, restoring.report);
}

} // namespace kvm::vcpu::detail
