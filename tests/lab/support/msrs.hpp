// SPDX-License-Identifier: MIT
//
// A state without some of its MSRs: the negative control of whatever an MSR is about.
//
// Include it last, like scenario.hpp, which it includes.
#pragma once

#include "scenario.hpp"

namespace lab {

/// As a save would be that knows nothing of them.
template <class Which>
void forget_msrs(kvm::vcpu::VcpuState& state, Which&& which) {
    std::erase_if(state.msrs, [&](const auto& msr) { return which(msr.index); });
    std::erase_if(state.feature_msrs, [&](const auto& msr) { return which(msr.index); });
}

/// The same of all MSRs that KVM_GET_MSR_INDEX_LIST leaves out.
inline void forget_unlisted_msrs(const machine::Machine& machine, kvm::vcpu::VcpuState& state) {
    constexpr std::size_t most = 1024;
    struct {
        std::uint32_t count = most;
        std::array<std::uint32_t, most> indices{};
    } list;
    must_ioctl(machine.system_fd(), KVM_GET_MSR_INDEX_LIST, &list, "KVM_GET_MSR_INDEX_LIST");
    const auto listed = std::span{list.indices}.first(list.count);
    std::erase_if(state.msrs, [&](const auto& msr) { return !std::ranges::contains(listed, msr.index); });
}

} // namespace lab
