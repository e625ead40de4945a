// SPDX-License-Identifier: MIT
#include "reader.hpp"

namespace kvm::tool {

std::optional<Error> FoundState::refused() const {
    if (bytes.empty())
        return std::nullopt;
    if (const auto state = NestedStateBuffer::parse(bytes); !state)
        return state.error();
    return std::nullopt;
}

} // namespace kvm::tool
