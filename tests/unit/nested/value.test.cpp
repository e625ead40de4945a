// SPDX-License-Identifier: MIT
//
// NestedState and NestedStateBuffer as values: builders, widening, narrowing, equality, text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <format>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Errc;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Operation;
using kvm::nested::Phase;
using kvm::nested::Svm;
using kvm::nested::VendorId;
using kvm::nested::Vmx;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

template <class State>
Bytes copy_of(const State& state) {
    const auto bytes = state.bytes();
    return Bytes(bytes.begin(), bytes.end());
}

TEST_CASE("builders make the states that the kernel itself reports") {
    CHECK(copy_of(NestedState<Vmx>{}) == VmxBlob{}.bytes());
    CHECK(copy_of(NestedState<Vmx>::not_in_nested_operation()) == VmxBlob{}.bytes());
    CHECK(copy_of(NestedState<Vmx>::vmxon_only(0x7000)) == VmxBlob{.vmxon_pa = 0x7000}.bytes());
    CHECK(copy_of(NestedState<Svm>{}) == SvmBlob{}.bytes());
    CHECK(copy_of(NestedState<Svm>::gif_clear()) == SvmBlob{.flags = 0}.bytes());
    CHECK(copy_of(NestedStateBuffer::not_in_nested_operation(VendorId::vmx)) == VmxBlob{}.bytes());
    CHECK(copy_of(NestedStateBuffer::not_in_nested_operation(VendorId::svm)) == SvmBlob{}.bytes());

    CHECK(NestedState<Vmx>{}.phase() == Phase::vmx_off);
    CHECK(NestedState<Vmx>::vmxon_only(0x7000).phase() == Phase::vmx_vmxon_only);
    CHECK(NestedState<Svm>{}.phase() == Phase::svm_outside_l2_gif_set);
    CHECK(NestedState<Svm>::gif_clear().phase() == Phase::svm_outside_l2_gif_clear);
}

TEST_CASE("an empty buffer holds no vendor, no format and no bytes, and is armed for GET") {
    for (const auto& buffer : {NestedStateBuffer{}, NestedStateBuffer::empty()}) {
        CHECK(buffer.is_empty());
        CHECK_FALSE(buffer.vendor().has_value());
        CHECK_FALSE(buffer.format().has_value());
        CHECK(buffer.flags() == 0);
        CHECK(buffer.size() == 0);
        CHECK(buffer.bytes().empty());
        CHECK(buffer.data().empty());
        CHECK(buffer.phase() == Phase::none);
        CHECK(buffer.header().size == 8320);
        CHECK(buffer == NestedStateBuffer::empty());
        CHECK(equivalent(buffer, NestedStateBuffer::empty()));
    }
    CHECK(NestedStateBuffer{} != NestedStateBuffer::not_in_nested_operation(VendorId::vmx));
    CHECK_FALSE(equivalent(NestedStateBuffer{}, NestedStateBuffer::not_in_nested_operation(VendorId::vmx)));
}

TEST_CASE("a cleared buffer is an empty one") {
    auto buffer = NestedStateBuffer::not_in_nested_operation(VendorId::svm);
    CHECK_FALSE(buffer.is_empty());
    buffer.clear();
    CHECK(buffer.is_empty());
    CHECK(buffer.header().size == 8320);
}

TEST_CASE("a filled buffer tells vendor, format, flags, size and data") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto buffer = NestedStateBuffer::parse(sample.bytes);
        REQUIRE(buffer.has_value());
        CHECK(buffer->vendor().value_or(VendorId{7}) == sample.vendor);
        CHECK(buffer->format().value_or(7) == (sample.vendor == VendorId::vmx ? 0 : 1));
        CHECK(buffer->flags() == unit::take<std::uint16_t>(sample.bytes, 0));
        CHECK(buffer->size() == sample.bytes.size());
        CHECK(std::ranges::equal(buffer->data(), std::span{sample.bytes}.subspan(128)));
        CHECK(std::memcmp(&buffer->header(), sample.bytes.data(), 128) == 0);
    }
}

