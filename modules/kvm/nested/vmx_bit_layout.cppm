// SPDX-License-Identifier: MIT
//
// What the bits of vmcs12 fields mean. Names and sections are those of the Intel SDM, Volume 3, where the
// VMCS is chapter 25; in editions with another numbering the titles lead there.
module;
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:vmx_bit_layout;
import :bit_layout;

export namespace kvm::nested::vmx {

/// Pin-based VM-execution controls (25.6.1): pin_based_vm_exec_control.
enum class PinBased : std::uint8_t {
    external_interrupt_exiting = 0,
    nmi_exiting = 3,
    virtual_nmis = 5,
    activate_vmx_preemption_timer = 6,
    process_posted_interrupts = 7,
};

/// Primary processor-based VM-execution controls (25.6.2): cpu_based_vm_exec_control.
enum class Primary : std::uint8_t {
    interrupt_window_exiting = 2,
    use_tsc_offsetting = 3,
    hlt_exiting = 7,
    invlpg_exiting = 9,
    mwait_exiting = 10,
    rdpmc_exiting = 11,
    rdtsc_exiting = 12,
    cr3_load_exiting = 15,
    cr3_store_exiting = 16,
    activate_tertiary_controls = 17,
    cr8_load_exiting = 19,
    cr8_store_exiting = 20,
    use_tpr_shadow = 21,
    nmi_window_exiting = 22,
    mov_dr_exiting = 23,
    unconditional_io_exiting = 24,
    use_io_bitmaps = 25,
    monitor_trap_flag = 27,
    use_msr_bitmaps = 28,
    monitor_exiting = 29,
    pause_exiting = 30,
    activate_secondary_controls = 31,
};

/// Secondary processor-based VM-execution controls (25.6.2): secondary_vm_exec_control, which counts only
/// with Primary::activate_secondary_controls.
enum class Secondary : std::uint8_t {
    virtualize_apic_accesses = 0,
    enable_ept = 1,
    descriptor_table_exiting = 2,
    enable_rdtscp = 3,
    virtualize_x2apic_mode = 4,
    enable_vpid = 5,
    wbinvd_exiting = 6,
    unrestricted_guest = 7,
    apic_register_virtualization = 8,
    virtual_interrupt_delivery = 9,
    pause_loop_exiting = 10,
    rdrand_exiting = 11,
    enable_invpcid = 12,
    enable_vm_functions = 13,
    vmcs_shadowing = 14,
    enable_encls_exiting = 15,
    rdseed_exiting = 16,
    enable_pml = 17,
    ept_violation_ve = 18,
    conceal_vmx_from_pt = 19,
    enable_xsaves_xrstors = 20,
    pasid_translation = 21,
    mode_based_execute_control_for_ept = 22,
    sub_page_write_permissions_for_ept = 23,
    intel_pt_uses_guest_physical_addresses = 24,
    use_tsc_scaling = 25,
    enable_user_wait_and_pause = 26,
    enable_pconfig = 27,
    enable_enclv_exiting = 28,
    vmm_bus_lock_detection = 30,
    instruction_timeout = 31,
};

/// VM-exit controls (25.7.1): vm_exit_controls.
enum class ExitControl : std::uint8_t {
    save_debug_controls = 2,
    host_address_space_size = 9,
    load_ia32_perf_global_ctrl = 12,
    acknowledge_interrupt_on_exit = 15,
    save_ia32_pat = 18,
    load_ia32_pat = 19,
    save_ia32_efer = 20,
    load_ia32_efer = 21,
    save_vmx_preemption_timer_value = 22,
    clear_ia32_bndcfgs = 23,
    conceal_vmx_from_pt = 24,
    clear_ia32_rtit_ctl = 25,
    clear_ia32_lbr_ctl = 26,
    clear_uinv = 27,
    load_cet_state = 28,
    load_pkrs = 29,
    save_ia32_perf_global_ctl = 30,
    activate_secondary_controls = 31,
};

/// VM-entry controls (25.8.1): vm_entry_controls.
enum class EntryControl : std::uint8_t {
    load_debug_controls = 2,
    ia_32e_mode_guest = 9,
    entry_to_smm = 10,
    deactivate_dual_monitor_treatment = 11,
    load_ia32_perf_global_ctrl = 13,
    load_ia32_pat = 14,
    load_ia32_efer = 15,
    load_ia32_bndcfgs = 16,
    conceal_vmx_from_pt = 17,
    load_ia32_rtit_ctl = 18,
    load_uinv = 19,
    load_cet_state = 20,
    load_guest_ia32_lbr_ctl = 21,
    load_pkrs = 22,
    load_fred = 23,
};

/// VM-function controls (25.6.14): vm_function_control.
enum class VmFunction : std::uint8_t {
    eptp_switching = 0,
};

/// Flags of the extended-page-table pointer (25.6.11): ept_pointer.
enum class EptPointer : std::uint8_t {
    accessed_and_dirty_flags = 6,
    supervisor_shadow_stack_control = 7,
};

/// Flags of the VM-entry interruption information (25.8.3): vm_entry_intr_info_field.
enum class EntryEvent : std::uint8_t {
    deliver_error_code = 11,
    valid = 31,
};

/// Flags of the VM-exit interruption information (25.9.2): vm_exit_intr_info.
enum class ExitEvent : std::uint8_t {
    error_code_valid = 11,
    nmi_unblocking_due_to_iret = 12,
    valid = 31,
};

/// Flags of the IDT-vectoring information (25.9.3): idt_vectoring_info_field.
enum class VectoringEvent : std::uint8_t {
    error_code_valid = 11,
    valid = 31,
};

/// What stands beside the basic exit reason (25.9.1): vm_exit_reason.
enum class ExitReasonFlag : std::uint8_t {
    shadow_stack_prematurely_busy = 25,
    bus_lock = 26,
    enclave_mode = 27,
    pending_mtf_vm_exit = 28,
    vm_exit_from_vmx_root_operation = 29,
    vm_entry_failure = 31,
};

/// Flags of a segment's access rights (25.4.1): guest_cs_ar_bytes and its like.
enum class AccessRight : std::uint8_t {
    s = 4,
    p = 7,
    avl = 12,
    l = 13,
    db = 14,
    g = 15,
    unusable = 16,
};

/// Interruptibility state (25.4.2): guest_interruptibility_info.
enum class Interruptibility : std::uint8_t {
    blocking_by_sti = 0,
    blocking_by_mov_ss = 1,
    blocking_by_smi = 2,
    blocking_by_nmi = 3,
    enclave_interruption = 4,
};

/// Flags of the pending debug exceptions (25.4.2): guest_pending_dbg_exceptions.
enum class PendingDebug : std::uint8_t {
    bld = 11,
    enabled_breakpoint = 12,
    bs = 14,
    rtm = 16,
};

/// The flag of the first word of a VMCS (25.2): hdr.
enum class VmcsRevision : std::uint8_t {
    shadow_vmcs = 31,
};

/// For argument-dependent look-up.
using nested::clear;
using nested::has;
using nested::mask;
using nested::set;

} // namespace kvm::nested::vmx

