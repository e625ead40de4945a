// SPDX-License-Identifier: MIT
//
// Each rule by itself, on both sides of its boundary: a state that breaks this rule alone, and one that just
// does not. Of the first check() finds this rule and no other, and the kernel answers and keeps what the rule
// says; the second both take. Where a kernel has not got the rule, it takes both. What a silent rule says is
// dropped is not in what GET gives, where GET shows it. Rules that no state here can break alone are in a
// list of their own, each with the reason.
#include "options.hpp"

#include "ask.hpp"

namespace {

using kvm::nested::Applies, kvm::nested::Certainty, kvm::nested::Known, kvm::nested::VendorId;
using lab::bit;
using rules::Case, rules::Condition;

/// One field changed: some bits cleared, then some set. No name: no change.
struct Set {
    std::string_view field = {};
    std::uint64_t clear = 0, set = 0;
};
constexpr Set to(std::string_view field, std::uint64_t value) {
    return {field, ~std::uint64_t{0}, value};
}
constexpr Set plus(std::string_view field, std::uint64_t bits) {
    return {field, 0, bits};
}
constexpr Set minus(std::string_view field, std::uint64_t bits) {
    return {field, bits, 0};
}

using Sets = std::array<Set, 4>;

struct Boundary {
    std::string_view rule;
    std::size_t base;              ///< of Condition::good
    std::string_view on = "plain"; ///< the condition
    Sets both = {};                ///< changed on both sides
    Sets breaks = {}, inside = {};
    std::string_view inside_on = {};      ///< where it is the condition that makes the difference
    const Applies* in = nullptr;          ///< the kernels in which it breaks, if not all that have the rule
    Set dropped = {};                     ///< bits to `clear` that GET does not show afterwards
    std::size_t readable = 0, enough = 0; ///< bytes in front of memory that cannot be read
};

constexpr std::uint64_t beyond = bit(lab::maxphyaddr), page = 4096, none = ~std::uint64_t{0};
/// The first address that is not canonical with four levels of paging.
constexpr std::uint64_t half = bit(47);

namespace flag = kvm::nested::uapi::state_flag;

// Control bits of a vmcs12, by their names.
using kvm::nested::Cr0, kvm::nested::Cr4, kvm::nested::Efer, kvm::nested::Rflags, kvm::nested::mask;
using kvm::nested::vmx::EntryControl, kvm::nested::vmx::ExitControl, kvm::nested::vmx::PinBased,
    kvm::nested::vmx::Primary, kvm::nested::vmx::Secondary;
constexpr std::string_view pin = "pin_based_vm_exec_control", primary = "cpu_based_vm_exec_control",
                           secondary = "secondary_vm_exec_control", exit_controls = "vm_exit_controls",
                           entry_controls = "vm_entry_controls", event = "vm_entry_intr_info_field",
                           smm_flags = "hdr.vmx.smm.flags", vmxon_pa = "hdr.vmx.vmxon_pa",
                           vmcs12_pa = "hdr.vmx.vmcs12_pa";
constexpr auto ept = mask(Secondary::enable_ept),
               needs_ept = mask(Secondary::unrestricted_guest, Secondary::enable_vm_functions,
                                Secondary::mode_based_execute_control_for_ept);

namespace vmx_base = rules::base;

const Boundary vmx_boundaries[] = {
    // --- header
    {.rule = "X2", .base = vmx_base::off, .readable = 127, .enough = 128},
    {.rule = "X3", .base = vmx_base::off, .breaks = {to("size", 127)}},
    {.rule = "P1", .base = vmx_base::off, .breaks = {to("size", 129)}},
    {.rule = "X4",
     .base = vmx_base::vmxon,
     .breaks = {to("flags", 0x10)},
     .inside = {to("flags", flag::gif_set)}},
    {.rule = "X5",
     .base = vmx_base::current,
     .breaks = {to("flags", flag::run_pending)},
     .inside = {to("flags", 0)}},
    {.rule = "V1", .base = vmx_base::vmxon, .breaks = {to("format", 1)}},
    {.rule = "V2",
     .base = vmx_base::vmxon,
     .on = "in SMM",
     .both = {to(smm_flags, 2)},
     .breaks = {to(vmxon_pa, none)}},
    {.rule = "V3", .base = vmx_base::off, .breaks = {to(vmcs12_pa, 0x2000)}},
    {.rule = "V4", .base = vmx_base::off, .breaks = {to("flags", flag::gif_set)}},
    {.rule = "V4",
     .base = vmx_base::off,
     .on = "enlightened VMCS",
     .breaks = {to("flags", flag::evmcs | flag::mtf_pending)},
     .inside = {to("flags", flag::evmcs)}},
    {.rule = "V5", .base = vmx_base::vmxon, .on = "without VMX", .inside_on = "plain"},
    {.rule = "V5", .base = vmx_base::vmxon, .on = "without VMX", .inside = {to(vmxon_pa, none)}},
    {.rule = "V6",
     .base = vmx_base::vmxon,
     .breaks = {to(vmxon_pa, beyond)},
     .inside = {to(vmxon_pa, beyond - page)}},
    {.rule = "V6",
     .base = vmx_base::vmxon,
     .on = "MAXPHYADDR 36",
     .breaks = {to(vmxon_pa, bit(36))},
     .inside = {to(vmxon_pa, bit(36) - page)}},
    {.rule = "V6", .base = vmx_base::vmxon, .breaks = {to(vmxon_pa, 0x1001)}},
    {.rule = "V8",
     .base = vmx_base::vmxon,
     .on = "in SMM",
     .breaks = {to(smm_flags, 6)},
     .inside = {to(smm_flags, 2)}},
    {.rule = "V9",
     .base = vmx_base::vmxon,
     .breaks = {to("hdr.vmx.flags", 2)},
     .inside = {to("hdr.vmx.flags", 1)}},
    {.rule = "V10", .base = vmx_base::vmxon, .both = {to(smm_flags, 2)}, .inside_on = "in SMM"},
    {.rule = "V10", .base = vmx_base::built, .on = "in SMM", .inside_on = "plain"},
    {.rule = "V11",
     .base = vmx_base::current,
     .on = "in SMM",
     .breaks = {to(smm_flags, 1)},
     .inside = {to(smm_flags, 3)}},
    {.rule = "V12",
     .base = vmx_base::off,
     .both = {to("flags", flag::evmcs)},
     .inside_on = "enlightened VMCS"},
    // --- where the vmcs12 is
    {.rule = "V15", .base = vmx_base::current, .breaks = {to("size", 1125)}, .inside = {to("size", 1126)}},
    {.rule = "P2",
     .base = vmx_base::vmxon,
     .on = "in SMM",
     .breaks = {to(smm_flags, 3)},
     .inside = {to(smm_flags, 2)}},
    {.rule = "V16",
     .base = vmx_base::current,
     .breaks = {to(vmcs12_pa, beyond)},
     .inside = {to(vmcs12_pa, beyond - page)}},
    {.rule = "V16", .base = vmx_base::current, .breaks = {to(vmcs12_pa, 0x2800)}},
    {.rule = "V16",
     .base = vmx_base::current,
     .breaks = {to(vmcs12_pa, lab::vmx::vmxon_address)},
     .inside = {to(vmcs12_pa, lab::vmx::vmxon_address + page)}},
    {.rule = "V17",
     .base = vmx_base::current,
     .on = "enlightened VMCS",
     .breaks = {to(vmcs12_pa, none)},
     .inside = {to(vmcs12_pa, none), to("flags", flag::evmcs)}},
    {.rule = "V18", .base = vmx_base::current, .readable = 1125, .enough = 1126},
    {.rule = "V19",
     .base = vmx_base::current,
     .breaks = {plus("hdr", 1)},
     .inside = {plus("hdr", lab::vmx::shadow_indicator)}},
    {.rule = "V21", .base = vmx_base::shadow, .breaks = {to("size", 5221)}, .inside = {to("size", 5222)}},
    {.rule = "V22", .base = vmx_base::shadow, .readable = 5221, .enough = 5222},
    {.rule = "V23", .base = vmx_base::shadow, .breaks = {minus("shadow hdr", lab::vmx::shadow_indicator)}},
    // --- execution controls
    {.rule = "C1", .base = vmx_base::rich, .breaks = {plus(pin, bit(8))}},
    {.rule = "C1", .base = vmx_base::built, .breaks = {minus(pin, bit(1))}},
    {.rule = "C2", .base = vmx_base::rich, .breaks = {plus(primary, bit(0))}},
    {.rule = "C2", .base = vmx_base::built, .breaks = {minus(primary, bit(1))}},
    {.rule = "C3", .base = vmx_base::rich, .breaks = {plus(secondary, bit(31))}},
    {.rule = "C3",
     .base = vmx_base::built,
     .on = "without VPID and PML",
     .both = {to("virtual_processor_id", 1)},
     .breaks = {plus(secondary, mask(Secondary::enable_vpid))}},
    {.rule = "C4", .base = vmx_base::built, .breaks = {to("cr3_target_count", 512)}},
    {.rule = "C5",
     .base = vmx_base::rich,
     .breaks = {to("io_bitmap_a", beyond)},
     .inside = {to("io_bitmap_a", beyond - page)}},
    {.rule = "C5",
     .base = vmx_base::rich,
     .breaks = {to("io_bitmap_b", beyond)},
     .inside = {to("io_bitmap_b", beyond - page)}},
    {.rule = "C5", .base = vmx_base::rich, .breaks = {to("io_bitmap_b", 0x11001)}},
    {.rule = "C6",
     .base = vmx_base::rich,
     .breaks = {to("msr_bitmap", beyond)},
     .inside = {to("msr_bitmap", beyond - page)}},
    {.rule = "C6",
     .base = vmx_base::rich,
     .both = {to("msr_bitmap", beyond)},
     .inside = {minus(primary, mask(Primary::use_msr_bitmaps))}},
    {.rule = "C7",
     .base = vmx_base::rich,
     .breaks = {to("virtual_apic_page_addr", beyond)},
     .inside = {to("virtual_apic_page_addr", beyond - page)}},
    {.rule = "C8",
     .base = vmx_base::rich,
     .breaks = {to("tpr_threshold", 16)},
     .inside = {to("tpr_threshold", 15)}},
    {.rule = "C9",
     .base = vmx_base::built,
     .both = {plus(secondary, mask(Secondary::virtualize_apic_accesses))},
     .breaks = {to("apic_access_addr", beyond)},
     .inside = {to("apic_access_addr", beyond - page)}},
    {.rule = "C10",
     .base = vmx_base::rich,
     .both = {plus(secondary, mask(Secondary::virtualize_apic_accesses))},
     .inside = {minus(secondary, mask(Secondary::virtualize_x2apic_mode))}},
    {.rule = "C10",
     .base = vmx_base::rich,
     .both = {plus(secondary, mask(Secondary::virtualize_x2apic_mode))},
     .breaks = {minus(primary, mask(Primary::use_tpr_shadow))}},
    {.rule = "C11",
     .base = vmx_base::rich,
     .both = {plus(pin, mask(PinBased::process_posted_interrupts)),
              plus(secondary, mask(Secondary::virtual_interrupt_delivery))},
     .breaks = {to("posted_intr_desc_addr", beyond)},
     .inside = {to("posted_intr_desc_addr", beyond - 64)}},
    {.rule = "C12",
     .base = vmx_base::rich,
     .both = {plus(pin, mask(PinBased::virtual_nmis))},
     .breaks = {minus(pin, mask(PinBased::nmi_exiting))},
     .inside = {plus(pin, mask(PinBased::nmi_exiting))}},
    {.rule = "C12",
     .base = vmx_base::rich,
     .both = {plus(primary, mask(Primary::nmi_window_exiting))},
     .breaks = {minus(pin, mask(PinBased::virtual_nmis))},
     .inside = {plus(pin, mask(PinBased::virtual_nmis))}},
    {.rule = "C13",
     .base = vmx_base::built,
     .both = {plus(secondary, mask(Secondary::enable_pml))},
     .breaks = {to("pml_address", beyond)},
     .inside = {to("pml_address", beyond - page)}},
    {.rule = "C13",
     .base = vmx_base::built,
     .both = {minus(secondary, needs_ept), plus(secondary, mask(Secondary::enable_pml))},
     .breaks = {minus(secondary, ept)}},
    {.rule = "C14",
     .base = vmx_base::built,
     .both = {minus(secondary, needs_ept), plus(secondary, mask(Secondary::unrestricted_guest))},
     .breaks = {minus(secondary, ept)}},
    {.rule = "C15",
     .base = vmx_base::built,
     .both = {minus(secondary, needs_ept),
              plus(secondary, mask(Secondary::mode_based_execute_control_for_ept))},
     .breaks = {minus(secondary, ept)}},
    {.rule = "C16",
     .base = vmx_base::shadow,
     .breaks = {to("vmread_bitmap", beyond)},
     .inside = {to("vmread_bitmap", beyond - page)}},
    {.rule = "C16",
     .base = vmx_base::shadow,
     .breaks = {to("vmwrite_bitmap", 0xb001)},
     .inside = {to("vmwrite_bitmap", beyond - page)}},
    {.rule = "C17",
     .base = vmx_base::built,
     .both = {plus(secondary, mask(Secondary::enable_vpid))},
     .breaks = {to("virtual_processor_id", 0)},
     .inside = {to("virtual_processor_id", 1)}},
    {.rule = "C18",
     .base = vmx_base::built,
     .both = {plus(exit_controls, mask(ExitControl::save_vmx_preemption_timer_value))},
     .inside = {plus(pin, mask(PinBased::activate_vmx_preemption_timer))}},
    {.rule = "C19",
     .base = vmx_base::built,
     .breaks = {to("ept_pointer", beyond | 0x1e)},
     .inside = {to("ept_pointer", (beyond - page) | 0x1e)}},
    {.rule = "C19",
     .base = vmx_base::built,
     .breaks = {to("ept_pointer", 0x20019)}, // a memory type that there is not
     .inside = {to("ept_pointer", 0x2001e)}},
    {.rule = "C19", .base = vmx_base::built, .breaks = {to("ept_pointer", 0x20016)}}, // three levels
    {.rule = "C19", .base = vmx_base::built, .breaks = {to("ept_pointer", 0x2009e)}}, // bit 7
    {.rule = "C19",
     .base = vmx_base::built,
     .on = "without EPT A/D flags",
     .both = {to("ept_pointer", 0x2005e)},
     .inside_on = "plain"},
    {.rule = "C20",
     .base = vmx_base::rich,
     .breaks = {to("vm_function_control", 3)},
     .inside = {to("vm_function_control", 1)}},
    {.rule = "C20",
     .base = vmx_base::rich,
     .breaks = {to("eptp_list_address", beyond)},
     .inside = {to("eptp_list_address", beyond - page)}},
    {.rule = "C21",
     .base = vmx_base::rich,
     .both = {plus(secondary, mask(Secondary::use_tsc_scaling))},
     .breaks = {to("tsc_multiplier", 0)},
     .inside = {to("tsc_multiplier", 1)}},
    // --- exit and entry controls
    {.rule = "C22", .base = vmx_base::rich, .breaks = {plus(exit_controls, bit(31))}},
    {.rule = "C22", .base = vmx_base::built, .breaks = {minus(exit_controls, bit(0))}},
    {.rule = "C23",
     .base = vmx_base::built,
     .both = {to("vm_exit_msr_load_count", 2)},
     .breaks = {to("vm_exit_msr_load_addr", beyond - 16)},
     .inside = {to("vm_exit_msr_load_addr", beyond - 32)}},
    {.rule = "C23",
     .base = vmx_base::built,
     .both = {to("vm_exit_msr_store_count", 1)},
     .breaks = {to("vm_exit_msr_store_addr", 0x1b008)},
     .inside = {to("vm_exit_msr_store_addr", 0x1b010)}},
    {.rule = "C23",
     .base = vmx_base::built,
     .both = {to("vm_exit_msr_load_addr", 0x1a000)},
     .breaks = {to("vm_exit_msr_load_count", 513)},
     .inside = {to("vm_exit_msr_load_count", 512)},
     .in = &kvm::nested::from_7},
    {.rule = "C24", .base = vmx_base::rich, .breaks = {plus(entry_controls, bit(31))}},
    {.rule = "C24", .base = vmx_base::built, .breaks = {minus(entry_controls, bit(0))}},
    {.rule = "C25",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'0120)},
     .inside = {to(event, 0x8000'0020)}},
    {.rule = "C25",
     .base = vmx_base::built,
     .on = "without monitor trap flag",
     .both = {to(event, 0x8000'0700)},
     .inside_on = "plain"},
    {.rule = "C26",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'0203)},
     .inside = {to(event, 0x8000'0202)}},
    {.rule = "C26",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'0320)},
     .inside = {to(event, 0x8000'031f)}},
    {.rule = "C26",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'0701)},
     .inside = {to(event, 0x8000'0700)}},
    {.rule = "C27",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'0a02)}, // an NMI with an error code
     .inside = {to(event, 0x8000'0202)}},
    {.rule = "C28",
     .base = vmx_base::built,
     .both = {to(event, 0x8000'0b0e)},
     .breaks = {to("vm_entry_exception_error_code", 0x10000)},
     .inside = {to("vm_entry_exception_error_code", 0xffff)}},
    {.rule = "C29",
     .base = vmx_base::built,
     .breaks = {to(event, 0x8000'1020)},
     .inside = {to(event, 0x0000'1020)}},
    {.rule = "C30",
     .base = vmx_base::software,
     .breaks = {to("vm_entry_instruction_len", 16)},
     .inside = {to("vm_entry_instruction_len", 15)}},
    {.rule = "C30",
     .base = vmx_base::software,
     .on = "without injection of length 0",
     .breaks = {to("vm_entry_instruction_len", 0)},
     .inside = {to("vm_entry_instruction_len", 1)}},
    {.rule = "C31",
     .base = vmx_base::built,
     .both = {to("vm_entry_msr_load_count", 2)},
     .breaks = {to("vm_entry_msr_load_addr", beyond - 16)},
     .inside = {to("vm_entry_msr_load_addr", beyond - 32)}},
    {.rule = "C31",
     .base = vmx_base::built,
     .both = {to("vm_entry_msr_load_addr", 0x1a000)},
     .breaks = {to("vm_entry_msr_load_count", 513)},
     .inside = {to("vm_entry_msr_load_count", 512)},
     .in = &kvm::nested::from_7},
    {.rule = "C32",
     .base = vmx_base::built,
     .on = "enlightened VMCS, Hyper-V",
     .both = {plus(secondary, mask(Secondary::enable_pml))},
     .inside_on = "enlightened VMCS"},
    {.rule = "C32",
     .base = vmx_base::built,
     .on = "enlightened VMCS, Hyper-V",
     .breaks = {plus(secondary, mask(Secondary::enable_pml))}},
    {.rule = "C32",
     .base = vmx_base::built,
     .on = "enlightened VMCS, Hyper-V",
     .breaks = {to("vm_function_control", bit(32))},
     .inside = {to("vm_function_control", 0)}},
    // --- host state
    {.rule = "H1", .base = vmx_base::built, .breaks = {minus("host_cr0", mask(Cr0::ne))}},
    {.rule = "H2", .base = vmx_base::built, .breaks = {minus("host_cr4", mask(Cr4::vmxe))}},
    {.rule = "H3",
     .base = vmx_base::built,
     .breaks = {to("host_cr3", beyond)},
     .inside = {to("host_cr3", beyond - 1)}},
    {.rule = "H5",
     .base = vmx_base::built,
     .breaks = {to("host_ia32_sysenter_esp", half)},
     .inside = {to("host_ia32_sysenter_esp", half - 1)}},
    {.rule = "H5",
     .base = vmx_base::built,
     .breaks = {to("host_ia32_sysenter_eip", ~half)},
     .inside = {to("host_ia32_sysenter_eip", ~(half - 1))}},
    {.rule = "H6",
     .base = vmx_base::built,
     .both = {plus(exit_controls, mask(ExitControl::load_ia32_pat))},
     .breaks = {to("host_ia32_pat", 2)},
     .inside = {to("host_ia32_pat", 7)}},
    {.rule = "H7",
     .base = vmx_base::built,
     .both = {plus(exit_controls, mask(ExitControl::load_ia32_perf_global_ctrl))},
     .breaks = {to("host_ia32_perf_global_ctrl", bit(63))},
     .inside = {to("host_ia32_perf_global_ctrl", 0)}},
    {.rule = "H4",
     .base = vmx_base::built,
     .both = {plus("host_cr4", mask(Cr4::cet))},
     .inside = {plus("host_cr0", mask(Cr0::wp))}},
    {.rule = "H12",
     .base = vmx_base::built,
     .both = {plus(exit_controls, mask(ExitControl::load_cet_state))},
     .breaks = {to("host_ssp", 2)},
     .inside = {to("host_ssp", 4)}},
    {.rule = "H8", .base = vmx_base::built, .breaks = {minus("host_cr4", mask(Cr4::pae))}},
    {.rule = "H9",
     .base = vmx_base::built,
     .breaks = {to("host_gs_selector", 0x14)},
     .inside = {to("host_gs_selector", 0x18)}},
    {.rule = "H9",
     .base = vmx_base::built,
     .breaks = {to("host_cs_selector", 0)},
     .inside = {to("host_ss_selector", 0)}},
    {.rule = "H10",
     .base = vmx_base::built,
     .breaks = {to("host_gs_base", half)},
     .inside = {to("host_gs_base", half - 1)}},
    {.rule = "H10",
     .base = vmx_base::built,
     .breaks = {to("host_rip", half)},
     .inside = {to("host_rip", half - 1)}},
    {.rule = "H11", .base = vmx_base::built, .breaks = {minus("host_ia32_efer", mask(Efer::lma))}},
    {.rule = "H11",
     .base = vmx_base::built,
     .breaks = {plus("host_ia32_efer", bit(1))},
     .inside = {plus("host_ia32_efer", mask(Efer::nxe))}},
    // --- guest state
    {.rule = "G1", .base = vmx_base::built, .breaks = {minus("guest_cr0", mask(Cr0::ne))}},
    {.rule = "G2", .base = vmx_base::built, .breaks = {minus("guest_cr4", mask(Cr4::vmxe))}},
    {.rule = "G2",
     .base = vmx_base::built,
     .on = "without SMEP, SMAP, FSGSBASE",
     .both = {plus("guest_cr4", mask(Cr4::fsgsbase))},
     .inside_on = "plain"},
    {.rule = "G4",
     .base = vmx_base::rich,
     .breaks = {plus("guest_dr7", bit(32))},
     .inside = {plus("guest_dr7", 0xff)}},
    {.rule = "G4",
     .base = vmx_base::rich,
     .breaks = {to("guest_ia32_debugctl", 1 << 6)},
     .inside = {to("guest_ia32_debugctl", 3)}},
    {.rule = "G5",
     .base = vmx_base::built,
     .both = {plus(entry_controls, mask(EntryControl::load_ia32_pat))},
     .breaks = {to("guest_ia32_pat", 3)},
     .inside = {to("guest_ia32_pat", 7)}},
    {.rule = "G6",
     .base = vmx_base::shadow,
     .breaks = {to("vmcs_link_pointer", lab::vmx::shadow_address + page)},
     .inside = {to("vmcs_link_pointer", lab::vmx::shadow_address)}},
    {.rule = "G6", .base = vmx_base::shadow, .breaks = {to("vmcs_link_pointer", lab::no_memory)}},
    {.rule = "G6",
     .base = vmx_base::built,
     .breaks = {to("vmcs_link_pointer", lab::vmx::shadow_address)}, // marked as a shadow, and not used as one
     .inside = {to("vmcs_link_pointer", none)}},
    {.rule = "G7",
     .base = vmx_base::built,
     .both = {plus(entry_controls, mask(EntryControl::load_ia32_perf_global_ctrl))},
     .breaks = {to("guest_ia32_perf_global_ctrl", bit(63))},
     .inside = {to("guest_ia32_perf_global_ctrl", 0)}},
    {.rule = "G3",
     .base = vmx_base::built,
     .both = {plus("guest_cr4", mask(Cr4::cet))},
     .inside = {plus("guest_cr0", mask(Cr0::wp))}},
    {.rule = "G12",
     .base = vmx_base::built,
     .both = {plus(entry_controls, mask(EntryControl::load_cet_state))},
     .breaks = {to("guest_ssp", 2)},
     .inside = {to("guest_ssp", 4)}},
    {.rule = "G8",
     .base = vmx_base::built,
     .both = {plus(secondary, mask(Secondary::unrestricted_guest))},
     .breaks = {minus("guest_cr0", mask(Cr0::pe))},
     .inside = {minus("guest_cr0", mask(Cr0::pe, Cr0::pg)),
                minus(entry_controls, mask(EntryControl::ia_32e_mode_guest))}},
    {.rule = "G9", .base = vmx_base::built, .breaks = {minus("guest_cr4", mask(Cr4::pae))}},
    {.rule = "G10",
     .base = vmx_base::built,
     .both = {minus("guest_ia32_efer", mask(Efer::lma))},
     .breaks = {plus("flags", flag::run_pending)}},
    {.rule = "G10",
     .base = vmx_base::built,
     .both = {plus("flags", flag::run_pending)},
     .breaks = {minus("guest_ia32_efer", mask(Efer::lme))}},
    {.rule = "G13",
     .base = vmx_base::built,
     .breaks = {to("guest_activity_state", 2)},
     .inside = {to("guest_activity_state", 3)}},
    {.rule = "E1",
     .base = vmx_base::built,
     .breaks = {to("guest_cr3", beyond)},
     .inside = {to("guest_cr3", beyond - 1)}},
    // --- taken, and not all of it used
    {.rule = "M1",
     .base = vmx_base::vmxon,
     .breaks = {to("flags", flag::gif_set)},
     .dropped = minus("flags", flag::gif_set)},
    {.rule = "M2",
     .base = vmx_base::built,
     .both = {plus("flags", flag::mtf_pending)},
     .breaks = {minus("flags", flag::guest_mode)},
     .dropped = minus("flags", flag::mtf_pending)},
    {.rule = "M3",
     .base = vmx_base::off,
     .on = "enlightened VMCS",
     .both = {to("flags", flag::evmcs)},
     .inside_on = "enlightened VMCS, Hyper-V"},
    {.rule = "M4",
     .base = vmx_base::current,
     .on = "enlightened VMCS, Hyper-V",
     .both = {to("flags", flag::evmcs)},
     .inside = {to(vmcs12_pa, none)},
     .dropped = minus("flags", flag::evmcs)},
    {.rule = "M5", .base = vmx_base::off, .breaks = {to("size", 4224)}, .dropped = minus("size", 4096)},
    {.rule = "M6",
     .base = vmx_base::vmxon,
     .both = {to("hdr.vmx.preemption_timer_deadline", 1)},
     .inside = {to("hdr.vmx.flags", 1)},
     .dropped = minus("hdr.vmx.preemption_timer_deadline", none)},
};

namespace svm_base = rules::base;
using kvm::nested::svm::Intercept, kvm::nested::svm::IntCtl, kvm::nested::svm::MiscCtl,
    kvm::nested::svm::MiscCtl2;

const Boundary svm_boundaries[] = {
    {.rule = "X2", .base = svm_base::gif_set, .readable = 127, .enough = 128},
    {.rule = "X3", .base = svm_base::gif_set, .breaks = {to("size", 127)}},
    {.rule = "P1", .base = svm_base::gif_set, .breaks = {to("size", 129)}},
    {.rule = "X4", .base = svm_base::gif_set, .breaks = {plus("flags", 0x10)}},
    {.rule = "X5",
     .base = svm_base::l2,
     .both = {plus("flags", flag::run_pending)},
     .breaks = {minus("flags", flag::guest_mode)}},
    {.rule = "S1", .base = svm_base::gif_set, .breaks = {to("format", 0)}},
    {.rule = "S2", .base = svm_base::gif_set, .breaks = {plus("flags", flag::evmcs)}},
    {.rule = "S2", .base = svm_base::l2, .breaks = {plus("flags", flag::mtf_pending)}},
    {.rule = "S3",
     .base = svm_base::gif_clear,
     .on = "EFER.SVME clear",
     .inside = {to("flags", flag::gif_set)},
     .in = &kvm::nested::up_to_6_12},
    {.rule = "S3", .base = svm_base::l2, .on = "EFER.SVME clear", .inside_on = "plain"},
    {.rule = "S4", .base = svm_base::l2, .on = "in SMM", .inside_on = "plain"},
    {.rule = "S4", .base = svm_base::l2, .on = "in SMM", .inside = {minus("flags", flag::guest_mode)}},
    {.rule = "S6",
     .base = svm_base::l2,
     .breaks = {to("hdr.svm.vmcb_pa", beyond)},
     .inside = {to("hdr.svm.vmcb_pa", beyond - page)}},
    {.rule = "S6", .base = svm_base::l2, .breaks = {to("hdr.svm.vmcb_pa", 0x3800)}},
    {.rule = "S7", .base = svm_base::l2, .breaks = {to("size", 4223)}, .inside = {to("size", 4224)}},
    {.rule = "S8", .base = svm_base::l2, .readable = 128 + 1024 + 739, .enough = 128 + 1024 + 744},
    {.rule = "S8", .base = svm_base::l2, .readable = 128 + 1023, .enough = 4224},
    {.rule = "S9", .base = svm_base::l2, .breaks = {minus("intercepts[4]", mask(Intercept::vmrun))}},
    {.rule = "S10", .base = svm_base::l2, .breaks = {to("asid", 0)}, .inside = {to("asid", 1)}},
    {.rule = "S12",
     .base = svm_base::l2,
     .both = {plus("misc_ctl", 1)},
     .breaks = {to("nested_cr3", beyond)},
     .inside = {to("nested_cr3", beyond - 1)}},
    {.rule = "S12",
     .base = svm_base::l2,
     .both = {to("nested_cr3", beyond), plus("misc_ctl", 1)},
     .inside = {minus("misc_ctl", 1)}},
    {.rule = "S13",
     .base = svm_base::l2,
     .breaks = {to("msrpm_base_pa", beyond - page)},
     .inside = {to("msrpm_base_pa", beyond - 2 * page)}},
    {.rule = "S13",
     .base = svm_base::l2,
     .breaks = {to("iopm_base_pa", beyond - 2 * page)},
     .inside = {to("iopm_base_pa", beyond - 3 * page)}},
    {.rule = "S14",
     .base = svm_base::l2,
     .both = {plus("int_ctl", mask(IntCtl::v_nmi_enable))},
     .breaks = {minus("intercepts[3]", mask(Intercept::nmi))},
     .inside = {plus("intercepts[3]", mask(Intercept::nmi))}},
    {.rule = "S15",
     .base = svm_base::l2,
     .breaks = {to("event_inj", 0x8000'0120)},
     .inside = {to("event_inj", 0x8000'0020)}},
    {.rule = "S15",
     .base = svm_base::l2,
     .breaks = {to("event_inj", 0x8000'0302)},
     .inside = {to("event_inj", 0x8000'0303)}},
    {.rule = "S17", .base = svm_base::l2, .breaks = {minus("cr0", mask(Cr0::pg))}},
    {.rule = "S18",
     .base = svm_base::l2,
     .breaks = {plus("rflags", mask(Rflags::vm))},
     .inside = {plus("rflags", mask(Rflags::ac))}},
    {.rule = "S19",
     .base = svm_base::l2,
     .both = {plus("efer", mask(Efer::lma))},
     .breaks = {minus("efer", mask(Efer::lme))}},
    {.rule = "S20", .base = svm_base::l2, .breaks = {minus("efer", mask(Efer::svme))}},
    {.rule = "S21",
     .base = svm_base::l2,
     .both = {plus("cr0", mask(Cr0::nw))},
     .breaks = {minus("cr0", mask(Cr0::cd))},
     .inside = {plus("cr0", mask(Cr0::cd))}},
    {.rule = "S21",
     .base = svm_base::l2,
     .breaks = {plus("cr0", bit(32))},
     .inside = {plus("cr0", mask(Cr0::wp))}},
    {.rule = "S22", .base = svm_base::l2, .breaks = {plus("dr6", bit(32))}, .inside = {plus("dr6", bit(31))}},
    {.rule = "S22", .base = svm_base::l2, .breaks = {plus("dr7", bit(32))}, .inside = {plus("dr7", bit(31))}},
    {.rule = "S23",
     .base = svm_base::l2,
     .breaks = {to("cr3", beyond)},
     .inside = {to("cr3", beyond - page)}},
    {.rule = "S23", .base = svm_base::l2, .breaks = {minus("cr4", mask(Cr4::pae))}},
    {.rule = "S23",
     .base = svm_base::l2,
     .both = {plus("cs.attrib", mask(kvm::nested::svm::Attribute::l))},
     .breaks = {plus("cs.attrib", mask(kvm::nested::svm::Attribute::db))},
     .inside = {minus("cs.attrib", mask(kvm::nested::svm::Attribute::db))}},
    {.rule = "S24",
     .base = svm_base::l2,
     .breaks = {plus("cr4", bit(31))},
     .inside = {plus("cr4", mask(Cr4::de))}},
    {.rule = "S24",
     .base = svm_base::l2,
     .on = "without SMEP, SMAP, FSGSBASE",
     .both = {plus("cr4", mask(Cr4::fsgsbase))},
     .inside_on = "plain"},
    {.rule = "S25",
     .base = svm_base::l2,
     .breaks = {plus("efer", bit(1))},
     .inside = {plus("efer", mask(Efer::sce))}},
    {.rule = "S26",
     .base = svm_base::l2,
     .on = "L2 with a PAT of its own",
     .both = {plus("misc_ctl", 1)},
     .breaks = {to("hdr.svm.gpat", 2)},
     .inside = {to("hdr.svm.gpat", 1)}},
    {.rule = "S26",
     .base = svm_base::l2,
     .on = "L2 with a PAT of its own",
     .both = {plus("misc_ctl", 1), to("hdr.svm.gpat", 2)},
     .inside_on = "plain"},
    {.rule = "S27", .base = svm_base::l2, .on = "an illegal CR3", .inside_on = "plain"},
    // --- taken, and not all of it used
    {.rule = "M7",
     .base = svm_base::l2,
     .on = "without NPT",
     .both = {plus("misc_ctl", 1)},
     .inside_on = "plain",
     .dropped = minus("misc_ctl", 1)},
    {.rule = "M8", .base = svm_base::l2, .breaks = {plus("misc_ctl", mask(MiscCtl::gmet))}},
    {.rule = "M9",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .breaks = {plus("int_ctl", mask(IntCtl::v_gif_enable))}},
    {.rule = "M10",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .both = {plus("intercepts[3]", mask(Intercept::nmi))},
     .breaks = {plus("int_ctl", mask(IntCtl::v_nmi_enable))}},
    {.rule = "M11",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .breaks = {plus("misc_ctl2", mask(MiscCtl2::lbr_virtualization))}},
    {.rule = "M12",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .breaks = {plus("misc_ctl2", mask(MiscCtl2::virtualized_vmload_and_vmsave))}},
    {.rule = "M13",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .breaks = {to("pause_filter_count", 1)}},
    {.rule = "M13",
     .base = svm_base::l2,
     .on = "without SVM's later features",
     .breaks = {to("pause_filter_thresh", 1)}},
    {.rule = "M14",
     .base = svm_base::l2_pending,
     .on = "without SVM's later features",
     .both = {to("next_rip", 0x1000)},
     .breaks = {to("event_inj", 0x8000'0303)}, // #BP
     .inside = {to("event_inj", 0x8000'0301)}},
    {.rule = "M15",
     .base = svm_base::l2,
     .on = "without PCID, XSAVE",
     .both = {plus("intercepts[4]", mask(Intercept::xsetbv))},
     .inside_on = "plain",
     .dropped = minus("intercepts[4]", mask(Intercept::xsetbv))},
    {.rule = "M16",
     .base = svm_base::l2,
     .both = {plus("misc_ctl", 1)},
     .breaks = {to("hdr.svm.gpat", 1)},
     .dropped = minus("hdr.svm.gpat", none)},
    {.rule = "M16",
     .base = svm_base::l2,
     .on = "L2 with a PAT of its own",
     .both = {to("hdr.svm.gpat", 1)},
     .breaks = {minus("misc_ctl", 1)},
     .inside = {plus("misc_ctl", 1)},
     .in = &kvm::nested::from_7,
     .dropped = minus("hdr.svm.gpat", none)},
    {.rule = "M17",
     .base = svm_base::l2,
     .on = "L2 with a PAT of its own",
     .both = {plus("misc_ctl", 1)},
     .breaks = {to("hdr.svm.gpat", 0)},
     .inside = {to("hdr.svm.gpat", 1)},
     .in = &kvm::nested::from_7},
    {.rule = "M18",
     .base = svm_base::gif_set,
     .breaks = {to("hdr.svm.vmcb_pa", 0x3000)},
     .dropped = minus("hdr.svm.vmcb_pa", none)},
    {.rule = "M18", .base = svm_base::gif_set, .breaks = {to("size", 4224)}, .dropped = minus("size", 4096)},
};

/// Rules that no state here can break alone, and why.
struct Unproven {
    std::string_view rule, reason;
};
const Unproven vmx_unproven[] = {
    {"V14", "the kernel of the lab does not run out of memory"},
    {"X1", "needs a host without nesting: lab-nested-off has it on both sides"},
    {"V7", "V10 is broken with it: in SMM L2 cannot be active, and outside there are no SMM flags"},
    {"G11", "no processor of the lab has MPX: the control that loads BNDCFGS breaks C24 first"},
};
const Unproven svm_unproven[] = {
    {"X1", "needs a host without nesting: lab-nested-off has it on both sides"},
    {"S11", "needs a host without nested paging, and then L1's other pages are not what the others need"},
    {"S16", "KVM_SET_SREGS2 refuses such a CR0, so that no vCPU has it"},
};

// --- trying them

std::span<const Boundary> boundaries() {
    return lab::is_vmx() ? std::span<const Boundary>{vmx_boundaries}
                         : std::span<const Boundary>{svm_boundaries};
}
std::span<const Unproven> unproven() {
    return lab::is_vmx() ? std::span<const Unproven>{vmx_unproven} : std::span<const Unproven>{svm_unproven};
}

const Condition& condition(std::string_view name) {
    for (const auto& one : rules::conditions())
        if (one.name == name)
            return one;
    lab::give_up(std::format("no condition \"{}\"", name));
}

rules::Place place_of(std::string_view field, const rules::Places& places) {
    const bool in_shadow = field.starts_with("shadow ");
    const auto name = in_shadow ? field.substr(7) : field;
    for (const auto& place : places.all)
        if (place.field->name == name && (place.begin >= lab::vmx::shadow_at) == in_shadow)
            return place;
    lab::give_up(std::format("no field {}", field));
}

void perform(const Sets& sets, lab::Bytes& state, const rules::Places& places) {
    for (const auto& set : sets) {
        if (set.field.empty())
            continue;
        const auto place = place_of(set.field, places);
        rules::put(state, place, (rules::get(state, place) & ~set.clear) | set.set);
    }
}

Case make(const Boundary& row, bool breaks, const lab::Bytes* start, const rules::Places& places) {
    const auto& on = condition(breaks || row.inside_on.empty() ? row.on : row.inside_on);
    // The state is the same where only the condition is another.
    Case made{&on, start, condition(row.on).good[row.base]};
    perform(row.both, made.state, places);
    perform(breaks ? row.breaks : row.inside, made.state, places);
    return made;
}

/// Ids of what is found, but for what is silent; those that may fail with a question mark.
std::string ids(const kvm::nested::Findings& findings) {
    std::string text;
    for (const auto& finding : findings)
        if (finding.certainty != Certainty::silent) {
            text += text.empty() ? "" : " ";
            text += finding.rule->id;
            text += finding.certainty == Certainty::may_fail ? "?" : "";
        }
    return text;
}

/// Whether all that is found is that this processor has not the controls that the row needs.
bool not_offered(const kvm::nested::Findings& inside, std::string_view rule) {
    constexpr std::array<std::string_view, 7> of_capabilities{"C1", "C2", "C3", "C22", "C24", "H2", "G2"};
    if (!inside.verdict())
        return false;
    for (const auto& finding : inside)
        if (finding.certainty != Certainty::silent
            && (finding.rule->id == rule || !std::ranges::contains(of_capabilities, finding.rule->id)))
            return false;
    return true;
}

rules::Said ask(const Case& one, std::size_t readable) {
    if (readable == 0)
        return rules::ask(one);
    const lab::Fenced fenced{readable};
    std::memcpy(fenced.data(), one.state.data(), readable);
    one.on->reset();
    rules::Said said;
    if (one.start != nullptr)
        static_cast<void>(lab::raw_set(one.on->fd(), one.start->data()));
    said.before = lab::read_back(one.on->fd());
    said.result = lab::raw_set(one.on->fd(), fenced.data());
    said.after = lab::read_back(one.on->fd());
    return said;
}

kvm::nested::Findings check(const Case& one, std::size_t readable) {
    return kvm::nested::check(std::span{one.state}.first(readable == 0 ? one.state.size() : readable),
                              one.on->to);
}

/// Newest kernel, CET, virtual interrupts: then each rule of the table can be tried.
bool is_rich(const kvm::nested::Destination& to) {
    const auto offered = to.vmx.allowed<Secondary>();
    return kvm::nested::from_7.in(to.kernel) == Known::yes
           && to.guest[kvm::nested::Feature::shstk] == Known::yes && offered
           && kvm::nested::has(offered->may_be_1, Secondary::virtual_interrupt_delivery);
}

/// Whether the rule is among the silent findings. Others may be, too: they say nothing of the verdict.
bool found_silently(const kvm::nested::Findings& findings, std::string_view rule) {
    for (const auto& finding : findings)
        if (finding.certainty == Certainty::silent && finding.rule->id == rule)
            return true;
    return false;
}

bool is_silent(const kvm::nested::RuleInfo& rule) {
    return rule.certainty == Certainty::silent;
}

/// @return whether the rule was proven; it is not where a kernel has not got it
bool try_row(const Boundary& row, const kvm::nested::RuleInfo& rule, const lab::Bytes* start,
             const rules::Places& places) {
    const auto broken = make(row, true, start, places), inside = make(row, false, start, places);
    const auto of_inside = check(inside, row.enough);
    if (not_offered(of_inside, rule.id))
        return false;
    const auto kernel = broken.on->to.kernel;
    REQUIRE(kernel.has_value());
    const auto& in = row.in != nullptr ? *row.in : rule.applies;
    const bool applies = in.in(kernel) == Known::yes;
    if (!applies && row.in != nullptr && is_silent(rule))
        return false; // there it is something else that drops it

    CHECK(ids(of_inside) == "");
    if (is_silent(rule))
        CHECK(!found_silently(of_inside, rule.id));
    CHECK(rules::answer_text(ask(inside, row.enough).result) == "returned 0");

    const auto findings = check(broken, row.readable);
    const auto said = ask(broken, row.readable);
    INFO("the kernel: " << rules::answer_text(said.result));
    if (!applies || is_silent(rule)) {
        CHECK(ids(findings) == "");
        CHECK(said.result.value == 0);
        if (is_silent(rule))
            CHECK(found_silently(findings, rule.id) == applies);
        if (applies && !row.dropped.field.empty())
            CHECK((rules::get(said.after, place_of(row.dropped.field, places)) & row.dropped.clear) == 0);
    } else {
        // Nobody knows what lies behind the bytes that are there.
        CHECK(ids(findings) == (row.readable == 0 ? std::string{rule.id} : std::string{rule.id} + "?"));
        CHECK(rules::is(said.result, rule.answer));
        CHECK(rules::wrongly_kept(rule.keeps, broken, said) == "");
    }

    return applies;
}

} // namespace

TEST_CASE("each rule is on one of two lists: proven by itself here, or not, with the reason") {
    for (const auto& rule : kvm::nested::rules(lab::host().vendor())) {
        CAPTURE(rule.id);
        const auto is_it = [&](const auto& row) { return row.rule == rule.id; };
        const bool proven = std::ranges::any_of(boundaries(), is_it);
        CHECK(std::ranges::count_if(unproven(), is_it) == (proven ? 0 : 1));
    }
    for (const auto& row : boundaries())
        CHECK(kvm::nested::find_rule(row.rule) != nullptr);
}

TEST_CASE("one step over the boundary breaks one rule alone, as the kernel says; one step less none") {
    if (rules::options.only)
        return;
    const rules::Places places{lab::host().vendor()};
    constexpr const lab::Bytes* none_before = nullptr;
    std::map<std::string_view, bool> proven;
    std::size_t number = 0;
    for (const auto& row : boundaries()) {
        const auto& catalogue = kvm::nested::rules(lab::host().vendor());
        const auto rule = std::ranges::find(catalogue, row.rule, &kvm::nested::RuleInfo::id);
        REQUIRE(rule != catalogue.end());
        INFO("row " << number << ", rule " << row.rule << " on " << row.on);
        auto& known = proven[row.rule];
        for (const auto* start : {none_before, &condition(row.on).good[1]})
            known = try_row(row, *rule, start, places) || known;
        ++number;
    }
    std::string missing;
    std::size_t all = 0;
    for (const auto& [rule, known] : proven) {
        all += known ? 1 : 0;
        if (!known)
            missing += std::format(" {}", rule);
    }
    for (const auto& row : unproven())
        std::println("not provoked: {}: {}", row.rule, row.reason);
    // The richest machine of the lab shows them all.
    if (is_rich(condition("plain").to))
        CHECK(missing == "");
    std::println("count: {} rules refused alone, and just not; not to be met on this kernel and processor:{}",
                 all, missing.empty() ? " none" : missing);
}
