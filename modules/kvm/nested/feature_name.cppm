// SPDX-License-Identifier: MIT
//
// What QEMU and libvirt call a capability: the words in "-cpu", in a domain's <feature name='...'/>, and in
// "host doesn't support requested feature: MSR(48CH).vmx-ept-execonly [bit 0]". The manuals' names of the
// same bits are in the layouts that find_capability() knows.
//
// QEMU's names are those of 7.2 and what later versions added, up to "vmx-mbec" and "gmet"; libvirt takes
// them over and has names of its own for four bits.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:feature_name;
import :bit_layout;
import :vmx_bit_layout;
import :capabilities;
import :capability_bit_layout;

export namespace kvm::nested {

/// A capability by its names outside the manuals.
struct FeatureName {
    /// The MSR; of controls the TRUE one where there are two. svm::Capabilities::function: its EDX.
    std::uint32_t index;
    /// In the MSR; of an MSR with two halves the number of the control, 0 to 31, as QEMU counts, too.
    std::uint8_t bit;
    std::string_view qemu;             ///< empty if QEMU has none
    std::string_view own_libvirt = {}; ///< where libvirt's is another

    constexpr std::string_view libvirt() const noexcept { return own_libvirt.empty() ? qemu : own_libvirt; }
};

} // namespace kvm::nested

