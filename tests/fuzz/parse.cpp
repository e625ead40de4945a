// SPDX-License-Identifier: MIT
//
// Bytes to states: parse() and parse_prefix(), of either vendor.
#include "fuzz.hpp"

#include <algorithm>
#include <utility>

import kvm.nested;

namespace {

/// What is parsed is canonical: parsing it again changes nothing, and the vCPU's point of view is the
/// input's.
template <class State>
void check(const State& state, std::span<const std::byte> input) {
    const auto bytes = state.bytes();
    const auto again = State::parse(bytes);
    fuzz::require(again.has_value() && *again == state, "a canonical state parses to itself");
    fuzz::require(bytes.size() <= input.size(), "a state is not longer than its input");
    fuzz::require(state.phase() != kvm::nested::Phase::none, "a state has a phase");
    state.visit([](const auto&) {});
    fuzz::require(kvm::nested::equivalent(state, *again), "a state is equivalent to itself");
    static_cast<void>(kvm::nested::summary(state));
}

template <class State>
void parse(std::span<const std::byte> input) {
    const auto exact = State::parse(input);
    const auto prefix = State::parse_prefix(input);
    if (exact)
        check(*exact, input);
    if (prefix) {
        fuzz::require(prefix->consumed <= input.size(), "no more is consumed than there is");
        check(prefix->state, input);
    }
    fuzz::require(!exact || (prefix && prefix->state == *exact), "what parses as a whole parses as a prefix");
    fuzz::require(exact || exact.error().detail <= std::max<std::size_t>(input.size(), 8320),
                  "an offset is one");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto input = fuzz::bytes(data, size);
    parse<kvm::nested::NestedStateBuffer>(input);
    parse<kvm::nested::NestedState<kvm::nested::Vmx>>(input);
    parse<kvm::nested::NestedState<kvm::nested::Svm>>(input);
    return 0;
}
