// SPDX-License-Identifier: MIT
//
// The page of an SVM nested state: laid out like a VMCB (AMD APM Vol. 2 appendix B; names as in Linux 7.x),
// but what it holds is not one VMCB. Its control area is L2's, as L1 wrote it into the vmcb12; its save area
// is L1's state, to which the next #VMEXIT returns. L2's registers are not in it.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
export module kvm.nested:vmcb12;
import :uapi;
import :bit_layout;
import :svm_bit_layout;
import :field;

export namespace kvm::nested {

/// A segment register as a VMCB has it.
struct Vmcb12Segment {
    std::uint16_t selector;
    std::uint16_t attrib;
    std::uint32_t limit;
    std::uint64_t base;

    bool operator==(const Vmcb12Segment&) const = default;
};

/// The page. Field names are the kernel's; what each means is told by vmcb12_fields.
struct Vmcb12 {
    // Control area: L2's.
    std::array<std::uint32_t, 6> intercepts;
    std::array<std::byte, 36> reserved_1;
    std::uint16_t pause_filter_thresh;
    std::uint16_t pause_filter_count;
    std::uint64_t iopm_base_pa;
    std::uint64_t msrpm_base_pa;
    std::uint64_t tsc_offset;
    std::uint32_t asid;
    std::uint8_t tlb_ctl;
    std::uint8_t erap_ctl;
    std::array<std::byte, 2> reserved_2;
    std::uint32_t int_ctl;
    std::uint32_t int_vector;
    std::uint32_t int_state;
    std::array<std::byte, 4> reserved_3;
    std::uint64_t exit_code;
    std::uint64_t exit_info_1;
    std::uint64_t exit_info_2;
    std::uint32_t exit_int_info;
    std::uint32_t exit_int_info_err;
    std::uint64_t misc_ctl;
    std::uint64_t avic_vapic_bar;
    std::uint64_t ghcb_gpa;
    std::uint32_t event_inj;
    std::uint32_t event_inj_err;
    std::uint64_t nested_cr3;
    std::uint64_t misc_ctl2;
    std::uint32_t clean;
    std::array<std::byte, 4> reserved_5;
    std::uint64_t next_rip;
    std::uint8_t insn_len;
    std::array<std::byte, 15> insn_bytes;
    std::uint64_t avic_backing_page;
    std::array<std::byte, 8> reserved_6;
    std::uint64_t avic_logical_id;
    std::uint64_t avic_physical_id;
    std::array<std::byte, 8> reserved_7;
    std::uint64_t vmsa_pa;
    std::array<std::byte, 16> reserved_8;
    std::uint16_t bus_lock_counter;
    std::array<std::byte, 22> reserved_9;
    std::uint64_t allowed_sev_features;
    std::uint64_t guest_sev_features;
    std::array<std::byte, 664> reserved_10;
    std::array<std::byte, 32> hv_enlightenments;

    // Save area: L1's.
    Vmcb12Segment es;
    Vmcb12Segment cs;
    Vmcb12Segment ss;
    Vmcb12Segment ds;
    Vmcb12Segment fs;
    Vmcb12Segment gs;
    Vmcb12Segment gdtr;
    Vmcb12Segment ldtr;
    Vmcb12Segment idtr;
    Vmcb12Segment tr;
    std::array<std::byte, 42> reserved_0xa0;
    std::uint8_t vmpl;
    std::uint8_t cpl;
    std::array<std::byte, 4> reserved_0xcc;
    std::uint64_t efer;
    std::array<std::byte, 112> reserved_0xd8;
    std::uint64_t cr4;
    std::uint64_t cr3;
    std::uint64_t cr0;
    std::uint64_t dr7;
    std::uint64_t dr6;
    std::uint64_t rflags;
    std::uint64_t rip;
    std::array<std::byte, 88> reserved_0x180;
    std::uint64_t rsp;
    std::uint64_t s_cet;
    std::uint64_t ssp;
    std::uint64_t isst_addr;
    std::uint64_t rax;
    std::uint64_t star;
    std::uint64_t lstar;
    std::uint64_t cstar;
    std::uint64_t sfmask;
    std::uint64_t kernel_gs_base;
    std::uint64_t sysenter_cs;
    std::uint64_t sysenter_esp;
    std::uint64_t sysenter_eip;
    std::uint64_t cr2;
    std::array<std::byte, 32> reserved_0x248;
    std::uint64_t g_pat;
    std::uint64_t dbgctl;
    std::uint64_t br_from;
    std::uint64_t br_to;
    std::uint64_t last_excp_from;
    std::uint64_t last_excp_to;
    std::array<std::byte, 72> reserved_0x298;
    std::uint64_t spec_ctrl;
    std::array<std::byte, 2328> tail;

