// SPDX-License-Identifier: MIT
//
// WholeVm: what a VM has beside its vCPUs, saved and restored around them.
module;
#include <cstdint>
#include <expected>
#include <span>
#include <vector>
export module kvm.vcpu:vm;
import kvm.nested;
import :uapi;
import :error;
import :prepare;
import :state;
import :tsc;
import :vcpu;
import :vm_state;

export namespace kvm::vcpu {

/// A virtual machine with its clock and its interrupt controllers. Owns no descriptor and holds no state.
///
/// Saving: all vCPUs have left KVM_RUN; save(), then WholeVcpu::save() of each; memory last.
/// Restoring: WholeVcpu::abandon() of each vCPU that is not fresh, memory, then restore(). Or, where vCPUs
/// are restored one by one (each by its own thread, say): restore_clock(), WholeVcpu::restore() of each with
/// the TscShift that this gave, restore_devices().
class WholeVm {
  public:
    /// @param prepared of the VM that `vm` is
    inline WholeVm(const Prepared& prepared, SystemFd system, VmFd vm, IoctlRef ioctl = system_call) noexcept
        : requirements_{prepared.requirements()}, system_{system}, vm_{vm}, ioctl_{ioctl} {}

    /// Reads the clock, and the interrupt controllers and the PIT where they are in the kernel. The guest's
    /// time stands where it stood now, so no vCPU may run any more, and this comes before the vCPUs: an
    /// interrupt that the PIT raises meanwhile is found in a local APIC then, and not lost.
    /// @param any one of the VM's vCPUs, to read a TSC; all have the same frequency
    [[nodiscard]] std::expected<VmState, Error> save(VcpuFd any) const;

    /// Steps `clock` to `pit` of restore_order with all vCPUs in the middle. The states are in the order of
    /// the vCPUs.
    ///
    /// Before anything is touched: Errc::not_prepared and Errc::requirement_differs (detail: the capability;
    /// none where there are not as many states as vCPUs). After any other error the VM is half restored.
    [[nodiscard]] std::expected<std::vector<RestoreReport>, Error> restore(const VmState& state,
                                                                           std::span<const WholeVcpu> vcpus,
                                                                           std::span<const VcpuState> states,
                                                                           Downtime downtime) const;

    /// Step `clock` alone: before any vCPU.
    /// @param any one of the VM's vCPUs
    /// @return for each WholeVcpu::restore() of this VM
    [[nodiscard]] std::expected<TscShift, Error> restore_clock(const VmState& state, Downtime downtime,
                                                               VcpuFd any) const;

    /// Steps `irqchips` and `pit` alone: behind all vCPUs, before any of them runs.
    [[nodiscard]] std::expected<void, Error> restore_devices(const VmState& state) const;

  private:
    Requirements requirements_;
    SystemFd system_;
    VmFd vm_;
    IoctlRef ioctl_;
};

} // namespace kvm::vcpu
