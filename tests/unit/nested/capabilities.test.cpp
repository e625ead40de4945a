// SPDX-License-Identifier: MIT
//
// What is known of a host's VMX and SVM, and what is not.
#include <cstdint>
#include <optional>

#include <doctest/doctest.h>

import unit.support;

namespace {

namespace vmx = kvm::nested::vmx;
namespace svm = kvm::nested::svm;

TEST_CASE("a capability MSR is known once it is set, and again unknown once it is forgotten") {
    vmx::Capabilities capabilities;
    CHECK(capabilities.empty());
    CHECK_FALSE(capabilities[0x48b].has_value());

    CHECK(capabilities.set(0x480, 0));
    CHECK(capabilities.set(0x493, 7));
    CHECK(capabilities[0x480] == std::uint64_t{0});
    CHECK(capabilities[0x493] == std::uint64_t{7});
    CHECK_FALSE(capabilities.empty());
    CHECK(capabilities != vmx::Capabilities{});

    capabilities.forget(0x480);
    capabilities.forget(0x493);
    CHECK(capabilities == vmx::Capabilities{});
}

TEST_CASE("what is no capability MSR has no place among them") {
    vmx::Capabilities capabilities;
    for (const std::uint32_t msr : {0x3au, 0x47fu, 0x494u, 0u, ~0u}) {
        CHECK_FALSE(capabilities.set(msr, 1));
        CHECK_FALSE(capabilities.knows(msr));
        CHECK_FALSE(capabilities[msr].has_value());
        capabilities.forget(msr);
    }
    CHECK(capabilities.empty());
}

TEST_CASE("the TRUE MSR decides about a word of controls") {
    vmx::Capabilities capabilities;
    capabilities.set(0x482, 0xfff9'fffe'0401'e172);
    CHECK_FALSE(capabilities.allowed<vmx::Primary>().has_value()); // there may be a TRUE one
    capabilities.set(0x480, std::uint64_t{1} << 55);
    CHECK_FALSE(capabilities.allowed<vmx::Primary>().has_value()); // there is one
    capabilities.set(0x480, 0);
    CHECK(capabilities.allowed<vmx::Primary>() == vmx::AllowedSettings{0x0401'e172, 0xfff9'fffe});
    capabilities.set(0x48e, 0xfff9'fffe'0400'6172);
    CHECK(capabilities.allowed<vmx::Primary>() == vmx::AllowedSettings{0x0400'6172, 0xfff9'fffe});

    capabilities.set(0x48b, 0x0000'0002'0000'0000);
    CHECK(capabilities.allowed<vmx::Secondary>()->may_be_1 == 2);
    CHECK_FALSE(capabilities.allowed<vmx::EntryControl>().has_value());
}

TEST_CASE("a control that must be 1, and one that cannot be 1, are refused") {
    constexpr auto allowed = vmx::AllowedSettings::of(0x00ff'ffff'0003'6dfb); // 0x48f of a Skylake
    static_assert(allowed.msr() == 0x00ff'ffff'0003'6dfb);
    CHECK(allowed.allow(0x0003'6dfb));
    CHECK(allowed.allow(0x00ff'ffff));
    CHECK(allowed.refused(0x0003'6dfa) == 1);
    CHECK(allowed.refused(0x1003'6dfb) == 0x1000'0000);
}

TEST_CASE("of SVM, too, nothing is known at first") {
    svm::Capabilities capabilities;
    CHECK(capabilities.empty());
    capabilities.asids = 0;
    CHECK_FALSE(capabilities.empty());
}

} // namespace
