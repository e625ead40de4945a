// SPDX-License-Identifier: MIT
//
// What the bits of VMCB fields mean. Names and sections are the AMD APM's, Volume 2; appendix B has the VMCB.
module;
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:svm_bit_layout;
import :bit_layout;

export namespace kvm::nested::svm {

/// Intercepts of instructions and events (appendix B): intercepts[3] to intercepts[5]. The number is that of
/// the bit in all six words: 32 for each word, and the bit in it.
enum class Intercept : std::uint8_t {
    intr = 96,
    nmi = 97,
    smi = 98,
    init = 99,
    vintr = 100,
    selective_cr0_write = 101,
    read_idtr = 102,
    read_gdtr = 103,
    read_ldtr = 104,
    read_tr = 105,
    write_idtr = 106,
    write_gdtr = 107,
    write_ldtr = 108,
    write_tr = 109,
    rdtsc = 110,
    rdpmc = 111,
    pushf = 112,
    popf = 113,
    cpuid = 114,
    rsm = 115,
    iret = 116,
    intn = 117,
    invd = 118,
    pause = 119,
    hlt = 120,
    invlpg = 121,
    invlpga = 122,
    ioio_prot = 123,
    msr_prot = 124,
    task_switch = 125,
    ferr_freeze = 126,
    shutdown = 127,
    vmrun = 128,
    vmmcall = 129,
    vmload = 130,
    vmsave = 131,
    stgi = 132,
    clgi = 133,
    skinit = 134,
    rdtscp = 135,
    icebp = 136,
    wbinvd = 137,
    monitor = 138,
    mwait = 139,
    mwait_armed = 140,
    xsetbv = 141,
    rdpru = 142,
    efer_write_trap = 143,
    invlpgb = 160,
    illegal_invlpgb = 161,
    invpcid = 162,
    mcommit = 163,
    tlbsync = 164,
    bus_lock = 165,
    idle_hlt = 166,
};

/// ERAP control, byte 05Dh (appendix B): erap_ctl.
enum class ErapControl : std::uint8_t {
    allow_larger_rap = 0,
    clear_rap = 1,
};

/// Virtual interrupts, the low half of 060h (15.21, 15.33): int_ctl.
enum class IntCtl : std::uint8_t {
    v_irq = 8,
    vgif = 9,
    v_nmi = 11,
    v_nmi_mask = 12,
    v_ign_tpr = 20,
    v_intr_masking = 24,
    v_gif_enable = 25,
    v_nmi_enable = 26,
    x2avic = 30,
    avic = 31,
};

/// Interrupt shadow (15.21.5): int_state.
enum class IntState : std::uint8_t {
    interrupt_shadow = 0,
    guest_interrupt_mask = 1,
};

/// Nested paging and what came later to word 090h (appendix B): misc_ctl.
enum class MiscCtl : std::uint8_t {
    np_enable = 0,
    sev = 1,
    sev_es = 2,
    gmet = 3,
    supervisor_shadow_stack_check = 4,
    virtual_transparent_encryption = 5,
    read_only_guest_page_tables = 6,
    invlpgb_and_tlbsync = 7,
};

/// LBR virtualization and what came later to word 0B8h (appendix B): misc_ctl2.
enum class MiscCtl2 : std::uint8_t {
    lbr_virtualization = 0,
    virtualized_vmload_and_vmsave = 1,
    ibs_virtualization = 2,
    pmc_virtualization = 3,
};

/// VMCB clean bits (15.15.3); bit 31 is Hyper-V's: clean.
enum class Clean : std::uint8_t {
    intercepts = 0,
    iopm_and_msrpm = 1,
    asid = 2,
    virtual_interrupts = 3,
    nested_paging = 4,
    crx_and_efer = 5,
    drx = 6,
    gdt_and_idt = 7,
    segments = 8,
    cr2 = 9,
    lbr = 10,
    avic = 11,
    cet = 12,
    hyper_v_enlightenments = 31,
};

/// Flags of EVENTINJ (15.20) and EXITINTINFO (15.7.2): event_inj, exit_int_info.
enum class Event : std::uint8_t {
    error_code_valid = 11,
    valid = 31,
};

/// Flags of a segment's attributes as a VMCB packs them (15.5.1): cs.attrib and its like.
enum class Attribute : std::uint8_t {
    s = 4,
    p = 7,
    avl = 8,
    l = 9,
    db = 10,
    g = 11,
};

/// The six words of intercepts, as a VMCB has them.
using Intercepts = std::array<std::uint32_t, 6>;

/// Within its word.
constexpr std::uint32_t mask(Intercept bit) noexcept {
    return std::uint32_t{1} << static_cast<unsigned>(bit) % 32;
}
/// Whether L1 intercepts it: has(page.intercepts, svm::Intercept::vmrun).
constexpr bool has(const Intercepts& words, Intercept bit) noexcept {
    return (words[static_cast<std::size_t>(bit) / 32] & mask(bit)) != 0;
}
/// The same of the one word that the intercept is in.
constexpr bool has(std::unsigned_integral auto word, Intercept bit) noexcept {
    return (word & mask(bit)) != 0;
}
/// Sets intercepts: set(page.intercepts, svm::Intercept::vmrun, svm::Intercept::cpuid).
template <std::same_as<Intercept>... Bits>
constexpr void set(Intercepts& words, Bits... bits) noexcept {
    ((words[static_cast<std::size_t>(bits) / 32] |= mask(bits)), ...);
}
/// Clears intercepts.
template <std::same_as<Intercept>... Bits>
constexpr void clear(Intercepts& words, Bits... bits) noexcept {
    ((words[static_cast<std::size_t>(bits) / 32] &= ~mask(bits)), ...);
}

/// For argument-dependent look-up.
using nested::clear;
using nested::has;
using nested::mask;
using nested::set;

} // namespace kvm::nested::svm

