// SPDX-License-Identifier: MIT
//
// A user who formats a state, and who has <format> in the object file for it.
#include <format>
#include <string>
#include <string_view>

import kvm.nested;

std::string formatted(const kvm::nested::NestedStateBuffer& state) {
    return std::format("{}", state);
}