export namespace kvm::nested::bit_layout {

/// Pin-based VM-execution controls (25.6.1). Bits 1, 2 and 4 are reserved and 1.
inline constexpr std::array pin_based_bits = std::to_array<NamedBits>({
    flag(vmx::PinBased::external_interrupt_exiting, "external-interrupt exiting"),
    flag(vmx::PinBased::nmi_exiting, "NMI exiting"),
    flag(vmx::PinBased::virtual_nmis, "virtual NMIs"),
    flag(vmx::PinBased::activate_vmx_preemption_timer, "activate VMX-preemption timer"),
    flag(vmx::PinBased::process_posted_interrupts, "process posted interrupts"),
});
inline constexpr BitLayout pin_based = of_bits(pin_based_bits, 0x16);
template <>
inline constexpr const BitLayout* of<vmx::PinBased> = &pin_based;

/// Primary processor-based VM-execution controls (25.6.2).
inline constexpr std::array primary_bits = std::to_array<NamedBits>({
    flag(vmx::Primary::interrupt_window_exiting, "interrupt-window exiting"),
    flag(vmx::Primary::use_tsc_offsetting, "use TSC offsetting"),
    flag(vmx::Primary::hlt_exiting, "HLT exiting"),
    flag(vmx::Primary::invlpg_exiting, "INVLPG exiting"),
    flag(vmx::Primary::mwait_exiting, "MWAIT exiting"),
    flag(vmx::Primary::rdpmc_exiting, "RDPMC exiting"),
    flag(vmx::Primary::rdtsc_exiting, "RDTSC exiting"),
    flag(vmx::Primary::cr3_load_exiting, "CR3-load exiting"),
    flag(vmx::Primary::cr3_store_exiting, "CR3-store exiting"),
    flag(vmx::Primary::activate_tertiary_controls, "activate tertiary controls"),
    flag(vmx::Primary::cr8_load_exiting, "CR8-load exiting"),
    flag(vmx::Primary::cr8_store_exiting, "CR8-store exiting"),
    flag(vmx::Primary::use_tpr_shadow, "use TPR shadow"),
    flag(vmx::Primary::nmi_window_exiting, "NMI-window exiting"),
    flag(vmx::Primary::mov_dr_exiting, "MOV-DR exiting"),
    flag(vmx::Primary::unconditional_io_exiting, "unconditional I/O exiting"),
    flag(vmx::Primary::use_io_bitmaps, "use I/O bitmaps"),
    flag(vmx::Primary::monitor_trap_flag, "monitor trap flag"),
    flag(vmx::Primary::use_msr_bitmaps, "use MSR bitmaps"),
    flag(vmx::Primary::monitor_exiting, "MONITOR exiting"),
    flag(vmx::Primary::pause_exiting, "PAUSE exiting"),
    flag(vmx::Primary::activate_secondary_controls, "activate secondary controls"),
});
inline constexpr BitLayout primary = of_bits(primary_bits, 0x0400'6172);
template <>
inline constexpr const BitLayout* of<vmx::Primary> = &primary;

/// Secondary processor-based VM-execution controls (25.6.2).
inline constexpr std::array secondary_bits = std::to_array<NamedBits>({
    flag(vmx::Secondary::virtualize_apic_accesses, "virtualize APIC accesses"),
    flag(vmx::Secondary::enable_ept, "enable EPT"),
    flag(vmx::Secondary::descriptor_table_exiting, "descriptor-table exiting"),
    flag(vmx::Secondary::enable_rdtscp, "enable RDTSCP"),
    flag(vmx::Secondary::virtualize_x2apic_mode, "virtualize x2APIC mode"),
    flag(vmx::Secondary::enable_vpid, "enable VPID"),
    flag(vmx::Secondary::wbinvd_exiting, "WBINVD exiting"),
    flag(vmx::Secondary::unrestricted_guest, "unrestricted guest"),
    flag(vmx::Secondary::apic_register_virtualization, "APIC-register virtualization"),
    flag(vmx::Secondary::virtual_interrupt_delivery, "virtual-interrupt delivery"),
    flag(vmx::Secondary::pause_loop_exiting, "PAUSE-loop exiting"),
    flag(vmx::Secondary::rdrand_exiting, "RDRAND exiting"),
    flag(vmx::Secondary::enable_invpcid, "enable INVPCID"),
    flag(vmx::Secondary::enable_vm_functions, "enable VM functions"),
    flag(vmx::Secondary::vmcs_shadowing, "VMCS shadowing"),
    flag(vmx::Secondary::enable_encls_exiting, "enable ENCLS exiting"),
    flag(vmx::Secondary::rdseed_exiting, "RDSEED exiting"),
    flag(vmx::Secondary::enable_pml, "enable PML"),
    flag(vmx::Secondary::ept_violation_ve, "EPT-violation #VE"),
    flag(vmx::Secondary::conceal_vmx_from_pt, "conceal VMX from PT"),
    flag(vmx::Secondary::enable_xsaves_xrstors, "enable XSAVES/XRSTORS"),
    flag(vmx::Secondary::pasid_translation, "PASID translation"),
    flag(vmx::Secondary::mode_based_execute_control_for_ept, "mode-based execute control for EPT"),
    flag(vmx::Secondary::sub_page_write_permissions_for_ept, "sub-page write permissions for EPT"),
    flag(vmx::Secondary::intel_pt_uses_guest_physical_addresses, "Intel PT uses guest physical addresses"),
    flag(vmx::Secondary::use_tsc_scaling, "use TSC scaling"),
    flag(vmx::Secondary::enable_user_wait_and_pause, "enable user wait and pause"),
    flag(vmx::Secondary::enable_pconfig, "enable PCONFIG"),
    flag(vmx::Secondary::enable_enclv_exiting, "enable ENCLV exiting"),
    flag(vmx::Secondary::vmm_bus_lock_detection, "VMM bus-lock detection"),
    flag(vmx::Secondary::instruction_timeout, "instruction timeout"),
});
inline constexpr BitLayout secondary = of_bits(secondary_bits);
template <>
inline constexpr const BitLayout* of<vmx::Secondary> = &secondary;

/// VM-exit controls (25.7.1).
inline constexpr std::array exit_control_bits = std::to_array<NamedBits>({
    flag(vmx::ExitControl::save_debug_controls, "save debug controls"),
    flag(vmx::ExitControl::host_address_space_size, "host address-space size"),
    flag(vmx::ExitControl::load_ia32_perf_global_ctrl, "load IA32_PERF_GLOBAL_CTRL"),
    flag(vmx::ExitControl::acknowledge_interrupt_on_exit, "acknowledge interrupt on exit"),
    flag(vmx::ExitControl::save_ia32_pat, "save IA32_PAT"),
    flag(vmx::ExitControl::load_ia32_pat, "load IA32_PAT"),
    flag(vmx::ExitControl::save_ia32_efer, "save IA32_EFER"),
    flag(vmx::ExitControl::load_ia32_efer, "load IA32_EFER"),
    flag(vmx::ExitControl::save_vmx_preemption_timer_value, "save VMX-preemption timer value"),
    flag(vmx::ExitControl::clear_ia32_bndcfgs, "clear IA32_BNDCFGS"),
    flag(vmx::ExitControl::conceal_vmx_from_pt, "conceal VMX from PT"),
    flag(vmx::ExitControl::clear_ia32_rtit_ctl, "clear IA32_RTIT_CTL"),
    flag(vmx::ExitControl::clear_ia32_lbr_ctl, "clear IA32_LBR_CTL"),
    flag(vmx::ExitControl::clear_uinv, "clear UINV"),
    flag(vmx::ExitControl::load_cet_state, "load CET state"),
    flag(vmx::ExitControl::load_pkrs, "load PKRS"),
    flag(vmx::ExitControl::save_ia32_perf_global_ctl, "save IA32_PERF_GLOBAL_CTL"),
    flag(vmx::ExitControl::activate_secondary_controls, "activate secondary controls"),
});
inline constexpr BitLayout exit_controls = of_bits(exit_control_bits, 0x0003'6dfb);
template <>
inline constexpr const BitLayout* of<vmx::ExitControl> = &exit_controls;

/// VM-entry controls (25.8.1).
inline constexpr std::array entry_control_bits = std::to_array<NamedBits>({
    flag(vmx::EntryControl::load_debug_controls, "load debug controls"),
    flag(vmx::EntryControl::ia_32e_mode_guest, "IA-32e mode guest"),
    flag(vmx::EntryControl::entry_to_smm, "entry to SMM"),
    flag(vmx::EntryControl::deactivate_dual_monitor_treatment, "deactivate dual-monitor treatment"),
    flag(vmx::EntryControl::load_ia32_perf_global_ctrl, "load IA32_PERF_GLOBAL_CTRL"),
    flag(vmx::EntryControl::load_ia32_pat, "load IA32_PAT"),
    flag(vmx::EntryControl::load_ia32_efer, "load IA32_EFER"),
    flag(vmx::EntryControl::load_ia32_bndcfgs, "load IA32_BNDCFGS"),
    flag(vmx::EntryControl::conceal_vmx_from_pt, "conceal VMX from PT"),
    flag(vmx::EntryControl::load_ia32_rtit_ctl, "load IA32_RTIT_CTL"),
    flag(vmx::EntryControl::load_uinv, "load UINV"),
    flag(vmx::EntryControl::load_cet_state, "load CET state"),
    flag(vmx::EntryControl::load_guest_ia32_lbr_ctl, "load guest IA32_LBR_CTL"),
    flag(vmx::EntryControl::load_pkrs, "load PKRS"),
    flag(vmx::EntryControl::load_fred, "load FRED"),
});
inline constexpr BitLayout entry_controls = of_bits(entry_control_bits, 0x11fb);
template <>
inline constexpr const BitLayout* of<vmx::EntryControl> = &entry_controls;

/// VM-function controls (25.6.14).
inline constexpr std::array vm_function_bits =
    std::to_array<NamedBits>({flag(vmx::VmFunction::eptp_switching, "EPTP switching")});
inline constexpr BitLayout vm_functions = of_bits(vm_function_bits);
template <>
inline constexpr const BitLayout* of<vmx::VmFunction> = &vm_functions;

/// Extended-page-table pointer (25.6.11).
inline constexpr std::array ept_memory_types = std::to_array<NamedValue>({{0, "UC"}, {6, "WB"}});
inline constexpr std::array ept_levels = std::to_array<NamedValue>({{3, "4 levels"}, {4, "5 levels"}});
inline constexpr std::array ept_pointer_bits = std::to_array<NamedBits>({
    part(3, 5, "page walk", ept_levels),
    part(0, 2, "memory type", ept_memory_types),
    flag(vmx::EptPointer::accessed_and_dirty_flags, "accessed and dirty flags"),
    flag(vmx::EptPointer::supervisor_shadow_stack_control, "supervisor shadow-stack control"),
    part(12, 51, "root", BitsForm::address),
});
inline constexpr BitLayout ept_pointer = of_bits(ept_pointer_bits);
template <>
inline constexpr const BitLayout* of<vmx::EptPointer> = &ept_pointer;

/// Types of events (25.8.3).
inline constexpr std::array vmx_event_types = std::to_array<NamedValue>({
    {0, "external interrupt"},
    {2, "NMI"},
    {3, "hardware exception"},
    {4, "software interrupt"},
    {5, "privileged software exception"},
    {6, "software exception"},
    {7, "other event"},
});
/// VM-entry interruption information (25.8.3).
inline constexpr std::array entry_event_bits = std::to_array<NamedBits>({
    flag(vmx::EntryEvent::valid, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(vmx::EntryEvent::deliver_error_code, "deliver error code"),
});
inline constexpr BitLayout entry_event = of_bits(entry_event_bits);
template <>
inline constexpr const BitLayout* of<vmx::EntryEvent> = &entry_event;
/// VM-exit interruption information (25.9.2).
inline constexpr std::array exit_event_bits = std::to_array<NamedBits>({
    flag(vmx::ExitEvent::valid, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(vmx::ExitEvent::error_code_valid, "error code valid"),
    flag(vmx::ExitEvent::nmi_unblocking_due_to_iret, "NMI unblocking due to IRET"),
});
inline constexpr BitLayout exit_event = of_bits(exit_event_bits);
template <>
inline constexpr const BitLayout* of<vmx::ExitEvent> = &exit_event;
/// IDT-vectoring information (25.9.3).
inline constexpr std::array vectoring_event_bits = std::to_array<NamedBits>({
    flag(vmx::VectoringEvent::valid, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(vmx::VectoringEvent::error_code_valid, "error code valid"),
});
inline constexpr BitLayout vectoring_event = of_bits(vectoring_event_bits);
template <>
inline constexpr const BitLayout* of<vmx::VectoringEvent> = &vectoring_event;

/// Basic exit reasons (appendix C).
inline constexpr std::array vmx_exit_reasons = std::to_array<NamedValue>({
    {0, "exception or NMI"},
    {1, "external interrupt"},
    {2, "triple fault"},
    {3, "INIT signal"},
    {4, "start-up IPI"},
    {5, "I/O SMI"},
    {6, "other SMI"},
    {7, "interrupt window"},
    {8, "NMI window"},
    {9, "task switch"},
    {10, "CPUID"},
    {11, "GETSEC"},
    {12, "HLT"},
    {13, "INVD"},
    {14, "INVLPG"},
    {15, "RDPMC"},
    {16, "RDTSC"},
    {17, "RSM"},
    {18, "VMCALL"},
    {19, "VMCLEAR"},
    {20, "VMLAUNCH"},
    {21, "VMPTRLD"},
    {22, "VMPTRST"},
    {23, "VMREAD"},
    {24, "VMRESUME"},
    {25, "VMWRITE"},
    {26, "VMXOFF"},
    {27, "VMXON"},
    {28, "control-register access"},
    {29, "MOV DR"},
    {30, "I/O instruction"},
    {31, "RDMSR"},
    {32, "WRMSR"},
    {33, "invalid guest state"},
    {34, "MSR loading"},
    {36, "MWAIT"},
    {37, "monitor trap flag"},
    {39, "MONITOR"},
    {40, "PAUSE"},
    {41, "machine-check event during VM entry"},
    {43, "TPR below threshold"},
    {44, "APIC access"},
    {45, "virtualized EOI"},
    {46, "access to GDTR or IDTR"},
    {47, "access to LDTR or TR"},
    {48, "EPT violation"},
    {49, "EPT misconfiguration"},
    {50, "INVEPT"},
    {51, "RDTSCP"},
    {52, "VMX-preemption timer expired"},
    {53, "INVVPID"},
    {54, "WBINVD or WBNOINVD"},
    {55, "XSETBV"},
    {56, "APIC write"},
    {57, "RDRAND"},
    {58, "INVPCID"},
    {59, "VMFUNC"},
    {60, "ENCLS"},
    {61, "RDSEED"},
    {62, "page-modification log full"},
    {63, "XSAVES"},
    {64, "XRSTORS"},
    {65, "PCONFIG"},
    {66, "SPP-related event"},
    {67, "UMWAIT"},
    {68, "TPAUSE"},
    {69, "LOADIWKEY"},
    {70, "ENCLV"},
    {72, "ENQCMD PASID translation failure"},
    {73, "ENQCMDS PASID translation failure"},
    {74, "bus lock"},
    {75, "instruction timeout"},
    {76, "SEAMCALL"},
    {77, "TDCALL"},
    {78, "RDMSRLIST"},
    {79, "WRMSRLIST"},
    {84, "RDMSR, immediate form"},
    {85, "WRMSR, immediate form"},
});
/// Exit reason (25.9.1).
inline constexpr std::array exit_reason_bits = std::to_array<NamedBits>({
    flag(vmx::ExitReasonFlag::vm_entry_failure, "VM-entry failure"),
    part(0, 15, "", vmx_exit_reasons),
    flag(vmx::ExitReasonFlag::shadow_stack_prematurely_busy, "shadow stack prematurely busy"),
    flag(vmx::ExitReasonFlag::bus_lock, "bus lock"),
    flag(vmx::ExitReasonFlag::enclave_mode, "enclave mode"),
    flag(vmx::ExitReasonFlag::pending_mtf_vm_exit, "pending MTF VM exit"),
    flag(vmx::ExitReasonFlag::vm_exit_from_vmx_root_operation, "VM exit from VMX root operation"),
});
inline constexpr BitLayout exit_reason = of_bits(exit_reason_bits);
template <>
inline constexpr const BitLayout* of<vmx::ExitReasonFlag> = &exit_reason;

/// VM-instruction error numbers (31.4).
inline constexpr std::array vm_instruction_errors = std::to_array<NamedValue>({
    {0, "none"},
    {1, "VMCALL executed in VMX root operation"},
    {2, "VMCLEAR with invalid physical address"},
    {3, "VMCLEAR with VMXON pointer"},
    {4, "VMLAUNCH with non-clear VMCS"},
    {5, "VMRESUME with non-launched VMCS"},
    {6, "VMRESUME after VMXOFF"},
    {7, "VM entry with invalid control fields"},
    {8, "VM entry with invalid host-state fields"},
    {9, "VMPTRLD with invalid physical address"},
    {10, "VMPTRLD with VMXON pointer"},
    {11, "VMPTRLD with incorrect VMCS revision identifier"},
    {12, "VMREAD or VMWRITE of unsupported VMCS component"},
    {13, "VMWRITE to read-only VMCS component"},
    {15, "VMXON executed in VMX root operation"},
    {16, "VM entry with invalid executive-VMCS pointer"},
    {17, "VM entry with non-launched executive VMCS"},
    {18, "VM entry with executive-VMCS pointer not VMXON pointer"},
    {19, "VMCALL with non-clear VMCS"},
    {20, "VMCALL with invalid VM-exit control fields"},
    {22, "VMCALL with incorrect MSEG revision identifier"},
    {23, "VMXOFF under dual-monitor treatment of SMIs and SMM"},
    {24, "VMCALL with invalid SMM-monitor features"},
    {25, "VM entry with invalid VM-execution control fields in executive VMCS"},
    {26, "VM entry with events blocked by MOV SS"},
    {28, "invalid operand to INVEPT or INVVPID"},
});
inline constexpr BitLayout vm_instruction_error = of_codes(vm_instruction_errors);

/// VMX-abort indicator (28.7).
inline constexpr std::array vmx_aborts = std::to_array<NamedValue>({
    {0, "none"},
    {1, "guest MSRs could not be saved"},
    {2, "host page-directory-pointer-table entries are invalid"},
    {3, "the VMCS was corrupted"},
    {4, "host MSRs could not be loaded"},
    {5, "machine-check event during VM exit"},
    {6, "L2 was in IA-32e mode and the host is not 64-bit"},
});
inline constexpr BitLayout vmx_abort = of_codes(vmx_aborts);

/// Segment access rights (25.4.1).
inline constexpr std::array vmx_access_right_bits = std::to_array<NamedBits>({
    flag(vmx::AccessRight::unusable, "unusable"),
    part(0, 3, "type", BitsForm::hexadecimal),
    flag(vmx::AccessRight::s, "S"),
    part(5, 6, "DPL"),
    flag(vmx::AccessRight::p, "P"),
    flag(vmx::AccessRight::avl, "AVL"),
    flag(vmx::AccessRight::l, "L"),
    flag(vmx::AccessRight::db, "D/B"),
    flag(vmx::AccessRight::g, "G"),
});
inline constexpr BitLayout vmx_access_rights = of_bits(vmx_access_right_bits);
template <>
inline constexpr const BitLayout* of<vmx::AccessRight> = &vmx_access_rights;

/// Interruptibility state (25.4.2).
inline constexpr std::array interruptibility_bits = std::to_array<NamedBits>({
    flag(vmx::Interruptibility::blocking_by_sti, "blocking by STI"),
    flag(vmx::Interruptibility::blocking_by_mov_ss, "blocking by MOV SS"),
    flag(vmx::Interruptibility::blocking_by_smi, "blocking by SMI"),
    flag(vmx::Interruptibility::blocking_by_nmi, "blocking by NMI"),
    flag(vmx::Interruptibility::enclave_interruption, "enclave interruption"),
});
inline constexpr BitLayout interruptibility = of_bits(interruptibility_bits);
template <>
inline constexpr const BitLayout* of<vmx::Interruptibility> = &interruptibility;

/// Activity state (25.4.2).
inline constexpr std::array activity_states = std::to_array<NamedValue>({
    {0, "active"},
    {1, "HLT"},
    {2, "shutdown"},
    {3, "wait-for-SIPI"},
});
inline constexpr BitLayout activity_state = of_codes(activity_states);

/// Pending debug exceptions (25.4.2).
inline constexpr std::array pending_debug_bits = std::to_array<NamedBits>({
    part(0, 3, "B", BitsForm::each),
    flag(vmx::PendingDebug::bld, "BLD"),
    flag(vmx::PendingDebug::enabled_breakpoint, "enabled breakpoint"),
    flag(vmx::PendingDebug::bs, "BS"),
    flag(vmx::PendingDebug::rtm, "RTM"),
});
inline constexpr BitLayout pending_debug = of_bits(pending_debug_bits);
template <>
inline constexpr const BitLayout* of<vmx::PendingDebug> = &pending_debug;

/// Guest interrupt status (25.4.2).
inline constexpr std::array interrupt_status_bits = std::to_array<NamedBits>({
    part(0, 7, "RVI"),
    part(8, 15, "SVI"),
});
inline constexpr BitLayout interrupt_status = of_bits(interrupt_status_bits);

/// The first word of a VMCS (25.2), and KVM's own launch state.
inline constexpr std::array vmcs_revision_bits = std::to_array<NamedBits>({
    part(0, 30, "revision", BitsForm::hexadecimal),
    flag(vmx::VmcsRevision::shadow_vmcs, "shadow VMCS"),
});
inline constexpr BitLayout vmcs_revision = of_bits(vmcs_revision_bits);
template <>
inline constexpr const BitLayout* of<vmx::VmcsRevision> = &vmcs_revision;
inline constexpr std::array launch_states = std::to_array<NamedValue>({{0, "clear"}, {1, "launched"}});
inline constexpr BitLayout launch_state = of_codes(launch_states);

} // namespace kvm::nested::bit_layout
