// SPDX-License-Identifier: MIT
#include "commands.hpp"

#include "input.hpp"
#include "output.hpp"

#include <algorithm>
#include <format>

namespace kvm::tool {
namespace {

std::string numbers_of(const std::vector<FoundState>& states) {
    std::string numbers;
    for (const auto& state : states)
        numbers += std::format("{}{}", numbers.empty() ? "" : ", ", state.vcpu);
    return numbers;
}

} // namespace

std::optional<Contents> states_of(const std::string& path, std::optional<unsigned> vcpu) {
    auto contents = read_input(path);
    if (!contents) {
        complain(path, contents.error());
        return std::nullopt;
    }
    if (!vcpu)
        return *std::move(contents);
    const auto numbers = numbers_of(contents->states);
    std::erase_if(contents->states, [&](const FoundState& state) { return state.vcpu != *vcpu; });
    if (contents->states.empty()) {
        complain(path, {std::format("there is no vCPU {} in it", *vcpu), std::nullopt,
                        std::format("it has these: {}", numbers)});
        return std::nullopt;
    }
    return *std::move(contents);
}

std::string title(const std::string& path, const Contents& contents, const FoundState& state) {
    return std::format("{}: vCPU {}, {}", path == "-" ? "standard input" : path, state.vcpu, contents.format);
}

} // namespace kvm::tool
