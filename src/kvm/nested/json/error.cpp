// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
module kvm.nested.json;

namespace kvm::nested {

std::string JsonError::message() const {
    constexpr auto causes = std::to_array<std::string_view>({
        "this is not JSON",
        "this is JSON, but not of the form that is read here",
        "this is missing",
        "there is nothing of this name",
        "this name is there twice",
        "this version of the JSON form is not known; version 1 is",
        "the state's vendor has nothing of this name",
        "a JSON number above 2^53 - 1, which programs such as jq round; write it as a string",
        "this is not a value that fits",
        "this was written of bytes that are no nested state; put them right and write it anew",
        "no vCPU can be in this state",
    });
    static_assert(causes.size() == static_cast<std::size_t>(Cause::refused) + 1);
    std::string text{causes[std::min(static_cast<std::size_t>(cause), causes.size() - 1)]};
    if (cause == Cause::syntax)
        text += ", at byte " + std::to_string(offset);
    if (!where.empty())
        (text += ": ") += where;
    if (refused)
        (text += ": ") += refused->message().view();
    return text;
}

} // namespace kvm::nested
