// SPDX-License-Identifier: MIT
#include <cerrno>
#include <cstdint>
#include <expected>
#include <string_view>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::VendorId;
using kvm::vcpu::Errc;
using kvm::vcpu::FirstRun;
using kvm::vcpu::Operation;
using unit::busy;
using unit::RunEnd;
using unit::whole;
namespace exit_reason = unit::exit_reason;

FirstRun verdict(const RunEnd& end, std::uint32_t mp_state = 0) {
    auto fake = busy(VendorId::vmx);
    fake.mp_state.state = mp_state;
    fake.runs = {end};
    const auto result = whole(fake).first_run();
    REQUIRE(result.has_value());
    return *result;
}

TEST_CASE("an exit of the guest proves the restore") {
    for (const std::uint32_t reason : {2u, 5u, 6u, 8u, 24u})
        CHECK(verdict({.exit_reason = reason}) == FirstRun::ran);
}

TEST_CASE("each kernel's way to say that the pages are missing is understood") {
    CHECK(verdict({.exit_reason = {}}) == FirstRun::nested_pages_failed); // Linux 6.1 leaves the old reason
    CHECK(verdict({.exit_reason = exit_reason::unknown}) == FirstRun::nested_pages_failed); // 6.12
    CHECK(verdict({.exit_reason = exit_reason::internal_error, .suberror = 1})
          == FirstRun::nested_pages_failed);
}

TEST_CASE("an internal error of another kind is the guest's") {
    CHECK(verdict({.exit_reason = exit_reason::internal_error, .suberror = 1, .ndata = 4}) == FirstRun::ran);
    CHECK(verdict({.exit_reason = exit_reason::internal_error, .suberror = 3}) == FirstRun::ran);
}

TEST_CASE("an entry that the processor refused is neither") {
    CHECK(verdict({.exit_reason = exit_reason::fail_entry}) == FirstRun::entry_failed);
}

TEST_CASE("a run that was interrupted before the pages were looked at proves nothing") {
    CHECK(verdict({.error_number = EINTR, .exit_reason = {}}) == FirstRun::not_yet);
    CHECK(verdict({.error_number = EAGAIN, .exit_reason = {}}) == FirstRun::not_yet);
    CHECK(verdict({.exit_reason = exit_reason::dirty_ring_full}) == FirstRun::not_yet);

    auto fake = busy(VendorId::vmx);
    fake.page.immediate_exit = 1;
    fake.runs = {{.error_number = EINTR, .exit_reason = exit_reason::intr}};
    CHECK(whole(fake).first_run() == FirstRun::not_yet);
    CHECK(fake.page.immediate_exit == 1);
}

TEST_CASE("a signal proves the restore of a vCPU that could run, and not of one that was halted") {
    const RunEnd signal{.error_number = EINTR, .exit_reason = exit_reason::intr};
    CHECK(verdict(signal) == FirstRun::ran);
    CHECK(verdict(signal, 3) == FirstRun::not_yet); // KVM_MP_STATE_HALTED
}

TEST_CASE("a run that fails is an error of its own") {
    auto fake = busy(VendorId::vmx);
    fake.runs = {{.error_number = EFAULT}};
    const auto result = whole(fake).first_run();
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().operation == Operation::first_run);
    CHECK(result.error().cause == kvm::nested::Errc::bad_address);
}

TEST_CASE("verdicts have names") {
    CHECK(name(FirstRun::ran) == "ran");
    CHECK(name(FirstRun::nested_pages_failed) == "nested_pages_failed");
    CHECK(name(FirstRun::entry_failed) == "entry_failed");
    CHECK(name(FirstRun::not_yet) == "not_yet");
}

} // namespace
