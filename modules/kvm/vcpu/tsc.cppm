// SPDX-License-Identifier: MIT
//
// What a guest is told of the time that a move took, and how the TSCs of its vCPUs stay together meanwhile.
module;
#include <cstdint>
export module kvm.vcpu:tsc;

export namespace kvm::vcpu {

/// What becomes of the time between saving and restoring a VM. The guest's clocks (kvmclock, the TSC, and
/// what KVM derives from them: Hyper-V's reference time, the TSC-deadline timer, the VMX-preemption timer)
/// agree in either case, and none goes backwards.
enum class Downtime : std::uint8_t {
    /// It has not passed for the guest: its clocks go on where they stood. For snapshots and clones: no
    /// timeout
    /// and no watchdog of the guest fires because of it. Its wall clock is late afterwards, until something
    /// corrects it.
    hidden,
    /// It has passed, by the real-time clocks of the two hosts: so much they have to agree. For a live
    /// migration: the wall clock is right, and timers that expired meanwhile fire at once. If the
    /// destination's clock is behind, the guest's clocks go on where they stood. Timers that count down in a
    /// device (PIT, local APIC in one-shot or periodic mode) are late by the downtime all the same.
    visible,
};

/// How the TSCs of a VM's vCPUs go on in another VM: one number for all, so that they differ afterwards by
/// exactly what they differed by before, whenever each of them is restored. Made by WholeVm::restore_clock().
struct TscShift {
    std::uint64_t cycles = 0; ///< to be added to each VcpuState::tsc_offset; wraps around
    std::uint32_t khz = 0;    ///< of the vCPUs that this is for; 0: there is no common number

    constexpr bool operator==(const TscShift&) const = default;
};

} // namespace kvm::vcpu
