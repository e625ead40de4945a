// SPDX-License-Identifier: MIT
//
// parse(): the way in for bytes that nobody vouches for.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Errc;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Operation;
using kvm::nested::Svm;
using kvm::nested::VendorId;
using kvm::nested::Vmx;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

/// What came of parsing, of either vendor and of neither, as one type.
struct Outcome {
    std::optional<kvm::nested::Error> error;
    Bytes bytes;
    kvm::nested::Phase phase{};

    bool operator==(const Outcome&) const = default;
};

template <class State>
Outcome parse_as(std::span<const std::byte> bytes) {
    const auto parsed = State::parse(bytes);
    if (!parsed)
        return {.error = parsed.error(), .bytes = {}};
    const auto again = parsed->bytes();
    return {.error = {}, .bytes = Bytes(again.begin(), again.end()), .phase = parsed->phase()};
}

Outcome parse(VendorId vendor, std::span<const std::byte> bytes) {
    return vendor == VendorId::vmx ? parse_as<NestedState<Vmx>>(bytes) : parse_as<NestedState<Svm>>(bytes);
}

void refuses(VendorId vendor, const Bytes& bytes, Errc code, std::uint64_t detail) {
    for (const auto& outcome : {parse(vendor, bytes), parse_as<NestedStateBuffer>(bytes)}) {
        REQUIRE(outcome.error.has_value());
        CHECK(outcome.error->code == code);
        CHECK(outcome.error->detail == detail);
        CHECK(outcome.error->operation == Operation::parse);
        CHECK(outcome.error->effect == kvm::nested::Effect::unchanged);
        CHECK(outcome.error->raw_result == 0);
        CHECK(outcome.error->error_number == 0);
    }
}

TEST_CASE("a state that the kernel made is parsed to the same bytes and to its phase") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto typed = parse(sample.vendor, sample.bytes);
        CHECK_FALSE(typed.error.has_value());
        CHECK(typed.bytes == sample.bytes);
        CHECK(typed.phase == sample.phase);
        CHECK(parse_as<NestedStateBuffer>(sample.bytes) == typed);
    }
}

TEST_CASE("a state that is cut at any byte is refused as cut") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        for (std::size_t length = 0; length < sample.bytes.size(); ++length) {
            const auto cut = std::span{sample.bytes}.first(length);
            const auto outcome = parse(sample.vendor, cut);
            REQUIRE(outcome.error.has_value());
            REQUIRE(outcome.error->code == Errc::too_short);
            REQUIRE(outcome.error->detail == length);
            REQUIRE(parse_as<NestedStateBuffer>(cut) == outcome);
        }
    }
}

TEST_CASE("bytes behind a state are refused, unless a prefix is asked for") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        for (const std::size_t slack : {1u, 7u, 128u, 4096u, 10000u}) {
            auto bytes = sample.bytes;
            bytes.resize(bytes.size() + slack, std::byte{0xee});
            refuses(sample.vendor, bytes, Errc::too_long, sample.bytes.size());

            const auto prefix = NestedStateBuffer::parse_prefix(bytes);
            REQUIRE(prefix.has_value());
            CHECK(prefix->consumed == sample.bytes.size());
            CHECK(std::ranges::equal(prefix->state.bytes(), sample.bytes));
        }
        const auto exact = NestedStateBuffer::parse_prefix(sample.bytes);
        REQUIRE(exact.has_value());
        CHECK(exact->consumed == sample.bytes.size());
    }
}

TEST_CASE("the prefix of a typed state tells the bytes taken, also where the canonical state is shorter") {
    Bytes bytes = SvmBlob{.flags = 0x100, .vmcb12_pa = 0x3000, .size = 4224};
    bytes.resize(16384);
    const auto parsed = NestedState<Svm>::parse_prefix(bytes);
    REQUIRE(parsed.has_value());
    CHECK(parsed->consumed == 4224);
    CHECK(parsed->state.bytes().size() == 128);
    CHECK(parsed->state == NestedState<Svm>::not_in_nested_operation());

    CHECK(NestedState<Vmx>::parse_prefix(bytes).error().code == Errc::wrong_vendor);
}

