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

export namespace kvm::nested::bit_layout {

/// Pin-based VM-execution controls (25.6.1). Bits 1, 2 and 4 are reserved and 1.
inline constexpr std::array pin_based_bits = std::to_array<NamedBits>({
    flag(0, "external-interrupt exiting"),
    flag(3, "NMI exiting"),
    flag(5, "virtual NMIs"),
    flag(6, "activate VMX-preemption timer"),
    flag(7, "process posted interrupts"),
});
inline constexpr BitLayout pin_based = of_bits(pin_based_bits, 0x16);

/// Primary processor-based VM-execution controls (25.6.2).
inline constexpr std::array cpu_based_bits = std::to_array<NamedBits>({
    flag(2, "interrupt-window exiting"),
    flag(3, "use TSC offsetting"),
    flag(7, "HLT exiting"),
    flag(9, "INVLPG exiting"),
    flag(10, "MWAIT exiting"),
    flag(11, "RDPMC exiting"),
    flag(12, "RDTSC exiting"),
    flag(15, "CR3-load exiting"),
    flag(16, "CR3-store exiting"),
    flag(17, "activate tertiary controls"),
    flag(19, "CR8-load exiting"),
    flag(20, "CR8-store exiting"),
    flag(21, "use TPR shadow"),
    flag(22, "NMI-window exiting"),
    flag(23, "MOV-DR exiting"),
    flag(24, "unconditional I/O exiting"),
    flag(25, "use I/O bitmaps"),
    flag(27, "monitor trap flag"),
    flag(28, "use MSR bitmaps"),
    flag(29, "MONITOR exiting"),
    flag(30, "PAUSE exiting"),
    flag(31, "activate secondary controls"),
});
inline constexpr BitLayout cpu_based = of_bits(cpu_based_bits, 0x0400'6172);

/// Secondary processor-based VM-execution controls (25.6.2).
inline constexpr std::array secondary_bits = std::to_array<NamedBits>({
    flag(0, "virtualize APIC accesses"),
    flag(1, "enable EPT"),
    flag(2, "descriptor-table exiting"),
    flag(3, "enable RDTSCP"),
    flag(4, "virtualize x2APIC mode"),
    flag(5, "enable VPID"),
    flag(6, "WBINVD exiting"),
    flag(7, "unrestricted guest"),
    flag(8, "APIC-register virtualization"),
    flag(9, "virtual-interrupt delivery"),
    flag(10, "PAUSE-loop exiting"),
    flag(11, "RDRAND exiting"),
    flag(12, "enable INVPCID"),
    flag(13, "enable VM functions"),
    flag(14, "VMCS shadowing"),
    flag(15, "enable ENCLS exiting"),
    flag(16, "RDSEED exiting"),
    flag(17, "enable PML"),
    flag(18, "EPT-violation #VE"),
    flag(19, "conceal VMX from PT"),
    flag(20, "enable XSAVES/XRSTORS"),
    flag(21, "PASID translation"),
    flag(22, "mode-based execute control for EPT"),
    flag(23, "sub-page write permissions for EPT"),
    flag(24, "Intel PT uses guest physical addresses"),
    flag(25, "use TSC scaling"),
    flag(26, "enable user wait and pause"),
    flag(27, "enable PCONFIG"),
    flag(28, "enable ENCLV exiting"),
    flag(30, "VMM bus-lock detection"),
    flag(31, "instruction timeout"),
});
inline constexpr BitLayout secondary = of_bits(secondary_bits);

/// VM-exit controls (25.7.1).
inline constexpr std::array exit_control_bits = std::to_array<NamedBits>({
    flag(2, "save debug controls"),
    flag(9, "host address-space size"),
    flag(12, "load IA32_PERF_GLOBAL_CTRL"),
    flag(15, "acknowledge interrupt on exit"),
    flag(18, "save IA32_PAT"),
    flag(19, "load IA32_PAT"),
    flag(20, "save IA32_EFER"),
    flag(21, "load IA32_EFER"),
    flag(22, "save VMX-preemption timer value"),
    flag(23, "clear IA32_BNDCFGS"),
    flag(24, "conceal VMX from PT"),
    flag(25, "clear IA32_RTIT_CTL"),
    flag(26, "clear IA32_LBR_CTL"),
    flag(27, "clear UINV"),
    flag(28, "load CET state"),
    flag(29, "load PKRS"),
    flag(30, "save IA32_PERF_GLOBAL_CTL"),
    flag(31, "activate secondary controls"),
});
inline constexpr BitLayout exit_controls = of_bits(exit_control_bits, 0x0003'6dfb);

/// VM-entry controls (25.8.1).
inline constexpr std::array entry_control_bits = std::to_array<NamedBits>({
    flag(2, "load debug controls"),
    flag(9, "IA-32e mode guest"),
    flag(10, "entry to SMM"),
    flag(11, "deactivate dual-monitor treatment"),
    flag(13, "load IA32_PERF_GLOBAL_CTRL"),
    flag(14, "load IA32_PAT"),
    flag(15, "load IA32_EFER"),
    flag(16, "load IA32_BNDCFGS"),
    flag(17, "conceal VMX from PT"),
    flag(18, "load IA32_RTIT_CTL"),
    flag(19, "load UINV"),
    flag(20, "load CET state"),
    flag(21, "load guest IA32_LBR_CTL"),
    flag(22, "load PKRS"),
});
inline constexpr BitLayout entry_controls = of_bits(entry_control_bits, 0x11fb);

/// VM-function controls (25.6.14).
inline constexpr std::array vm_function_bits = std::to_array<NamedBits>({flag(0, "EPTP switching")});
inline constexpr BitLayout vm_functions = of_bits(vm_function_bits);

/// Extended-page-table pointer (25.6.11).
inline constexpr std::array ept_memory_types = std::to_array<NamedValue>({{0, "UC"}, {6, "WB"}});
inline constexpr std::array ept_levels = std::to_array<NamedValue>({{3, "4 levels"}, {4, "5 levels"}});
inline constexpr std::array ept_pointer_bits = std::to_array<NamedBits>({
    part(3, 5, "page walk", ept_levels),
    part(0, 2, "memory type", ept_memory_types),
    flag(6, "accessed and dirty flags"),
    flag(7, "supervisor shadow-stack control"),
    part(12, 51, "root", BitsForm::address),
});
inline constexpr BitLayout ept_pointer = of_bits(ept_pointer_bits);

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
    flag(31, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(11, "deliver error code"),
});
inline constexpr BitLayout entry_event = of_bits(entry_event_bits);
/// VM-exit interruption information (25.9.2).
inline constexpr std::array exit_event_bits = std::to_array<NamedBits>({
    flag(31, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(11, "error code valid"),
    flag(12, "NMI unblocking due to IRET"),
});
inline constexpr BitLayout exit_event = of_bits(exit_event_bits);
/// IDT-vectoring information (25.9.3).
inline constexpr std::array vectoring_event_bits = std::to_array<NamedBits>({
    flag(31, "valid"),
    part(8, 10, "", vmx_event_types),
    part(0, 7, "vector", exception_names),
    flag(11, "error code valid"),
});
inline constexpr BitLayout vectoring_event = of_bits(vectoring_event_bits);

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
    flag(31, "VM-entry failure"),
    part(0, 15, "", vmx_exit_reasons),
    flag(25, "shadow stack prematurely busy"),
    flag(26, "bus lock"),
    flag(27, "enclave mode"),
    flag(28, "pending MTF VM exit"),
    flag(29, "VM exit from VMX root operation"),
});
inline constexpr BitLayout exit_reason = of_bits(exit_reason_bits);

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
    flag(16, "unusable"),
    part(0, 3, "type", BitsForm::hexadecimal),
    flag(4, "S"),
    part(5, 6, "DPL"),
    flag(7, "P"),
    flag(12, "AVL"),
    flag(13, "L"),
    flag(14, "D/B"),
    flag(15, "G"),
});
inline constexpr BitLayout vmx_access_rights = of_bits(vmx_access_right_bits);