template <class V, class Other>
void widens_and_narrows(const Bytes& bytes) {
    const auto state = NestedState<V>::parse(bytes);
    REQUIRE(state.has_value());
    const NestedStateBuffer wide = *state;
    CHECK(copy_of(wide) == bytes);
    CHECK(wide.vendor().value_or(VendorId{7}) == V::id);
    const auto narrow = wide.to<V>();
    REQUIRE(narrow.has_value());
    CHECK(*narrow == *state);

    const auto other = wide.to<Other>();
    REQUIRE_FALSE(other.has_value());
    CHECK(other.error().code == Errc::wrong_vendor);
    CHECK(other.error().operation == Operation::narrow);
}

TEST_CASE("a state widens to a buffer and narrows back to itself, and to no other vendor's") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        if (sample.vendor == VendorId::vmx)
            widens_and_narrows<Vmx, Svm>(sample.bytes);
        else
            widens_and_narrows<Svm, Vmx>(sample.bytes);
    }
}

TEST_CASE("an empty buffer narrows to nothing") {
    CHECK(NestedStateBuffer{}.to<Vmx>().error().code == Errc::no_state);
    CHECK(NestedStateBuffer{}.to<Svm>().error().code == Errc::no_state);
}

TEST_CASE("copies are equal, and every byte that counts makes a difference") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto original = NestedStateBuffer::parse(sample.bytes);
        REQUIRE(original.has_value());
        auto copy = *original;
        CHECK(copy == *original);
        const auto moved = std::move(copy);
        CHECK(moved == *original);
        for (std::size_t i = 128; i < sample.bytes.size(); i += 61) {
            auto changed = sample.bytes;
            changed[i] ^= std::byte{1};
            if (const auto other = NestedStateBuffer::parse(changed); other.has_value())
                CHECK(*other != *original);
        }
    }
}

TEST_CASE("what lies behind the size does not count") {
    NestedState<Svm> a = *NestedState<Svm>::parse(SvmBlob{.flags = 0x101, .size = 4224}.bytes());
    a = NestedState<Svm>{};
    NestedStateBuffer b = *NestedStateBuffer::parse(
        VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320}.bytes());
    b = NestedStateBuffer{a};
    CHECK(a == NestedState<Svm>{});
    CHECK(b == NestedStateBuffer{NestedState<Svm>{}});
}

bool l2_active(Phase phase) {
    return phase == Phase::vmx_l2_active || phase == Phase::svm_l2_active;
}

TEST_CASE("states of one phase are equivalent exactly if they differ in ignored bytes alone") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto ignored = kvm::nested::ignored_bytes(sample.vendor, l2_active(sample.phase));
        const auto is_an_edge = [&](std::size_t i) {
            return std::ranges::any_of(ignored, [i](const kvm::nested::IgnoredBytes& range) {
                return i == range.begin || i + 1 == range.begin || i == range.end || i + 1 == range.end;
            });
        };
        for (std::size_t i = 0; i < sample.bytes.size(); ++i) {
            if (i > 128 && i % 16 != 0 && !is_an_edge(i))
                continue;
            auto changed = sample.bytes;
            changed[i] ^= std::byte{0x80};
            const bool is_ignored = std::ranges::any_of(ignored, [i](const kvm::nested::IgnoredBytes& range) {
                return range.begin <= i && i < range.end;
            });
            const auto difference = kvm::nested::first_difference(sample.bytes, changed);
            const bool same_phase = kvm::nested::NestedStateView{changed}.phase() == sample.phase;
            REQUIRE(difference.has_value() == !(is_ignored && same_phase));
            if (difference)
                REQUIRE(*difference == i);
        }
    }
}

