// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

/// The number of a name: value_of(bit_layout::activity_states, "HLT").
consteval std::uint64_t value_of(std::span<const NamedValue> values, std::string_view name) {
    return std::ranges::find(values, name, &NamedValue::name)->value;
}

consteval std::uint64_t event(std::string_view type) {
    return value_of(bit_layout::vmx_event_types, type);
}

constexpr Usage usage(bool uses) noexcept {
    return uses ? Usage::uses : Usage::does_not_use;
}

/// Which bit of its register a difference is in.
template <BitEnum E>
constexpr bool is(const CapabilityDifference& what, E bit) noexcept {
    return what.layout->bit_layout == bit_layout::of<E> && what.bits.first == static_cast<unsigned>(bit);
}

/// What the lesser side has of a number.
std::uint64_t lesser(const CapabilityDifference& what) noexcept {
    return std::min(what.a, what.b);
}

/// A vmcs12 and what it needs.
class OfVmcs12 {
  public:
    explicit OfVmcs12(const Vmcs12Fields& vmcs) noexcept : vmcs_{vmcs} {
        const bool active = has(primary_, vmx::Primary::activate_secondary_controls);
        secondary_ = active ? vmcs["secondary_vm_exec_control"] : 0;
    }

    Usage operator()(const CapabilityDifference& what) const noexcept {
        switch (what.layout->index) {
        case vmx::msr::basic:
            return basic(what);
        case vmx::msr::misc:
            return misc(what);
        case vmx::msr::pin_based_controls:
        case vmx::msr::true_pin_based_controls:
            return control(what, pin_);
        case vmx::msr::primary_controls:
        case vmx::msr::true_primary_controls:
            return control(what, primary_);
        case vmx::msr::secondary_controls:
            return has(primary_, vmx::Primary::activate_secondary_controls) ? control(what, secondary_)
                                                                            : Usage::does_not_use;
        case vmx::msr::exit_controls:
        case vmx::msr::true_exit_controls:
            return control(what, exit_);
        case vmx::msr::entry_controls:
        case vmx::msr::true_entry_controls:
            return control(what, entry_);
        case vmx::msr::tertiary_controls: // a vmcs12 has the switch and no field
            return has(primary_, vmx::Primary::activate_tertiary_controls) ? Usage::not_known
                                                                           : Usage::does_not_use;
        case vmx::msr::secondary_exit_controls:
            return has(exit_, vmx::ExitControl::activate_secondary_controls) ? Usage::not_known
                                                                             : Usage::does_not_use;
        case vmx::msr::cr0_fixed0:
        case vmx::msr::cr0_fixed1:
            return control_register(what, guest_cr0(what), vmcs_["host_cr0"]);
        case vmx::msr::cr4_fixed0:
        case vmx::msr::cr4_fixed1:
            return control_register(what, vmcs_["guest_cr4"], vmcs_["host_cr4"]);
        case vmx::msr::ept_vpid_cap:
            return ept_or_vpid(what);
        case vmx::msr::vm_functions:
            return has(secondary_, vmx::Secondary::enable_vm_functions)
                       ? control(what, vmcs_["vm_function_control"])
                       : Usage::does_not_use;
        default:
            return Usage::not_known;
        }
    }

  private:
    static Usage control(const CapabilityDifference& what, std::uint64_t word) noexcept {
        const bool set = what.bits.of(word) != 0;
        return usage(what.setting == AllowedSetting::must_be_1 ? !set : set);
    }
    static Usage control_register(const CapabilityDifference& what, std::uint64_t guest,
                                  std::uint64_t host) noexcept {
        return usage(control(what, guest) == Usage::uses || control(what, host) == Usage::uses);
    }
    /// An unrestricted guest may have PE and PG clear whatever the MSR says (Intel SDM Vol. 3
    /// section 25.6.2).
    std::uint64_t guest_cr0(const CapabilityDifference& what) const noexcept {
        auto cr0 = vmcs_["guest_cr0"];
        if (what.setting == AllowedSetting::must_be_1 && has(secondary_, vmx::Secondary::unrestricted_guest))
            set(cr0, Cr0::pe, Cr0::pg);
        return cr0;
    }

