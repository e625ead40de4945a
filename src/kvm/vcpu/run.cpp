// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

/// What KVM_RUN says of the pages, for the kernels that fail without an errno: it returns 0, and the exit
/// reason is the one from before (Linux 6.1), KVM_EXIT_UNKNOWN (6.12), or an internal error without a word of
/// detail (all three, by cause).
FirstRun verdict(const detail::VcpuCalls& calls) {
    using namespace uapi;
    switch (calls.run_word(run_page::exit_reason)) {
    case exit_reason::unknown:
        return FirstRun::nested_pages_failed;
    case exit_reason::internal_error:
        // A real failure to emulate has details.
        return calls.run_word(run_page::internal_suberror) == exit_reason::suberror_emulation
                       && calls.run_word(run_page::internal_count) == 0
                   ? FirstRun::nested_pages_failed
                   : FirstRun::ran;
    case exit_reason::fail_entry:
        return FirstRun::entry_failed;
    case exit_reason::dirty_ring_full: // looked at before the pages
        return FirstRun::not_yet;
    default:
        return FirstRun::ran;
    }
}

} // namespace

std::string_view name(FirstRun verdict) noexcept {
    switch (verdict) {
    case FirstRun::ran:
        return "ran";
    case FirstRun::nested_pages_failed:
        return "nested_pages_failed";
    case FirstRun::entry_failed:
        return "entry_failed";
    case FirstRun::not_yet:
        return "not_yet";
    }
    return "?";
}

detail::VcpuCalls WholeVcpu::calls(Operation operation) const noexcept {
    return {operation, system_, vm_, vcpu_, run_page_, ioctl_};
}

std::expected<FirstRun, Error> WholeVcpu::first_run() const {
    const auto calls = this->calls(Operation::first_run);
    uapi::MpState before{};
    if (const auto got = calls.call(uapi::request::get_mp_state, &before); !got)
        return std::unexpected(got.error());

    // So that the exit reason of an earlier run cannot be mistaken for one of this run.
    calls.run_word(uapi::run_page::exit_reason, uapi::exit_reason::unknown);
    const auto run = calls.ioctl(calls.vcpu.number, uapi::request::run);
    if (run.value == 0)
        return verdict(calls);
    if (run.value > 0 || (run.error_number != EINTR && run.error_number != EAGAIN))
        return std::unexpected(calls.vcpu_failed(uapi::request::run, run));

    // KVM looks at signals after it has mapped the pages of a vCPU that can run, and says KVM_EXIT_INTR then.
    // A halted vCPU waits first, and immediate_exit comes before everything.
    const bool mapped = run.error_number == EINTR && before.state == 0 && calls.immediate_exit() == 0
                        && calls.run_word(uapi::run_page::exit_reason) == uapi::exit_reason::intr;
    return mapped ? FirstRun::ran : FirstRun::not_yet;
}

} // namespace kvm::vcpu