namespace kvm::nested::bit_layout {

/// Of the word that the intercept is in.
constexpr NamedBits flag(svm::Intercept bit, std::string_view name) {
    const auto number = static_cast<std::uint8_t>(static_cast<unsigned>(bit) % 32);
    return {number, number, name};
}

} // namespace kvm::nested::bit_layout

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
    flag(svm::Intercept::intr, "INTR"),
    flag(svm::Intercept::nmi, "NMI"),
    flag(svm::Intercept::smi, "SMI"),
    flag(svm::Intercept::init, "INIT"),
    flag(svm::Intercept::vintr, "VINTR"),
    flag(svm::Intercept::selective_cr0_write, "selective CR0 write"),
    flag(svm::Intercept::read_idtr, "read IDTR"),
    flag(svm::Intercept::read_gdtr, "read GDTR"),
    flag(svm::Intercept::read_ldtr, "read LDTR"),
    flag(svm::Intercept::read_tr, "read TR"),
    flag(svm::Intercept::write_idtr, "write IDTR"),
    flag(svm::Intercept::write_gdtr, "write GDTR"),
    flag(svm::Intercept::write_ldtr, "write LDTR"),
    flag(svm::Intercept::write_tr, "write TR"),
    flag(svm::Intercept::rdtsc, "RDTSC"),
    flag(svm::Intercept::rdpmc, "RDPMC"),
    flag(svm::Intercept::pushf, "PUSHF"),
    flag(svm::Intercept::popf, "POPF"),
    flag(svm::Intercept::cpuid, "CPUID"),
    flag(svm::Intercept::rsm, "RSM"),
    flag(svm::Intercept::iret, "IRET"),
    flag(svm::Intercept::intn, "INTn"),
    flag(svm::Intercept::invd, "INVD"),
    flag(svm::Intercept::pause, "PAUSE"),
    flag(svm::Intercept::hlt, "HLT"),
    flag(svm::Intercept::invlpg, "INVLPG"),
    flag(svm::Intercept::invlpga, "INVLPGA"),
    flag(svm::Intercept::ioio_prot, "IOIO_PROT"),
    flag(svm::Intercept::msr_prot, "MSR_PROT"),
    flag(svm::Intercept::task_switch, "task switch"),
    flag(svm::Intercept::ferr_freeze, "FERR_FREEZE"),
    flag(svm::Intercept::shutdown, "shutdown"),
});
inline constexpr BitLayout intercept_word3 = of_bits(intercept_word3_bits);

