// SPDX-License-Identifier: MIT
//
// JSON to states.
#include "fuzz.hpp"

#include <string_view>

import kvm.nested.json;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto state = kvm::nested::from_json({reinterpret_cast<const char*>(data), size});
    if (!state) {
        fuzz::require(!state.error().message().empty(), "an error has a message");
        return 0;
    }
    for (const bool zeros : {false, true}) {
        const auto again = kvm::nested::from_json(kvm::nested::to_json(*state, {.zeros = zeros}));
        fuzz::require(again.has_value() && *again == *state, "a state survives JSON");
    }
    return 0;
}
