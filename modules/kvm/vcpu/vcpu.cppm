// SPDX-License-Identifier: MIT
//
// WholeVcpu: save, restore, and the verdict that only the first run gives.
module;
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
export module kvm.vcpu:vcpu;
import kvm.nested;
import :uapi;
import :error;
import :order;
import :prepare;
import :msrs;
import :state;
import :tsc;

namespace kvm::vcpu::detail {
struct VcpuCalls; // src/kvm/vcpu/calls.hpp
}

export namespace kvm::vcpu {

/// An MSR that the vCPU did not take.
struct RefusedMsr {
    std::uint32_t index;
    std::uint64_t wanted;                 ///< the value in the state
    std::optional<std::uint64_t> present; ///< what the vCPU has instead; none if it cannot be read either

    /// The vCPU has that value anyway.
    constexpr bool harmless() const noexcept { return present == wanted; }
    /// msr_name() of it.
    inline std::string_view name() const noexcept { return msr_name(index); }
    constexpr bool operator==(const RefusedMsr&) const = default;
};

/// What save() may be told.
struct SaveOptions {
    /// Asked for once, for all vCPUs; nullptr: save() asks, with two ioctls and memory of its own.
    const MsrLists* lists = nullptr;
    /// MSRs besides those that KVM lists and those of unlisted_msrs. What cannot be read is left out.
    std::span<const std::uint32_t> more_msrs = {};
};

/// What a restore that succeeded could not do. Whether that matters is the caller's to say.
struct RestoreReport {
    /// KVM_SET_MSRS refused them. 0x4b564d06 (KVM's asynchronous page fault interrupt) is always among them
    /// where there is no in-kernel APIC.
    std::vector<RefusedMsr> refused_msrs;
    /// Of uapi::msr::derived, which nobody can write: those that came out with another value than in the
    /// state. And IA32_MCG_CAP, where KVM_X86_SETUP_MCE refuses the value of the state.
    std::vector<RefusedMsr> derived_msrs;
    /// This host cannot run the guest's TSC at the frequency of the state.
    bool tsc_khz_refused = false;
    /// Restored with a TscShift, and the TSC could not be set by its offset, so it was written as an MSR: a
    /// vCPU that is restored later is behind by as much. The kernel or the state has no offset, or the
    /// state's frequency is not the VM's.
    bool tsc_offset_refused = false;
    /// The deadline of L2's VMX-preemption timer had passed, or would have within a millisecond. The timer
    /// fires that much later, and the nested state that is read back has another deadline. Nothing is lost.
    bool preemption_timer_was_over = false;

    /// The vCPU has everything that the state has.
    bool complete() const noexcept;
    bool operator==(const RestoreReport&) const = default;
};

/// What the first KVM_RUN after a restore showed.
enum class FirstRun : std::uint8_t {
    /// KVM has mapped the pages that the nested state refers to, and the guest runs. The run page has the
    /// exit, as after any KVM_RUN. The restore is proven.
    ran,
    /// It could not map them, and L2 must not go on. Linux 7.x tries again at the next KVM_RUN; 6.1 and 6.12
    /// would go on without the pages.
    nested_pages_failed,
    /// The processor refused to enter (KVM_EXIT_FAIL_ENTRY). The run page has the hardware's reason.
    entry_failed,
    /// Interrupted (signal, immediate_exit) before KVM came to it. Call again.
    not_yet,
};

std::string_view name(FirstRun verdict) noexcept;

/// One vCPU with everything that belongs to it. Owns no descriptor and no page, and holds no state: cheap to
/// make whenever it is needed.
///
/// Not for a vCPU that another thread is running. All of it goes through the seam, and all of it can fail:
/// each Error names the step.
class WholeVcpu {
  public:
    /// @param prepared of the VM that `vm` and `vcpu` belong to
    /// @param run_page what the caller has mapped from `vcpu` (struct kvm_run)
    inline WholeVcpu(Host<Any> host, const Prepared& prepared, SystemFd system, VmFd vm, VcpuFd vcpu,
                     void* run_page, IoctlRef ioctl = system_call) noexcept
        : host_{host}, requirements_{prepared.requirements()}, system_{system}, vm_{vm}, vcpu_{vcpu},
          run_page_{static_cast<std::byte*>(run_page)}, ioctl_{ioctl} {}

