// SPDX-License-Identifier: MIT
//
// What the bits of capabilities mean, where they are not the bits of a word of controls, which
// vmx_bit_layout has. Names and sections are those of the Intel SDM, Volume 3, and of the AMD APM, Volume 3,
// where a row does not say otherwise.
module;
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:capability_bit_layout;
import :bit_layout;
import :vmx_bit_layout;

export namespace kvm::nested::vmx {

/// Flags of IA32_FEATURE_CONTROL (24.7; Vol. 4 table 2-2).
enum class FeatureControl : std::uint8_t {
    lock = 0,
    vmx_in_smx_operation = 1,
    vmx_outside_smx_operation = 2,
    senter_enable = 15,
    sgx_launch_control_enable = 17,
    sgx_enable = 18,
    lmce_on = 20,
};

/// Flags of IA32_VMX_BASIC (A.1).
enum class Basic : std::uint8_t {
    addresses_of_32_bits = 48,
    dual_monitor_treatment = 49,
    exit_information_for_ins_and_outs = 54,
    true_control_msrs = 55,
    error_code_with_any_vector = 56,
    nested_exceptions = 58,
};

/// Flags of IA32_VMX_MISC (A.6).
enum class Misc : std::uint8_t {
    vm_exits_store_efer_lma = 5,
    hlt_activity_state = 6,
    shutdown_activity_state = 7,
    wait_for_sipi_activity_state = 8,
    intel_pt_in_vmx_operation = 14,
    rdmsr_of_ia32_smbase_in_smm = 15,
    ia32_smm_monitor_ctl_bit_2 = 28,
    vmwrite_to_any_supported_field = 29,
    injection_with_instruction_length_0 = 30,
};

/// Flags of IA32_VMX_EPT_VPID_CAP (A.10).
enum class EptVpidCap : std::uint8_t {
    execute_only_translations = 0,
    page_walk_length_4 = 6,
    page_walk_length_5 = 7,
    uc_ept_paging_structures = 8,
    wb_ept_paging_structures = 14,
    ept_2_mbyte_pages = 16,
    ept_1_gbyte_pages = 17,
    invept = 20,
    accessed_and_dirty_flags_for_ept = 21,
    advanced_vm_exit_information_for_ept_violations = 22,
    supervisor_shadow_stack_control = 23,
    single_context_invept = 25,
    all_context_invept = 26,
    invvpid = 32,
    individual_address_invvpid = 40,
    single_context_invvpid = 41,
    all_context_invvpid = 42,
    single_context_retaining_globals_invvpid = 43,
};

/// Tertiary processor-based VM-execution controls (25.6.2). A vmcs12 has no field for them.
enum class Tertiary : std::uint8_t {
    loadiwkey_exiting = 0,
    enable_hlat = 1,
    ept_paging_write_control = 2,
    guest_paging_verification = 3,
    ipi_virtualization = 4,
    enable_msr_list_instructions = 6,
    virtualize_ia32_spec_ctrl = 7,
};

/// Secondary VM-exit controls (25.7.1). A vmcs12 has no field for them.
enum class SecondaryExitControl : std::uint8_t {
    save_fred = 0,
    load_fred = 1,
    prematurely_busy_shadow_stack = 3,
};

} // namespace kvm::nested::vmx

export namespace kvm::nested::svm {

/// Features of SVM: CPUID.8000000AH:EDX (appendix E.4.9).
enum class Feature : std::uint8_t {
    nested_paging = 0,
    lbr_virtualization = 1,
    svm_lock = 2,
    next_rip_saved = 3,
    tsc_rate_msr = 4,
    vmcb_clean_bits = 5,
    flush_by_asid = 6,
    decode_assists = 7,
    pmc_virtualization = 8,
    pause_intercept_filter = 10,
    pause_filter_threshold = 12,
    avic = 13,
    virtualized_vmload_and_vmsave = 15,
    virtual_gif = 16,
    gmet = 17,
    x2avic = 18,
    supervisor_shadow_stack_check = 19,
    spec_ctrl_virtualization = 20,
    read_only_guest_page_tables = 21,
    host_mce_override = 23,
    invlpgb_and_tlbsync = 24,
    virtual_nmi = 25,
    ibs_virtualization = 26,
    extended_lvt_avic_access_change = 27,
    vmcb_address_check = 28,
    bus_lock_threshold = 29,
    idle_hlt_intercept = 30,
    enhanced_shutdown_intercept = 31,
};

} // namespace kvm::nested::svm