TEST_CASE("the bytes may lie anywhere") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        Bytes room(sample.bytes.size() + 16);
        for (std::size_t shift = 0; shift < 16; ++shift) {
            std::ranges::copy(sample.bytes, room.begin() + static_cast<std::ptrdiff_t>(shift));
            CHECK(parse(sample.vendor, std::span{room}.subspan(shift, sample.bytes.size())).bytes
                  == sample.bytes);
        }
    }
}

TEST_CASE("the other vendor's state is refused as such, in whatever length") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto other = sample.vendor == VendorId::vmx ? VendorId::svm : VendorId::vmx;
        const auto outcome = parse(other, sample.bytes);
        REQUIRE(outcome.error.has_value());
        CHECK(outcome.error->code == Errc::wrong_vendor);
        CHECK(outcome.error->detail == 2);
    }
}

TEST_CASE("each wrong tag is refused with its own cause and its place") {
    const VmxBlob current{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    const VmxBlob l2{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    const auto vmx = [](VmxBlob blob, auto change, Errc code, std::uint64_t detail) {
        change(blob);
        refuses(VendorId::vmx, blob, code, detail);
    };
    vmx(l2, [](auto& b) { b.flags |= 0x10; }, Errc::unknown_flags, 0);
    vmx(l2, [](auto& b) { b.flags |= 0x200; }, Errc::unknown_flags, 0);
    vmx(current, [](auto& b) { b.flags = 2; }, Errc::run_pending_outside_l2, 0);
    vmx({}, [](auto& b) { b.smm_flags = 2; }, Errc::smm_without_vmxon, 24);
    vmx({}, [](auto& b) { b.vmcs12_pa = 0x2000; }, Errc::vmcs12_without_vmxon, 16);
    vmx({}, [](auto& b) { b.flags = 8; }, Errc::flags_without_vmxon, 0);
    vmx({}, [](auto& b) { b.flags = 0x100; }, Errc::flags_without_vmxon, 0);
    vmx({}, [](auto& b) { b.vmx_flags = 2; }, Errc::unknown_vmx_flags, 28);
    vmx(l2, [](auto& b) { b.smm_flags = 1; }, Errc::l2_active_in_smm, 24);
    vmx(l2, [](auto& b) { b.smm_flags = 2; }, Errc::l2_active_in_smm, 24);
    vmx(current, [](auto& b) { b.smm_flags = 4; }, Errc::unknown_smm_flags, 24);
    vmx(current, [](auto& b) { b.smm_flags = 1; }, Errc::smm_l2_without_smm_vmxon, 24);
    vmx(current, [](auto& b) { b.vmx_flags = ~0u; }, Errc::unknown_vmx_flags, 28);
    vmx(current, [](auto& b) { b.size = 128; }, Errc::payload_missing, 4);
    vmx(l2, [](auto& b) { b.size = 128; }, Errc::payload_missing, 4);
    vmx({.flags = 4, .vmxon_pa = 0x1000}, [](auto&) {}, Errc::payload_missing, 4);
    vmx({.vmxon_pa = 0x1000, .smm_flags = 3}, [](auto&) {}, Errc::payload_missing, 4);
    vmx(current, [](auto& b) { b.vmcs12_pa = unit::none; }, Errc::payload_without_vmcs12, 16);
    vmx(current, [](auto& b) { b.vmcs12_pa = 0x1000; }, Errc::bad_vmcs12_address, 16);
    vmx(current, [](auto& b) { b.vmcs12_pa = 0x2008; }, Errc::bad_vmcs12_address, 16);
    vmx(current, [](auto& b) { b.first_word = unit::revision + 1; }, Errc::bad_vmcs12_revision, 128);
    vmx(current, [](auto& b) { b.first_word = 0; }, Errc::bad_vmcs12_revision, 128);
    vmx(current, [](auto& b) { b.vmxon_pa = 0x1001; }, Errc::bad_vmxon_address, 8);
    vmx({.vmxon_pa = 0x1800}, [](auto&) {}, Errc::bad_vmxon_address, 8);
    const auto with_shadow = [](auto change) {
        Bytes bytes = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320};
        change(bytes);
        return bytes;
    };
    refuses(VendorId::vmx, with_shadow([](Bytes& b) {
                b.resize(4224);
                unit::put(b, 4, std::uint32_t{4224});
            }),
            Errc::shadow_vmcs12_missing, 4);
    for (const std::uint32_t word : {0xdeadu, 0u, unit::revision, (unit::revision | 1u << 31) ^ 2})
        refuses(VendorId::vmx, with_shadow([&](Bytes& b) { unit::put(b, 128 + 4096, word); }),
                Errc::bad_shadow_vmcs12_revision, 128 + 4096);

    const SvmBlob guest{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224};
    const auto svm = [](SvmBlob blob, auto change, Errc code, std::uint64_t detail) {
        change(blob);
        refuses(VendorId::svm, blob, code, detail);
    };
    svm(guest, [](auto& b) { b.flags |= 0x10; }, Errc::unknown_flags, 0);
    svm(guest, [](auto& b) { b.flags |= 4; }, Errc::flags_of_other_vendor, 0);
    svm(guest, [](auto& b) { b.flags |= 8; }, Errc::flags_of_other_vendor, 0);
    svm({}, [](auto& b) { b.flags = 2; }, Errc::run_pending_outside_l2, 0);
    svm(guest, [](auto& b) { b.size = 128; }, Errc::payload_missing, 4);
    svm(guest, [](auto& b) { b.vmcb12_pa = 0x3123; }, Errc::bad_vmcb12_address, 8);
    svm(guest, [](auto& b) { b.vmcb12_pa = unit::none; }, Errc::bad_vmcb12_address, 8);
    Bytes not_intercepted = guest, no_asid = guest;
    unit::put(not_intercepted, 128 + 0x10, std::uint32_t{0xfffffffe});
    refuses(VendorId::svm, not_intercepted, Errc::vmrun_not_intercepted, 128 + 0x10);
    unit::put(no_asid, 128 + 0x58, std::uint32_t{0});
    refuses(VendorId::svm, no_asid, Errc::asid_zero, 128 + 0x58);

    for (const std::uint16_t format : {std::uint16_t{2}, std::uint16_t{0x100}, std::uint16_t{0xffff}}) {
        Bytes bytes = guest;
        unit::put(bytes, 2, format);
        refuses(VendorId::svm, bytes, Errc::unknown_format, 2);
        refuses(VendorId::vmx, bytes, Errc::unknown_format, 2);
    }
}

TEST_CASE("a size that the kernel does not produce is refused, even where there are as many bytes") {
    for (const std::uint32_t size : {129u, 1125u, 1126u, 2112u, 4223u, 4225u, 5222u, 8319u, 8321u, 16384u}) {
        CAPTURE(size);
        refuses(VendorId::vmx, VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = size}, Errc::bad_size,
                4);
        refuses(VendorId::svm, SvmBlob{.flags = 0x101, .size = size}, Errc::bad_size, 4);
    }
    refuses(VendorId::svm, SvmBlob{.flags = 0x101, .size = 8320}, Errc::bad_size, 4);
}

