// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

bool well_formed(const std::vector<uapi::Msr>& msrs) noexcept {
    return msrs.size() <= uapi::msr_limit
           && std::ranges::all_of(msrs, [](const uapi::Msr& msr) { return msr.reserved == 0; });
}

} // namespace

std::optional<SectionType> malformed_group(const VcpuState& state) noexcept {
    if (state.cpuid.size() > uapi::cpuid_limit)
        return SectionType::cpuid;
    if (!well_formed(state.feature_msrs))
        return SectionType::feature_msrs;
    if (!well_formed(state.msrs))
        return SectionType::msrs;
    if (state.xsave.size() < uapi::xsave_size || state.xsave.size() > uapi::xsave_limit)
        return SectionType::xsave;
    if (state.xcrs.count > state.xcrs.entries.size())
        return SectionType::xcrs;
    if (state.nested.is_empty())
        return SectionType::nested_state;
    return std::nullopt;
}

} // namespace kvm::vcpu