export namespace kvm::nested::bit_layout {

/// IA32_FEATURE_CONTROL (24.7; Vol. 4 table 2-2).
inline constexpr std::array feature_control_bits = std::to_array<NamedBits>({
    flag(vmx::FeatureControl::lock, "lock"),
    flag(vmx::FeatureControl::vmx_in_smx_operation, "VMX in SMX operation"),
    flag(vmx::FeatureControl::vmx_outside_smx_operation, "VMX outside SMX operation"),
    part(8, 14, "SENTER function", BitsForm::each),
    flag(vmx::FeatureControl::senter_enable, "SENTER enable"),
    flag(vmx::FeatureControl::sgx_launch_control_enable, "SGX launch control enable"),
    flag(vmx::FeatureControl::sgx_enable, "SGX enable"),
    flag(vmx::FeatureControl::lmce_on, "LMCE_ON"),
});
inline constexpr BitLayout feature_control = of_bits(feature_control_bits);
template <>
inline constexpr const BitLayout* of<vmx::FeatureControl> = &feature_control;

/// IA32_VMX_BASIC (A.1).
inline constexpr std::array vmx_basic_bits = std::to_array<NamedBits>({
    part(0, 30, "VMCS revision", BitsForm::hexadecimal),
    part(32, 44, "VMCS region size"),
    flag(vmx::Basic::addresses_of_32_bits, "addresses of 32 bits"),
    flag(vmx::Basic::dual_monitor_treatment, "dual-monitor treatment"),
    part(50, 53, "VMCS memory type", ept_memory_types),
    flag(vmx::Basic::exit_information_for_ins_and_outs, "exit information for INS and OUTS"),
    flag(vmx::Basic::true_control_msrs, "TRUE control MSRs"),
    flag(vmx::Basic::error_code_with_any_vector, "error code with any vector"),
    flag(vmx::Basic::nested_exceptions, "nested exceptions"),
});
inline constexpr BitLayout vmx_basic = of_bits(vmx_basic_bits);
template <>
inline constexpr const BitLayout* of<vmx::Basic> = &vmx_basic;

/// How many entries an MSR-load or MSR-store list should have at most (A.6).
inline constexpr std::array msr_list_maxima = std::to_array<NamedValue>({
    {0, "512"},
    {1, "1024"},
    {2, "1536"},
    {3, "2048"},
    {4, "2560"},
    {5, "3072"},
    {6, "3584"},
    {7, "4096"},
});
/// IA32_VMX_MISC (A.6). The VMX-preemption timer counts down when the bit of the TSC changes that is its
/// rate.
inline constexpr std::array vmx_misc_bits = std::to_array<NamedBits>({
    part(0, 4, "VMX-preemption timer rate"),
    flag(vmx::Misc::vm_exits_store_efer_lma, "VM exits store EFER.LMA"),
    flag(vmx::Misc::hlt_activity_state, "HLT activity state"),
    flag(vmx::Misc::shutdown_activity_state, "shutdown activity state"),
    flag(vmx::Misc::wait_for_sipi_activity_state, "wait-for-SIPI activity state"),
    flag(vmx::Misc::intel_pt_in_vmx_operation, "Intel PT in VMX operation"),
    flag(vmx::Misc::rdmsr_of_ia32_smbase_in_smm, "RDMSR of IA32_SMBASE in SMM"),
    part(16, 24, "CR3-target count"),
    part(25, 27, "MSR-list maximum", msr_list_maxima),
    flag(vmx::Misc::ia32_smm_monitor_ctl_bit_2, "IA32_SMM_MONITOR_CTL bit 2"),
    flag(vmx::Misc::vmwrite_to_any_supported_field, "VMWRITE to any supported field"),
    flag(vmx::Misc::injection_with_instruction_length_0, "injection with instruction length 0"),
    part(32, 63, "MSEG revision", BitsForm::hexadecimal),
});
inline constexpr BitLayout vmx_misc = of_bits(vmx_misc_bits);
template <>
inline constexpr const BitLayout* of<vmx::Misc> = &vmx_misc;

/// IA32_VMX_VMCS_ENUM (A.9).
inline constexpr std::array vmcs_enum_bits = std::to_array<NamedBits>({
    part(1, 9, "highest index of a VMCS encoding"),
});
inline constexpr BitLayout vmcs_enum = of_bits(vmcs_enum_bits);

/// IA32_VMX_EPT_VPID_CAP (A.10).
inline constexpr std::array ept_vpid_cap_bits = std::to_array<NamedBits>({
    flag(vmx::EptVpidCap::execute_only_translations, "execute-only translations"),
    flag(vmx::EptVpidCap::page_walk_length_4, "page-walk length 4"),
    flag(vmx::EptVpidCap::page_walk_length_5, "page-walk length 5"),
    flag(vmx::EptVpidCap::uc_ept_paging_structures, "UC EPT paging structures"),
    flag(vmx::EptVpidCap::wb_ept_paging_structures, "WB EPT paging structures"),
    flag(vmx::EptVpidCap::ept_2_mbyte_pages, "EPT 2-MByte pages"),
    flag(vmx::EptVpidCap::ept_1_gbyte_pages, "EPT 1-GByte pages"),
    flag(vmx::EptVpidCap::invept, "INVEPT"),
    flag(vmx::EptVpidCap::accessed_and_dirty_flags_for_ept, "accessed and dirty flags for EPT"),
    flag(vmx::EptVpidCap::advanced_vm_exit_information_for_ept_violations,
         "advanced VM-exit information for EPT violations"),
    flag(vmx::EptVpidCap::supervisor_shadow_stack_control, "supervisor shadow-stack control"),
    flag(vmx::EptVpidCap::single_context_invept, "single-context INVEPT"),
    flag(vmx::EptVpidCap::all_context_invept, "all-context INVEPT"),
    flag(vmx::EptVpidCap::invvpid, "INVVPID"),
    flag(vmx::EptVpidCap::individual_address_invvpid, "individual-address INVVPID"),
    flag(vmx::EptVpidCap::single_context_invvpid, "single-context INVVPID"),
    flag(vmx::EptVpidCap::all_context_invvpid, "all-context INVVPID"),
    flag(vmx::EptVpidCap::single_context_retaining_globals_invvpid,
         "single-context-retaining-globals INVVPID"),
    part(48, 53, "maximum HLAT prefix size"),
});
inline constexpr BitLayout ept_vpid_cap = of_bits(ept_vpid_cap_bits);
template <>
inline constexpr const BitLayout* of<vmx::EptVpidCap> = &ept_vpid_cap;

/// Tertiary processor-based VM-execution controls (25.6.2).
inline constexpr std::array tertiary_bits = std::to_array<NamedBits>({
    flag(vmx::Tertiary::loadiwkey_exiting, "LOADIWKEY exiting"),
    flag(vmx::Tertiary::enable_hlat, "enable HLAT"),
    flag(vmx::Tertiary::ept_paging_write_control, "EPT paging-write control"),
    flag(vmx::Tertiary::guest_paging_verification, "guest-paging verification"),
    flag(vmx::Tertiary::ipi_virtualization, "IPI virtualization"),
    flag(vmx::Tertiary::enable_msr_list_instructions, "enable MSR-list instructions"),
    flag(vmx::Tertiary::virtualize_ia32_spec_ctrl, "virtualize IA32_SPEC_CTRL"),
});
inline constexpr BitLayout tertiary = of_bits(tertiary_bits);
template <>
inline constexpr const BitLayout* of<vmx::Tertiary> = &tertiary;

/// Secondary VM-exit controls (25.7.1).
inline constexpr std::array secondary_exit_control_bits = std::to_array<NamedBits>({
    flag(vmx::SecondaryExitControl::save_fred, "save FRED"),
    flag(vmx::SecondaryExitControl::load_fred, "load FRED"),
    flag(vmx::SecondaryExitControl::prematurely_busy_shadow_stack, "prematurely busy shadow stack"),
});
inline constexpr BitLayout secondary_exit_controls = of_bits(secondary_exit_control_bits);
template <>
inline constexpr const BitLayout* of<vmx::SecondaryExitControl> = &secondary_exit_controls;

/// CPUID.8000000AH:EDX (appendix E.4.9).
inline constexpr std::array svm_feature_bits = std::to_array<NamedBits>({
    flag(svm::Feature::nested_paging, "nested paging"),
    flag(svm::Feature::lbr_virtualization, "LBR virtualization"),
    flag(svm::Feature::svm_lock, "SVM lock"),
    flag(svm::Feature::next_rip_saved, "next RIP saved"),
    flag(svm::Feature::tsc_rate_msr, "TSC rate MSR"),
    flag(svm::Feature::vmcb_clean_bits, "VMCB clean bits"),
    flag(svm::Feature::flush_by_asid, "flush by ASID"),
    flag(svm::Feature::decode_assists, "decode assists"),
    flag(svm::Feature::pmc_virtualization, "PMC virtualization"),
    flag(svm::Feature::pause_intercept_filter, "PAUSE intercept filter"),
    flag(svm::Feature::pause_filter_threshold, "PAUSE filter threshold"),
    flag(svm::Feature::avic, "AVIC"),
    flag(svm::Feature::virtualized_vmload_and_vmsave, "virtualized VMLOAD and VMSAVE"),
    flag(svm::Feature::virtual_gif, "virtual GIF"),
    flag(svm::Feature::gmet, "GMET"),
    flag(svm::Feature::x2avic, "x2AVIC"),
    flag(svm::Feature::supervisor_shadow_stack_check, "supervisor shadow stack check"),
    flag(svm::Feature::spec_ctrl_virtualization, "SPEC_CTRL virtualization"),
    flag(svm::Feature::read_only_guest_page_tables, "read-only guest page tables"),
    flag(svm::Feature::host_mce_override, "host MCE override"),
    flag(svm::Feature::invlpgb_and_tlbsync, "INVLPGB and TLBSYNC"),
    flag(svm::Feature::virtual_nmi, "virtual NMI"),
    flag(svm::Feature::ibs_virtualization, "IBS virtualization"),
    flag(svm::Feature::extended_lvt_avic_access_change, "extended LVT AVIC access change"),
    flag(svm::Feature::vmcb_address_check, "VMCB address check"),
    flag(svm::Feature::bus_lock_threshold, "bus lock threshold"),
    flag(svm::Feature::idle_hlt_intercept, "idle HLT intercept"),
    flag(svm::Feature::enhanced_shutdown_intercept, "enhanced shutdown intercept"),
});
inline constexpr BitLayout svm_features = of_bits(svm_feature_bits);
template <>
inline constexpr const BitLayout* of<svm::Feature> = &svm_features;

/// CPUID.8000000AH:EBX (appendix E.4.9).
inline constexpr std::array svm_asid_bits = std::to_array<NamedBits>({part(0, 31, "number of ASIDs")});
inline constexpr BitLayout svm_asids = of_bits(svm_asid_bits);

} // namespace kvm::nested::bit_layout
