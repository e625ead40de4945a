// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <cstddef>
#include <optional>
module kvm.vcpu;

namespace kvm::vcpu {

bool detail::well_formed(const Group& group, const VcpuState& state) noexcept {
    if (!group.present(state))
        return group.optional;
    if (group.unit != 0) {
        const auto count = group.bytes(state).size() / group.unit;
        if (count < group.least || count > group.most)
            return false;
    }
    return group.valid == nullptr || group.valid(state);
}

std::optional<Step> malformed_group(const VcpuState& state) noexcept {
    for (const auto& row : detail::rows)
        if (row.is_group() && !detail::well_formed(row.group, state))
            return row.step;
    return std::nullopt;
}

} // namespace kvm::vcpu
