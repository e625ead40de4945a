// SPDX-License-Identifier: MIT
//
// Phases as types: a view has exactly the accessors that mean something in its phase. Views look at a state,
// they do not own it, and are the only place where a state's bytes are interpreted.
module;
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
export module kvm.nested:view;
import :uapi;
import :vendor;
import :field;
import :vmcs12;
import :vmcb12;
import :phase;

export namespace kvm::nested {

/// Calls what fits the view's type: visit(state, overloaded{[](const vmx::L2Active& l2) {...}, ...}).
template <class... F>
struct overloaded : F... {
    using F::operator()...;
};

/// What every view has. Valid as long as the state it looks at lives and is not changed.
class View {
  public:
    constexpr View(const uapi::StateHeader& header, std::span<const std::byte> payload) noexcept
        : header_{&header}, payload_{payload} {}

    constexpr const uapi::StateHeader& header() const noexcept { return *header_; }

  protected:
    constexpr bool flag(std::uint16_t bit) const noexcept { return (header_->flags & bit) != 0; }
    constexpr uapi::VmxHeader vmx() const noexcept { return std::bit_cast<uapi::VmxHeader>(header_->vendor); }
    constexpr uapi::SvmHeader svm() const noexcept { return std::bit_cast<uapi::SvmHeader>(header_->vendor); }
    template <std::size_t Offset, std::size_t Count>
    constexpr std::span<const std::byte, Count> part() const noexcept {
        return payload_.template subspan<Offset, Count>();
    }
    template <class Image>
    static Image copy_of(std::span<const std::byte, sizeof(Image)> page) noexcept {
        Image image;
        std::memcpy(&image, page.data(), sizeof image);
        return image;
    }

  private:
    const uapi::StateHeader* header_;
    std::span<const std::byte> payload_; // empty where the state is the header alone
};

/// A shape that this library does not know: only the bytes are there.
class Unrecognised : public View {
  public:
    using View::View;
    static constexpr Phase phase = Phase::unrecognised;
};

/// An empty NestedStateBuffer: no vendor, no state.
struct Empty {
    static constexpr Phase phase = Phase::none;
};

namespace vmx {

/// What there is in VMX operation.
class InVmxOperation : public View {
  public:
    using View::View;
    /// Guest physical address that L1 gave to VMXON.
    constexpr std::uint64_t vmxon_pa() const noexcept { return vmx().vmxon_pa; }
};

/// What there is once a VMCS is current.
class WithVmcs12 : public InVmxOperation {
  public:
    using InVmxOperation::InVmxOperation;
    /// Guest physical address of the current vmcs12; none where it is an enlightened VMCS.
    constexpr std::optional<std::uint64_t> vmcs12_pa() const noexcept {
        const auto address = vmx().vmcs12_pa;
        return address == uapi::no_address ? std::nullopt : std::optional{address};
    }
    /// The VMCS is a Hyper-V enlightened one (Hypervisor Top-Level Functional Specification, nested
    /// virtualization).
    constexpr bool enlightened_vmcs() const noexcept { return flag(uapi::state_flag::evmcs); }
    /// The vmcs12 page. Only the first uapi::vmcs12_size bytes mean anything.
    constexpr std::span<const std::byte, uapi::page_size> vmcs12() const noexcept {
        return part<0, uapi::page_size>();
    }
    /// The same by the names of its fields: fields()["guest_rip"].
    constexpr Vmcs12Fields fields() const noexcept { return Vmcs12Fields{vmcs12()}; }
    /// A copy to edit; compose() makes a state of it again.
    Vmcs12 image() const noexcept { return copy_of<Vmcs12>(vmcs12()); }
};

/// What there is in SMM.
template <class Base>
class InSmm : public Base {
  public:
    using Base::Base;
    /// uapi::smm_flag bits: what L1 was doing when the SMI came.
    constexpr std::uint16_t smm_flags() const noexcept { return this->vmx().smm_flags; }
};

class Off : public View {
  public:
    using View::View;
    static constexpr Phase phase = Phase::vmx_off;
};

class VmxonOnly : public InVmxOperation {
  public:
    using InVmxOperation::InVmxOperation;
    static constexpr Phase phase = Phase::vmx_vmxon_only;
};

class CurrentVmcs : public WithVmcs12 {
  public:
    using WithVmcs12::WithVmcs12;
    static constexpr Phase phase = Phase::vmx_current_vmcs;
};

class L2Active : public WithVmcs12 {
  public:
    using WithVmcs12::WithVmcs12;
    static constexpr Phase phase = Phase::vmx_l2_active;

