// SPDX-License-Identifier: MIT
//
// Whatever people paste.
#include "fuzz.hpp"

#include "tool/messages.hpp"

#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    for (const auto& found : kvm::tool::find_messages(text)) {
        for (const char c : found.line)
            fuzz::require(c >= ' ' && c <= '~', "a terminal has nothing to obey");
        for (const auto& words : found.words)
            for (const auto& feature : kvm::tool::features_in(words))
                fuzz::require(!feature.name.empty(), "a feature has a name");
    }
    kvm::tool::features_in(text);
    return 0;
}