TEST_CASE("a size that disagrees with the bytes is refused, whatever it says") {
    Bytes bytes = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    for (const std::uint32_t size : {0u, 1u, 127u}) {
        unit::put(bytes, 4, size);
        refuses(VendorId::vmx, bytes, Errc::bad_size, 4);
        CHECK(NestedState<Vmx>::parse_prefix(bytes).error().code == Errc::bad_size);
    }
    unit::put(bytes, 4, std::uint32_t{128});
    refuses(VendorId::vmx, bytes, Errc::too_long, 128);
    for (const std::uint32_t size : {4225u, 8320u, 8321u, 0x7fff'ffffu, 0x8000'0000u, 0xffff'ffffu}) {
        unit::put(bytes, 4, size);
        refuses(VendorId::vmx, bytes, Errc::too_short, 4224);
        CHECK(NestedState<Vmx>::parse_prefix(bytes).error().code == Errc::too_short);
    }
}

TEST_CASE("what the kernel ignores becomes zero, so that equal states have equal bytes") {
    std::mt19937 random{42};
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        for (int round = 0; round < 50; ++round) {
            auto junk = sample.bytes;
            const std::size_t meaningful = sample.vendor == VendorId::vmx ? 40 : 24;
            for (std::size_t i = meaningful; i < 128; ++i)
                junk[i] = static_cast<std::byte>(random());
            if (sample.vendor == VendorId::vmx) {
                junk[26] = junk[27] = static_cast<std::byte>(random()); // pad
                if (unit::take<std::uint32_t>(junk, 28) == 0)           // a deadline without its flag
                    unit::put(junk, 32, random());
            }
            REQUIRE(parse(sample.vendor, junk).bytes == sample.bytes);
        }
    }
}

