// SPDX-License-Identifier: MIT
//
// What must be switched on before the guest runs, so that its vCPUs can be saved later.
module;
#include <cstdint>
#include <expected>
export module kvm.vcpu:prepare;
import kvm.nested;
import :uapi;
import :error;

export namespace kvm::vcpu {

/// The synthetic interrupt controller that KVM offers to a guest of Hyper-V's kind.
enum class HypervSynic : std::uint8_t {
    off,
    synic,  ///< KVM_CAP_HYPERV_SYNIC: the guest's pages are zeroed when the guest enables them
    synic2, ///< KVM_CAP_HYPERV_SYNIC2: they are not
};

/// What a VM must have switched on so that the states of its vCPUs are whole, or mean the same. KVM cannot be
/// asked for most of it later, so it is a part of every VcpuState and VmState: the destination must have the
/// same.
struct Requirements {
    /// KVM_CAP_EXCEPTION_PAYLOAD. Without it saving delivers a pending #DB or #PF early, which with L2 active
    /// corrupts DR6 or CR2.
    bool exception_payload = true;
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT. Without it a triple fault that L1 is to intercept gets lost.
    bool triple_fault_event = true;
    /// KVM_CAP_DISABLE_QUIRKS2: quirks to switch off, such as uapi::quirk_nested_svm_shared_pat. Whoever
    /// saves and whoever restores must agree in each.
    std::uint64_t disabled_quirks = 0;
    /// KVM_CAP_HYPERV_ENLIGHTENED_VMCS, a capability of each vCPU. VMX only.
    bool enlightened_vmcs = false;
    /// KVM_CAP_X2APIC_API, its flags: bit 0 changes where a local APIC's page has the ID, so whoever saves
    /// and whoever restores must agree. To be set before the first page is read or written.
    std::uint32_t x2apic_api = 0;
    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS (since Linux 6.12): how long one count of a local APIC's timer takes,
    /// in nanoseconds. 0: as KVM has it, which is 1. To be set after the interrupt controllers and before the
    /// vCPUs.
    std::uint32_t apic_bus_cycle_ns = 0;
    /// A capability of each vCPU, which needs a local APIC in the kernel. Without it the synthetic MSRs are
    /// refused.
    HypervSynic hyperv_synic = HypervSynic::off;

    constexpr bool operator==(const Requirements&) const = default;
};

/// Proof that a VM has them on. Made by prepare(), or by already_prepared() on the caller's word.
class Prepared {
  public:
    constexpr const Requirements& requirements() const noexcept { return requirements_; }

  private:
    explicit constexpr Prepared(const Requirements& requirements) noexcept : requirements_{requirements} {}
    friend std::expected<Prepared, Error> prepare(SystemFd, VmFd, const Requirements&, IoctlRef);
    friend constexpr Prepared already_prepared(const Requirements&) noexcept;

    Requirements requirements_;
};

/// Switches them on, with KVM_ENABLE_CAP on the VM, after asking whether all of them are offered. Once, when
/// the VM is created. The enlightened VMCS and the SynIC are only asked for: see
/// WholeVcpu::enable_capabilities().
/// @return Errc::requirement_not_offered; detail: the capability, one of uapi::cap
[[nodiscard]] std::expected<Prepared, Error>
prepare(SystemFd system, VmFd vm, const Requirements& requirements = {}, IoctlRef ioctl = system_call);

/// For a VMM that has switched them on itself.
constexpr Prepared already_prepared(const Requirements& requirements) noexcept {
    return Prepared{requirements};
}

} // namespace kvm::vcpu

namespace kvm::vcpu {

/// Whether a VM that has `here` on can take what was saved with `there`.
/// @param operation what asks
/// @return Errc::not_prepared, Errc::requirement_differs; detail: the capability
[[nodiscard]] std::expected<void, Error> compatible(Operation operation, const Requirements& here,
                                                    const Requirements& there) noexcept;

/// The capability of a vCPU that brings it; 0: none does.
constexpr std::uint32_t synic_capability(HypervSynic synic) noexcept {
    return synic == HypervSynic::off     ? 0
           : synic == HypervSynic::synic ? uapi::cap::hyperv_synic
                                         : uapi::cap::hyperv_synic2;
}

} // namespace kvm::vcpu
