// SPDX-License-Identifier: MIT
//
// The vmcs12: the VMCS that L1 keeps for L2, as KVM lays it out (Linux 6.1 to 7.3; revision 0x11e57ed0). The
// layout is KVM's own, not the processor's: VMREAD and VMWRITE reach a field by its encoding.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
export module kvm.nested:vmcs12;
import :uapi;
import :bit_layout;
import :vmx_bit_layout;
import :field;

export namespace kvm::nested {

/// A vmcs12 page. Field names are the kernel's; what each means is told by vmcs12_fields.
struct Vmcs12 {
    std::uint32_t hdr;
    std::uint32_t abort;
    std::uint32_t launch_state;
    std::array<std::byte, 28> padding;
    std::uint64_t io_bitmap_a;
    std::uint64_t io_bitmap_b;
    std::uint64_t msr_bitmap;
    std::uint64_t vm_exit_msr_store_addr;
    std::uint64_t vm_exit_msr_load_addr;
    std::uint64_t vm_entry_msr_load_addr;
    std::uint64_t tsc_offset;
    std::uint64_t virtual_apic_page_addr;
    std::uint64_t apic_access_addr;
    std::uint64_t posted_intr_desc_addr;
    std::uint64_t ept_pointer;
    std::uint64_t eoi_exit_bitmap0;
    std::uint64_t eoi_exit_bitmap1;
    std::uint64_t eoi_exit_bitmap2;
    std::uint64_t eoi_exit_bitmap3;
    std::uint64_t xss_exit_bitmap;
    std::uint64_t guest_physical_address;
    std::uint64_t vmcs_link_pointer;
    std::uint64_t guest_ia32_debugctl;
    std::uint64_t guest_ia32_pat;
    std::uint64_t guest_ia32_efer;
    std::uint64_t guest_ia32_perf_global_ctrl;
    std::uint64_t guest_pdptr0;
    std::uint64_t guest_pdptr1;
    std::uint64_t guest_pdptr2;
    std::uint64_t guest_pdptr3;
    std::uint64_t guest_bndcfgs;
    std::uint64_t host_ia32_pat;
    std::uint64_t host_ia32_efer;
    std::uint64_t host_ia32_perf_global_ctrl;
    std::uint64_t vmread_bitmap;
    std::uint64_t vmwrite_bitmap;
    std::uint64_t vm_function_control;
    std::uint64_t eptp_list_address;
    std::uint64_t pml_address;
    std::uint64_t encls_exiting_bitmap;
    std::uint64_t tsc_multiplier;
    std::array<std::byte, 8> padding64;
    std::uint64_t cr0_guest_host_mask;
    std::uint64_t cr4_guest_host_mask;
    std::uint64_t cr0_read_shadow;
    std::uint64_t cr4_read_shadow;
    std::array<std::byte, 32> dead_space;
    std::uint64_t exit_qualification;
    std::uint64_t guest_linear_address;
    std::uint64_t guest_cr0;
    std::uint64_t guest_cr3;
    std::uint64_t guest_cr4;
    std::uint64_t guest_es_base;
    std::uint64_t guest_cs_base;
    std::uint64_t guest_ss_base;
    std::uint64_t guest_ds_base;
    std::uint64_t guest_fs_base;
    std::uint64_t guest_gs_base;
    std::uint64_t guest_ldtr_base;
    std::uint64_t guest_tr_base;
    std::uint64_t guest_gdtr_base;
    std::uint64_t guest_idtr_base;
    std::uint64_t guest_dr7;
    std::uint64_t guest_rsp;
    std::uint64_t guest_rip;
    std::uint64_t guest_rflags;
    std::uint64_t guest_pending_dbg_exceptions;
    std::uint64_t guest_sysenter_esp;
    std::uint64_t guest_sysenter_eip;
    std::uint64_t host_cr0;
    std::uint64_t host_cr3;
    std::uint64_t host_cr4;
    std::uint64_t host_fs_base;
    std::uint64_t host_gs_base;
    std::uint64_t host_tr_base;
    std::uint64_t host_gdtr_base;
    std::uint64_t host_idtr_base;
    std::uint64_t host_ia32_sysenter_esp;
    std::uint64_t host_ia32_sysenter_eip;
    std::uint64_t host_rsp;
    std::uint64_t host_rip;
    std::uint64_t host_s_cet;
    std::uint64_t host_ssp;
    std::uint64_t host_ssp_tbl;
    std::uint64_t guest_s_cet;
    std::uint64_t guest_ssp;
    std::uint64_t guest_ssp_tbl;
    std::array<std::byte, 16> paddingl;
    std::uint32_t pin_based_vm_exec_control;
    std::uint32_t cpu_based_vm_exec_control;
    std::uint32_t exception_bitmap;
    std::uint32_t page_fault_error_code_mask;
    std::uint32_t page_fault_error_code_match;
    std::uint32_t cr3_target_count;
    std::uint32_t vm_exit_controls;
    std::uint32_t vm_exit_msr_store_count;
    std::uint32_t vm_exit_msr_load_count;
    std::uint32_t vm_entry_controls;
    std::uint32_t vm_entry_msr_load_count;
    std::uint32_t vm_entry_intr_info_field;
    std::uint32_t vm_entry_exception_error_code;
    std::uint32_t vm_entry_instruction_len;
    std::uint32_t tpr_threshold;
    std::uint32_t secondary_vm_exec_control;
    std::uint32_t vm_instruction_error;
    std::uint32_t vm_exit_reason;
    std::uint32_t vm_exit_intr_info;
    std::uint32_t vm_exit_intr_error_code;
    std::uint32_t idt_vectoring_info_field;
    std::uint32_t idt_vectoring_error_code;
    std::uint32_t vm_exit_instruction_len;
    std::uint32_t vmx_instruction_info;
    std::uint32_t guest_es_limit;
    std::uint32_t guest_cs_limit;
    std::uint32_t guest_ss_limit;
    std::uint32_t guest_ds_limit;
    std::uint32_t guest_fs_limit;
    std::uint32_t guest_gs_limit;
    std::uint32_t guest_ldtr_limit;
    std::uint32_t guest_tr_limit;
    std::uint32_t guest_gdtr_limit;
    std::uint32_t guest_idtr_limit;
    std::uint32_t guest_es_ar_bytes;
    std::uint32_t guest_cs_ar_bytes;
    std::uint32_t guest_ss_ar_bytes;
    std::uint32_t guest_ds_ar_bytes;
    std::uint32_t guest_fs_ar_bytes;
    std::uint32_t guest_gs_ar_bytes;
    std::uint32_t guest_ldtr_ar_bytes;
    std::uint32_t guest_tr_ar_bytes;
    std::uint32_t guest_interruptibility_info;
    std::uint32_t guest_activity_state;
    std::uint32_t guest_sysenter_cs;
    std::uint32_t host_ia32_sysenter_cs;
    std::uint32_t vmx_preemption_timer_value;
    std::array<std::byte, 28> padding32;
    std::uint16_t virtual_processor_id;
    std::uint16_t posted_intr_nv;
    std::uint16_t guest_es_selector;
    std::uint16_t guest_cs_selector;
    std::uint16_t guest_ss_selector;
    std::uint16_t guest_ds_selector;
    std::uint16_t guest_fs_selector;
    std::uint16_t guest_gs_selector;
    std::uint16_t guest_ldtr_selector;
    std::uint16_t guest_tr_selector;
    std::uint16_t guest_intr_status;
    std::uint16_t host_es_selector;
    std::uint16_t host_cs_selector;
    std::uint16_t host_ss_selector;
    std::uint16_t host_ds_selector;
    std::uint16_t host_fs_selector;
    std::uint16_t host_gs_selector;
    std::uint16_t host_tr_selector;
    std::uint16_t guest_pml_index;
    std::array<std::byte, 3098> tail;