TEST_CASE("ignored bytes are in order and apart, and never among what decides the phase") {
    for (const auto vendor : {VendorId::vmx, VendorId::svm})
        for (const bool l2 : {false, true}) {
            std::size_t last = 0;
            for (const auto& range : kvm::nested::ignored_bytes(vendor, l2)) {
                CAPTURE(range.begin);
                CHECK(range.begin > last);
                CHECK(range.begin < range.end);
                CHECK(range.end <= kvm::nested::capacity(vendor));
                last = range.end;
            }
        }
}

TEST_CASE("a field is ignored never, always, or while L2 is active") {
    const auto ignores = [](VendorId vendor, bool l2, std::size_t offset) {
        return std::ranges::any_of(kvm::nested::ignored_bytes(vendor, l2),
                                   [offset](const kvm::nested::IgnoredBytes& range) {
                                       return range.begin <= 128 + offset && 128 + offset < range.end;
                                   });
    };
    const auto never = [&](VendorId vendor, std::size_t offset) {
        CHECK_FALSE(ignores(vendor, true, offset));
        CHECK_FALSE(ignores(vendor, false, offset));
    };
    const auto with_l2 = [&](VendorId vendor, std::size_t offset) {
        CHECK(ignores(vendor, true, offset));
        CHECK_FALSE(ignores(vendor, false, offset));
    };
    const auto always = [&](VendorId vendor, std::size_t offset) {
        CHECK(ignores(vendor, true, offset));
        CHECK(ignores(vendor, false, offset));
    };
    never(VendorId::vmx, 997); // the last byte of a vmcs12
    always(VendorId::vmx, 998);
    always(VendorId::vmx, 4095);
    never(VendorId::vmx, 4096 + 997);
    always(VendorId::vmx, 4096 + 998);
    for (const std::size_t exit_information :
         {168u, 408u, 416u, 812u, 816u, 820u, 824u, 828u, 832u, 836u, 839u})
        with_l2(VendorId::vmx, exit_information);
    with_l2(VendorId::vmx, 928); // VMX_PREEMPTION_TIMER_VALUE
    never(VendorId::vmx, 932);
    never(VendorId::vmx, 808); // VM_INSTRUCTION_ERROR: no VM exit overwrites it
    for (const std::size_t of_the_shadow : {812u, 408u, 928u})
        never(VendorId::vmx, 4096 + of_the_shadow);
    with_l2(VendorId::svm, 0x70); // EXITCODE
    always(VendorId::svm, 0x560); // DR7, DR6
    always(VendorId::svm, 0x56f);
    never(VendorId::svm, 0x570); // RFLAGS
    never(VendorId::svm, 0x5d8); // RSP
    never(VendorId::svm, 0x5f8); // RAX
}

