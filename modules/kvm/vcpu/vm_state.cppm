// SPDX-License-Identifier: MIT
//
// VmState: what belongs to a virtual machine and to none of its vCPUs, and travels with them.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
export module kvm.vcpu:vm_state;
import kvm.nested;
import :uapi;
import :prepare;

export namespace kvm::vcpu {

/// The clock of a VM, and where its vCPUs' TSCs stood at the same moment. The TSC of a vCPU is `scaled_tsc`
/// plus its VcpuState::tsc_offset.
struct VmClock {
    /// Has a realtime always: user space's where the kernel gives none.
    uapi::Clock clock;
    /// The host's TSC, scaled to `tsc_khz`. Means nothing where that is 0.
    std::uint64_t scaled_tsc;
    /// Of the vCPUs; 0: the TSCs cannot be carried together, since KVM does not tell a vCPU's offset.
    std::uint32_t tsc_khz;
    std::uint32_t padding;

    constexpr bool operator==(const VmClock&) const = default;
};

/// PIC master, PIC slave and IOAPIC, by their uapi::irqchip_id.
using Irqchips = std::array<uapi::Irqchip, uapi::irqchip_id::count>;

/// A virtual machine without its vCPUs and its memory, as a value. WholeVm::save() makes it,
/// WholeVm::restore() takes it, encode() and parse_vm() turn it into bytes and back.
struct VmState {
    Requirements requirements; ///< what the VM must have on; see Requirements
    VmClock clock{};
    std::optional<Irqchips> irqchips; ///< none where PIC and IOAPIC are not in the kernel
    std::optional<uapi::Pit> pit;     ///< none where the PIT is not in the kernel

    bool operator==(const VmState&) const = default;
};

static_assert(sizeof(VmClock) == 64 && std::has_unique_object_representations_v<VmClock>);
static_assert(sizeof(Irqchips) == 1560 && std::has_unique_object_representations_v<Irqchips>);

} // namespace kvm::vcpu