    Usage basic(const CapabilityDifference& what) const noexcept {
        if (what.bits.first == bits(bit_layout::vmx_basic, "VMCS revision").first)
            return Usage::uses; // every VMCS region of L1 begins with it
        if (is(what, vmx::Basic::dual_monitor_treatment))
            return usage(has(entry_, vmx::EntryControl::entry_to_smm)
                         || has(entry_, vmx::EntryControl::deactivate_dual_monitor_treatment));
        if (is(what, vmx::Basic::true_control_msrs))
            return usage(clears_default1(vmx::msr::true_pin_based_controls, pin_)
                         || clears_default1(vmx::msr::true_primary_controls, primary_)
                         || clears_default1(vmx::msr::true_exit_controls, exit_)
                         || clears_default1(vmx::msr::true_entry_controls, entry_));
        if (is(what, vmx::Basic::error_code_with_any_vector))
            return usage(injects_unusual_error_code());
        if (is(what, vmx::Basic::nested_exceptions)) {
            constexpr auto nested = std::uint64_t{1} << 13; // reserved without it: no other bit layout has it
            return usage(injects() && (event_ & nested) != 0);
        }
        return Usage::not_known;
    }
    static bool clears_default1(std::uint32_t msr, std::uint64_t word) noexcept {
        return (find_capability(msr)->default1 & ~word) != 0;
    }

    Usage misc(const CapabilityDifference& what) const noexcept {
        const auto first = what.bits.first;
        if (first == bits(bit_layout::vmx_misc, "VMX-preemption timer rate").first)
            return usage(has(pin_, vmx::PinBased::activate_vmx_preemption_timer));
        if (first == bits(bit_layout::vmx_misc, "CR3-target count").first)
            return usage(vmcs_["cr3_target_count"] > lesser(what));
        if (first == bits(bit_layout::vmx_misc, "MSR-list maximum").first) {
            const auto maximum = 512 * (lesser(what) + 1);
            return usage(vmcs_["vm_exit_msr_store_count"] > maximum
                         || vmcs_["vm_exit_msr_load_count"] > maximum
                         || vmcs_["vm_entry_msr_load_count"] > maximum);
        }
        // Without it L2 cannot leave IA-32e mode or enter it, so that there is nothing to store.
        if (is(what, vmx::Misc::vm_exits_store_efer_lma))
            return has(secondary_, vmx::Secondary::unrestricted_guest) ? Usage::not_known
                                                                       : Usage::does_not_use;
        const auto activity = vmcs_["guest_activity_state"];
        if (is(what, vmx::Misc::hlt_activity_state))
            return usage(activity == value_of(bit_layout::activity_states, "HLT"));
        if (is(what, vmx::Misc::shutdown_activity_state))
            return usage(activity == value_of(bit_layout::activity_states, "shutdown"));
        if (is(what, vmx::Misc::wait_for_sipi_activity_state))
            return usage(activity == value_of(bit_layout::activity_states, "wait-for-SIPI"));
        if (is(what, vmx::Misc::injection_with_instruction_length_0)) {
            const auto type = event_type();
            const bool has_length = type == event("software interrupt") || type == event("software exception")
                                    || type == event("privileged software exception");
            return usage(injects() && has_length && vmcs_["vm_entry_instruction_len"] == 0);
        }
        return Usage::not_known;
    }

