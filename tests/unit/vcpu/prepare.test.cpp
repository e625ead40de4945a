// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <expected>
#include <map>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::SystemFd;
using kvm::nested::VmFd;
using kvm::vcpu::Errc;
using kvm::vcpu::HypervSynic;
using kvm::vcpu::Operation;
using kvm::vcpu::Requirements;
using unit::FakeKvm;
namespace cap = unit::cap;

auto prepare(FakeKvm& fake, const Requirements& requirements) {
    return kvm::vcpu::prepare(SystemFd{FakeKvm::system}, VmFd{FakeKvm::vm}, requirements, fake);
}

TEST_CASE("prepare switches on what is asked for and nothing else") {
    FakeKvm fake;
    SUBCASE("by default") {
        REQUIRE(prepare(fake, {}).has_value());
        REQUIRE(fake.enabled_on_vm.size() == 2);
        CHECK(fake.enabled_on_vm[0].capability == cap::exception_payload);
        CHECK(fake.enabled_on_vm[0].arguments[0] == 1);
        CHECK(fake.enabled_on_vm[1].capability == cap::triple_fault_event);
        CHECK(fake.enabled_on_vm[1].arguments[0] == 1);
    }
    SUBCASE("quirks alone") {
        const Requirements quirks{
            .exception_payload = false, .triple_fault_event = false, .disabled_quirks = 0x800};
        const auto prepared = prepare(fake, quirks);
        REQUIRE(prepared.has_value());
        CHECK(prepared->requirements() == quirks);
        REQUIRE(fake.enabled_on_vm.size() == 1);
        CHECK(fake.enabled_on_vm[0].capability == cap::disable_quirks2);
        CHECK(fake.enabled_on_vm[0].arguments[0] == 0x800);
    }
    SUBCASE("what changes the meaning of a local APIC's page") {
        REQUIRE(prepare(fake, {.x2apic_api = 1, .apic_bus_cycle_ns = 40}).has_value());
        REQUIRE(fake.enabled_on_vm.size() == 4);
        CHECK(fake.enabled_on_vm[2].capability == cap::x2apic_api);
        CHECK(fake.enabled_on_vm[2].arguments[0] == 1);
        CHECK(fake.enabled_on_vm[3].capability == cap::apic_bus_cycles_ns);
        CHECK(fake.enabled_on_vm[3].arguments[0] == 40);
    }
    SUBCASE("the enlightened VMCS and the SynIC are the vCPU's: they are only asked for") {
        REQUIRE(prepare(fake, {.enlightened_vmcs = true, .hyperv_synic = HypervSynic::synic2}).has_value());
        CHECK(fake.enabled_on_vm.size() == 2);
        CHECK(fake.enabled_on_vcpu.empty());
    }
}

TEST_CASE("what the host does not offer is named, and nothing is switched on") {
    FakeKvm fake;
    Requirements all{.disabled_quirks = 0x800,
                     .enlightened_vmcs = true,
                     .x2apic_api = 3,
                     .apic_bus_cycle_ns = 2,
                     .hyperv_synic = HypervSynic::synic};
    for (const auto missing :
         {cap::exception_payload, cap::triple_fault_event, cap::disable_quirks2, cap::enlightened_vmcs,
          cap::x2apic_api, cap::apic_bus_cycles_ns, cap::hyperv_synic}) {
        FakeKvm lacking;
        lacking.offered[missing] = 0;
        const auto prepared = prepare(lacking, all);
        REQUIRE_FALSE(prepared.has_value());
        CHECK(prepared.error().cause == Errc::requirement_not_offered);
        CHECK(prepared.error().operation == Operation::prepare);
        CHECK(prepared.error().detail == kvm::vcpu::capability(missing));
        CHECK(lacking.enabled_on_vm.empty());
    }
    all.disabled_quirks = 0x1000; // one that this kernel does not know
    CHECK(prepare(fake, all).error().detail == kvm::vcpu::capability(cap::disable_quirks2));
    all.disabled_quirks = 0;
    all.x2apic_api = 4;
    CHECK(prepare(fake, all).error().detail == kvm::vcpu::capability(cap::x2apic_api));
}

TEST_CASE("a failing KVM_ENABLE_CAP is an error of prepare that names the capability") {
    FakeKvm fake;
    fake.failure = {.request = unit::request::enable_cap, .error_number = ENOMEM};
    const auto prepared = prepare(fake, {});
    REQUIRE_FALSE(prepared.has_value());
    CHECK(prepared.error().cause == kvm::nested::Errc::out_of_memory);
    CHECK(prepared.error().operation == Operation::prepare);
    CHECK(prepared.error().detail == kvm::vcpu::capability(cap::exception_payload));
}

TEST_CASE("a descriptor of the wrong kind is said to be one") {
    FakeKvm fake;
    CHECK(kvm::vcpu::prepare(SystemFd{FakeKvm::system}, VmFd{FakeKvm::vcpu}, {}, fake).error().cause
          == kvm::nested::Errc::vcpu_fd_given);
    CHECK(kvm::vcpu::prepare(SystemFd{FakeKvm::system}, VmFd{99}, {}, fake).error().cause
          == kvm::nested::Errc::bad_descriptor);
}

TEST_CASE("a VMM that has prepared its VM itself says so") {
    constexpr auto prepared = kvm::vcpu::already_prepared({.disabled_quirks = 4});
    static_assert(prepared.requirements().disabled_quirks == 4);
    CHECK(prepared.requirements().exception_payload);
}

} // namespace
