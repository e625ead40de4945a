// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

#include <algorithm>
#include <format>

namespace kvm::tool {
namespace {

/// How many fields differ. A vCPU that is not there, or has no nested state, differs from one that has.
std::size_t diff_states(Output& out, const Diff& arguments, const FoundState& a, const FoundState& b) {
    if (a.bytes.empty() != b.bytes.empty()) {
        out << std::format("the nested state: {} -> {}\n", a.bytes.empty() ? "none" : "there",
                           b.bytes.empty() ? "none" : "there");
        return 1;
    }
    const auto count = difference(a.bytes, b.bytes, [&](std::string_view piece) noexcept { out << piece; },
                                  {.ignored_too = arguments.all, .redact = arguments.redact});
    if (count != 0 && out.text().empty())
        out << std::format("bytes that are in no field, of {} -> {} bytes in all\n", a.bytes.size(),
                           b.bytes.size());
    return count;
}

std::vector<unsigned> vcpus_of(const Contents& a, const Contents& b) {
    std::vector<unsigned> all;
    for (const auto* contents : {&a, &b})
        for (const auto& state : contents->states)
            all.push_back(state.vcpu);
    std::ranges::sort(all);
    all.erase(std::ranges::unique(all).begin(), all.end());
    return all;
}

} // namespace

int run(const Diff& arguments) {
    auto a = states_of(arguments.a, arguments.vcpu), b = states_of(arguments.b, arguments.vcpu);
    if (!a || !b)
        return in_trouble;
    if (a->states.size() == 1 && b->states.size() == 1) // of two captures, say: their numbers mean nothing
        b->states.front().vcpu = a->states.front().vcpu;

    Output out;
    std::size_t differing = 0;
    const auto vcpus = vcpus_of(*a, *b);
    for (const auto vcpu : vcpus) {
        const auto in_a = std::ranges::find(a->states, vcpu, &FoundState::vcpu);
        const auto in_b = std::ranges::find(b->states, vcpu, &FoundState::vcpu);
        Output part;
        std::size_t count = 1;
        if (in_a == a->states.end() || in_b == b->states.end())
            part << std::format("only in {}\n", in_a == a->states.end() ? arguments.b : arguments.a);
        else
            count = diff_states(part, arguments, *in_a, *in_b);
        if (count != 0 && vcpus.size() > 1)
            out.heading(std::format("vCPU {}", vcpu));
        if (count != 0)
            out << part.text();
        differing += count;
    }
    return arguments.quiet ? (differing != 0 ? differs : fine) : out.flush(differing != 0 ? differs : fine);
}

} // namespace kvm::tool
