// SPDX-License-Identifier: MIT
//
// JSON and back. That nothing gets lost on the way is what counts, and that no text is unsafe input.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <initializer_list>
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

using kvm::nested::from_json;
using kvm::nested::to_json;
using Cause = kvm::nested::JsonError::Cause;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

Bytes canonical(const Bytes& bytes) {
    const auto state = kvm::nested::NestedStateBuffer::parse(bytes);
    REQUIRE(state.has_value());
    return Bytes(state->bytes().begin(), state->bytes().end());
}

/// The bytes that come back; none if none do.
Bytes there_and_back(const Bytes& bytes, const kvm::nested::JsonOptions& options = {}) {
    const auto state = from_json(to_json(bytes, options));
    if (!state) {
        MESSAGE(state.error().message());
        return {};
    }
    return Bytes(state->bytes().begin(), state->bytes().end());
}

TEST_CASE("a state is an object of its parts, by the names of the fields") {
    CHECK(
        to_json(unit::with_fields(VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224},
                                  {{"guest_rip", 0xffffffff81000123}, {"guest_cr0", 0x80000011}}))
        == R"({
  "kvm.nested": 1,
  "vendor": "VMX",
  "phase": "L2 active",
  "header": {
    "flags": "0x1",
    "format": "0x0",
    "size": "0x1080",
    "hdr.vmx.vmxon_pa": "0x1000",
    "hdr.vmx.vmcs12_pa": "0x2000",
    "hdr.vmx.smm.flags": "0x0",
    "hdr.vmx.flags": "0x0",
    "hdr.vmx.preemption_timer_deadline": "0x0"
  },
  "vmcs12": {
    "hdr": "0x11e57ed0",
    "guest_cr0": "0x80000011",
    "guest_rip": "0xffffffff81000123"
  }
}
)");
    const auto with_meanings = to_json(
        unit::with_fields(SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224}, {{"cr0", 0x11}}),
        {.meanings = true});
    CHECK(with_meanings.find(R"(
    "cr0": {
      "value": "0x11",
      "meaning": "PE, ET"
    }
  }
)") != std::string::npos);
}

TEST_CASE("to JSON and back is the identity for every shape that KVM reports") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        for (const bool zeros : {false, true})
            for (const bool meanings : {false, true})
                CHECK(there_and_back(sample.bytes, {.zeros = zeros, .meanings = meanings})
                      == canonical(sample.bytes));
    }
    for (const auto& bytes : {unit::vmx_l2(), unit::svm_l2()})
        CHECK(there_and_back(bytes) == bytes);
}

TEST_CASE("header padding, which parse() takes and drops, does not keep a state from coming back") {
    for (const auto& sample : unit::samples()) {
        auto bytes = sample.bytes;
        const auto expected = canonical(bytes);
        const std::size_t padding = sample.vendor == kvm::nested::VendorId::vmx ? 40 : 24;
        std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(padding), bytes.begin() + 128, std::byte{0xff});
        CHECK(there_and_back(bytes) == expected);
    }
}

#ifdef __OPTIMIZE__
constexpr int generated_states = 100'000;
#else
constexpr int generated_states = 2'000; // a sanitizer needs minutes for more
#endif

TEST_CASE("to JSON and back is the identity for generated states") {
    std::uint64_t seed = 1;
    const auto random = [&seed] { // SplitMix64
        std::uint64_t z = seed += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    };
    std::vector<Bytes> shapes;
    for (const auto& sample : unit::samples()) {
        shapes.push_back(canonical(sample.bytes));
        const bool has_revision = sample.vendor == kvm::nested::VendorId::vmx && shapes.back().size() > 128;
        std::fill(shapes.back().begin() + 128, shapes.back().end(), std::byte{0});
        if (has_revision)
            unit::put(shapes.back(), 128, unit::revision);
    }
    // What decides the phase: VMCS shadowing exactly where there is a shadow vmcs12; VMRUN intercept and
    // ASID.
    const auto make_valid = [](Bytes& bytes) {
        const auto set = [&](std::size_t offset, std::uint32_t clear, std::uint32_t bits) {
            unit::put(bytes, offset, (unit::take<std::uint32_t>(bytes, offset) & ~clear) | bits);
        };
        if (bytes.size() == 128)
            return;
        if (unit::take<std::uint16_t>(bytes, 2) != 0) {
            set(128 + 0x10, 0, 1);
            set(128 + 0x58, 0, 1);
            return;
        }
        const bool shadow = bytes.size() == 8320;
        set(128 + 748, 0, 1u << 31);
        set(128 + 804, 1u << 14, shadow ? 1u << 14 : 0);
        if (shadow)
            set(128 + 4096, ~0u, unit::revision | 1u << 31);
    };
    std::size_t lost = 0;
    for (int i = 0; i < generated_states; ++i) {
        auto bytes = shapes[random() % shapes.size()];
        if (bytes.size() > 132)
            for (auto changes = random() % 8; changes-- > 0;)
                bytes[132 + random() % (bytes.size() - 132)] = static_cast<std::byte>(random());
        make_valid(bytes);
        lost += there_and_back(bytes) != bytes;
    }
    CHECK(lost == 0);
}

