// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

template <std::size_t N, class E>
constexpr std::string_view name_in(const std::array<std::string_view, N>& names, E value) noexcept {
    const auto index = static_cast<std::size_t>(value);
    return index < N ? names[index] : "?";
}

} // namespace

std::string_view name(FieldGroup group) noexcept {
    constexpr auto names = std::to_array<std::string_view>(
        {"header", "control", "L2 guest", "L1 host", "read-only", "L1 save area", "reserved"});
    static_assert(names.size() == static_cast<std::size_t>(FieldGroup::reserved) + 1);
    return name_in(names, group);
}

std::string_view name(OnSet on_set) noexcept {
    constexpr auto names =
        std::to_array<std::string_view>({"ignores", "keeps", "checks", "uses", "checks and uses"});
    static_assert(names.size() == static_cast<std::size_t>(OnSet::checks_and_uses) + 1);
    return name_in(names, on_set);
}

} // namespace kvm::nested
