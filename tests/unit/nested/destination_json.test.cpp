// SPDX-License-Identifier: MIT
//
// A Destination as JSON and back: what is known comes back, and what is wrong is told by its place.
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include <doctest/doctest.h>

import kvm.nested.json;

namespace {

using kvm::nested::Destination;
using kvm::nested::destination_from_json;
using kvm::nested::Feature;
using kvm::nested::Known;
using kvm::nested::VendorId;
using Cause = kvm::nested::JsonError::Cause;

/// With all that there is.
Destination whole() {
    Destination to{.vendor = VendorId::vmx,
                   .kernel = {{6, 12, 118}},
                   .nested = true,
                   .maxphyaddr = 46,
                   .svm = {.features = 0x1bc, .asids = 16},
                   .smm = false,
                   .efer = 0xd01,
                   .cr0 = 0x80050033,
                   .cr3 = 0xffff'ffff'ffff'f000,
                   .cr4 = 0x2620,
                   .enlightened_vmcs = false,
                   .disabled_quirks = 0,
                   .nested_paging = true,
                   .perf_global_ctrl = 0x7'0000'000f,
                   .exception_payload = true,
                   .tsc_khz = 2'000'000};
    for (std::size_t i = 0; i < kvm::nested::feature_count; ++i) {
        to.guest.set(static_cast<Feature>(i), i % 2 == 0);
        to.host.set(static_cast<Feature>(i), i % 3 == 0);
    }
    for (auto msr = kvm::nested::vmx::Capabilities::first; msr <= kvm::nested::vmx::Capabilities::last; ++msr)
        to.vmx.set(msr, ~std::uint64_t{msr});
    return to;
}

TEST_CASE("a destination comes back as it was, and nothing is made up") {
    for (const auto& to : {Destination{}, whole(), Destination{.vendor = VendorId::svm},
                           Destination{.svm = {.features = 0, .asids = {}}}}) {
        const auto back = destination_from_json(to_json(to));
        REQUIRE(back.has_value());
        CHECK(*back == to);
    }
    CHECK(to_json(Destination{}) == "{\n  \"kvm.nested.destination\": 1\n}\n");
    const auto text = to_json(whole());
    for (const auto* there : {"\"vendor\": \"VMX\"", "\"kernel\": \"6.12.118\"", "\"maxphyaddr\": 46",
                              "\"0x48f\": \"0xfffffffffffffb70\"", "\"fxsr-opt\": ", "\"hyperv\": "})
        CHECK(text.contains(there));
}

TEST_CASE("a person's record is taken: any order, decimal and hexadecimal, and little of it") {
    const auto to = destination_from_json(
        R"({"guest": {"nx": true}, "efer": 1280, "tsc_khz": "0x10", "kvm.nested.destination": 1})");
    REQUIRE(to.has_value());
    CHECK(to->guest[Feature::nx] == Known::yes);
    CHECK(to->guest[Feature::svm] == Known::unknown);
    CHECK(to->efer == 1280);
    CHECK(to->tsc_khz == 16);
    CHECK(!to->vendor);
}

TEST_CASE("what is wrong with a record is told, and where") {
    struct Wrong {
        std::string_view text; ///< behind the version
        Cause cause;
        std::string_view where;
    };
    for (const auto& [text, cause, where] : std::initializer_list<Wrong>{
             {R"("vendor": "Intel")", Cause::bad_value, "vendor"},
             {R"("vendor": 1)", Cause::bad_value, "vendor"},
             {R"("vendor": "VMX", "vendor": "VMX")", Cause::repeated_name, "vendor"},
             {R"("kvm.nested.destination": 1)", Cause::repeated_name, "kvm.nested.destination"},
             {R"("kernel": "6.12")", Cause::bad_value, "kernel"},
             {R"("kernel": "6.12.118-1")", Cause::bad_value, "kernel"},
             {R"("kernel": "6.12.70000")", Cause::bad_value, "kernel"},
             {R"("nested": 1)", Cause::bad_value, "nested"},
             {R"("nested": null)", Cause::bad_value, "nested"},
             {R"("maxphyaddr": 256)", Cause::bad_value, "maxphyaddr"},
             {R"("maxphyaddr": -1)", Cause::bad_value, "maxphyaddr"},
             {R"("efer": "0x10000000000000000")", Cause::bad_value, "efer"},
             {R"("efer": "")", Cause::bad_value, "efer"},
             {R"("efer": 9007199254740993)", Cause::rounded, "efer"},
             {R"("efer": 18446744073709551616)", Cause::rounded, "efer"},
             {R"("efer": {})", Cause::bad_value, "efer"},
             {R"("efer": [])", Cause::bad_value, "efer"},
             {R"("memory": 1)", Cause::unknown_name, "memory"},
             {R"("guest": true)", Cause::bad_value, "guest"},
             {R"("guest": {"nx": 1})", Cause::bad_value, "guest/nx"},
             {R"("guest": {"nx": {}})", Cause::bad_value, "guest/nx"},
             {R"("guest": {"warp": true})", Cause::unknown_name, "guest/warp"},
             {R"("guest": {"nx": true, "nx": true})", Cause::repeated_name, "guest/nx"},
             {R"("guest": {}, "guest": {})", Cause::repeated_name, "guest"},
             {R"("vmx": {"0x47f": "0x0"})", Cause::unknown_name, "vmx/0x47f"},
             {R"("vmx": {"1152": "0x0"})", Cause::unknown_name, "vmx/1152"},
             {R"("vmx": {"0x100000480": "0x0"})", Cause::unknown_name, "vmx/0x100000480"},
             {R"("vmx": {"0x480": true})", Cause::bad_value, "vmx/0x480"},
             {R"("vmx": {"0x48f": "0x0", "0x48F": "0x0"})", Cause::repeated_name, "vmx/0x48F"},
             {R"("svm": {"features": "0x100000000"})", Cause::bad_value, "svm/features"},
             {R"("svm": {"asid": 1})", Cause::unknown_name, "svm/asid"}}) {
        CAPTURE(text);
        const auto to = destination_from_json(R"({"kvm.nested.destination": 1, )" + std::string{text} + "}");
        REQUIRE(!to.has_value());
        CHECK(to.error().cause == cause);
        CHECK(to.error().where == where);
    }
}

TEST_CASE("a newer record is told as such, whatever else it has, and no record is told as none") {
    for (const auto* text :
         {R"({"kvm.nested.destination": 2})", R"({"warp": [{"x": 1}], "kvm.nested.destination": 2, "y": {}})",
          R"({"vendor": "RISC", "kvm.nested.destination": 99})", R"({"kvm.nested.destination": 0})"}) {
        const auto to = destination_from_json(text);
        REQUIRE(!to.has_value());
        CHECK(to.error().cause == Cause::version);
        CHECK(to.error().message().contains("version 1 is"));
    }
    CHECK(destination_from_json("{}").error().cause == Cause::missing);
    CHECK(destination_from_json("{}").error().where == "kvm.nested.destination");
    CHECK(destination_from_json(R"({"kvm.nested.destination": "1"})").error().cause == Cause::bad_value);
    CHECK(destination_from_json(R"({"kvm.nested": 1, "vendor": "VMX"})").error().cause
          == Cause::unknown_name);
    for (const auto* text : {"1", "\"x\"", "[]", "[{}]", "null"})
        CHECK(destination_from_json(text).error().cause == Cause::shape);
    CHECK(destination_from_json("").error().cause == Cause::syntax);
    CHECK(destination_from_json("{\"kvm.nested.destination\": 1").error().cause == Cause::syntax);
    CHECK(destination_from_json(std::string(100'000, '[')).error().cause == Cause::shape);
    CHECK(destination_from_json(R"({"kvm.nested.destination": 1} x)").error().cause == Cause::syntax);
}

TEST_CASE("a message has nothing in it that a terminal would obey") {
    const auto to = destination_from_json("{\"kvm.nested.destination\": 1, \"\\u001b[31m"
                                          + std::string(500, 'x') + "\": 1}");
    REQUIRE(!to.has_value());
    CHECK(to.error().where.size() < 80);
    CHECK(!to.error().where.contains('\x1b'));
}

} // namespace
