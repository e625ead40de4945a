// SPDX-License-Identifier: MIT
//
// What must be switched on before the guest runs, so that its vCPUs can be saved later.
module;
#include <cstdint>
#include <expected>
export module kvm.vcpu:prepare;
import kvm.nested;
import :uapi;

export namespace kvm::vcpu {

/// What a VM must have switched on so that the states of its vCPUs are whole. KVM cannot be asked for it
/// later, so it is a part of every VcpuState: the destination must have the same.
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
/// the VM is created. The enlightened VMCS is only asked for: see WholeVcpu::enable_capabilities().
/// @return Errc::requirement_not_offered; detail: the capability, one of uapi::cap
[[nodiscard]] std::expected<Prepared, Error>
prepare(SystemFd system, VmFd vm, const Requirements& requirements = {}, IoctlRef ioctl = system_call);

/// For a VMM that has switched them on itself.
constexpr Prepared already_prepared(const Requirements& requirements) noexcept {
    return Prepared{requirements};
}

} // namespace kvm::vcpu