TEST_CASE("spellings of one state that the kernel takes are one state") {
    const auto same = [](const Bytes& spelling, const Bytes& canonical) {
        const auto outcome = parse_as<NestedStateBuffer>(spelling);
        CHECK_FALSE(outcome.error.has_value());
        CHECK(outcome.bytes == canonical);
    };
    // GIF_SET on VMX; MTF_PENDING outside L2.
    same(VmxBlob{.flags = 0x108, .vmxon_pa = 0x1000}, VmxBlob{.vmxon_pa = 0x1000});
    // EVMCS next to an address: the address wins. EVMCS outside VMX operation.
    same(VmxBlob{.flags = 5, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224},
         VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224});
    same(VmxBlob{.flags = 4}, VmxBlob{});
    // A deadline outside L2.
    same(VmxBlob{.vmxon_pa = 0x1000, .vmx_flags = 1, .deadline = 5}, VmxBlob{.vmxon_pa = 0x1000});
    // A payload outside VMX operation; a shadow vmcs12 outside L2.
    same(VmxBlob{.size = 4224}, VmxBlob{});
    same(VmxBlob{.size = 8320, .first_word = 0}, VmxBlob{});
    Bytes shadowed = VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320};
    Bytes alone(shadowed.begin(), shadowed.begin() + 4224);
    unit::put(alone, 4, std::uint32_t{4224});
    same(shadowed, alone);
    // A shadow vmcs12 that no vmcs12 links to, with L2 active: VMCS shadowing off, or no link pointer.
    const Bytes l2 = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320};
    for (const bool no_link : {false, true}) {
        auto spelling = l2;
        if (no_link)
            unit::put(spelling, 128 + 176, unit::none);
        else
            unit::put(spelling, 128 + 748, unit::take<std::uint32_t>(spelling, 128 + 748) & ~(1u << 31));
        auto canonical = spelling;
        canonical.resize(4224);
        unit::put(canonical, 4, std::uint32_t{4224});
        unit::put(spelling, 128 + 4096, 0xdeadu);
        same(spelling, canonical);
    }
    CHECK(parse_as<NestedStateBuffer>(l2).bytes == l2);
    // SVM outside L2: nothing but GIF is looked at.
    same(SvmBlob{.flags = 0x100, .vmcb12_pa = 0x3000, .gpat = 7, .size = 4224}, SvmBlob{});
    same(SvmBlob{.flags = 0, .vmcb12_pa = unit::none}, SvmBlob{.flags = 0});
}

TEST_CASE("a shadow VMCS indicator in the revision is no other revision") {
    const Bytes bytes = VmxBlob{
        .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224, .first_word = unit::revision | 1u << 31};
    CHECK(parse_as<NestedState<Vmx>>(bytes).bytes == bytes);
}

TEST_CASE("any bytes at all are refused or become a state that survives being parsed again") {
    std::mt19937 random{7};
    const auto all = unit::samples();
    std::size_t accepted = 0;
    for (int round = 0; round < 20000; ++round) {
        auto bytes = all[random() % all.size()].bytes;
        for (unsigned change = random() % 4; change != 0; --change)
            bytes[random() % 40] = static_cast<std::byte>(random() % 3 == 0 ? random() : 0);
        if (random() % 8 == 0)
            bytes.resize(random() % 8400);
        const auto outcome = parse_as<NestedStateBuffer>(bytes);
        if (outcome.error) {
            REQUIRE(outcome.error->code >= Errc::too_short);
            continue;
        }
        ++accepted;
        REQUIRE(outcome.bytes.size() <= bytes.size());
        REQUIRE(parse_as<NestedStateBuffer>(outcome.bytes) == outcome);
        REQUIRE(outcome.phase != kvm::nested::Phase::unrecognised);
    }
    CHECK(accepted > 1000);
}

} // namespace
