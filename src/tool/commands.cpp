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

int for_each_state(const std::vector<std::string>& files, std::optional<unsigned> vcpu,
                   const std::function<int(const StateOfFile&)>& answer) {
    int status = fine;
    for (const auto& file : files) {
        const auto contents = states_of(file, vcpu);
        if (!contents) {
            status = in_trouble;
            continue;
        }
        for (const auto& state : contents->states)
            if (answer({file, *contents, state}) != fine)
                status = in_trouble;
    }
    return status;
}

int complain_if_refused(const StateOfFile& what, std::string_view next_step) {
    const auto refused = what.state.refused();
    if (!refused)
        return fine;
    return complain(what.file,
                    {std::format("no vCPU can be in this state: {}; {}", description(refused->code),
                                 describe_detail(refused->detail_kind, refused->detail).view()),
                     std::nullopt, std::string{next_step}});
}

std::string title(const StateOfFile& what) {
    return std::format("{}: vCPU {}, {}", what.file == "-" ? "standard input" : what.file, what.state.vcpu,
                       what.contents.format);
}

} // namespace kvm::tool