/// Instruction intercepts, word 010h (appendix B). VMRUN must be set.
inline constexpr std::array intercept_word4_bits = std::to_array<NamedBits>({
    flag(svm::Intercept::vmrun, "VMRUN"),
    flag(svm::Intercept::vmmcall, "VMMCALL"),
    flag(svm::Intercept::vmload, "VMLOAD"),
    flag(svm::Intercept::vmsave, "VMSAVE"),
    flag(svm::Intercept::stgi, "STGI"),
    flag(svm::Intercept::clgi, "CLGI"),
    flag(svm::Intercept::skinit, "SKINIT"),
    flag(svm::Intercept::rdtscp, "RDTSCP"),
    flag(svm::Intercept::icebp, "ICEBP"),
    flag(svm::Intercept::wbinvd, "WBINVD"),
    flag(svm::Intercept::monitor, "MONITOR"),
    flag(svm::Intercept::mwait, "MWAIT"),
    flag(svm::Intercept::mwait_armed, "MWAIT armed"),
    flag(svm::Intercept::xsetbv, "XSETBV"),
    flag(svm::Intercept::rdpru, "RDPRU"),
    flag(svm::Intercept::efer_write_trap, "EFER write trap"),
    part(16, 31, "write trap CR", BitsForm::each),
});
inline constexpr BitLayout intercept_word4 = of_bits(intercept_word4_bits);

/// Instruction intercepts, word 014h (appendix B).
inline constexpr std::array intercept_word5_bits = std::to_array<NamedBits>({
    flag(svm::Intercept::invlpgb, "INVLPGB"),
    flag(svm::Intercept::illegal_invlpgb, "illegal INVLPGB"),
    flag(svm::Intercept::invpcid, "INVPCID"),
    flag(svm::Intercept::mcommit, "MCOMMIT"),
    flag(svm::Intercept::tlbsync, "TLBSYNC"),
    flag(svm::Intercept::bus_lock, "bus lock"),
    flag(svm::Intercept::idle_hlt, "idle HLT"),
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
    flag(svm::ErapControl::allow_larger_rap, "allow larger RAP"),
    flag(svm::ErapControl::clear_rap, "clear RAP"),
});
inline constexpr BitLayout erap_control = of_bits(erap_control_bits);
template <>
inline constexpr const BitLayout* of<svm::ErapControl> = &erap_control;

/// Virtual interrupts, the low half of 060h (15.21, 15.33).
inline constexpr std::array int_ctl_bits = std::to_array<NamedBits>({
    part(0, 7, "V_TPR"),
    flag(svm::IntCtl::v_irq, "V_IRQ"),
    flag(svm::IntCtl::vgif, "VGIF"),
    flag(svm::IntCtl::v_nmi, "V_NMI"),
    flag(svm::IntCtl::v_nmi_mask, "V_NMI_MASK"),
    part(16, 19, "V_INTR_PRIO"),
    flag(svm::IntCtl::v_ign_tpr, "V_IGN_TPR"),
    flag(svm::IntCtl::v_intr_masking, "V_INTR_MASKING"),
    flag(svm::IntCtl::v_gif_enable, "V_GIF_ENABLE"),
    flag(svm::IntCtl::v_nmi_enable, "V_NMI_ENABLE"),
    flag(svm::IntCtl::x2avic, "x2AVIC"),
    flag(svm::IntCtl::avic, "AVIC"),
});
inline constexpr BitLayout int_ctl = of_bits(int_ctl_bits);
template <>
inline constexpr const BitLayout* of<svm::IntCtl> = &int_ctl;
inline constexpr std::array int_vector_bits = std::to_array<NamedBits>({part(0, 7, "vector")});
inline constexpr BitLayout int_vector = of_bits(int_vector_bits);
/// Interrupt shadow (15.21.5).
inline constexpr std::array int_state_bits = std::to_array<NamedBits>({
    flag(svm::IntState::interrupt_shadow, "interrupt shadow"),
    flag(svm::IntState::guest_interrupt_mask, "guest interrupt mask"),
});
inline constexpr BitLayout int_state = of_bits(int_state_bits);
template <>
inline constexpr const BitLayout* of<svm::IntState> = &int_state;