    Usage ept_or_vpid(const CapabilityDifference& what) const noexcept {
        constexpr auto first_of_vpid = static_cast<unsigned>(vmx::EptVpidCap::invvpid);
        constexpr auto first_of_hlat = bits(bit_layout::ept_vpid_cap, "maximum HLAT prefix size").first;
        if (what.bits.first >= first_of_hlat)
            return has(primary_, vmx::Primary::activate_tertiary_controls) ? Usage::not_known
                                                                           : Usage::does_not_use;
        if (what.bits.first >= first_of_vpid)
            return has(secondary_, vmx::Secondary::enable_vpid) ? Usage::not_known : Usage::does_not_use;
        if (!has(secondary_, vmx::Secondary::enable_ept))
            return Usage::does_not_use;
        using vmx::EptVpidCap;
        const auto pointer = vmcs_["ept_pointer"];
        const auto levels = bits(bit_layout::ept_pointer, "page walk").of(pointer) + 1;
        const auto memory_type = bits(bit_layout::ept_pointer, "memory type").of(pointer);
        if (is(what, EptVpidCap::page_walk_length_4))
            return usage(levels == 4);
        if (is(what, EptVpidCap::page_walk_length_5))
            return usage(levels == 5);
        if (is(what, EptVpidCap::uc_ept_paging_structures))
            return usage(memory_type == value_of(bit_layout::ept_memory_types, "UC"));
        if (is(what, EptVpidCap::wb_ept_paging_structures))
            return usage(memory_type == value_of(bit_layout::ept_memory_types, "WB"));
        if (is(what, EptVpidCap::accessed_and_dirty_flags_for_ept))
            return usage(has(pointer, vmx::EptPointer::accessed_and_dirty_flags));
        if (is(what, EptVpidCap::supervisor_shadow_stack_control))
            return usage(has(pointer, vmx::EptPointer::supervisor_shadow_stack_control));
        return Usage::not_known; // in L1's tables, or an instruction
    }

    bool injects() const noexcept { return has(event_, vmx::EntryEvent::valid); }
    std::uint64_t event_type() const noexcept { return bits(bit_layout::entry_event, "").of(event_); }
    /// Against what the vector asks for (Intel SDM Vol. 3 section 27.2.1.3).
    bool injects_unusual_error_code() const noexcept {
        if (!injects() || event_type() != event("hardware exception"))
            return false;
        constexpr auto with_error_code = mask(Exception::df, Exception::ts, Exception::np, Exception::ss,
                                              Exception::gp, Exception::pf, Exception::ac);
        const auto vector = bits(bit_layout::entry_event, "vector").of(event_);
        const bool real_mode =
            has(secondary_, vmx::Secondary::unrestricted_guest) && !has(vmcs_["guest_cr0"], Cr0::pe);
        const bool usual = !real_mode && vector < 32 && (with_error_code >> vector & 1) != 0;
        return has(event_, vmx::EntryEvent::deliver_error_code) != usual;
    }

    const Vmcs12Fields& vmcs_;
    std::uint64_t pin_ = vmcs_["pin_based_vm_exec_control"];
    std::uint64_t primary_ = vmcs_["cpu_based_vm_exec_control"];
    std::uint64_t exit_ = vmcs_["vm_exit_controls"];
    std::uint64_t entry_ = vmcs_["vm_entry_controls"];
    std::uint64_t event_ = vmcs_["vm_entry_intr_info_field"];
    std::uint64_t secondary_ = 0;
};