TEST_CASE("a person may write decimal, hexadecimal, numbers, any order, and leave out what is zero") {
    const auto state =
        from_json(R"({"kvm.nested": 1, "vmcs12": {"guest_rip": 4660, "host_rip": "0x1F", "padding": "0001",
        "virtual_processor_id": "7", "guest_cr0": {"value": "0x11", "meaning": "whatever"}},
        "header": {"flags": 1, "hdr.vmx.vmxon_pa": "0x1000", "hdr.vmx.vmcs12_pa": "8192"}, "vendor": "VMX"})");
    REQUIRE(state.has_value());
    CHECK(state->phase() == kvm::nested::Phase::vmx_l2_active);
    const auto expected = unit::with_fields(
        VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224},
        {{"guest_rip", 0x1234}, {"host_rip", 0x1f}, {"virtual_processor_id", 7}, {"guest_cr0", 0x11}});
    auto bytes = Bytes(state->bytes().begin(), state->bytes().end());
    CHECK(bytes[128 + 13] == std::byte{1});
    bytes[128 + 13] = std::byte{0};
    CHECK(bytes == expected);
    CHECK(from_json(R"({"kvm.nested": 1, "vendor": "VMX"})")->phase() == kvm::nested::Phase::vmx_off);
    CHECK(from_json(R"({"vendor": "SVM", "kvm.nested": 1})")->phase()
          == kvm::nested::Phase::svm_outside_l2_gif_clear);
}

struct Wrong {
    std::string_view text;
    Cause cause;
    std::string_view where;
};

