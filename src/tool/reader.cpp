// SPDX-License-Identifier: MIT
#include "reader.hpp"

namespace kvm::tool {

std::optional<Error> FoundState::refused() const {
    if (bytes.empty())
        return std::nullopt;
    const auto phase = NestedStateView{bytes}.recognised();
    return phase ? std::nullopt : std::optional{phase.error()};
}

} // namespace kvm::tool
