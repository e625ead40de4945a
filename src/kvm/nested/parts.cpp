// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <string_view>
module kvm.nested;

namespace kvm::nested {

std::string_view name(Part part) noexcept {
    constexpr auto names = std::to_array<std::string_view>({"header", "vmcs12", "shadow vmcs12", "VMCB"});
    const auto index = static_cast<std::size_t>(part);
    return index < names.size() ? names[index] : "?";
}

} // namespace kvm::nested
