// SPDX-License-Identifier: MIT
//
// The states that real kernels wrote (tests/corpus): each is one, is described, and comes back from JSON.
#include <algorithm>
#include <cstddef>
#include <expected>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;
import kvm.nested.json;

namespace {

using unit::Bytes;

/// By the names of their files.
const std::map<std::string, Bytes>& corpus() {
    static const auto states = [] {
        std::map<std::string, Bytes> states;
        for (const auto& entry : std::filesystem::directory_iterator{KVM_NESTED_CORPUS}) {
            std::ifstream file{entry.path(), std::ios::binary};
            const std::string text{std::istreambuf_iterator<char>{file}, {}};
            const auto bytes = std::as_bytes(std::span{text});
            states[entry.path().filename().string()] = Bytes(bytes.begin(), bytes.end());
        }
        return states;
    }();
    return states;
}

TEST_CASE("every state of the corpus is a state that a vCPU can be in, and is its own canonical form") {
    REQUIRE(corpus().size() >= 20);
    std::map<kvm::nested::Phase, int> phases;
    for (const auto& [name, bytes] : corpus()) {
        CAPTURE(name);
        const auto state = kvm::nested::NestedStateBuffer::parse(bytes);
        REQUIRE(state.has_value());
        CHECK(std::ranges::equal(state->bytes(), bytes));
        ++phases[state->phase()];
    }
    CHECK(phases.size() == 10); // 7 of VMX, 3 of SVM
}

TEST_CASE("to JSON and back is the identity for every state of the corpus") {
    for (const auto& [name, bytes] : corpus()) {
        CAPTURE(name);
        for (const auto& options :
             {kvm::nested::JsonOptions{}, kvm::nested::JsonOptions{.zeros = true, .meanings = true}}) {
            const auto state = kvm::nested::from_json(kvm::nested::to_json(bytes, options));
            REQUIRE(state.has_value());
            CHECK(std::ranges::equal(state->bytes(), bytes));
        }
    }
}

TEST_CASE(
    "no kernel has written into a place that is reserved, and where the values mean nothing that is told") {
    for (const auto& [name, bytes] : corpus()) {
        CAPTURE(name);
        std::string text;
        kvm::nested::describe(bytes, [&](std::string_view piece) noexcept { text += piece; });
        const bool means_something = !name.contains("distinct-values");
        CHECK(text.contains(" 0 bytes in reserved places") == !means_something);
        CHECK(text.contains("in reserved places") == !means_something);
    }
}

} // namespace