    /// VMLAUNCH or VMRESUME was accepted and L2 has not executed yet: its event injection is still to come.
    constexpr bool run_pending() const noexcept { return flag(uapi::state_flag::run_pending); }
    /// A VM exit by the monitor trap flag is pending (Intel SDM Vol. 3, Monitor Trap Flag).
    constexpr bool mtf_pending() const noexcept { return flag(uapi::state_flag::mtf_pending); }
    /// When the VMX-preemption timer fires, in L1's TSC divided by 32.
    constexpr std::optional<std::uint64_t> preemption_timer_deadline() const noexcept {
        const auto header = vmx();
        return (header.flags & uapi::vmx_flag::preemption_timer_deadline) != 0
                   ? std::optional{header.preemption_timer_deadline}
                   : std::nullopt;
    }
    /// The shadow vmcs12 that the vmcs12 links to, where L1 uses VMCS shadowing.
    constexpr std::optional<std::span<const std::byte, uapi::page_size>> shadow_vmcs12() const noexcept {
        if (header().size < Vmx::capacity || !links_shadow_vmcs(fields()))
            return std::nullopt;
        return part<uapi::page_size, uapi::page_size>();
    }
    /// The same by the names of its fields.
    constexpr std::optional<Vmcs12Fields> shadow_fields() const noexcept {
        const auto shadow = shadow_vmcs12();
        return shadow ? std::optional{Vmcs12Fields{*shadow}} : std::nullopt;
    }
    /// A copy to edit.
    std::optional<Vmcs12> shadow_image() const noexcept {
        const auto shadow = shadow_vmcs12();
        return shadow ? std::optional{copy_of<Vmcs12>(*shadow)} : std::nullopt;
    }
};

class SmmVmxonOnly : public InSmm<InVmxOperation> {
  public:
    using InSmm<InVmxOperation>::InSmm;
    static constexpr Phase phase = Phase::vmx_smm_vmxon_only;
};

class SmmCurrentVmcs : public InSmm<WithVmcs12> {
  public:
    using InSmm<WithVmcs12>::InSmm;
    static constexpr Phase phase = Phase::vmx_smm_current_vmcs;
};

class SmmInterruptedL2 : public InSmm<WithVmcs12> {
  public:
    using InSmm<WithVmcs12>::InSmm;
    static constexpr Phase phase = Phase::vmx_smm_interrupted_l2;
};

} // namespace vmx

namespace svm {

/// What every SVM state has.
class WithGif : public View {
  public:
    using View::View;
    /// The global interrupt flag (AMD APM Vol. 2, Global Interrupt Flag).
    constexpr bool gif() const noexcept { return flag(uapi::state_flag::gif_set); }
};

class OutsideL2GifSet : public WithGif {
  public:
    using WithGif::WithGif;
    static constexpr Phase phase = Phase::svm_outside_l2_gif_set;
};

class OutsideL2GifClear : public WithGif {
  public:
    using WithGif::WithGif;
    static constexpr Phase phase = Phase::svm_outside_l2_gif_clear;
};

class L2Active : public WithGif {
  public:
    using WithGif::WithGif;
    static constexpr Phase phase = Phase::svm_l2_active;