TEST_CASE("what is wrong with a text is told with its place") {
    for (const auto& wrong : {
             Wrong{"", Cause::syntax, ""},
             Wrong{"nonsense", Cause::syntax, ""},
             Wrong{R"({"vendor": "VMX")", Cause::syntax, ""},
             Wrong{R"({"vendor": "VMX"} and more)", Cause::syntax, ""},
             Wrong{"[]", Cause::shape, ""},
             Wrong{"7", Cause::shape, ""},
             Wrong{R"({"vendor": 7})", Cause::shape, "vendor"},
             Wrong{R"({"vendor": null})", Cause::shape, "vendor"},
             Wrong{R"({"vendor": {}})", Cause::shape, "vendor"},
             Wrong{R"({"phase": {}})", Cause::shape, "phase"},
             Wrong{R"({"vmcs12": "0x1"})", Cause::shape, "vmcs12"},
             Wrong{R"({"vmcs12": 1})", Cause::shape, "vmcs12"},
             Wrong{R"({"kvm.nested": {}})", Cause::shape, "kvm.nested"},
             Wrong{R"({"vendor": "ARM"})", Cause::bad_value, "vendor"},
             Wrong{R"({"kvm.nested": "1"})", Cause::bad_value, "kvm.nested"},
             Wrong{R"({"kvm.nested": 2, "vendor": "VMX"})", Cause::version, "kvm.nested"},
             Wrong{"{}", Cause::missing, "kvm.nested"},
             Wrong{R"({"vendor": "VMX"})", Cause::missing, "kvm.nested"},
             Wrong{R"({"kvm.nested": 1})", Cause::missing, "vendor"},
             Wrong{R"({"kvm.nested": 1, "kvm.nested": 1})", Cause::repeated_name, "kvm.nested"},
             Wrong{R"({"vendor": "VMX", "vendor": "SVM"})", Cause::repeated_name, "vendor"},
             Wrong{R"({"vmcs12": {}, "vmcs12": {}})", Cause::repeated_name, "vmcs12"},
             Wrong{R"({"header": {}, "header": {"flags": 1}})", Cause::repeated_name, "header"},
             Wrong{R"({"phase": "", "phase": ""})", Cause::repeated_name, "phase"},
             Wrong{R"({"vmcs13": {}})", Cause::unknown_name, "vmcs13"},
             Wrong{R"({"comment": "mine"})", Cause::unknown_name, "comment"},
             Wrong{R"({"vmcs12": {"guest_ri": 1}})", Cause::unknown_name, "vmcs12/guest_ri"},
             Wrong{R"({"vmcs12": {"guest_ri": {"value": 1}}})", Cause::unknown_name, "vmcs12/guest_ri"},
             Wrong{R"({"header": {"vmxon_pa": 1}})", Cause::unknown_name, "header/vmxon_pa"},
             Wrong{R"({"vmcs12": {"guest_rip": {"values": 1}}})", Cause::unknown_name,
                   "vmcs12/guest_rip/values"},
             Wrong{R"({"vmcs12": {"guest_rip": {}}})", Cause::missing, "vmcs12/guest_rip/value"},
             Wrong{R"({"vmcs12": {"guest_rip": {"meaning": "x"}}})", Cause::missing,
                   "vmcs12/guest_rip/value"},
             Wrong{R"({"vmcs12": {"guest_rip": 1, "guest_rip": 1}})", Cause::repeated_name,
                   "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": 1, "guest\u005frip": 1}})", Cause::repeated_name,
                   "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": {"value": 1}, "guest_rip": 1}})", Cause::repeated_name,
                   "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": {"value": 1, "value": 1}}})", Cause::repeated_name,
                   "vmcs12/guest_rip/value"},
             Wrong{R"({"vmcs12": {"guest_rip": {"meaning": "", "meaning": ""}}})", Cause::repeated_name,
                   "vmcs12/guest_rip/meaning"},
             Wrong{R"({"header": {"hdr.pad": "01", "hdr.pad": "01"}})", Cause::repeated_name,
                   "header/hdr.pad"},
             Wrong{R"({"vmcs12": {"guest_rip": 9007199254740992}})", Cause::rounded, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": 18446744071578845000}})", Cause::rounded, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": 1.8446744073709552e+19}})", Cause::rounded,
                   "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": {"value": 18446744071578845000}}})", Cause::rounded,
                   "vmcs12/guest_rip/value"},
             Wrong{R"({"vmcs12": {"guest_rip": -1}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": 1.5}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": []}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": null}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": "0x"}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": ""}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": "masked"}})", Cause::bad_value, "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_rip": "0x10000000000000000"}})", Cause::bad_value,
                   "vmcs12/guest_rip"},
             Wrong{R"({"vmcs12": {"guest_cs_selector": 65536}})", Cause::bad_value,
                   "vmcs12/guest_cs_selector"},
             Wrong{R"({"vmcs12": {"guest_rip": {"meaning": 1}}})", Cause::bad_value,
                   "vmcs12/guest_rip/meaning"},
             Wrong{R"({"vmcs12": {"padding": "0"}})", Cause::bad_value, "vmcs12/padding"},
             Wrong{R"({"vmcs12": {"padding": "zz"}})", Cause::bad_value, "vmcs12/padding"},
             Wrong{R"({"vmcs12": {"padding": 1}})", Cause::bad_value, "vmcs12/padding"},
             Wrong{R"({"header": {"hdr.pad": "zz"}})", Cause::bad_value, "header/hdr.pad"},
             Wrong{R"({"vmcs12": {"guest_rip": {"value": {}}}})", Cause::shape, "vmcs12/guest_rip/value"},
             Wrong{R"({"kvm.nested": 1, "vendor": "VMX", "vmcb": {}})", Cause::other_vendor, "vmcb"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "vmcs12": {}})", Cause::other_vendor, "vmcs12"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "shadow_vmcs12": {}})", Cause::other_vendor,
                   "shadow_vmcs12"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "header": {"hdr.vmx.vmxon_pa": "0x1000"}})",
                   Cause::other_vendor, "header/hdr.vmx.vmxon_pa"},
             Wrong{R"({"kvm.nested": 1, "header": {"hdr.svm.vmcb_pa": "0x1000"}, "vendor": "VMX"})",
                   Cause::other_vendor, "header/hdr.svm.vmcb_pa"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM",
                       "header": {"hdr.svm.vmcb_pa": "0x1000", "hdr.vmx.vmxon_pa": "0x1000"}})",
                   Cause::other_vendor, "header/hdr.vmx.vmxon_pa"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "header": {"size": 4224}})", Cause::bad_value,
                   "header/size"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "header": {"format": 0}})", Cause::bad_value,
                   "header/format"},
             Wrong{R"({"refused": "why"})", Cause::no_state, "refused"},
             Wrong{R"({"kvm.nested": 1, "vendor": "SVM", "header": {"flags": 1}})", Cause::refused, ""},
             Wrong{"{\"\\u001b[2J\": 1}", Cause::unknown_name, "?[2J"},
         }) {
        CAPTURE(wrong.text);
        const auto state = from_json(wrong.text);
        REQUIRE_FALSE(state.has_value());
        CHECK(state.error().cause == wrong.cause);
        CHECK(state.error().where == wrong.where);
        CHECK_FALSE(state.error().message().empty());
        CHECK(state.error().refused.has_value() == (wrong.cause == Cause::refused));
    }
    const auto refused = from_json(R"({"kvm.nested": 1, "vendor": "SVM", "header": {"flags": 1}})");
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().refused.value().code == kvm::nested::Errc::payload_missing);
    const auto syntax = from_json(R"({"vendor": "VMX", )");
    REQUIRE_FALSE(syntax.has_value());
    CHECK(syntax.error().offset >= 17);
    const auto rounded = from_json(R"({"vmcs12": {"guest_rip": 18446744071578845000}})");
    CHECK(rounded.error().message()
          == "a JSON number above 2^53 - 1, which programs such as jq round; write it as a string: "
             "vmcs12/guest_rip");
    const auto exact = from_json(
        R"({"kvm.nested": 1, "vendor": "VMX", "header": {"hdr.vmx.vmxon_pa": "0x1000", "hdr.vmx.vmcs12_pa": 8192},
            "vmcs12": {"guest_rip": 9007199254740991}})");
    REQUIRE(exact.has_value());
    CHECK(to_json(*exact).find(R"("guest_rip": "0x1fffffffffffff")") != std::string::npos);
}

