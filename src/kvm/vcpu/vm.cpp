// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

using namespace detail;

/// An ioctl on the VM whose only success is 0.
Result on_vm(const VcpuCalls& calls, unsigned long request, void* argument) {
    if (const auto result = calls.ioctl(calls.vm.number, request, argument); result.value != 0)
        return std::unexpected(calls.vm_failed(request, result));
    return {};
}

std::unexpected<Error> at(Step step, Error error) {
    error.step = step;
    return std::unexpected(error);
}

// --- interrupt controllers and PIT

/// What the VM has in the kernel, or none where it is not there: ENXIO, and ENOTTY where this KVM was built
/// without it.
template <class T>
std::expected<bool, Error> read_if_present(const VcpuCalls& calls, unsigned long request, T& into) {
    const auto got = calls.ioctl(calls.vm.number, request, &into);
    if (got.value == 0)
        return true;
    const auto error = calls.vm_failed(request, got);
    if (error.error_number == ENXIO
        || (error.error_number == ENOTTY
            && descriptor_kind(calls.ioctl, calls.vm.number) == DescriptorKind::vm))
        return false;
    return std::unexpected(error);
}

std::expected<std::optional<Irqchips>, Error> read_irqchips(const VcpuCalls& calls) {
    Irqchips chips{}; // the kernel does not fill what a PIC leaves of its 512 bytes
    for (std::uint32_t id = 0; id < chips.size(); ++id) {
        chips[id].id = id;
        const auto present = read_if_present(calls, uapi::request::get_irqchip, chips[id]);
        if (!present)
            return std::unexpected(present.error());
        if (!*present)
            return std::nullopt;
    }
    return chips;
}

std::expected<std::optional<uapi::Pit>, Error> read_pit(const VcpuCalls& calls) {
    uapi::Pit pit{};
    const auto present = read_if_present(calls, uapi::request::get_pit2, pit);
    if (!present)
        return std::unexpected(present.error());
    return *present ? std::optional{pit} : std::nullopt;
}

/// Whether the VM has in the kernel what the state has. What is there and not in the state would stay as it
/// is, which is nobody's state.
Result same_devices(const VcpuCalls& calls, const VmState& state) {
    uapi::Irqchip chip{};
    const auto irqchip = read_if_present(calls, uapi::request::get_irqchip, chip);
    if (!irqchip)
        return at(Step::irqchips, irqchip.error());
    if (*irqchip != state.irqchips.has_value())
        return calls.fail(Errc::requirement_differs, capability(uapi::cap::irqchip));
    uapi::Pit pit{};
    const auto has_pit = read_if_present(calls, uapi::request::get_pit2, pit);
    if (!has_pit)
        return at(Step::pit, has_pit.error());
    if (*has_pit != state.pit.has_value())
        return calls.fail(Errc::requirement_differs, capability(uapi::cap::pit2));
    return {};
}

// --- clock

std::uint64_t now() {
    using namespace std::chrono;
    return static_cast<std::uint64_t>(nanoseconds{system_clock::now().time_since_epoch()}.count());
}

Result read_clock(const VcpuCalls& calls, uapi::Clock& clock) {
    clock = {};
    if (const auto got = on_vm(calls, uapi::request::get_clock, &clock); !got)
        return got;
    if ((clock.flags & uapi::clock_flag::realtime)
        == 0) { // vCPUs that differ, or a clock source that is no TSC
        clock.realtime = now();
        clock.flags |= uapi::clock_flag::realtime;
    }
    return {};
}

/// The clock with the scaled TSC of the same moment. A vCPU's TSC less its offset is the scaled TSC, the same
/// for all vCPUs of one frequency. KVM tells the moment to the cycle where it can; otherwise it is somewhere
/// between two reads, of which the nearest of a few is taken.
std::expected<VmClock, Error> read_clock_and_tsc(const VcpuCalls& calls, std::uint32_t khz) {
    constexpr int tries = 3;
    VmClock result{};
    const auto offset = read_tsc_offset(calls);
    if (!offset)
        return std::unexpected(offset.error());
    if (!*offset || khz == 0) {
        if (const auto got = read_clock(calls, result.clock); !got)
            return std::unexpected(got.error());
        return result;
    }
    auto narrowest = ~std::uint64_t{0};
    for (int i = 0; i < tries; ++i) {
        uapi::Clock clock;
        const auto before = calls.read_tsc();
        if (!before)
            return std::unexpected(before.error());
        if (const auto got = read_clock(calls, clock); !got)
            return std::unexpected(got.error());
        const auto after = calls.read_tsc();
        if (!after)
            return std::unexpected(after.error());
        const auto from = *before - **offset, width = *after - *before;
        const bool exact = (clock.flags & uapi::clock_flag::host_tsc) != 0 && clock.host_tsc - from <= width;
        if (exact || width < narrowest) {
            narrowest = width;
            result = {.clock = clock,
                      .scaled_tsc = exact ? clock.host_tsc : from + width / 2,
                      .tsc_khz = khz,
                      .padding = 0};
        }
        if (exact)
            break;
    }
    return result;
}