    /// Guest physical address that L1 gave to VMRUN.
    constexpr std::uint64_t vmcb12_pa() const noexcept { return svm().vmcb12_pa; }
    /// VMRUN was accepted and L2 has not executed yet: its event injection is still to come.
    constexpr bool run_pending() const noexcept { return flag(uapi::state_flag::run_pending); }
    /// L2's PAT. Means something only on Linux 7.x with KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT disabled; 0
    /// elsewhere.
    constexpr std::uint64_t gpat() const noexcept { return svm().gpat; }
    /// L2's controls, as KVM keeps them: the vmcb12's without clean bits and reserved fields.
    constexpr std::span<const std::byte, uapi::vmcb_control_size> control_area() const noexcept {
        return part<0, uapi::vmcb_control_size>();
    }
    /// The save area: L1's state, to which the next #VMEXIT returns. L2's registers are not in a nested state
    /// at all; they travel with KVM_GET_REGS and KVM_GET_SREGS2.
    constexpr std::span<const std::byte, uapi::vmcb_save_size> l1_save_area() const noexcept {
        return part<uapi::vmcb_control_size, uapi::vmcb_save_size>();
    }
    /// Both areas by the names of their fields: fields()["nested_cr3"] is L2's, fields()["rip"] is L1's.
    constexpr Vmcb12Fields fields() const noexcept { return Vmcb12Fields{part<0, uapi::page_size>()}; }
    /// A copy to edit; compose() makes a state of it again.
    Vmcb12 image() const noexcept { return copy_of<Vmcb12>(part<0, uapi::page_size>()); }
};

} // namespace svm

/// Hands `visitor` the view that `phase` names, among the phases of vendor `V`. Not constexpr: else a
/// misspelt name of a field in `visitor` would make this function an immediate one, and the compiler would
/// complain about us and not show the name.
template <VendorOrAny V, class Visitor>
inline decltype(auto) visit_phase(Phase phase, const uapi::StateHeader& header,
                                  std::span<const std::byte> payload, Visitor&& visitor) {
    if constexpr (!std::same_as<V, Svm>) {
        switch (phase) {
        case Phase::vmx_off:
            return std::forward<Visitor>(visitor)(vmx::Off{header, payload});
        case Phase::vmx_vmxon_only:
            return std::forward<Visitor>(visitor)(vmx::VmxonOnly{header, payload});
        case Phase::vmx_current_vmcs:
            return std::forward<Visitor>(visitor)(vmx::CurrentVmcs{header, payload});
        case Phase::vmx_l2_active:
            return std::forward<Visitor>(visitor)(vmx::L2Active{header, payload});
        case Phase::vmx_smm_vmxon_only:
            return std::forward<Visitor>(visitor)(vmx::SmmVmxonOnly{header, payload});
        case Phase::vmx_smm_current_vmcs:
            return std::forward<Visitor>(visitor)(vmx::SmmCurrentVmcs{header, payload});
        case Phase::vmx_smm_interrupted_l2:
            return std::forward<Visitor>(visitor)(vmx::SmmInterruptedL2{header, payload});
        default:
            break;
        }
    }
    if constexpr (!std::same_as<V, Vmx>) {
        switch (phase) {
        case Phase::svm_outside_l2_gif_set:
            return std::forward<Visitor>(visitor)(svm::OutsideL2GifSet{header, payload});
        case Phase::svm_outside_l2_gif_clear:
            return std::forward<Visitor>(visitor)(svm::OutsideL2GifClear{header, payload});
        case Phase::svm_l2_active:
            return std::forward<Visitor>(visitor)(svm::L2Active{header, payload});
        default:
            break;
        }
    }
    if constexpr (std::same_as<V, Any>) {
        if (phase == Phase::none)
            return std::forward<Visitor>(visitor)(Empty{});
    }
    return std::forward<Visitor>(visitor)(Unrecognised{header, payload});
}

} // namespace kvm::nested