    /// Reads everything. Completes the pending I/O first, which needs that the caller has handled the last
    /// exit (has provided the data of an IN, for example). The vCPU can go on running afterwards.
    /// @return Errc::exit_pending: KVM wants another exit handled first;
    ///         Errc::not_prepared: a capability is off (detail), so that the state would not be whole
    [[nodiscard]] std::expected<VcpuState, Error> save(const SaveOptions& options = {}) const;
    /// The same into a state that is there already, whose memory is used again: with SaveOptions::lists the
    /// second save of a vCPU into it allocates nothing. After an error the state has no nested state, and so
    /// is none.
    [[nodiscard]] std::expected<void, Error> save(VcpuState& into, const SaveOptions& options = {}) const;

    /// Writes everything, in restore_order. The steps `capabilities` (checked, not switched on), `memory` and
    /// `first_run` are the caller's. The vCPU need not be fresh; see abandon().
    ///
    /// Before anything is touched: Errc::wrong_vendor, Errc::no_state, Errc::no_vcpu_group (detail: the
    /// group), Errc::xsave_too_large (detail: what the VM takes), Errc::not_prepared and
    /// Errc::requirement_differs (detail: the capability). After any other error the vCPU is half restored
    /// and must not run: restore again, or give it up. From the step `clear_nested_state` on the effect of an
    /// error is Effect::nested_state_lost.
    ///
    /// Without a TscShift the TSC goes on from where it stood when the vCPU was saved, at the moment of the
    /// restore: right for a VM with one vCPU. With it, all vCPUs of a VM keep one time; see WholeVm.
    [[nodiscard]] std::expected<RestoreReport, Error> restore(const VcpuState& state) const;
    [[nodiscard]] std::expected<RestoreReport, Error> restore(const VcpuState& state,
                                                              const TscShift& shift) const;

    /// Makes a vCPU that has run forget what it was in the middle of: completes its I/O and takes it out of
    /// nested operation. restore() does this, too; a VMM that restores into a vCPU that is not fresh calls it
    /// before it restores memory, since both can write to memory.
    [[nodiscard]] std::expected<void, Error> abandon() const;

    /// Switches on what of the requirements belongs to the vCPU itself: the enlightened VMCS and the SynIC.
    /// For a new vCPU whose CPUID is set and that has not run yet; restore() does it, too.
    [[nodiscard]] std::expected<void, Error> enable_capabilities() const;

    /// KVM_RUN, and the verdict on the nested state that was set before. Until it says `ran`, a restore is
    /// provisional: KVM_SET_NESTED_STATE does not look at the pages behind the addresses. Each kernel says it
    /// differently, see the README.
    [[nodiscard]] std::expected<FirstRun, Error> first_run() const;

    /// What check() needs to know of this vCPU: its CPUID, capability MSRs, control registers and SMM as they
    /// are now. Changes nothing.
    /// @param host from capture_host()
    [[nodiscard]] std::expected<Destination, Error> capture(const Destination& host) const;

    /// The nested state alone.
    inline Vcpu<Any, IoctlRef> nested() const noexcept { return {host_, vcpu_, ioctl_}; }

    inline VcpuFd descriptor() const noexcept { return vcpu_; }
    inline const Requirements& requirements() const noexcept { return requirements_; }

  private:
    [[nodiscard]] detail::VcpuCalls calls(Operation operation) const noexcept;
    [[nodiscard]] std::expected<RestoreReport, Error> restore(const VcpuState& state,
                                                              const TscShift* shift) const;
    [[nodiscard]] std::expected<void, Error> check(const VcpuState& state) const;

    Host<Any> host_;
    Requirements requirements_;
    SystemFd system_;
    VmFd vm_;
    VcpuFd vcpu_;
    std::byte* run_page_;
    IoctlRef ioctl_;
};

} // namespace kvm::vcpu