/// Nested paging and what came later to word 090h (appendix B).
inline constexpr std::array misc_ctl_bits = std::to_array<NamedBits>({
    flag(svm::MiscCtl::np_enable, "NP_ENABLE"),
    flag(svm::MiscCtl::sev, "SEV"),
    flag(svm::MiscCtl::sev_es, "SEV-ES"),
    flag(svm::MiscCtl::gmet, "GMET"),
    flag(svm::MiscCtl::supervisor_shadow_stack_check, "supervisor shadow stack check"),
    flag(svm::MiscCtl::virtual_transparent_encryption, "virtual transparent encryption"),
    flag(svm::MiscCtl::read_only_guest_page_tables, "read-only guest page tables"),
    flag(svm::MiscCtl::invlpgb_and_tlbsync, "INVLPGB and TLBSYNC"),
});
inline constexpr BitLayout misc_ctl = of_bits(misc_ctl_bits);
template <>
inline constexpr const BitLayout* of<svm::MiscCtl> = &misc_ctl;
/// LBR virtualization and what came later to word 0B8h (appendix B).
inline constexpr std::array misc_ctl2_bits = std::to_array<NamedBits>({
    flag(svm::MiscCtl2::lbr_virtualization, "LBR virtualization"),
    flag(svm::MiscCtl2::virtualized_vmload_and_vmsave, "virtualized VMLOAD and VMSAVE"),
    flag(svm::MiscCtl2::ibs_virtualization, "IBS virtualization"),
    flag(svm::MiscCtl2::pmc_virtualization, "PMC virtualization"),
});
inline constexpr BitLayout misc_ctl2 = of_bits(misc_ctl2_bits);
template <>
inline constexpr const BitLayout* of<svm::MiscCtl2> = &misc_ctl2;

/// VMCB clean bits (15.15.3); bit 31 is Hyper-V's.
inline constexpr std::array clean_bits = std::to_array<NamedBits>({
    flag(svm::Clean::intercepts, "intercepts"),
    flag(svm::Clean::iopm_and_msrpm, "IOPM and MSRPM"),
    flag(svm::Clean::asid, "ASID"),
    flag(svm::Clean::virtual_interrupts, "virtual interrupts"),
    flag(svm::Clean::nested_paging, "nested paging"),
    flag(svm::Clean::crx_and_efer, "CRx and EFER"),
    flag(svm::Clean::drx, "DRx"),
    flag(svm::Clean::gdt_and_idt, "GDT and IDT"),
    flag(svm::Clean::segments, "segments"),
    flag(svm::Clean::cr2, "CR2"),
    flag(svm::Clean::lbr, "LBR"),
    flag(svm::Clean::avic, "AVIC"),
    flag(svm::Clean::cet, "CET"),
    flag(svm::Clean::hyper_v_enlightenments, "Hyper-V enlightenments"),
});
inline constexpr BitLayout clean = of_bits(clean_bits);
template <>
inline constexpr const BitLayout* of<svm::Clean> = &clean;

/// Types of events (15.20).
inline constexpr std::array svm_event_types = std::to_array<NamedValue>({
    {0, "external interrupt"},
    {2, "NMI"},
    {3, "exception"},
    {4, "software interrupt"},
});
/// EVENTINJ (15.20) and EXITINTINFO (15.7.2) have one layout.
inline constexpr std::array svm_event_bits = std::to_array<NamedBits>({
    flag(svm::Event::valid, "valid"),
    part(8, 10, "", svm_event_types),
    part(0, 7, "vector", exception_names),
    flag(svm::Event::error_code_valid, "error code valid"),
});
inline constexpr BitLayout svm_event = of_bits(svm_event_bits);
template <>
inline constexpr const BitLayout* of<svm::Event> = &svm_event;

/// Segment attributes as a VMCB packs them (15.5.1).
inline constexpr std::array svm_attribute_bits = std::to_array<NamedBits>({
    part(0, 3, "type", BitsForm::hexadecimal),
    flag(svm::Attribute::s, "S"),
    part(5, 6, "DPL"),
    flag(svm::Attribute::p, "P"),
    flag(svm::Attribute::avl, "AVL"),
    flag(svm::Attribute::l, "L"),
    flag(svm::Attribute::db, "D/B"),
    flag(svm::Attribute::g, "G"),
});
inline constexpr BitLayout svm_attributes = of_bits(svm_attribute_bits);
template <>
inline constexpr const BitLayout* of<svm::Attribute> = &svm_attributes;

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
