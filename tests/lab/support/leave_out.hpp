// SPDX-License-Identifier: MIT
//
// A seam that keeps steps of a restore from the kernel and tells the library that they have succeeded.
//
// Include it last: it ends the includes and imports kvm.vcpu.
#pragma once

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <sys/ioctl.h>

import kvm.vcpu;

namespace lab {

/// A set of steps.
class StepSet {
  public:
    constexpr StepSet() noexcept = default;
    template <std::same_as<kvm::vcpu::Step>... S>
    constexpr StepSet(S... steps) noexcept : bits_{(bit(steps) | ... | 0u)} {}

    constexpr bool contains(kvm::vcpu::Step step) const noexcept { return (bits_ & bit(step)) != 0; }
    constexpr bool operator==(const StepSet&) const = default;

  private:
    static constexpr std::uint64_t bit(kvm::vcpu::Step step) noexcept {
        return std::uint64_t{1} << static_cast<unsigned>(step);
    }
    std::uint64_t bits_ = 0;
};

/// For one restore of `state`.
class LeavingOut {
  public:
    LeavingOut(StepSet left_out, const kvm::vcpu::VcpuState& state) : left_out_{left_out}, state_{state} {}

    kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) noexcept {
        const auto step = step_of(request, argument);
        if (!step || !left_out_.contains(*step))
            return kvm::nested::system_call(fd, request, argument);
        return success_of(request, argument);
    }

  private:
    using Step = kvm::vcpu::Step;

    std::optional<Step> step_of(unsigned long request, const void* argument) noexcept {
        namespace request_of = kvm::vcpu::uapi::request;
        switch (request) {
        case request_of::get_vcpu_events: // restore() only checks
            return Step::capabilities;
        case request_of::run:
            return Step::pending_io;
        case request_of::set_nested_state:
            return std::exchange(cleared_, true) ? Step::nested_state : Step::clear_nested_state;
        case request_of::enable_cap:
            return Step::vcpu_capabilities;
        case request_of::set_cpuid2:
            return Step::cpuid;
        case request_of::set_msrs:
            return std::ranges::contains(state_.feature_msrs, first_index(argument),
                                         &kvm::vcpu::uapi::Msr::index)
                       ? Step::feature_msrs
                       : Step::msrs;
        case request_of::set_sregs2:
            return Step::sregs;
        case request_of::set_lapic:
            return Step::lapic;
        case request_of::set_tsc_khz:
            return Step::tsc;
        case request_of::set_one_reg:
            return Step::one_regs;
        case request_of::set_xcrs:
            return Step::xcrs;
        case request_of::set_xsave:
            return Step::xsave;
        case request_of::set_debugregs:
            return Step::debugregs;
        case request_of::set_regs:
            return Step::regs;
        case request_of::set_vcpu_events:
            return Step::events;
        case request_of::set_mp_state:
            return Step::mp_state;
        default:
            return std::nullopt;
        }
    }

    /// What the kernel answers, and writes, where all goes well.
    static kvm::nested::IoctlResult success_of(unsigned long request, void* argument) noexcept {
        namespace request_of = kvm::vcpu::uapi::request;
        if (request == request_of::run)
            return {-1, EINTR};
        if (request == request_of::set_msrs)
            return {static_cast<int>(word(argument, 0)), 0};
        if (request == request_of::get_vcpu_events) {
            kvm::vcpu::uapi::VcpuEvents events{};
            events.flags = kvm::vcpu::uapi::event_flag::payload | kvm::vcpu::uapi::event_flag::triple_fault;
            std::memcpy(argument, &events, sizeof events);
        }
        return {0, 0};
    }

    static std::uint32_t word(const void* argument, std::size_t offset) noexcept {
        std::uint32_t value;
        std::memcpy(&value, static_cast<const std::byte*>(argument) + offset, sizeof value);
        return value;
    }
    static std::uint32_t first_index(const void* msrs) noexcept { return word(msrs, 8); }

    StepSet left_out_;
    const kvm::vcpu::VcpuState& state_;
    bool cleared_ = false;
};

} // namespace lab