namespace kvm::nested::detail {

template <BitEnum E>
constexpr FeatureName feature(std::uint32_t index, E bit, std::string_view qemu,
                              std::string_view libvirt = {}) {
    return {index, static_cast<std::uint8_t>(bit), qemu, libvirt};
}

consteval auto make_feature_names() {
    using namespace vmx;
    using svm::Feature;
    namespace msr = vmx::msr;
    constexpr auto svm = svm::Capabilities::function;
    return std::to_array<FeatureName>({
        feature(msr::basic, Basic::exit_information_for_ins_and_outs, "vmx-ins-outs"),
        feature(msr::basic, Basic::true_control_msrs, "vmx-true-ctls"),
        feature(msr::basic, Basic::error_code_with_any_vector, "vmx-any-errcode"),
        feature(msr::basic, Basic::nested_exceptions, "vmx-nested-exception"),

        feature(msr::misc, Misc::vm_exits_store_efer_lma, "vmx-store-lma"),
        feature(msr::misc, Misc::hlt_activity_state, "vmx-activity-hlt"),
        feature(msr::misc, Misc::shutdown_activity_state, "vmx-activity-shutdown"),
        feature(msr::misc, Misc::wait_for_sipi_activity_state, "vmx-activity-wait-sipi"),
        feature(msr::misc, Misc::vmwrite_to_any_supported_field, "vmx-vmwrite-vmexit-fields"),
        feature(msr::misc, Misc::injection_with_instruction_length_0, "vmx-zero-len-inject"),

        feature(msr::secondary_controls, Secondary::virtualize_apic_accesses, "vmx-apicv-xapic"),
        feature(msr::secondary_controls, Secondary::enable_ept, "vmx-ept"),
        feature(msr::secondary_controls, Secondary::descriptor_table_exiting, "vmx-desc-exit"),
        feature(msr::secondary_controls, Secondary::enable_rdtscp, "vmx-rdtscp-exit"),
        feature(msr::secondary_controls, Secondary::virtualize_x2apic_mode, "vmx-apicv-x2apic"),
        feature(msr::secondary_controls, Secondary::enable_vpid, "vmx-vpid"),
        feature(msr::secondary_controls, Secondary::wbinvd_exiting, "vmx-wbinvd-exit"),
        feature(msr::secondary_controls, Secondary::unrestricted_guest, "vmx-unrestricted-guest"),
        feature(msr::secondary_controls, Secondary::apic_register_virtualization, "vmx-apicv-register"),
        feature(msr::secondary_controls, Secondary::virtual_interrupt_delivery, "vmx-apicv-vid"),
        feature(msr::secondary_controls, Secondary::pause_loop_exiting, "vmx-ple"),
        feature(msr::secondary_controls, Secondary::rdrand_exiting, "vmx-rdrand-exit"),
        feature(msr::secondary_controls, Secondary::enable_invpcid, "vmx-invpcid-exit"),
        feature(msr::secondary_controls, Secondary::enable_vm_functions, "vmx-vmfunc"),
        feature(msr::secondary_controls, Secondary::vmcs_shadowing, "vmx-shadow-vmcs"),
        feature(msr::secondary_controls, Secondary::enable_encls_exiting, "vmx-encls-exit"),
        feature(msr::secondary_controls, Secondary::rdseed_exiting, "vmx-rdseed-exit"),
        feature(msr::secondary_controls, Secondary::enable_pml, "vmx-pml"),
        feature(msr::secondary_controls, Secondary::enable_xsaves_xrstors, "vmx-xsaves"),
        feature(msr::secondary_controls, Secondary::mode_based_execute_control_for_ept, "vmx-mbec"),
        feature(msr::secondary_controls, Secondary::use_tsc_scaling, "vmx-tsc-scaling"),
        feature(msr::secondary_controls, Secondary::enable_user_wait_and_pause, "vmx-enable-user-wait-pause"),

        feature(msr::ept_vpid_cap, EptVpidCap::execute_only_translations, "vmx-ept-execonly"),
        feature(msr::ept_vpid_cap, EptVpidCap::page_walk_length_4, "vmx-page-walk-4"),
        feature(msr::ept_vpid_cap, EptVpidCap::page_walk_length_5, "vmx-page-walk-5"),
        feature(msr::ept_vpid_cap, EptVpidCap::uc_ept_paging_structures, "", "vmx-ept-uc"),
        feature(msr::ept_vpid_cap, EptVpidCap::wb_ept_paging_structures, "", "vmx-ept-wb"),
        feature(msr::ept_vpid_cap, EptVpidCap::ept_2_mbyte_pages, "vmx-ept-2mb"),
        feature(msr::ept_vpid_cap, EptVpidCap::ept_1_gbyte_pages, "vmx-ept-1gb"),
        feature(msr::ept_vpid_cap, EptVpidCap::invept, "vmx-invept"),
        feature(msr::ept_vpid_cap, EptVpidCap::accessed_and_dirty_flags_for_ept, "vmx-eptad"),
        feature(msr::ept_vpid_cap, EptVpidCap::advanced_vm_exit_information_for_ept_violations,
                "vmx-ept-advanced-exitinfo"),
        feature(msr::ept_vpid_cap, EptVpidCap::single_context_invept, "vmx-invept-single-context"),
        feature(msr::ept_vpid_cap, EptVpidCap::all_context_invept, "vmx-invept-all-context"),
        feature(msr::ept_vpid_cap, EptVpidCap::invvpid, "vmx-invvpid"),
        feature(msr::ept_vpid_cap, EptVpidCap::individual_address_invvpid, "vmx-invvpid-single-addr"),
        // QEMU says "invept" of two kinds of INVVPID, so that one name has two bits.
        feature(msr::ept_vpid_cap, EptVpidCap::single_context_invvpid, "vmx-invept-single-context",
                "vmx-invvpid-single-context"),
        feature(msr::ept_vpid_cap, EptVpidCap::all_context_invvpid, "vmx-invvpid-all-context"),
        feature(msr::ept_vpid_cap, EptVpidCap::single_context_retaining_globals_invvpid,
                "vmx-invept-single-context-noglobals", "vmx-invvpid-single-context-noglobals"),

        feature(msr::true_pin_based_controls, PinBased::external_interrupt_exiting, "vmx-intr-exit"),
        feature(msr::true_pin_based_controls, PinBased::nmi_exiting, "vmx-nmi-exit"),
        feature(msr::true_pin_based_controls, PinBased::virtual_nmis, "vmx-vnmi"),
        feature(msr::true_pin_based_controls, PinBased::activate_vmx_preemption_timer,
                "vmx-preemption-timer"),
        feature(msr::true_pin_based_controls, PinBased::process_posted_interrupts, "vmx-posted-intr"),

        feature(msr::true_primary_controls, Primary::interrupt_window_exiting, "vmx-vintr-pending"),
        feature(msr::true_primary_controls, Primary::use_tsc_offsetting, "vmx-tsc-offset"),
        feature(msr::true_primary_controls, Primary::hlt_exiting, "vmx-hlt-exit"),
        feature(msr::true_primary_controls, Primary::invlpg_exiting, "vmx-invlpg-exit"),
        feature(msr::true_primary_controls, Primary::mwait_exiting, "vmx-mwait-exit"),
        feature(msr::true_primary_controls, Primary::rdpmc_exiting, "vmx-rdpmc-exit"),
        feature(msr::true_primary_controls, Primary::rdtsc_exiting, "vmx-rdtsc-exit"),
        feature(msr::true_primary_controls, Primary::cr3_load_exiting, "vmx-cr3-load-noexit"),
        feature(msr::true_primary_controls, Primary::cr3_store_exiting, "vmx-cr3-store-noexit"),
        feature(msr::true_primary_controls, Primary::cr8_load_exiting, "vmx-cr8-load-exit"),
        feature(msr::true_primary_controls, Primary::cr8_store_exiting, "vmx-cr8-store-exit"),
        feature(msr::true_primary_controls, Primary::use_tpr_shadow, "vmx-flexpriority"),
        feature(msr::true_primary_controls, Primary::nmi_window_exiting, "vmx-vnmi-pending"),
        feature(msr::true_primary_controls, Primary::mov_dr_exiting, "vmx-movdr-exit"),
        feature(msr::true_primary_controls, Primary::unconditional_io_exiting, "vmx-io-exit"),
        feature(msr::true_primary_controls, Primary::use_io_bitmaps, "vmx-io-bitmap"),
        feature(msr::true_primary_controls, Primary::monitor_trap_flag, "vmx-mtf"),
        feature(msr::true_primary_controls, Primary::use_msr_bitmaps, "vmx-msr-bitmap"),
        feature(msr::true_primary_controls, Primary::monitor_exiting, "vmx-monitor-exit"),
        feature(msr::true_primary_controls, Primary::pause_exiting, "vmx-pause-exit"),
        feature(msr::true_primary_controls, Primary::activate_secondary_controls, "vmx-secondary-ctls"),

        feature(msr::true_exit_controls, ExitControl::save_debug_controls, "vmx-exit-nosave-debugctl"),
        feature(msr::true_exit_controls, ExitControl::load_ia32_perf_global_ctrl,
                "vmx-exit-load-perf-global-ctrl"),
        feature(msr::true_exit_controls, ExitControl::acknowledge_interrupt_on_exit, "vmx-exit-ack-intr"),
        feature(msr::true_exit_controls, ExitControl::save_ia32_pat, "vmx-exit-save-pat"),
        feature(msr::true_exit_controls, ExitControl::load_ia32_pat, "vmx-exit-load-pat"),
        feature(msr::true_exit_controls, ExitControl::save_ia32_efer, "vmx-exit-save-efer"),
        feature(msr::true_exit_controls, ExitControl::load_ia32_efer, "vmx-exit-load-efer"),
        feature(msr::true_exit_controls, ExitControl::save_vmx_preemption_timer_value,
                "vmx-exit-save-preemption-timer"),
        feature(msr::true_exit_controls, ExitControl::clear_ia32_bndcfgs, "vmx-exit-clear-bndcfgs"),
        feature(msr::true_exit_controls, ExitControl::clear_ia32_rtit_ctl, "vmx-exit-clear-rtit-ctl"),
        feature(msr::true_exit_controls, ExitControl::load_cet_state, "vmx-exit-save-cet"),
        feature(msr::true_exit_controls, ExitControl::load_pkrs, "vmx-exit-load-pkrs"),
        feature(msr::true_exit_controls, ExitControl::activate_secondary_controls, "vmx-exit-secondary-ctls"),

        feature(msr::true_entry_controls, EntryControl::load_debug_controls, "vmx-entry-noload-debugctl"),
        feature(msr::true_entry_controls, EntryControl::ia_32e_mode_guest, "vmx-entry-ia32e-mode"),
        feature(msr::true_entry_controls, EntryControl::load_ia32_perf_global_ctrl,
                "vmx-entry-load-perf-global-ctrl"),
        feature(msr::true_entry_controls, EntryControl::load_ia32_pat, "vmx-entry-load-pat"),
        feature(msr::true_entry_controls, EntryControl::load_ia32_efer, "vmx-entry-load-efer"),
        feature(msr::true_entry_controls, EntryControl::load_ia32_bndcfgs, "vmx-entry-load-bndcfgs"),
        feature(msr::true_entry_controls, EntryControl::load_ia32_rtit_ctl, "vmx-entry-load-rtit-ctl"),
        feature(msr::true_entry_controls, EntryControl::load_cet_state, "vmx-entry-load-cet"),
        feature(msr::true_entry_controls, EntryControl::load_pkrs, "vmx-entry-load-pkrs"),
        feature(msr::true_entry_controls, EntryControl::load_fred, "vmx-entry-load-fred"),

        feature(msr::vm_functions, VmFunction::eptp_switching, "vmx-eptp-switching"),

        feature(svm, Feature::nested_paging, "npt"),
        feature(svm, Feature::lbr_virtualization, "lbrv"),
        feature(svm, Feature::svm_lock, "svm-lock"),
        feature(svm, Feature::next_rip_saved, "nrip-save"),
        feature(svm, Feature::tsc_rate_msr, "tsc-scale"),
        feature(svm, Feature::vmcb_clean_bits, "vmcb-clean"),
        feature(svm, Feature::flush_by_asid, "flushbyasid"),
        feature(svm, Feature::decode_assists, "decodeassists"),
        feature(svm, Feature::pause_intercept_filter, "pause-filter"),
        feature(svm, Feature::pause_filter_threshold, "pfthreshold"),
        feature(svm, Feature::avic, "avic"),
        feature(svm, Feature::virtualized_vmload_and_vmsave, "v-vmsave-vmload"),
        feature(svm, Feature::virtual_gif, "vgif"),
        feature(svm, Feature::gmet, "gmet"),
        feature(svm, Feature::virtual_nmi, "vnmi"),
        feature(svm, Feature::vmcb_address_check, "svme-addr-chk"),
    });
}
inline constexpr auto feature_name_rows = make_feature_names();

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// By `index`, then by `bit`.
inline constexpr std::span<const FeatureName> feature_names{detail::feature_name_rows};

/// The feature that QEMU or libvirt calls so; null if neither does. QEMU gives one name to two bits: `after`
/// the first that was found, the second.
constexpr const FeatureName* find_feature(std::string_view name,
                                          const FeatureName* after = nullptr) noexcept {
    const auto first = after == nullptr ? 0 : static_cast<std::size_t>(after - feature_names.data()) + 1;
    if (name.empty())
        return nullptr;
    for (const auto& row : feature_names.subspan(first))
        if (row.qemu == name || row.own_libvirt == name)
            return &row;
    return nullptr;
}

} // namespace kvm::nested

namespace kvm::nested::detail {

consteval bool feature_names_rise() {
    for (std::size_t i = 1; i < feature_names.size(); ++i) {
        const auto &a = feature_names[i - 1], &b = feature_names[i];
        if (a.index > b.index || (a.index == b.index && a.bit >= b.bit))
            return false;
    }
    return true;
}
static_assert(feature_names_rise(), "in order, and no bit twice");

} // namespace kvm::nested::detail
