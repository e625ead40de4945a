// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <string_view>
module kvm.nested;

namespace kvm::nested {

std::string_view name(Phase phase) noexcept {
    constexpr auto names = std::to_array<std::string_view>({
        "none",
        "unrecognised",
        "not in VMX operation",
        "VMXON, no current VMCS",
        "L1 with a current VMCS",
        "L2 active",
        "SMM, VMXON, no current VMCS",
        "SMM, L1 with a current VMCS",
        "SMM, interrupted L2",
        "outside L2, GIF set",
        "outside L2, GIF clear",
        "L2 active",
    });
    static_assert(names.size() == static_cast<std::size_t>(Phase::svm_l2_active) + 1);
    const auto index = static_cast<std::size_t>(phase);
    return index < names.size() ? names[index] : "?";
}

} // namespace kvm::nested