/// Interruptibility state (25.4.2).
inline constexpr std::array interruptibility_bits = std::to_array<NamedBits>({
    flag(0, "blocking by STI"),
    flag(1, "blocking by MOV SS"),
    flag(2, "blocking by SMI"),
    flag(3, "blocking by NMI"),
    flag(4, "enclave interruption"),
});
inline constexpr BitLayout interruptibility = of_bits(interruptibility_bits);

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
    flag(11, "BLD"),
    flag(12, "enabled breakpoint"),
    flag(14, "BS"),
    flag(16, "RTM"),
});
inline constexpr BitLayout pending_debug = of_bits(pending_debug_bits);

/// Guest interrupt status (25.4.2).
inline constexpr std::array interrupt_status_bits = std::to_array<NamedBits>({
    part(0, 7, "RVI"),
    part(8, 15, "SVI"),
});
inline constexpr BitLayout interrupt_status = of_bits(interrupt_status_bits);

/// The first word of a VMCS (25.2), and KVM's own launch state.
inline constexpr std::array vmcs_revision_bits = std::to_array<NamedBits>({
    part(0, 30, "revision", BitsForm::hexadecimal),
    flag(31, "shadow VMCS"),
});
inline constexpr BitLayout vmcs_revision = of_bits(vmcs_revision_bits);
inline constexpr std::array launch_states = std::to_array<NamedValue>({{0, "clear"}, {1, "launched"}});
inline constexpr BitLayout launch_state = of_codes(launch_states);

} // namespace kvm::nested::bit_layout
