// SPDX-License-Identifier: MIT
//
// The two groups of MSRs.
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <utility>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {

std::expected<MsrLists, Error> MsrLists::ask(SystemFd system, IoctlRef ioctl) {
    const detail::VcpuCalls calls{Operation::save, system, VmFd{-1}, VcpuFd{-1}, nullptr, ioctl};
    auto features = calls.msr_list(uapi::request::get_msr_feature_index_list);
    if (!features)
        return std::unexpected(features.error());
    auto others = calls.msr_list(uapi::request::get_msr_index_list);
    if (!others)
        return std::unexpected(others.error());
    MsrLists lists;
    lists.features_ = *std::move(features);
    lists.others_ = *std::move(others);
    std::erase_if(lists.others_,
                  [&](std::uint32_t index) { return std::ranges::contains(lists.features_, index); });
    return lists;
}

} // namespace kvm::vcpu

namespace kvm::vcpu::detail {
namespace {

using Msrs = std::vector<uapi::Msr>;

void add(Msrs& msrs, std::uint32_t index) {
    msrs.push_back({.index = index, .reserved = 0, .value = 0});
}

const uapi::Msr* find(const Msrs& msrs, std::uint32_t index) {
    const auto found = std::ranges::find(msrs, index, &uapi::Msr::index);
    return found != msrs.end() ? &*found : nullptr;
}

std::uint64_t value_of(const Msrs& msrs, std::uint32_t index) {
    const auto* msr = find(msrs, index);
    return msr != nullptr ? msr->value : 0;
}

/// Nobody writes them; see compare().
bool is_derived(const uapi::Msr& msr) {
    return std::ranges::contains(uapi::msr::derived, msr.index);
}

/// Those of `wanted` that the vCPU has with another value, or cannot show. One ioctl, as long as all can be
/// read.
std::expected<std::vector<RefusedMsr>, Error> compare(const VcpuCalls& calls, const Msrs& wanted) {
    auto present = wanted;
    if (const auto read = calls.read_msrs(present); !read)
        return std::unexpected(read.error());
    std::vector<RefusedMsr> result;
    for (const auto& msr : wanted) {
        const auto* found = find(present, msr.index);
        result.push_back({.index = msr.index,
                          .wanted = msr.value,
                          .present = found != nullptr ? std::optional{found->value} : std::nullopt});
    }
    return result;
}

/// Writes all but the derived ones, and reports what the vCPU does not have then.
Result restore(const VcpuCalls& calls, Msrs writable, Msrs unwritable, RestoreReport& report) {
    for (const auto& msr : writable)
        if (is_derived(msr))
            unwritable.push_back(msr);
    std::erase_if(writable, is_derived);

    const auto written = calls.write_msrs(writable);
    if (!written)
        return std::unexpected(written.error());
    Msrs doubtful;
    for (const auto position : *written)
        doubtful.push_back(writable[position]);
    const auto refused = doubtful.size();
    doubtful.insert(doubtful.end(), unwritable.begin(), unwritable.end());
    if (doubtful.empty())
        return {};

    const auto compared = compare(calls, doubtful);
    if (!compared)
        return std::unexpected(compared.error());
    for (std::size_t i = 0; i < compared->size(); ++i) {
        const auto& msr = (*compared)[i];
        if (i < refused)
            report.refused_msrs.push_back(msr);
        else if (!msr.harmless())
            report.derived_msrs.push_back(msr);
    }
    return {};
}

/// How many banks there are for machine checks, and of what kind. Nobody writes the MSR, but a vCPU that has
/// not the same can be given it, which sets up all banks anew.
Result set_up_machine_checks(const VcpuCalls& calls, RestoreReport& report) {
    const auto found =
        std::ranges::find(report.derived_msrs, uapi::msr::machine_check_capabilities, &RefusedMsr::index);
    if (found == report.derived_msrs.end())
        return {};
    auto wanted = found->wanted;
    const auto set = calls.ioctl(calls.vcpu.number, uapi::request::set_up_machine_checks, &wanted);
    if (set.value == 0)
        report.derived_msrs.erase(found);
    return {}; // a refusal is reported
}

} // namespace

Result save_feature_msrs(const Saving& saving) {
    auto& msrs = saving.state.feature_msrs;
    msrs.clear();
    for (const auto index : saving.lists.features())
        add(msrs, index);
    add(msrs, uapi::msr::machine_check_capabilities); // KVM does not list it
    return saving.calls.read_msrs(msrs);
}

Result restore_feature_msrs(const Restoring& restoring) {
    auto writable = restoring.state.feature_msrs;
    Msrs unwritable;
    if (const auto* capabilities = find(writable, uapi::msr::machine_check_capabilities))
        unwritable.push_back(*capabilities);
    std::erase_if(writable,
                  [](const uapi::Msr& msr) { return msr.index == uapi::msr::machine_check_capabilities; });
    return restore(restoring.calls, std::move(writable), std::move(unwritable), restoring.report)
        .and_then([&] { return set_up_machine_checks(restoring.calls, restoring.report); });
}

Result save_msrs(const Saving& saving) {
    auto& state = saving.state;
    auto& msrs = state.msrs;
    msrs.clear();
    const auto listed = [&](std::uint32_t index) {
        return std::ranges::contains(saving.lists.features(), index)
               || std::ranges::contains(saving.lists.others(), index);
    };
    const auto add_new = [&](std::uint32_t index) {
        if (!listed(index) && find(msrs, index) == nullptr)
            add(msrs, index);
    };

    for (const auto index : saving.lists.others())
        add(msrs, index);
    const MsrConditions conditions{
        .vendor = state.vendor,
        .cpuid = state.cpuid,
        .machine_check_capabilities = value_of(state.feature_msrs, uapi::msr::machine_check_capabilities),
        .architecture_capabilities = value_of(state.feature_msrs, uapi::msr::architecture_capabilities),
        .synic = state.requirements.hyperv_synic};
    for (const auto& unlisted : unlisted_msrs)
        for (auto index = unlisted.first; index <= unlisted.last; index += unlisted.stride)
            if (applies(unlisted, index, conditions))
                add_new(index);
    for (const auto index : saving.options.more_msrs)
        add_new(index);
    // In place, and the order within the classes stays: there is no memory for a stable sort.
    for (const auto order : {MsrOrder::switches_on, MsrOrder::deadline})
        for (std::size_t i = 0, left = msrs.size(); left-- > 0;)
            if (msr_order(msrs[i].index) == order)
                std::ranges::rotate(msrs.begin() + static_cast<std::ptrdiff_t>(i),
                                    msrs.begin() + static_cast<std::ptrdiff_t>(i) + 1, msrs.end());
            else
                ++i;

    if (const auto read = saving.calls.read_msrs(msrs); !read)
        return read;
    // Linux 6.1 reads them and lets nobody write them, not even with the value that they have.
    std::erase_if(msrs, [&](const uapi::Msr& msr) {
        return msr.index >= uapi::msr::last_branch_from && msr.index <= uapi::msr::last_interrupt_to
               && msr.value == 0 && !listed(msr.index);
    });
    // Its activation sets it, and without the requirement half of its MSRs would be left behind.
    if (state.requirements.hyperv_synic == HypervSynic::off
        && value_of(msrs, uapi::msr::hyperv_scontrol) != 0)
        return saving.calls.fail(Errc::not_prepared, capability(uapi::cap::hyperv_synic2));
    return {};
}

Result restore_msrs(const Restoring& restoring) {
    auto msrs = restoring.state.msrs;
    // The TSC is set by its offset; written as an MSR it would move again.
    if (restoring.shift != nullptr && !restoring.report.tsc_offset_refused)
        std::erase_if(msrs, [](const uapi::Msr& msr) { return msr.index == uapi::msr::tsc; });
    return restore(restoring.calls, std::move(msrs), {}, restoring.report);
}

} // namespace kvm::vcpu::detail
