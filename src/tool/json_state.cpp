// SPDX-License-Identifier: MIT
#include "json_state.hpp"

#include <algorithm>
#include <string_view>

import kvm.nested.json;

namespace kvm::tool {

bool is_json(Bytes input) {
    const auto first = std::ranges::find_if_not(input, [](std::byte byte) {
        return byte == std::byte{' '} || byte == std::byte{'\n'} || byte == std::byte{'\r'}
               || byte == std::byte{'\t'};
    });
    return first != input.end() && *first == std::byte{'{'};
}

Reading read_json_state(Bytes input) {
    const auto state = from_json({reinterpret_cast<const char*>(input.data()), input.size()});
    if (!state) {
        const auto& error = state.error();
        const bool syntax = error.cause == JsonError::Cause::syntax;
        return std::unexpected{
            Trouble{syntax ? "this is not JSON" : error.message(),
                    syntax ? std::optional{error.offset} : std::nullopt,
                    "kvm-nested show --json FILE prints a state as this program reads it"}};
    }
    const auto bytes = state->bytes();
    return Contents{"JSON of kvm-nested", {{.bytes = {bytes.begin(), bytes.end()}}}};
}

} // namespace kvm::tool