    bool operator==(const Vmcb12&) const = default;
};
static_assert(sizeof(Vmcb12) == uapi::page_size && offsetof(Vmcb12, es) == uapi::vmcb_control_size);
static_assert(offsetof(Vmcb12, tail) == uapi::vmcb_control_size + uapi::vmcb_save_size);
static_assert(std::is_trivially_copyable_v<Vmcb12> && std::is_standard_layout_v<Vmcb12>);

} // namespace kvm::nested

namespace kvm::nested::detail {

// Name, offset, size, group, what KVM_SET_NESTED_STATE does with it, bit layout.
consteval auto make_vmcb12_rows() {
    using enum FieldGroup;
    using enum OnSet;
    using enum FirstSeen;
    using enum Ignore;
    constexpr std::string_view exit_information = "the next #VMEXIT overwrites it";
    return std::to_array<Field>({
        {"intercepts[0]", 0x000, 4, control, uses, &bit_layout::cr_intercepts},
        {"intercepts[1]", 0x004, 4, control, uses, &bit_layout::dr_intercepts},
        {"intercepts[2]", 0x008, 4, control, uses, &bit_layout::exceptions},
        {"intercepts[3]", 0x00c, 4, control, uses, &bit_layout::intercept_word3},
        {"intercepts[4]", 0x010, 4, control, checks_and_uses, &bit_layout::intercept_word4, no_encoding,
         linux_6_1, "VMRUN must be set; 7.x clears SKINIT, RDTSCP, XSETBV, RDPRU where CPUID lacks them"},
        {"intercepts[5]", 0x014, 4, control, uses, &bit_layout::intercept_word5, no_encoding, linux_6_1,
         "7.x clears INVPCID where CPUID lacks it"},
        {"reserved_1", 0x018, 36, reserved, ignores, &bit_layout::bytes},
        {"pause_filter_thresh", 0x03c, 2, control, uses, &bit_layout::number, no_encoding, linux_6_1,
         "reaches L2 only if CPUID has PFTHRESHOLD"},
        {"pause_filter_count", 0x03e, 2, control, uses, &bit_layout::number, no_encoding, linux_6_1,
         "reaches L2 only if CPUID has PAUSEFILTER"},
        {"iopm_base_pa", 0x040, 8, control, checks_and_uses, &bit_layout::address, no_encoding, linux_6_1,
         "the low 12 bits are dropped"},
        {"msrpm_base_pa", 0x048, 8, control, checks_and_uses, &bit_layout::address, no_encoding, linux_6_1,
         "the low 12 bits are dropped"},
        {"tsc_offset", 0x050, 8, control, uses, &bit_layout::value},
        {"asid", 0x058, 4, control, checks, &bit_layout::number, no_encoding, linux_6_1,
         "must not be 0; never the ASID that the processor uses"},
        {"tlb_ctl", 0x05c, 1, control, keeps, &bit_layout::tlb_control},
        {"erap_ctl", 0x05d, 1, control, uses, &bit_layout::erap_control, no_encoding, linux_7,
         "by 7.x, if CPUID has ERAPS"},
        {"reserved_2", 0x05e, 2, reserved, ignores, &bit_layout::bytes},
        {"int_ctl", 0x060, 4, control, checks_and_uses, &bit_layout::int_ctl, no_encoding, linux_6_1,
         "from 6.12 on V_NMI_ENABLE needs the NMI intercept"},
        {"int_vector", 0x064, 4, control, uses, &bit_layout::int_vector, no_encoding, linux_6_1,
         "7.x takes bits 7:0 alone"},
        {"int_state", 0x068, 4, control, uses, &bit_layout::int_state, no_encoding, linux_6_1,
         "7.x takes bit 0 alone; L2's once it has run"},
        {"reserved_3", 0x06c, 4, reserved, ignores, &bit_layout::bytes},
        {"exit_code", 0x070, 8, control, keeps, &bit_layout::svm_exit_code, no_encoding, linux_6_1,
         "exit_code and exit_code_hi up to 6.12; the next #VMEXIT overwrites it", with_l2_active},
        {"exit_info_1", 0x078, 8, control, keeps, &bit_layout::value, no_encoding, linux_6_1,
         exit_information, with_l2_active},
        {"exit_info_2", 0x080, 8, control, keeps, &bit_layout::value, no_encoding, linux_6_1,
         exit_information, with_l2_active},
        {"exit_int_info", 0x088, 4, control, keeps, &bit_layout::svm_event, no_encoding, linux_6_1,
         exit_information, with_l2_active},
        {"exit_int_info_err", 0x08c, 4, control, keeps, &bit_layout::mask, no_encoding, linux_6_1,
         exit_information, with_l2_active},
        {"misc_ctl", 0x090, 8, control, checks_and_uses, &bit_layout::misc_ctl, no_encoding, linux_6_1,
         "nested_ctl up to 6.12; only NP_ENABLE and, on 7.x, GMET count"},
        {"avic_vapic_bar", 0x098, 8, control, ignores, &bit_layout::address},
        {"ghcb_gpa", 0x0a0, 8, control, ignores, &bit_layout::address},
        {"event_inj", 0x0a8, 4, control, checks_and_uses, &bit_layout::svm_event, no_encoding, linux_6_1,
         "checked by 7.x"},
        {"event_inj_err", 0x0ac, 4, control, uses, &bit_layout::mask},
        {"nested_cr3", 0x0b0, 8, control, checks_and_uses, &bit_layout::address, no_encoding, linux_6_1,
         "checked with NP_ENABLE"},
        {"misc_ctl2", 0x0b8, 8, control, uses, &bit_layout::misc_ctl2, no_encoding, linux_6_1,
         "virt_ext up to 6.12"},
        {"clean", 0x0c0, 4, control, uses, &bit_layout::clean, no_encoding, linux_6_1,
         "KVM_GET_NESTED_STATE shows 0", always},
        {"reserved_5", 0x0c4, 4, reserved, ignores, &bit_layout::bytes},
        {"next_rip", 0x0c8, 8, control, uses, &bit_layout::value, no_encoding, linux_6_1,
         "7.x: with NRIPS or without RUN_PENDING; up to 6.12: with NRIPS; L2's once it has run"},
        {"insn_len", 0x0d0, 1, control, ignores, &bit_layout::number},
        {"insn_bytes", 0x0d1, 15, control, ignores, &bit_layout::bytes},
        {"avic_backing_page", 0x0e0, 8, control, ignores, &bit_layout::address},
        {"reserved_6", 0x0e8, 8, reserved, ignores, &bit_layout::bytes},
        {"avic_logical_id", 0x0f0, 8, control, ignores, &bit_layout::address},
        {"avic_physical_id", 0x0f8, 8, control, ignores, &bit_layout::address},
        {"reserved_7", 0x100, 8, reserved, ignores, &bit_layout::bytes},
        {"vmsa_pa", 0x108, 8, control, ignores, &bit_layout::address},
        {"reserved_8", 0x110, 16, reserved, ignores, &bit_layout::bytes},
        {"bus_lock_counter", 0x120, 2, control, ignores, &bit_layout::number, no_encoding, linux_7},
        {"reserved_9", 0x122, 22, reserved, ignores, &bit_layout::bytes},
        {"allowed_sev_features", 0x138, 8, control, ignores, &bit_layout::mask, no_encoding, linux_7},
        {"guest_sev_features", 0x140, 8, control, ignores, &bit_layout::mask, no_encoding, linux_7},
        {"reserved_10", 0x148, 664, reserved, ignores, &bit_layout::bytes},
        {"hv_enlightenments", 0x3e0, 32, control, ignores, &bit_layout::bytes, no_encoding, linux_6_1,
         "used if the vCPU has Hyper-V hypercalls; KVM_GET_NESTED_STATE shows 0"},
        {"es.selector", 0x400, 2, l1_save, uses, &bit_layout::value},
        {"es.attrib", 0x402, 2, l1_save, uses, &bit_layout::svm_attributes},
        {"es.limit", 0x404, 4, l1_save, uses, &bit_layout::mask},
        {"es.base", 0x408, 8, l1_save, uses, &bit_layout::value},
        {"cs.selector", 0x410, 2, l1_save, checks_and_uses, &bit_layout::value},
        {"cs.attrib", 0x412, 2, l1_save, checks_and_uses, &bit_layout::svm_attributes},
        {"cs.limit", 0x414, 4, l1_save, checks_and_uses, &bit_layout::mask},
        {"cs.base", 0x418, 8, l1_save, checks_and_uses, &bit_layout::value},
        {"ss.selector", 0x420, 2, l1_save, uses, &bit_layout::value},
        {"ss.attrib", 0x422, 2, l1_save, uses, &bit_layout::svm_attributes},
        {"ss.limit", 0x424, 4, l1_save, uses, &bit_layout::mask},
        {"ss.base", 0x428, 8, l1_save, uses, &bit_layout::value},
        {"ds.selector", 0x430, 2, l1_save, uses, &bit_layout::value},
        {"ds.attrib", 0x432, 2, l1_save, uses, &bit_layout::svm_attributes},
        {"ds.limit", 0x434, 4, l1_save, uses, &bit_layout::mask},
        {"ds.base", 0x438, 8, l1_save, uses, &bit_layout::value},
        {"fs.selector", 0x440, 2, l1_save, ignores, &bit_layout::value},
        {"fs.attrib", 0x442, 2, l1_save, ignores, &bit_layout::svm_attributes},
        {"fs.limit", 0x444, 4, l1_save, ignores, &bit_layout::mask},
        {"fs.base", 0x448, 8, l1_save, ignores, &bit_layout::value},
        {"gs.selector", 0x450, 2, l1_save, ignores, &bit_layout::value},
        {"gs.attrib", 0x452, 2, l1_save, ignores, &bit_layout::svm_attributes},
        {"gs.limit", 0x454, 4, l1_save, ignores, &bit_layout::mask},
        {"gs.base", 0x458, 8, l1_save, ignores, &bit_layout::value},
        {"gdtr.selector", 0x460, 2, l1_save, uses, &bit_layout::value},
        {"gdtr.attrib", 0x462, 2, l1_save, uses, &bit_layout::svm_attributes},
        {"gdtr.limit", 0x464, 4, l1_save, uses, &bit_layout::mask},
        {"gdtr.base", 0x468, 8, l1_save, uses, &bit_layout::value},
        {"ldtr.selector", 0x470, 2, l1_save, ignores, &bit_layout::value},
        {"ldtr.attrib", 0x472, 2, l1_save, ignores, &bit_layout::svm_attributes},
        {"ldtr.limit", 0x474, 4, l1_save, ignores, &bit_layout::mask},
        {"ldtr.base", 0x478, 8, l1_save, ignores, &bit_layout::value},
        {"idtr.selector", 0x480, 2, l1_save, uses, &bit_layout::value},
        {"idtr.attrib", 0x482, 2, l1_save, uses, &bit_layout::svm_attributes},
        {"idtr.limit", 0x484, 4, l1_save, uses, &bit_layout::mask},
        {"idtr.base", 0x488, 8, l1_save, uses, &bit_layout::value},
        {"tr.selector", 0x490, 2, l1_save, ignores, &bit_layout::value},
        {"tr.attrib", 0x492, 2, l1_save, ignores, &bit_layout::svm_attributes},
        {"tr.limit", 0x494, 4, l1_save, ignores, &bit_layout::mask},
        {"tr.base", 0x498, 8, l1_save, ignores, &bit_layout::value},
        {"reserved_0xa0", 0x4a0, 42, reserved, ignores, &bit_layout::bytes},
        {"vmpl", 0x4ca, 1, l1_save, ignores, &bit_layout::number},
        {"cpl", 0x4cb, 1, l1_save, ignores, &bit_layout::number, no_encoding, linux_6_1, "L1 gets CPL 0"},
        {"reserved_0xcc", 0x4cc, 4, reserved, ignores, &bit_layout::bytes},
        {"efer", 0x4d0, 8, l1_save, checks_and_uses, &bit_layout::efer},
        {"reserved_0xd8", 0x4d8, 112, reserved, ignores, &bit_layout::bytes},
        {"cr4", 0x548, 8, l1_save, checks_and_uses, &bit_layout::cr4},
        {"cr3", 0x550, 8, l1_save, checks_and_uses, &bit_layout::value},
        {"cr0", 0x558, 8, l1_save, checks_and_uses, &bit_layout::cr0},
        {"dr7", 0x560, 8, l1_save, checks, &bit_layout::dr7, no_encoding, linux_6_1, "checked and dropped",
         always},
        {"dr6", 0x568, 8, l1_save, checks, &bit_layout::dr6, no_encoding, linux_6_1, "checked and dropped",
         always},
        {"rflags", 0x570, 8, l1_save, checks_and_uses, &bit_layout::rflags, no_encoding, linux_6_1,
         "bit 1 is forced to 1"},
        {"rip", 0x578, 8, l1_save, uses, &bit_layout::value},
        {"reserved_0x180", 0x580, 88, reserved, ignores, &bit_layout::bytes},
        {"rsp", 0x5d8, 8, l1_save, uses, &bit_layout::value},
        {"s_cet", 0x5e0, 8, l1_save, uses, &bit_layout::cet, no_encoding, linux_6_1,
         "by 7.x, if the host has SHSTK", always},
        {"ssp", 0x5e8, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has SHSTK", always},
        {"isst_addr", 0x5f0, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has SHSTK", always},
        {"rax", 0x5f8, 8, l1_save, uses, &bit_layout::value},
        {"star", 0x600, 8, l1_save, ignores, &bit_layout::value},
        {"lstar", 0x608, 8, l1_save, ignores, &bit_layout::value},
        {"cstar", 0x610, 8, l1_save, ignores, &bit_layout::value},
        {"sfmask", 0x618, 8, l1_save, ignores, &bit_layout::value},
        {"kernel_gs_base", 0x620, 8, l1_save, ignores, &bit_layout::value},
        {"sysenter_cs", 0x628, 8, l1_save, ignores, &bit_layout::value},
        {"sysenter_esp", 0x630, 8, l1_save, ignores, &bit_layout::value},
        {"sysenter_eip", 0x638, 8, l1_save, ignores, &bit_layout::value},
        {"cr2", 0x640, 8, l1_save, ignores, &bit_layout::value},
        {"reserved_0x248", 0x648, 32, reserved, ignores, &bit_layout::bytes},
        {"g_pat", 0x668, 8, l1_save, ignores, &bit_layout::pat, no_encoding, linux_6_1,
         "L2's PAT travels in the header"},
        {"dbgctl", 0x670, 8, l1_save, uses, &bit_layout::debugctl, no_encoding, linux_6_1,
         "by 7.x, if the host has LBR virtualization", always},
        {"br_from", 0x678, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has LBR virtualization", always},
        {"br_to", 0x680, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has LBR virtualization", always},
        {"last_excp_from", 0x688, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has LBR virtualization", always},
        {"last_excp_to", 0x690, 8, l1_save, uses, &bit_layout::value, no_encoding, linux_6_1,
         "by 7.x, if the host has LBR virtualization", always},
        {"reserved_0x298", 0x698, 72, reserved, ignores, &bit_layout::bytes},
        {"spec_ctrl", 0x6e0, 8, l1_save, ignores, &bit_layout::value, no_encoding, linux_6_1,
         "6.1 knows 4 bytes of it"},
        {"tail", 0x6e8, 2328, reserved, ignores, &bit_layout::bytes},
    });
}
inline constexpr auto vmcb12_rows = make_vmcb12_rows();

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All of the page in the order of its offsets, reserved areas and the tail included.
inline constexpr std::span<const Field> vmcb12_fields{detail::vmcb12_rows};

/// The field of that name, as the kernel spells it; null if there is none.
constexpr const Field* find_vmcb12_field(std::string_view name) noexcept {
    for (const auto& field : vmcb12_fields)
        if (field.name == name)
            return &field;
    return nullptr;
}

/// The field that the byte at `offset` of the page belongs to; null behind the page.
constexpr const Field* find_vmcb12_field(std::size_t offset) noexcept {
    for (const auto& field : vmcb12_fields)
        if (field.offset <= offset && offset < field.end())
            return &field;
    return nullptr;
}

/// For Fields.
struct Vmcb12Table {
    static constexpr std::span<const Field> fields() noexcept { return vmcb12_fields; }
    static constexpr const Field* find(std::string_view name) noexcept { return find_vmcb12_field(name); }
};

/// The page by the names of its fields.
using Vmcb12Fields = Fields<Vmcb12Table>;

} // namespace kvm::nested