/// Cycles of so many nanoseconds, without a product of more than 64 bits in any likely case.
std::uint64_t cycles(std::uint64_t nanoseconds, std::uint32_t khz) {
    constexpr std::uint64_t per_millisecond = 1'000'000;
    return nanoseconds / per_millisecond * khz + nanoseconds % per_millisecond * khz / per_millisecond;
}

} // namespace

std::expected<VmState, Error> WholeVm::save(VcpuFd any) const {
    const VcpuCalls calls{Operation::save, system_, vm_, any, nullptr, ioctl_};
    VmState state{.requirements = requirements_, .clock = {}, .irqchips = {}, .pit = {}};
    const auto khz = ioctl_(any.number, uapi::request::get_tsc_khz);
    if (khz.value < 0)
        return at(Step::clock, calls.vcpu_failed(uapi::request::get_tsc_khz, khz));
    const auto clock = read_clock_and_tsc(calls, static_cast<std::uint32_t>(khz.value));
    if (!clock)
        return at(Step::clock, clock.error());
    const auto irqchips = read_irqchips(calls);
    if (!irqchips)
        return at(Step::irqchips, irqchips.error());
    const auto pit = read_pit(calls);
    if (!pit)
        return at(Step::pit, pit.error());
    state.clock = *clock;
    state.irqchips = *irqchips;
    state.pit = *pit;
    return state;
}

std::expected<TscShift, Error> WholeVm::restore_clock(const VmState& state, Downtime downtime,
                                                      VcpuFd any) const {
    const VcpuCalls calls{Operation::restore, system_, vm_, any, nullptr, ioctl_};
    if (const auto fits = compatible(Operation::restore, requirements_, state.requirements); !fits)
        return std::unexpected(fits.error());
    if (const auto same = same_devices(calls, state); !same)
        return std::unexpected(same.error());

    const auto& saved = state.clock;
    if (saved.tsc_khz != 0) { // a refusal is told by the vCPUs' own reports
        const auto set = ioctl_.with_number(any.number, uapi::request::set_tsc_khz, saved.tsc_khz);
        if (set.value != 0 && !(set.value < 0 && set.error_number == EINVAL))
            return at(Step::clock, calls.vcpu_failed(uapi::request::set_tsc_khz, set));
    }
    auto clock = saved.clock;
    clock.flags = downtime == Downtime::visible ? clock.flags & uapi::clock_flag::realtime : 0;
    if (const auto set = on_vm(calls, uapi::request::set_clock, &clock); !set)
        return at(Step::clock, set.error());
    const auto here = read_clock_and_tsc(calls, saved.tsc_khz);
    if (!here)
        return at(Step::clock, here.error());
    if (here->tsc_khz == 0)
        return TscShift{};
    // The TSC goes on by as much as the clock did, from where it stood at that clock.
    const auto elapsed = std::max(here->clock.clock, saved.clock.clock) - saved.clock.clock;
    return TscShift{.cycles = saved.scaled_tsc - here->scaled_tsc + cycles(elapsed, saved.tsc_khz),
                    .khz = saved.tsc_khz};
}

std::expected<void, Error> WholeVm::restore_devices(const VmState& state) const {
    const VcpuCalls calls{Operation::restore, system_, vm_, VcpuFd{-1}, nullptr, ioctl_};
    if (state.irqchips)
        for (auto chip : *state.irqchips)
            if (const auto set = on_vm(calls, uapi::request::set_irqchip, &chip); !set)
                return at(Step::irqchips, set.error());
    if (state.pit) {
        auto pit = *state.pit;
        if (const auto set = on_vm(calls, uapi::request::set_pit2, &pit); !set)
            return at(Step::pit, set.error());
    }
    return {};
}

std::expected<std::vector<RestoreReport>, Error> WholeVm::restore(const VmState& state,
                                                                  std::span<const WholeVcpu> vcpus,
                                                                  std::span<const VcpuState> states,
                                                                  Downtime downtime) const {
    if (vcpus.empty() || vcpus.size() != states.size())
        return std::unexpected(Error{Errc::requirement_differs, Operation::restore});
    const auto shift = restore_clock(state, downtime, vcpus.front().descriptor());
    if (!shift)
        return std::unexpected(shift.error());
    std::vector<RestoreReport> reports;
    reports.reserve(vcpus.size());
    for (std::size_t i = 0; i < vcpus.size(); ++i) {
        auto report = vcpus[i].restore(states[i], *shift);
        if (!report)
            return std::unexpected(report.error());
        reports.push_back(*std::move(report));
    }
    if (const auto devices = restore_devices(state); !devices)
        return std::unexpected(devices.error());
    return reports;
}

} // namespace kvm::vcpu
