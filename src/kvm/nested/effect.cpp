// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

struct Row {
    std::string_view name;
    std::string_view description;
};
constexpr std::array rows = std::to_array<Row>({
    {"unchanged", "the vCPU's nested state is unchanged"},
    {"nested_state_lost", "the vCPU's nested state is lost"},
    {"undetermined", "what became of the vCPU's nested state cannot be told"},
});
static_assert(rows.size() == static_cast<std::size_t>(Effect::undetermined) + 1);

constexpr Row row_of(Effect effect) noexcept {
    const auto index = static_cast<std::size_t>(effect);
    return index < rows.size() ? rows[index] : Row{"?", "?"};
}

} // namespace

std::string_view name(Effect effect) noexcept {
    return row_of(effect).name;
}

std::string_view description(Effect effect) noexcept {
    return row_of(effect).description;
}

} // namespace kvm::nested