    bool operator==(const Vmcs12&) const = default;
};
static_assert(sizeof(Vmcs12) == uapi::page_size && offsetof(Vmcs12, tail) == uapi::vmcs12_size);
static_assert(std::is_trivially_copyable_v<Vmcs12> && std::is_standard_layout_v<Vmcs12>);

} // namespace kvm::nested

namespace kvm::nested::detail {

// Name, offset, size, group, what KVM_SET_NESTED_STATE does with it, bit layout, VMCS encoding; first kernel,
// note, where comparing leaves it out.
consteval auto make_vmcs12_rows() {
    using enum FieldGroup;
    using enum OnSet;
    using enum FirstSeen;
    using enum Ignore;
    constexpr std::string_view exit_information = "the next VM exit overwrites it";
    return std::to_array<Field>({
        {"hdr", 0, 4, header, checks, &bit_layout::vmcs_revision, no_encoding, linux_6_1, "V19: bits 30:0"},
        {"abort", 4, 4, header, keeps, &bit_layout::vmx_abort},
        {"launch_state", 8, 4, header, keeps, &bit_layout::launch_state},
        {"padding", 12, 28, reserved, keeps, &bit_layout::bytes},
        {"io_bitmap_a", 40, 8, control, checks_and_uses, &bit_layout::address, 0x2000},
        {"io_bitmap_b", 48, 8, control, checks_and_uses, &bit_layout::address, 0x2002},
        {"msr_bitmap", 56, 8, control, checks_and_uses, &bit_layout::address, 0x2004},
        {"vm_exit_msr_store_addr", 64, 8, control, checks_and_uses, &bit_layout::address, 0x2006},
        {"vm_exit_msr_load_addr", 72, 8, control, checks_and_uses, &bit_layout::address, 0x2008},
        {"vm_entry_msr_load_addr", 80, 8, control, checks, &bit_layout::address, 0x200a},
        {"tsc_offset", 88, 8, control, uses, &bit_layout::value, 0x2010},
        {"virtual_apic_page_addr", 96, 8, control, checks_and_uses, &bit_layout::address, 0x2012},
        {"apic_access_addr", 104, 8, control, checks_and_uses, &bit_layout::address, 0x2014},
        {"posted_intr_desc_addr", 112, 8, control, checks_and_uses, &bit_layout::address, 0x2016},
        {"ept_pointer", 120, 8, control, checks_and_uses, &bit_layout::ept_pointer, 0x201a},
        {"eoi_exit_bitmap0", 128, 8, control, uses, &bit_layout::mask, 0x201c},
        {"eoi_exit_bitmap1", 136, 8, control, uses, &bit_layout::mask, 0x201e},
        {"eoi_exit_bitmap2", 144, 8, control, uses, &bit_layout::mask, 0x2020},
        {"eoi_exit_bitmap3", 152, 8, control, uses, &bit_layout::mask, 0x2022},
        {"xss_exit_bitmap", 160, 8, control, uses, &bit_layout::mask, 0x202c},
        {"guest_physical_address", 168, 8, read_only, keeps, &bit_layout::address, 0x2400, linux_6_1,
         exit_information, with_l2_active},
        {"vmcs_link_pointer", 176, 8, l2_guest, checks_and_uses, &bit_layout::address, 0x2800, linux_6_1,
         "the guest memory there is read and checked"},
        {"guest_ia32_debugctl", 184, 8, l2_guest, checks_and_uses, &bit_layout::debugctl, 0x2802, linux_6_1,
         "used only with RUN_PENDING; else the vCPU's MSR stays"},
        {"guest_ia32_pat", 192, 8, l2_guest, checks_and_uses, &bit_layout::pat, 0x2804, linux_6_1,
         "used only with RUN_PENDING; else the vCPU's MSR stays"},
        {"guest_ia32_efer", 200, 8, l2_guest, checks_and_uses, &bit_layout::efer, 0x2806, linux_6_1,
         "used and checked only with RUN_PENDING; else the vCPU's EFER stays"},
        {"guest_ia32_perf_global_ctrl", 208, 8, l2_guest, checks_and_uses, &bit_layout::mask, 0x2808},
        {"guest_pdptr0", 216, 8, l2_guest, uses, &bit_layout::value, 0x280a},
        {"guest_pdptr1", 224, 8, l2_guest, uses, &bit_layout::value, 0x280c},
        {"guest_pdptr2", 232, 8, l2_guest, uses, &bit_layout::value, 0x280e},
        {"guest_pdptr3", 240, 8, l2_guest, uses, &bit_layout::value, 0x2810},
        {"guest_bndcfgs", 248, 8, l2_guest, checks_and_uses, &bit_layout::value, 0x2812, linux_6_1,
         "used only with RUN_PENDING; else the vCPU's MSR stays"},
        {"host_ia32_pat", 256, 8, l1_host, checks_and_uses, &bit_layout::pat, 0x2c00},
        {"host_ia32_efer", 264, 8, l1_host, checks_and_uses, &bit_layout::efer, 0x2c02},
        {"host_ia32_perf_global_ctrl", 272, 8, l1_host, checks_and_uses, &bit_layout::mask, 0x2c04},
        {"vmread_bitmap", 280, 8, control, checks_and_uses, &bit_layout::address, 0x2026},
        {"vmwrite_bitmap", 288, 8, control, checks_and_uses, &bit_layout::address, 0x2028},
        {"vm_function_control", 296, 8, control, checks_and_uses, &bit_layout::vm_functions, 0x2018},
        {"eptp_list_address", 304, 8, control, checks_and_uses, &bit_layout::address, 0x2024},
        {"pml_address", 312, 8, control, checks_and_uses, &bit_layout::address, 0x200e},
        {"encls_exiting_bitmap", 320, 8, control, uses, &bit_layout::mask, 0x202e},
        {"tsc_multiplier", 328, 8, control, checks_and_uses, &bit_layout::value, 0x2032, linux_6_1,
         "checked by 7.x"},
        {"padding64", 336, 8, reserved, keeps, &bit_layout::bytes},
        {"cr0_guest_host_mask", 344, 8, control, uses, &bit_layout::cr0, 0x6000},
        {"cr4_guest_host_mask", 352, 8, control, uses, &bit_layout::cr4, 0x6002},
        {"cr0_read_shadow", 360, 8, control, uses, &bit_layout::cr0, 0x6004},
        {"cr4_read_shadow", 368, 8, control, uses, &bit_layout::cr4, 0x6006},
        {"dead_space", 376, 32, reserved, keeps, &bit_layout::bytes},
        {"exit_qualification", 408, 8, read_only, keeps, &bit_layout::value, 0x6400, linux_6_1,
         exit_information, with_l2_active},
        {"guest_linear_address", 416, 8, read_only, keeps, &bit_layout::value, 0x640a, linux_6_1,
         "while L2 is active, KVM_GET_NESTED_STATE shows that of L2's last exit that had one",
         with_l2_active},
        {"guest_cr0", 424, 8, l2_guest, checks_and_uses, &bit_layout::cr0, 0x6800},
        {"guest_cr3", 432, 8, l2_guest, checks_and_uses, &bit_layout::value, 0x6802, linux_6_1,
         "an illegal one makes KVM_SET_NESTED_STATE return 2"},
        {"guest_cr4", 440, 8, l2_guest, checks_and_uses, &bit_layout::cr4, 0x6804},
        {"guest_es_base", 448, 8, l2_guest, uses, &bit_layout::value, 0x6806},
        {"guest_cs_base", 456, 8, l2_guest, uses, &bit_layout::value, 0x6808},
        {"guest_ss_base", 464, 8, l2_guest, uses, &bit_layout::value, 0x680a},
        {"guest_ds_base", 472, 8, l2_guest, uses, &bit_layout::value, 0x680c},
        {"guest_fs_base", 480, 8, l2_guest, uses, &bit_layout::value, 0x680e},
        {"guest_gs_base", 488, 8, l2_guest, uses, &bit_layout::value, 0x6810},
        {"guest_ldtr_base", 496, 8, l2_guest, uses, &bit_layout::value, 0x6812},
        {"guest_tr_base", 504, 8, l2_guest, uses, &bit_layout::value, 0x6814},
        {"guest_gdtr_base", 512, 8, l2_guest, uses, &bit_layout::value, 0x6816},
        {"guest_idtr_base", 520, 8, l2_guest, uses, &bit_layout::value, 0x6818},
        {"guest_dr7", 528, 8, l2_guest, checks_and_uses, &bit_layout::dr7, 0x681a, linux_6_1,
         "used only with RUN_PENDING; else the vCPU's DR7 stays"},
        {"guest_rsp", 536, 8, l2_guest, uses, &bit_layout::value, 0x681c},
        {"guest_rip", 544, 8, l2_guest, uses, &bit_layout::value, 0x681e},
        {"guest_rflags", 552, 8, l2_guest, uses, &bit_layout::rflags, 0x6820},
        {"guest_pending_dbg_exceptions", 560, 8, l2_guest, uses, &bit_layout::pending_debug, 0x6822},
        {"guest_sysenter_esp", 568, 8, l2_guest, uses, &bit_layout::value, 0x6824},
        {"guest_sysenter_eip", 576, 8, l2_guest, uses, &bit_layout::value, 0x6826},
        {"host_cr0", 584, 8, l1_host, checks_and_uses, &bit_layout::cr0, 0x6c00},
        {"host_cr3", 592, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c02},
        {"host_cr4", 600, 8, l1_host, checks_and_uses, &bit_layout::cr4, 0x6c04},
        {"host_fs_base", 608, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c06},
        {"host_gs_base", 616, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c08},
        {"host_tr_base", 624, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c0a},
        {"host_gdtr_base", 632, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c0c},
        {"host_idtr_base", 640, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c0e},
        {"host_ia32_sysenter_esp", 648, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c10},
        {"host_ia32_sysenter_eip", 656, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c12},
        {"host_rsp", 664, 8, l1_host, uses, &bit_layout::value, 0x6c14},
        {"host_rip", 672, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c16},
        {"host_s_cet", 680, 8, l1_host, checks_and_uses, &bit_layout::cet, 0x6c18, linux_7,
         "kept and not used up to 6.12"},
        {"host_ssp", 688, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c1a, linux_7,
         "kept and not used up to 6.12"},
        {"host_ssp_tbl", 696, 8, l1_host, checks_and_uses, &bit_layout::value, 0x6c1c, linux_7,
         "kept and not used up to 6.12"},
        {"guest_s_cet", 704, 8, l2_guest, checks_and_uses, &bit_layout::cet, 0x6828, linux_7,
         "kept and not used up to 6.12"},
        {"guest_ssp", 712, 8, l2_guest, checks_and_uses, &bit_layout::value, 0x682a, linux_7,
         "kept and not used up to 6.12"},
        {"guest_ssp_tbl", 720, 8, l2_guest, checks_and_uses, &bit_layout::value, 0x682c, linux_7,
         "kept and not used up to 6.12"},
        {"paddingl", 728, 16, reserved, keeps, &bit_layout::bytes},
        {"pin_based_vm_exec_control", 744, 4, control, checks_and_uses, &bit_layout::pin_based, 0x4000},
        {"cpu_based_vm_exec_control", 748, 4, control, checks_and_uses, &bit_layout::primary, 0x4002},
        {"exception_bitmap", 752, 4, control, uses, &bit_layout::exceptions, 0x4004},
        {"page_fault_error_code_mask", 756, 4, control, uses, &bit_layout::page_fault_error, 0x4006},
        {"page_fault_error_code_match", 760, 4, control, uses, &bit_layout::page_fault_error, 0x4008},
        {"cr3_target_count", 764, 4, control, checks, &bit_layout::number, 0x400a},
        {"vm_exit_controls", 768, 4, control, checks_and_uses, &bit_layout::exit_controls, 0x400c},
        {"vm_exit_msr_store_count", 772, 4, control, checks_and_uses, &bit_layout::number, 0x400e},
        {"vm_exit_msr_load_count", 776, 4, control, checks_and_uses, &bit_layout::number, 0x4010},
        {"vm_entry_controls", 780, 4, control, checks_and_uses, &bit_layout::entry_controls, 0x4012},
        {"vm_entry_msr_load_count", 784, 4, control, checks, &bit_layout::number, 0x4014},
        {"vm_entry_intr_info_field", 788, 4, control, checks_and_uses, &bit_layout::entry_event, 0x4016,
         linux_6_1, "used only with RUN_PENDING"},
        {"vm_entry_exception_error_code", 792, 4, control, checks_and_uses, &bit_layout::mask, 0x4018,
         linux_6_1, "used only with RUN_PENDING"},
        {"vm_entry_instruction_len", 796, 4, control, checks_and_uses, &bit_layout::number, 0x401a, linux_6_1,
         "used only with RUN_PENDING"},
        {"tpr_threshold", 800, 4, control, checks_and_uses, &bit_layout::number, 0x401c, linux_6_1,
         "checked by 7.x"},
        {"secondary_vm_exec_control", 804, 4, control, checks_and_uses, &bit_layout::secondary, 0x401e},
        {"vm_instruction_error", 808, 4, read_only, keeps, &bit_layout::vm_instruction_error, 0x4400},
        {"vm_exit_reason", 812, 4, read_only, keeps, &bit_layout::exit_reason, 0x4402, linux_6_1,
         exit_information, with_l2_active},
        {"vm_exit_intr_info", 816, 4, read_only, keeps, &bit_layout::exit_event, 0x4404, linux_6_1,
         exit_information, with_l2_active},
        {"vm_exit_intr_error_code", 820, 4, read_only, keeps, &bit_layout::mask, 0x4406, linux_6_1,
         exit_information, with_l2_active},
        {"idt_vectoring_info_field", 824, 4, read_only, keeps, &bit_layout::vectoring_event, 0x4408,
         linux_6_1, exit_information, with_l2_active},
        {"idt_vectoring_error_code", 828, 4, read_only, keeps, &bit_layout::mask, 0x440a, linux_6_1,
         exit_information, with_l2_active},
        {"vm_exit_instruction_len", 832, 4, read_only, keeps, &bit_layout::number, 0x440c, linux_6_1,
         exit_information, with_l2_active},
        {"vmx_instruction_info", 836, 4, read_only, keeps, &bit_layout::value, 0x440e, linux_6_1,
         exit_information, with_l2_active},
        {"guest_es_limit", 840, 4, l2_guest, uses, &bit_layout::mask, 0x4800},
        {"guest_cs_limit", 844, 4, l2_guest, uses, &bit_layout::mask, 0x4802},
        {"guest_ss_limit", 848, 4, l2_guest, uses, &bit_layout::mask, 0x4804},
        {"guest_ds_limit", 852, 4, l2_guest, uses, &bit_layout::mask, 0x4806},
        {"guest_fs_limit", 856, 4, l2_guest, uses, &bit_layout::mask, 0x4808},
        {"guest_gs_limit", 860, 4, l2_guest, uses, &bit_layout::mask, 0x480a},
        {"guest_ldtr_limit", 864, 4, l2_guest, uses, &bit_layout::mask, 0x480c},
        {"guest_tr_limit", 868, 4, l2_guest, uses, &bit_layout::mask, 0x480e},
        {"guest_gdtr_limit", 872, 4, l2_guest, uses, &bit_layout::mask, 0x4810},
        {"guest_idtr_limit", 876, 4, l2_guest, uses, &bit_layout::mask, 0x4812},
        {"guest_es_ar_bytes", 880, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x4814},
        {"guest_cs_ar_bytes", 884, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x4816},
        {"guest_ss_ar_bytes", 888, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x4818},
        {"guest_ds_ar_bytes", 892, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x481a},
        {"guest_fs_ar_bytes", 896, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x481c},
        {"guest_gs_ar_bytes", 900, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x481e},
        {"guest_ldtr_ar_bytes", 904, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x4820},
        {"guest_tr_ar_bytes", 908, 4, l2_guest, uses, &bit_layout::vmx_access_rights, 0x4822},
        {"guest_interruptibility_info", 912, 4, l2_guest, uses, &bit_layout::interruptibility, 0x4824,
         linux_6_1, "used only with RUN_PENDING; else KVM_SET_VCPU_EVENTS decides"},
        {"guest_activity_state", 916, 4, l2_guest, checks, &bit_layout::activity_state, 0x4826, linux_6_1,
         "KVM_SET_MP_STATE decides"},
        {"guest_sysenter_cs", 920, 4, l2_guest, uses, &bit_layout::value, 0x482a},
        {"host_ia32_sysenter_cs", 924, 4, l1_host, uses, &bit_layout::value, 0x4c00},
        {"vmx_preemption_timer_value", 928, 4, l2_guest, uses, &bit_layout::value, 0x482e, linux_6_1,
         "unless the header has a deadline; counts on while L2 is active", with_l2_active},
        {"padding32", 932, 28, reserved, keeps, &bit_layout::bytes},
        {"virtual_processor_id", 960, 2, control, checks_and_uses, &bit_layout::number, 0x0000},
        {"posted_intr_nv", 962, 2, control, checks_and_uses, &bit_layout::number, 0x0002},
        {"guest_es_selector", 964, 2, l2_guest, uses, &bit_layout::value, 0x0800},
        {"guest_cs_selector", 966, 2, l2_guest, uses, &bit_layout::value, 0x0802},
        {"guest_ss_selector", 968, 2, l2_guest, uses, &bit_layout::value, 0x0804},
        {"guest_ds_selector", 970, 2, l2_guest, uses, &bit_layout::value, 0x0806},
        {"guest_fs_selector", 972, 2, l2_guest, uses, &bit_layout::value, 0x0808},
        {"guest_gs_selector", 974, 2, l2_guest, uses, &bit_layout::value, 0x080a},
        {"guest_ldtr_selector", 976, 2, l2_guest, uses, &bit_layout::value, 0x080c},
        {"guest_tr_selector", 978, 2, l2_guest, uses, &bit_layout::value, 0x080e},
        {"guest_intr_status", 980, 2, l2_guest, uses, &bit_layout::interrupt_status, 0x0810},
        {"host_es_selector", 982, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c00},
        {"host_cs_selector", 984, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c02},
        {"host_ss_selector", 986, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c04},
        {"host_ds_selector", 988, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c06},
        {"host_fs_selector", 990, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c08},
        {"host_gs_selector", 992, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c0a},
        {"host_tr_selector", 994, 2, l1_host, checks_and_uses, &bit_layout::value, 0x0c0c},
        {"guest_pml_index", 996, 2, l2_guest, uses, &bit_layout::number, 0x0812},
        {"tail", 998, 3098, reserved, ignores, &bit_layout::bytes},
    });
}
inline constexpr auto vmcs12_rows = make_vmcs12_rows();

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All of a vmcs12 page in the order of its offsets, reserved areas and the tail included.
inline constexpr std::span<const Field> vmcs12_fields{detail::vmcs12_rows};

/// The field of that name, as the kernel spells it; null if there is none.
constexpr const Field* find_vmcs12_field(std::string_view name) noexcept {
    for (const auto& field : vmcs12_fields)
        if (field.name == name)
            return &field;
    return nullptr;
}

/// The field that VMREAD and VMWRITE reach by `encoding`; null if a vmcs12 has none. The encoding of the high
/// half of a 64-bit field (bit 0 set) finds the whole field.
constexpr const Field* find_vmcs12_field(std::uint32_t encoding) noexcept {
    for (const auto& field : vmcs12_fields)
        if (field.encoding != no_encoding
            && (field.encoding == encoding
                || (vmcs_width(field.encoding) == VmcsWidth::bits_64 && (field.encoding | 1) == encoding)))
            return &field;
    return nullptr;
}

/// For Fields.
struct Vmcs12Table {
    static constexpr std::span<const Field> fields() noexcept { return vmcs12_fields; }
    static constexpr const Field* find(std::string_view name) noexcept { return find_vmcs12_field(name); }
};

/// A vmcs12 page by the names of its fields.
using Vmcs12Fields = Fields<Vmcs12Table>;

} // namespace kvm::nested
