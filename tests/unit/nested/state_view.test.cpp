// SPDX-License-Identifier: MIT
//
// NestedStateView: bytes that are somebody else's, recognised once, and all readers that work from it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <format>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Errc;
using kvm::nested::NestedStateBuffer;
using kvm::nested::NestedStateView;
using kvm::nested::Phase;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

std::string described(const NestedStateView& view) {
    std::string text;
    kvm::nested::describe(view, [&](std::string_view piece) noexcept { text += piece; });
    return text;
}

TEST_CASE("a view says of bytes what a state made of them says, without a copy") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const NestedStateView view{sample.bytes};
        CHECK(view.bytes().data() == sample.bytes.data());
        CHECK(view.phase() == sample.phase);
        CHECK(view.vendor() == sample.vendor);
        const auto state = NestedStateBuffer::parse(view);
        REQUIRE(state.has_value());
        CHECK(summary(*state).view() == kvm::nested::summary(view).view());
        CHECK(described(*state) == described(view));
        CHECK(equivalent(*state, view));
        CHECK(view.visit([](const auto& phase) { return phase.phase; }) == sample.phase);
        CHECK(std::format("{}", view) == kvm::nested::summary(view).view());
        view.visit(kvm::nested::overloaded{[&](const kvm::nested::vmx::L2Active& l2) {
                                               CHECK(l2.vmcs12().data() == sample.bytes.data() + 128);
                                           },
                                           [](const auto&) {}});
    }
}

TEST_CASE("in a larger buffer a view sees the state alone") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        auto room = sample.bytes;
        room.resize(room.size() + 777, std::byte{0x5a});
        CHECK(NestedStateView{room}.recognised().error().code == Errc::too_long);
        const auto view = NestedStateView::prefix_of(room);
        CHECK(std::ranges::equal(view.bytes(), sample.bytes));
        CHECK(view.phase() == sample.phase);
        CHECK(equivalent(view, sample.bytes));
    }
}

TEST_CASE("a view can be made of any bytes") {
    const NestedStateView none;
    CHECK(none.phase() == Phase::none);
    CHECK_FALSE(none.vendor().has_value());
    CHECK(none.recognised().error().code == Errc::too_short);
    CHECK(NestedStateView{NestedStateBuffer{}}.phase() == Phase::none);
    CHECK(NestedStateView{Bytes(127)}.phase() == Phase::unrecognised);
    std::mt19937 random{11};
    for (int round = 0; round < 2000; ++round) {
        Bytes bytes(random() % 9000);
        for (auto& byte : bytes)
            byte = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);
        for (const auto& view : {NestedStateView{bytes}, NestedStateView::prefix_of(bytes)}) {
            static_cast<void>(described(view));
            CHECK(view.bytes().size() <= bytes.size());
            CHECK(kvm::nested::difference(view, view, [](std::string_view) noexcept {}) == 0);
        }
    }
}

// One recogniser: whoever is asked about bytes gives the same cause.
TEST_CASE("parse, summary, report, ranges, phase and JSON's phase judge bytes alike") {
    std::vector<Bytes> inputs;
    for (const auto& sample : unit::samples()) {
        for (const std::size_t length : {0u, 1u, 127u, 128u, 129u, 4223u, 4224u, 8319u})
            inputs.emplace_back(sample.bytes.begin(),
                                sample.bytes.begin()
                                    + static_cast<std::ptrdiff_t>(std::min(length, sample.bytes.size())));
        for (std::size_t i = 0; i < 40; ++i) {
            inputs.push_back(sample.bytes);
            inputs.back()[i] ^= std::byte{0x41};
        }
        inputs.push_back(sample.bytes);
        inputs.back().resize(sample.bytes.size() + 1);
    }
    for (const auto& bytes : inputs) {
        const NestedStateView view{bytes};
        const auto parsed = NestedStateBuffer::parse(bytes);
        REQUIRE(parsed.has_value() == view.recognised().has_value());
        std::size_t ranges = 0;
        kvm::nested::guest_ranges(bytes, [&](const kvm::nested::GuestRange&) noexcept { ++ranges; });
        if (parsed) {
            REQUIRE(parsed->phase() == view.phase());
            continue;
        }
        REQUIRE(parsed.error() == view.recognised().error());
        REQUIRE(ranges == 0);
        if (bytes.size() >= 128) {
            REQUIRE(described(view).find(kvm::nested::description(parsed.error().code)) != std::string::npos);
            REQUIRE(kvm::nested::summary(view).view().find("unrecognised") != std::string_view::npos);
        }
    }
}

TEST_CASE("an L2 state that is cut to its header is cut, whatever else it is") {
    auto bytes = unit::vmx_l2();
    bytes.resize(128);
    CHECK(NestedStateBuffer::parse(bytes).error().code == Errc::too_short);
    CHECK(described(bytes).find("there are fewer bytes than the state says it has (128 bytes)")
          != std::string::npos);
}

TEST_CASE("the header is read once: what changes under a view changes no phase and no size") {
    auto bytes = unit::vmx_l2();
    const NestedStateView view{bytes};
    unit::put(bytes, 0, std::uint16_t{0});
    unit::put(bytes, 4, std::uint32_t{0xffffffff});
    CHECK(view.phase() == Phase::vmx_l2_active);
    CHECK(view.header().size == 4224);
    CHECK(described(view).starts_with("VMX, L2 active, 4224 bytes\n"));
    const auto state = NestedStateBuffer::parse(view);
    REQUIRE(state.has_value());
    CHECK(state->phase() == Phase::vmx_l2_active);
}

} // namespace