TEST_CASE("no text is unsafe input") {
    const auto good = to_json(unit::svm_l2());
    for (std::size_t length = 0; length < good.size(); length += 7)
        static_cast<void>(from_json(std::string_view{good}.substr(0, length)));
    for (std::size_t i = 0; i < good.size(); i += 3) {
        auto text = good;
        text[i] = static_cast<char>(text[i] ^ 0x15);
        static_cast<void>(from_json(text));
    }
    CHECK_FALSE(from_json(std::string(1 << 20, '\0')).has_value());
    CHECK_FALSE(from_json(std::string(1 << 20, '[')).has_value());
    const auto long_name = from_json("{\"" + std::string(5 << 20, 'x') + "\": 1}");
    CHECK(long_name.error().message().size() < 200);
    std::string deep;
    for (int i = 0; i < 100'000; ++i)
        deep += R"({"vmcs12":)";
    CHECK_FALSE(from_json(deep).has_value());
}

TEST_CASE("redacted JSON has no masked value in it, and says so when it is read") {
    const auto text = to_json(unit::vmx_l2(), {.meanings = true, .redact = true});
    CHECK(text.find("ffffffff81000123") == std::string::npos);
    CHECK(text.find(R"("value": "0x80050033",)") != std::string::npos);
    CHECK(from_json(text).error().cause == Cause::bad_value);
}

TEST_CASE("bytes that are no state become an object that says so and is none") {
    const auto refused = [](std::span<const std::byte> bytes) {
        const auto text = to_json(bytes);
        CAPTURE(text);
        CHECK(text.find("\"refused\": ") != std::string::npos);
        CHECK(text.find("\"phase\": ") == std::string::npos);
        const auto state = from_json(text);
        REQUIRE_FALSE(state.has_value());
        CHECK(state.error().cause == Cause::no_state);
        CHECK(state.error().message().find("put them right") != std::string::npos);
    };
    refused({});
    const auto whole = unit::vmx_l2();
    refused(std::span{whole}.first(200)); // cut
    auto longer = canonical(unit::samples().front().bytes);
    longer.resize(longer.size() + 8); // its fields alone would make a state
    refused(longer);
    Bytes off(128);
    off[4] = std::byte{128};
    off[0] = std::byte{0x80}; // an unknown flag
    refused(off);
}

} // namespace