TEST_CASE("what L1 has yet to read of the last VM exit makes two states different") {
    const auto with = [](VmxBlob blob, std::size_t field, std::uint32_t value) {
        Bytes bytes = blob;
        unit::put(bytes, 128 + field, value);
        return bytes;
    };
    const VmxBlob l1{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    const VmxBlob l2{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    const VmxBlob smm{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .smm_flags = 3, .size = 4224};
    for (const std::size_t field : {168u, 408u, 416u, 812u, 816u, 820u, 824u, 828u, 832u, 836u, 928u}) {
        CAPTURE(field);
        CHECK(kvm::nested::first_difference(with(l1, field, 7), with(l1, field, 9)) == 128 + field);
        CHECK(kvm::nested::equivalent(with(l2, field, 7), with(l2, field, 9)));
        CHECK_FALSE(kvm::nested::equivalent(with(smm, field, 7), with(smm, field, 9)));
    }
}

TEST_CASE("equivalence does not cross vendors, phases or lengths") {
    const auto all = unit::samples();
    for (const auto& a : all)
        for (const auto& b : all) {
            CAPTURE(a.name);
            CAPTURE(b.name);
            CHECK(kvm::nested::first_difference(a.bytes, b.bytes).has_value() == (&a != &b));
        }
    CHECK_FALSE(kvm::nested::first_difference({}, {}).has_value());
    CHECK(kvm::nested::first_difference({}, all[0].bytes).value_or(99) == 0);
}

TEST_CASE("a summary names vendor, phase, size and the addresses that matter") {
    CHECK(kvm::nested::summary(NestedState<Vmx>{}).view() == "VMX, not in VMX operation, 128 bytes");
    CHECK(kvm::nested::summary(NestedState<Vmx>::vmxon_only(0x7000)).view()
          == "VMX, VMXON, no current VMCS, 128 bytes, vmxon_pa 0x7000");
    CHECK(kvm::nested::summary(NestedState<Svm>::gif_clear()).view()
          == "SVM, outside L2, GIF clear, 128 bytes");
    CHECK(kvm::nested::summary(NestedStateBuffer{}).view() == "no nested state");
    const auto l2 = NestedStateBuffer::parse(VmxBlob{.flags = 0xb,
                                                     .vmxon_pa = 0x1000,
                                                     .vmcs12_pa = 0x2000,
                                                     .vmx_flags = 1,
                                                     .deadline = ~0ull,
                                                     .size = 8320}
                                                 .bytes());
    REQUIRE(l2.has_value());
    const std::string text{kvm::nested::summary(*l2).view()};
    CAPTURE(text);
    for (const std::string_view part : {"L2 active", "8320 bytes", "vmxon_pa 0x1000", "vmcs12_pa 0x2000",
                                        "shadow vmcs12", "run pending", "MTF pending", "deadline"})
        CHECK(text.find(part) != std::string::npos);
    CHECK(text.find('-') == std::string::npos); // no negative time
    for (const auto& sample : unit::samples())
        CHECK(kvm::nested::summary(sample.bytes).view().size() < 250); // not cut
}

TEST_CASE("a summary of bytes that are no state does not fail") {
    for (const auto& sample : unit::samples())
        for (std::size_t length = 0; length < sample.bytes.size(); length += 13)
            CHECK_FALSE(kvm::nested::summary(std::span{sample.bytes}.first(length)).view().empty());
    Bytes foreign = VmxBlob{};
    unit::put(foreign, 2, std::uint16_t{9});
    CHECK(kvm::nested::summary(foreign).view() == "unknown vendor, unrecognised, 128 bytes, flags 0x0");
}

TEST_CASE("states, phases and errors are formatted, as text of any width") {
    CHECK(std::format("{}", NestedState<Svm>::gif_clear()) == "SVM, outside L2, GIF clear, 128 bytes");
    CHECK(std::format("{}", NestedStateBuffer{}) == "no nested state");
    CHECK(std::format("{}", Phase::vmx_off) == "not in VMX operation");
    CHECK(std::format("{:>5}|{:<5}|", VendorId::vmx, VendorId::svm) == "  VMX|SVM  |");
    CHECK(std::format("{} {} {}", Errc::refused, Operation::set_nested_state, kvm::nested::Effect::unchanged)
          == "refused KVM_SET_NESTED_STATE unchanged");
    const kvm::nested::Error error{.code = Errc::no_state, .operation = Operation::narrow};
    CHECK(std::format("{}", error) == error.message().view());
    CHECK(std::format("{}|{:>16}|", error.message(), kvm::nested::summary(NestedStateBuffer{}))
          == std::string{error.message().view()} + "| no nested state|");
}

TEST_CASE("text is cut where it does not fit, never written elsewhere") {
    kvm::nested::Text<4> text;
    text << "abc" << "def";
    CHECK(text.view() == "abcd");
    CHECK(std::string_view{text.c_str()} == "abcd");
    kvm::nested::Text<40> numbers;
    numbers.decimal(-9223372036854775807 - 1) << " ";
    numbers.hexadecimal(~0ull);
    CHECK(numbers.view() == "-9223372036854775808 0xffffffffffffffff");
}

} // namespace
