// SPDX-License-Identifier: MIT
//
// The streams of tests/corpus, which a real QEMU wrote, and what KVM had answered it.
#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <tool/qemu.hpp>

namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const std::string& name) {
    std::ifstream file{std::string{STREAMS} + "/" + name, std::ios::binary};
    REQUIRE(file.good());
    const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

kvm::tool::Contents contents_of(const std::string& name) {
    auto reading = kvm::tool::read_qemu_stream(bytes_of(name));
    if (!reading)
        FAIL(reading.error().reason << " at " << reading.error().offset.value_or(0));
    CHECK(reading->format == "QEMU migration stream (microvm)");
    return *reading;
}

TEST_CASE("a real stream: SVM, L2 active on the second vCPU") {
    const auto states = contents_of("svm-l2.qemu").states;
    REQUIRE(states.size() == 2);
    CHECK(states[0].bytes.empty());
    CHECK(states[0].notes.at(0).contains("GIF alone, which is set"));
    CHECK(states[1].bytes == bytes_of("svm-l2.state"));
    CHECK(states[1].notes.at(0).contains("gpat"));
}

TEST_CASE("a real stream: VMX, L2 active with the preemption timer, whose deadline is lost") {
    const auto states = contents_of("vmx-l2.qemu").states;
    REQUIRE(states.size() == 1);
    auto expected = bytes_of("vmx-l2.state");
    CHECK(expected[28] == std::byte{1}); // the deadline's flag
    std::fill_n(expected.begin() + 28, 12, std::byte{0});
    CHECK(states[0].bytes == expected);
    CHECK(states[0].notes.at(0).contains("preemption timer"));
}

TEST_CASE("a real stream: no vCPU has a nested state") {
    for (const auto& state : contents_of("plain.qemu").states) {
        CHECK(state.bytes.empty());
        CHECK(state.notes.empty());
    }
}

} // namespace