/// Whether the VMCB that L2 runs with depends on a feature.
Usage of_vmcb12(const CapabilityDifference& what, const Vmcb12Fields& vmcb) noexcept {
    if (what.layout->bit_layout == &bit_layout::svm_asids)
        return usage(vmcb["asid"] >= lesser(what));
    const auto paging = vmcb["misc_ctl"], virtualization = vmcb["misc_ctl2"], interrupts = vmcb["int_ctl"];
    const bool intercepts_pause = has(vmcb["intercepts[3]"], svm::Intercept::pause);
    using svm::Feature;
    switch (static_cast<Feature>(what.bits.first)) {
    case Feature::nested_paging:
        return usage(has(paging, svm::MiscCtl::np_enable));
    case Feature::lbr_virtualization:
        return usage(has(virtualization, svm::MiscCtl2::lbr_virtualization));
    case Feature::flush_by_asid: {
        const auto flush = vmcb["tlb_ctl"];
        return usage(flush == value_of(bit_layout::tlb_controls, "flush this ASID")
                     || flush == value_of(bit_layout::tlb_controls, "flush this ASID's non-global entries"));
    }
    case Feature::pmc_virtualization:
        return usage(has(virtualization, svm::MiscCtl2::pmc_virtualization));
    case Feature::pause_intercept_filter:
        return usage(intercepts_pause && vmcb["pause_filter_count"] != 0);
    case Feature::pause_filter_threshold:
        return usage(intercepts_pause && vmcb["pause_filter_thresh"] != 0);
    case Feature::avic:
        return usage(has(interrupts, svm::IntCtl::avic));
    case Feature::virtualized_vmload_and_vmsave:
        return usage(has(virtualization, svm::MiscCtl2::virtualized_vmload_and_vmsave));
    case Feature::virtual_gif:
        return usage(has(interrupts, svm::IntCtl::v_gif_enable));
    case Feature::gmet:
        return usage(has(paging, svm::MiscCtl::gmet));
    case Feature::x2avic:
        return usage(has(interrupts, svm::IntCtl::x2avic));
    case Feature::supervisor_shadow_stack_check:
        return usage(has(paging, svm::MiscCtl::supervisor_shadow_stack_check));
    case Feature::read_only_guest_page_tables:
        return usage(has(paging, svm::MiscCtl::read_only_guest_page_tables));
    case Feature::invlpgb_and_tlbsync:
        return usage(has(paging, svm::MiscCtl::invlpgb_and_tlbsync));
    case Feature::virtual_nmi:
        return usage(has(interrupts, svm::IntCtl::v_nmi_enable));
    case Feature::ibs_virtualization:
        return usage(has(virtualization, svm::MiscCtl2::ibs_virtualization));
    case Feature::bus_lock_threshold:
        return usage(has(vmcb["intercepts[5]"], svm::Intercept::bus_lock));
    case Feature::idle_hlt_intercept:
        return usage(has(vmcb["intercepts[5]"], svm::Intercept::idle_hlt));
    case Feature::svm_lock:                        // VM_CR
    case Feature::next_rip_saved:                  // L1 reads what a #VMEXIT stored
    case Feature::tsc_rate_msr:                    // TSC_RATIO
    case Feature::vmcb_clean_bits:                 // KVM_GET_NESTED_STATE shows none
    case Feature::decode_assists:                  // L1 reads what a #VMEXIT stored
    case Feature::spec_ctrl_virtualization:        // L2's save area, which is not in a nested state
    case Feature::host_mce_override:               // by itself
    case Feature::extended_lvt_avic_access_change: // by itself
    case Feature::vmcb_address_check:              // by itself
    case Feature::enhanced_shutdown_intercept:     // by itself
        break;
    }
    return Usage::not_known;
}

/// What is final of an active L2 is open while L1 runs: it may write its VMCS, and run another.
Usage while_l1_runs(Usage usage) noexcept {
    return usage == Usage::uses ? usage : Usage::not_known;
}

} // namespace

Usage used_by(const CapabilityDifference& what, const NestedStateView& state) noexcept {
    const auto vendor = state.vendor();
    if (!state.recognised() || !vendor)
        return Usage::not_known;
    if (*vendor != what.layout->vendor)
        return Usage::does_not_use;
    return state.visit([&]<class V>(const V& view) noexcept {
        if constexpr (std::same_as<V, vmx::Off>) {
            return Usage::does_not_use;
        } else if constexpr (std::derived_from<V, vmx::WithVmcs12>) {
            const auto fields = view.fields();
            const auto answer = OfVmcs12{fields}(what);
            constexpr bool l2 = std::same_as<V, vmx::L2Active> || std::same_as<V, vmx::SmmInterruptedL2>;
            return l2 ? answer : while_l1_runs(answer);
        } else if constexpr (std::same_as<V, svm::L2Active>) {
            return of_vmcb12(what, view.fields());
        } else {
            return Usage::not_known;
        }
    });
}

Usage used_by(const FeatureName& feature, const NestedStateView& state) noexcept {
    const auto* layout = find_capability(feature.index);
    const auto bits = layout == nullptr ? std::nullopt : find_bit(*layout, feature.bit);
    if (!bits)
        return Usage::not_known;
    const auto setting = setting_of(feature);
    const bool inverted = setting == AllowedSetting::must_be_1;
    return used_by({.layout = layout,
                    .bits = *bits,
                    .setting = setting,
                    .holder = Holder::a,
                    .a = inverted ? 0u : 1u,
                    .b = inverted ? 1u : 0u,
                    .feature = &feature},
                   state);
}

} // namespace kvm::nested
