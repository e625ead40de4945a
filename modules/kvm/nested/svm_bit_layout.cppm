// SPDX-License-Identifier: MIT
//
// What the bits of VMCB fields mean. Names and sections are the AMD APM's, Volume 2; appendix B has the VMCB.
module;
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:svm_bit_layout;
import :bit_layout;

export namespace kvm::nested::bit_layout {

/// Intercepts of control and debug registers (15.8).
inline constexpr std::array cr_intercept_bits = std::to_array<NamedBits>({
    part(0, 15, "read CR", BitsForm::each),
    part(16, 31, "write CR", BitsForm::each),
});
inline constexpr BitLayout cr_intercepts = of_bits(cr_intercept_bits);
inline constexpr std::array dr_intercept_bits = std::to_array<NamedBits>({
    part(0, 15, "read DR", BitsForm::each),
    part(16, 31, "write DR", BitsForm::each),
});
inline constexpr BitLayout dr_intercepts = of_bits(dr_intercept_bits);

/// Instruction intercepts, word 00Ch (appendix B).
inline constexpr std::array intercept_word3_bits = std::to_array<NamedBits>({
    flag(0, "INTR"),         flag(1, "NMI"),         flag(2, "SMI"),
    flag(3, "INIT"),         flag(4, "VINTR"),       flag(5, "selective CR0 write"),
    flag(6, "read IDTR"),    flag(7, "read GDTR"),   flag(8, "read LDTR"),
    flag(9, "read TR"),      flag(10, "write IDTR"), flag(11, "write GDTR"),
    flag(12, "write LDTR"),  flag(13, "write TR"),   flag(14, "RDTSC"),
    flag(15, "RDPMC"),       flag(16, "PUSHF"),      flag(17, "POPF"),
    flag(18, "CPUID"),       flag(19, "RSM"),        flag(20, "IRET"),
    flag(21, "INTn"),        flag(22, "INVD"),       flag(23, "PAUSE"),
    flag(24, "HLT"),         flag(25, "INVLPG"),     flag(26, "INVLPGA"),
    flag(27, "IOIO_PROT"),   flag(28, "MSR_PROT"),   flag(29, "task switch"),
    flag(30, "FERR_FREEZE"), flag(31, "shutdown"),
});
inline constexpr BitLayout intercept_word3 = of_bits(intercept_word3_bits);

/// Instruction intercepts, word 010h (appendix B). VMRUN must be set.
inline constexpr std::array intercept_word4_bits = std::to_array<NamedBits>({
    flag(0, "VMRUN"),
    flag(1, "VMMCALL"),
    flag(2, "VMLOAD"),
    flag(3, "VMSAVE"),
    flag(4, "STGI"),
    flag(5, "CLGI"),
    flag(6, "SKINIT"),
    flag(7, "RDTSCP"),
    flag(8, "ICEBP"),
    flag(9, "WBINVD"),
    flag(10, "MONITOR"),
    flag(11, "MWAIT"),
    flag(12, "MWAIT armed"),
    flag(13, "XSETBV"),
    flag(14, "RDPRU"),
    flag(15, "EFER write trap"),
    part(16, 31, "write trap CR", BitsForm::each),
});
inline constexpr BitLayout intercept_word4 = of_bits(intercept_word4_bits);

/// Instruction intercepts, word 014h (appendix B).
inline constexpr std::array intercept_word5_bits = std::to_array<NamedBits>({
    flag(0, "INVLPGB"),
    flag(1, "illegal INVLPGB"),
    flag(2, "INVPCID"),
    flag(3, "MCOMMIT"),
    flag(4, "TLBSYNC"),
    flag(5, "bus lock"),
    flag(6, "idle HLT"),
});
inline constexpr BitLayout intercept_word5 = of_bits(intercept_word5_bits);

/// TLB_CONTROL (15.16.2).
inline constexpr std::array tlb_controls = std::to_array<NamedValue>({
    {0, "do nothing"},
    {1, "flush all"},
    {3, "flush this ASID"},
    {7, "flush this ASID's non-global entries"},
});
inline constexpr BitLayout tlb_control = of_codes(tlb_controls);

/// ERAP control, byte 05Dh (appendix B).
inline constexpr std::array erap_control_bits = std::to_array<NamedBits>({
    flag(0, "allow larger RAP"),
    flag(1, "clear RAP"),
});
inline constexpr BitLayout erap_control = of_bits(erap_control_bits);

/// Virtual interrupts, the low half of 060h (15.21, 15.33).
inline constexpr std::array int_ctl_bits = std::to_array<NamedBits>({
    part(0, 7, "V_TPR"),
    flag(8, "V_IRQ"),
    flag(9, "VGIF"),
    flag(11, "V_NMI"),
    flag(12, "V_NMI_MASK"),
    part(16, 19, "V_INTR_PRIO"),
    flag(20, "V_IGN_TPR"),
    flag(24, "V_INTR_MASKING"),
    flag(25, "V_GIF_ENABLE"),
    flag(26, "V_NMI_ENABLE"),
    flag(30, "x2AVIC"),
    flag(31, "AVIC"),
});
inline constexpr BitLayout int_ctl = of_bits(int_ctl_bits);
inline constexpr std::array int_vector_bits = std::to_array<NamedBits>({part(0, 7, "vector")});
inline constexpr BitLayout int_vector = of_bits(int_vector_bits);
/// Interrupt shadow (15.21.5).
inline constexpr std::array int_state_bits = std::to_array<NamedBits>({
    flag(0, "interrupt shadow"),
    flag(1, "guest interrupt mask"),
});
inline constexpr BitLayout int_state = of_bits(int_state_bits);

/// Nested paging and what came later to word 090h (appendix B).
inline constexpr std::array misc_ctl_bits = std::to_array<NamedBits>({
    flag(0, "NP_ENABLE"),
    flag(1, "SEV"),
    flag(2, "SEV-ES"),
    flag(3, "GMET"),
    flag(4, "supervisor shadow stack check"),
    flag(5, "virtual transparent encryption"),
    flag(6, "read-only guest page tables"),
    flag(7, "INVLPGB and TLBSYNC"),
});
inline constexpr BitLayout misc_ctl = of_bits(misc_ctl_bits);
/// LBR virtualization and what came later to word 0B8h (appendix B).
inline constexpr std::array misc_ctl2_bits = std::to_array<NamedBits>({
    flag(0, "LBR virtualization"),
    flag(1, "virtualized VMLOAD and VMSAVE"),
    flag(2, "IBS virtualization"),
    flag(3, "PMC virtualization"),
});
inline constexpr BitLayout misc_ctl2 = of_bits(misc_ctl2_bits);

/// VMCB clean bits (15.15.3); bit 31 is Hyper-V's.
inline constexpr std::array clean_bits = std::to_array<NamedBits>({
    flag(0, "intercepts"),
    flag(1, "IOPM and MSRPM"),
    flag(2, "ASID"),
    flag(3, "virtual interrupts"),
    flag(4, "nested paging"),
    flag(5, "CRx and EFER"),
    flag(6, "DRx"),
    flag(7, "GDT and IDT"),
    flag(8, "segments"),
    flag(9, "CR2"),
    flag(10, "LBR"),
    flag(11, "AVIC"),
    flag(12, "CET"),
    flag(31, "Hyper-V enlightenments"),
});
inline constexpr BitLayout clean = of_bits(clean_bits);

/// Types of events (15.20).
inline constexpr std::array svm_event_types = std::to_array<NamedValue>({
    {0, "external interrupt"},
    {2, "NMI"},
    {3, "exception"},
    {4, "software interrupt"},
});
/// EVENTINJ (15.20) and EXITINTINFO (15.7.2) have one layout.
inline constexpr std::array svm_event_bits = std::to_array<NamedBits>({
    flag(31, "valid"),
    part(8, 10, "", svm_event_types),
    part(0, 7, "vector", exception_names),
    flag(11, "error code valid"),
});
inline constexpr BitLayout svm_event = of_bits(svm_event_bits);

/// Segment attributes as a VMCB packs them (15.5.1).
inline constexpr std::array svm_attribute_bits = std::to_array<NamedBits>({
    part(0, 3, "type", BitsForm::hexadecimal),
    flag(4, "S"),
    part(5, 6, "DPL"),
    flag(7, "P"),
    flag(8, "AVL"),
    flag(9, "L"),
    flag(10, "D/B"),
    flag(11, "G"),
});
inline constexpr BitLayout svm_attributes = of_bits(svm_attribute_bits);

/// #VMEXIT codes (appendix C).
inline constexpr std::array svm_exit_codes = std::to_array<NamedValue>({
    {0x00, "read of CR", 0x0f},
    {0x10, "write of CR", 0x1f},
    {0x20, "read of DR", 0x2f},
    {0x30, "write of DR", 0x3f},
    {0x40, "#DE"},
    {0x41, "#DB"},
    {0x42, "exception 2"},
    {0x43, "#BP"},
    {0x44, "#OF"},
    {0x45, "#BR"},
    {0x46, "#UD"},
    {0x47, "#NM"},
    {0x48, "#DF"},
    {0x49, "exception 9"},
    {0x4a, "#TS"},
    {0x4b, "#NP"},
    {0x4c, "#SS"},
    {0x4d, "#GP"},
    {0x4e, "#PF"},
    {0x4f, "exception 15"},
    {0x50, "#MF"},
    {0x51, "#AC"},
    {0x52, "#MC"},
    {0x53, "#XM"},
    {0x54, "#VE"},
    {0x55, "#CP"},
    {0x5c, "#HV"},
    {0x5d, "#VC"},
    {0x5e, "#SX"},
    {0x60, "INTR"},
    {0x61, "NMI"},
    {0x62, "SMI"},
    {0x63, "INIT"},
    {0x64, "VINTR"},
    {0x65, "selective CR0 write"},
    {0x66, "read of IDTR"},
    {0x67, "read of GDTR"},
    {0x68, "read of LDTR"},
    {0x69, "read of TR"},
    {0x6a, "write of IDTR"},
    {0x6b, "write of GDTR"},
    {0x6c, "write of LDTR"},
    {0x6d, "write of TR"},
    {0x6e, "RDTSC"},
    {0x6f, "RDPMC"},
    {0x70, "PUSHF"},
    {0x71, "POPF"},
    {0x72, "CPUID"},
    {0x73, "RSM"},
    {0x74, "IRET"},
    {0x75, "INTn"},
    {0x76, "INVD"},
    {0x77, "PAUSE"},
    {0x78, "HLT"},
    {0x79, "INVLPG"},
    {0x7a, "INVLPGA"},
    {0x7b, "IN or OUT"},
    {0x7c, "RDMSR or WRMSR"},
    {0x7d, "task switch"},
    {0x7e, "FERR_FREEZE"},
    {0x7f, "shutdown"},
    {0x80, "VMRUN"},
    {0x81, "VMMCALL"},
    {0x82, "VMLOAD"},
    {0x83, "VMSAVE"},
    {0x84, "STGI"},
    {0x85, "CLGI"},
    {0x86, "SKINIT"},
    {0x87, "RDTSCP"},
    {0x88, "ICEBP"},
    {0x89, "WBINVD"},
    {0x8a, "MONITOR"},
    {0x8b, "MWAIT"},
    {0x8c, "MWAIT armed"},
    {0x8d, "XSETBV"},
    {0x8e, "RDPRU"},
    {0x8f, "EFER write trap"},
    {0x90, "write trap of CR", 0x9f},
    {0xa0, "INVLPGB"},
    {0xa1, "illegal INVLPGB"},
    {0xa2, "INVPCID"},
    {0xa3, "MCOMMIT"},
    {0xa4, "TLBSYNC"},
    {0xa5, "bus lock"},
    {0xa6, "idle HLT"},
    {0x400, "nested page fault"},
    {0x401, "AVIC incomplete IPI"},
    {0x402, "AVIC access without acceleration"},
    {0x403, "VMGEXIT"},
    {~std::uint64_t{0}, "invalid guest state"},
    {~std::uint64_t{1}, "busy"},
    {~std::uint64_t{2}, "idle required"},
    {~std::uint64_t{3}, "invalid PMC state"},
});
inline constexpr BitLayout svm_exit_code = of_codes(svm_exit_codes);

} // namespace kvm::nested::bit_layout
