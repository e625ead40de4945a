// SPDX-License-Identifier: MIT
//
// What the tests of VMX alone share: offsets, the vCPU's VMX capabilities, and an L2 made by hand from them,
// which needs no guest.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

namespace lab::vmx {

using State = kvm::nested::NestedState<kvm::nested::Vmx>;

/// The proof that this host nests VMX.
inline kvm::nested::Host<kvm::nested::Vmx> host() {
    return host_of<kvm::nested::Vmx>();
}

inline kvm::nested::Vcpu<kvm::nested::Vmx> nested(const machine::Machine& machine) {
    return {host(), kvm::nested::VcpuFd{machine.vcpu_fd()}};
}

// --- offsets

// In the header.
inline constexpr std::size_t vmxon_at = kvm::nested::header_offset("hdr.vmx.vmxon_pa"),
                             vmcs12_at = kvm::nested::header_offset("hdr.vmx.vmcs12_pa"),
                             smm_flags_at = kvm::nested::header_offset("hdr.vmx.smm.flags"),
                             vmx_flags_at = kvm::nested::header_offset("hdr.vmx.flags"),
                             deadline_at = kvm::nested::header_offset("hdr.vmx.preemption_timer_deadline");
/// With a vmcs12, and with its shadow vmcs12, too.
inline constexpr std::size_t state_size = 4224, state_size_with_shadow = 8320;
inline constexpr std::size_t vmcs12_size = kvm::nested::uapi::vmcs12_size;
/// Where the shadow vmcs12 begins.
inline constexpr std::size_t shadow_at = 4224;

/// A field of a vmcs12: where it lies in the page. The same on Linux 6.1 to 7.3.
struct Field {
    std::uint16_t offset;
    std::uint16_t width; ///< bytes: 2, 4 or 8
};

/// By the kernel's names, but for the revision and the five control words. Where they are says the library,
/// which the kernel contradicts here if that is wrong.
namespace field {
consteval Field in_vmcs12(kvm::nested::Vmcs12Fields::Name name) {
    return {static_cast<std::uint16_t>(name.field().offset), static_cast<std::uint16_t>(name.field().size)};
}
inline constexpr Field revision = in_vmcs12("hdr");
inline constexpr Field abort = in_vmcs12("abort");
inline constexpr Field launch_state = in_vmcs12("launch_state");
inline constexpr Field io_bitmap_a = in_vmcs12("io_bitmap_a");
inline constexpr Field io_bitmap_b = in_vmcs12("io_bitmap_b");
inline constexpr Field msr_bitmap = in_vmcs12("msr_bitmap");
inline constexpr Field vm_exit_msr_store_addr = in_vmcs12("vm_exit_msr_store_addr");
inline constexpr Field vm_exit_msr_load_addr = in_vmcs12("vm_exit_msr_load_addr");
inline constexpr Field vm_entry_msr_load_addr = in_vmcs12("vm_entry_msr_load_addr");
inline constexpr Field virtual_apic_page_addr = in_vmcs12("virtual_apic_page_addr");
inline constexpr Field apic_access_addr = in_vmcs12("apic_access_addr");
inline constexpr Field posted_intr_desc_addr = in_vmcs12("posted_intr_desc_addr");
inline constexpr Field ept_pointer = in_vmcs12("ept_pointer");
inline constexpr Field vmcs_link_pointer = in_vmcs12("vmcs_link_pointer");
inline constexpr Field guest_ia32_debugctl = in_vmcs12("guest_ia32_debugctl");
inline constexpr Field guest_ia32_pat = in_vmcs12("guest_ia32_pat");
inline constexpr Field guest_ia32_efer = in_vmcs12("guest_ia32_efer");
inline constexpr Field guest_ia32_perf_global_ctrl = in_vmcs12("guest_ia32_perf_global_ctrl");
inline constexpr Field guest_pdptr0 = in_vmcs12("guest_pdptr0");
inline constexpr Field guest_bndcfgs = in_vmcs12("guest_bndcfgs");
inline constexpr Field host_ia32_pat = in_vmcs12("host_ia32_pat");
inline constexpr Field host_ia32_efer = in_vmcs12("host_ia32_efer");
inline constexpr Field host_ia32_perf_global_ctrl = in_vmcs12("host_ia32_perf_global_ctrl");
inline constexpr Field vmread_bitmap = in_vmcs12("vmread_bitmap");
inline constexpr Field vmwrite_bitmap = in_vmcs12("vmwrite_bitmap");
inline constexpr Field vm_function_control = in_vmcs12("vm_function_control");
inline constexpr Field eptp_list_address = in_vmcs12("eptp_list_address");
inline constexpr Field pml_address = in_vmcs12("pml_address");
inline constexpr Field tsc_multiplier = in_vmcs12("tsc_multiplier");
inline constexpr Field guest_linear_address = in_vmcs12("guest_linear_address");
inline constexpr Field guest_cr0 = in_vmcs12("guest_cr0");
inline constexpr Field guest_cr3 = in_vmcs12("guest_cr3");
inline constexpr Field guest_cr4 = in_vmcs12("guest_cr4");
inline constexpr Field guest_cs_base = in_vmcs12("guest_cs_base");
inline constexpr Field guest_gdtr_base = in_vmcs12("guest_gdtr_base");
inline constexpr Field guest_dr7 = in_vmcs12("guest_dr7");
inline constexpr Field guest_rsp = in_vmcs12("guest_rsp");
inline constexpr Field guest_rip = in_vmcs12("guest_rip");
inline constexpr Field guest_rflags = in_vmcs12("guest_rflags");
inline constexpr Field guest_pending_dbg_exceptions = in_vmcs12("guest_pending_dbg_exceptions");
inline constexpr Field host_cr0 = in_vmcs12("host_cr0");
inline constexpr Field host_cr3 = in_vmcs12("host_cr3");
inline constexpr Field host_cr4 = in_vmcs12("host_cr4");
inline constexpr Field host_fs_base = in_vmcs12("host_fs_base");
inline constexpr Field host_gs_base = in_vmcs12("host_gs_base");
inline constexpr Field host_tr_base = in_vmcs12("host_tr_base");
inline constexpr Field host_gdtr_base = in_vmcs12("host_gdtr_base");
inline constexpr Field host_idtr_base = in_vmcs12("host_idtr_base");
inline constexpr Field host_ia32_sysenter_esp = in_vmcs12("host_ia32_sysenter_esp");
inline constexpr Field host_ia32_sysenter_eip = in_vmcs12("host_ia32_sysenter_eip");
inline constexpr Field host_rsp = in_vmcs12("host_rsp");
inline constexpr Field host_rip = in_vmcs12("host_rip");
inline constexpr Field host_s_cet = in_vmcs12("host_s_cet");
inline constexpr Field host_ssp = in_vmcs12("host_ssp");
inline constexpr Field host_ssp_tbl = in_vmcs12("host_ssp_tbl");
inline constexpr Field guest_s_cet = in_vmcs12("guest_s_cet");
inline constexpr Field guest_ssp = in_vmcs12("guest_ssp");
inline constexpr Field guest_ssp_tbl = in_vmcs12("guest_ssp_tbl");
inline constexpr Field pin_controls = in_vmcs12("pin_based_vm_exec_control");
inline constexpr Field primary_controls = in_vmcs12("cpu_based_vm_exec_control");
inline constexpr Field exception_bitmap = in_vmcs12("exception_bitmap");
inline constexpr Field cr3_target_count = in_vmcs12("cr3_target_count");
inline constexpr Field exit_controls = in_vmcs12("vm_exit_controls");
inline constexpr Field vm_exit_msr_store_count = in_vmcs12("vm_exit_msr_store_count");
inline constexpr Field vm_exit_msr_load_count = in_vmcs12("vm_exit_msr_load_count");
inline constexpr Field entry_controls = in_vmcs12("vm_entry_controls");
inline constexpr Field vm_entry_msr_load_count = in_vmcs12("vm_entry_msr_load_count");
inline constexpr Field vm_entry_intr_info_field = in_vmcs12("vm_entry_intr_info_field");
inline constexpr Field vm_entry_exception_error_code = in_vmcs12("vm_entry_exception_error_code");
inline constexpr Field vm_entry_instruction_len = in_vmcs12("vm_entry_instruction_len");
inline constexpr Field tpr_threshold = in_vmcs12("tpr_threshold");
inline constexpr Field secondary_controls = in_vmcs12("secondary_vm_exec_control");
inline constexpr Field vm_exit_reason = in_vmcs12("vm_exit_reason");
inline constexpr Field vm_exit_instruction_len = in_vmcs12("vm_exit_instruction_len");
inline constexpr Field guest_es_limit = in_vmcs12("guest_es_limit");
inline constexpr Field guest_cs_limit = in_vmcs12("guest_cs_limit");
inline constexpr Field guest_ss_limit = in_vmcs12("guest_ss_limit");
inline constexpr Field guest_ds_limit = in_vmcs12("guest_ds_limit");
inline constexpr Field guest_fs_limit = in_vmcs12("guest_fs_limit");
inline constexpr Field guest_gs_limit = in_vmcs12("guest_gs_limit");
inline constexpr Field guest_ldtr_limit = in_vmcs12("guest_ldtr_limit");
inline constexpr Field guest_tr_limit = in_vmcs12("guest_tr_limit");
inline constexpr Field guest_es_ar_bytes = in_vmcs12("guest_es_ar_bytes");
inline constexpr Field guest_cs_ar_bytes = in_vmcs12("guest_cs_ar_bytes");
inline constexpr Field guest_ss_ar_bytes = in_vmcs12("guest_ss_ar_bytes");
inline constexpr Field guest_ds_ar_bytes = in_vmcs12("guest_ds_ar_bytes");
inline constexpr Field guest_fs_ar_bytes = in_vmcs12("guest_fs_ar_bytes");
inline constexpr Field guest_gs_ar_bytes = in_vmcs12("guest_gs_ar_bytes");
inline constexpr Field guest_ldtr_ar_bytes = in_vmcs12("guest_ldtr_ar_bytes");
inline constexpr Field guest_tr_ar_bytes = in_vmcs12("guest_tr_ar_bytes");
inline constexpr Field guest_interruptibility_info = in_vmcs12("guest_interruptibility_info");
inline constexpr Field guest_activity_state = in_vmcs12("guest_activity_state");
inline constexpr Field vmx_preemption_timer_value = in_vmcs12("vmx_preemption_timer_value");
inline constexpr Field virtual_processor_id = in_vmcs12("virtual_processor_id");
inline constexpr Field posted_intr_nv = in_vmcs12("posted_intr_nv");
inline constexpr Field guest_intr_status = in_vmcs12("guest_intr_status");
inline constexpr Field guest_es_selector = in_vmcs12("guest_es_selector");
inline constexpr Field guest_cs_selector = in_vmcs12("guest_cs_selector");
inline constexpr Field guest_ss_selector = in_vmcs12("guest_ss_selector");
inline constexpr Field guest_ds_selector = in_vmcs12("guest_ds_selector");
inline constexpr Field guest_fs_selector = in_vmcs12("guest_fs_selector");
inline constexpr Field guest_gs_selector = in_vmcs12("guest_gs_selector");
inline constexpr Field guest_tr_selector = in_vmcs12("guest_tr_selector");
inline constexpr Field host_es_selector = in_vmcs12("host_es_selector");
inline constexpr Field host_cs_selector = in_vmcs12("host_cs_selector");
inline constexpr Field host_ss_selector = in_vmcs12("host_ss_selector");
inline constexpr Field host_ds_selector = in_vmcs12("host_ds_selector");
inline constexpr Field host_fs_selector = in_vmcs12("host_fs_selector");
inline constexpr Field host_gs_selector = in_vmcs12("host_gs_selector");
inline constexpr Field host_tr_selector = in_vmcs12("host_tr_selector");
} // namespace field

/// A field of the vmcs12 in a whole state.
inline std::uint64_t load(std::span<const std::byte> state, Field field) {
    std::uint64_t value = 0;
    std::memcpy(&value, state.subspan(header_size + field.offset, field.width).data(), field.width);
    return value;
}
inline void store(std::span<std::byte> state, Field field, std::uint64_t value) {
    std::memcpy(state.subspan(header_size + field.offset, field.width).data(), &value, field.width);
}

// --- control bits (Intel SDM Vol. 3, 25.6 to 25.8)

/// One of the library's, as a word of controls has it.
consteval std::uint32_t control(auto bit) {
    return static_cast<std::uint32_t>(kvm::nested::mask(bit));
}

namespace pin {
using Bit = kvm::nested::vmx::PinBased;
inline constexpr auto external_interrupts = control(Bit::external_interrupt_exiting);
inline constexpr auto nmi = control(Bit::nmi_exiting);
inline constexpr auto virtual_nmis = control(Bit::virtual_nmis);
inline constexpr auto preemption_timer = control(Bit::activate_vmx_preemption_timer);
inline constexpr auto posted_interrupts = control(Bit::process_posted_interrupts);
} // namespace pin
namespace primary {
using Bit = kvm::nested::vmx::Primary;
inline constexpr auto hlt = control(Bit::hlt_exiting);
inline constexpr auto tpr_shadow = control(Bit::use_tpr_shadow);
inline constexpr auto nmi_window = control(Bit::nmi_window_exiting);
inline constexpr auto io_bitmaps = control(Bit::use_io_bitmaps);
inline constexpr auto monitor_trap = control(Bit::monitor_trap_flag);
inline constexpr auto msr_bitmaps = control(Bit::use_msr_bitmaps);
inline constexpr auto secondary_controls = control(Bit::activate_secondary_controls);
} // namespace primary
namespace secondary {
using Bit = kvm::nested::vmx::Secondary;
inline constexpr auto apic_accesses = control(Bit::virtualize_apic_accesses);
inline constexpr auto ept = control(Bit::enable_ept);
inline constexpr auto x2apic_mode = control(Bit::virtualize_x2apic_mode);
inline constexpr auto vpid = control(Bit::enable_vpid);
inline constexpr auto unrestricted_guest = control(Bit::unrestricted_guest);
inline constexpr auto apic_registers = control(Bit::apic_register_virtualization);
inline constexpr auto virtual_interrupts = control(Bit::virtual_interrupt_delivery);
inline constexpr auto vm_functions = control(Bit::enable_vm_functions);
inline constexpr auto shadow_vmcs = control(Bit::vmcs_shadowing);
inline constexpr auto pml = control(Bit::enable_pml);
inline constexpr auto mode_based_execute = control(Bit::mode_based_execute_control_for_ept);
inline constexpr auto tsc_scaling = control(Bit::use_tsc_scaling);
} // namespace secondary
namespace exit {
using Bit = kvm::nested::vmx::ExitControl;
inline constexpr auto host_64_bit = control(Bit::host_address_space_size);
inline constexpr auto load_perf_global_ctrl = control(Bit::load_ia32_perf_global_ctrl);
inline constexpr auto ack_interrupt = control(Bit::acknowledge_interrupt_on_exit);
inline constexpr auto load_pat = control(Bit::load_ia32_pat);
inline constexpr auto save_efer = control(Bit::save_ia32_efer);
inline constexpr auto load_efer = control(Bit::load_ia32_efer);
inline constexpr auto save_preemption_timer = control(Bit::save_vmx_preemption_timer_value);
inline constexpr auto load_cet = control(Bit::load_cet_state);
} // namespace exit
namespace entry {
using Bit = kvm::nested::vmx::EntryControl;
inline constexpr auto load_debug_controls = control(Bit::load_debug_controls);
inline constexpr auto ia32e_guest = control(Bit::ia_32e_mode_guest);
inline constexpr auto load_perf_global_ctrl = control(Bit::load_ia32_perf_global_ctrl);
inline constexpr auto load_pat = control(Bit::load_ia32_pat);
inline constexpr auto load_efer = control(Bit::load_ia32_efer);
inline constexpr auto load_bndcfgs = control(Bit::load_ia32_bndcfgs);
inline constexpr auto load_cet = control(Bit::load_cet_state);
} // namespace entry

// --- capabilities

namespace msr {
inline constexpr std::uint32_t feature_control = 0x3a, basic = 0x480, misc = 0x485, cr0_fixed0 = 0x486,
                               cr4_fixed0 = 0x488, cr4_fixed1 = 0x489, vmcs_enum = 0x48a, secondary = 0x48b,
                               ept_vpid = 0x48c, pin = 0x48d, primary = 0x48e, exit = 0x48f, entry = 0x490,
                               vm_functions = 0x491;
}

using lab::get_msr, lab::set_msr;

/// A control word with what is wanted, what must be set and nothing that must not (Intel SDM Vol. 3, A.2: the
/// lower half of the capability says which bits must be 1, the upper half which may be).
inline std::uint32_t adjusted(const machine::Machine& machine, std::uint32_t capability, std::uint32_t want) {
    const auto value = get_msr(machine, capability);
    if (!value)
        give_up(std::format("MSR {:#x} cannot be read", capability));
    return (want | static_cast<std::uint32_t>(*value)) & static_cast<std::uint32_t>(*value >> 32);
}

// --- an L2 made by hand

/// What built_l2() says, all in guest physical addresses. Nothing of it is read before the first KVM_RUN.
inline constexpr std::uint64_t vmxon_address = 0x1000, vmcs12_address = 0x2000, built_rip = 0x8000,
                               built_ept = 0x20000;

/// A state with L2 active, 64-bit L1 and L2, L1 using EPT, for a vCPU with this one's capabilities: what KVM
/// checks is right, and nothing more is set.
inline Bytes built_l2(const machine::Machine& machine) {
    using kvm::nested::mask, kvm::nested::Cr0, kvm::nested::Cr4, kvm::nested::Efer,
        kvm::nested::vmx::AccessRight;
    constexpr auto cr0 = mask(Cr0::pe, Cr0::et, Cr0::ne, Cr0::pg), cr4 = mask(Cr4::pae, Cr4::vmxe),
                   efer = mask(Efer::lme, Efer::lma);
    constexpr std::uint64_t code_type = 0xb, data_type = 0x3, busy_tss_type = 0xb;
    constexpr auto code_rights =
                       code_type | mask(AccessRight::s, AccessRight::p, AccessRight::l, AccessRight::g),
                   data_rights =
                       data_type | mask(AccessRight::s, AccessRight::p, AccessRight::db, AccessRight::g),
                   tr_rights = busy_tss_type | mask(AccessRight::p), unusable = mask(AccessRight::unusable);
    constexpr std::uint64_t reset_pat = 0x0007'0406'0007'0406, none = kvm::nested::uapi::no_address;
    constexpr std::uint64_t four_levels = 3u << 3, write_back = 6; // Intel SDM Vol. 3, 25.6.11
    constexpr std::uint16_t cs = 0x08, data = 0x10, tr = 0x18;
    const std::pair<Field, std::uint64_t> values[] = {
        {field::revision, kvm::nested::uapi::vmcs12_revision},
        {field::launch_state, 1},
        {field::pin_controls, adjusted(machine, msr::pin, 0)},
        {field::primary_controls,
         adjusted(machine, msr::primary, primary::hlt | primary::secondary_controls)},
        {field::secondary_controls, adjusted(machine, msr::secondary, secondary::ept)},
        {field::exit_controls,
         adjusted(machine, msr::exit, exit::host_64_bit | exit::save_efer | exit::load_efer)},
        {field::entry_controls, adjusted(machine, msr::entry, entry::ia32e_guest | entry::load_efer)},
        {field::ept_pointer, built_ept | four_levels | write_back},
        {field::vmcs_link_pointer, none},
        {field::tsc_multiplier, std::uint64_t{1} << 48},
        {field::host_cr0, cr0},
        {field::host_cr3, 0x3000},
        {field::host_cr4, cr4},
        {field::host_ia32_efer, efer},
        {field::host_ia32_pat, reset_pat},
        {field::host_rsp, 0xf000},
        {field::host_rip, 0x9000},
        {field::host_es_selector, data},
        {field::host_cs_selector, cs},
        {field::host_ss_selector, data},
        {field::host_ds_selector, data},
        {field::host_fs_selector, data},
        {field::host_gs_selector, data},
        {field::host_tr_selector, tr},
        {field::guest_cr0, cr0},
        {field::guest_cr3, 0x30000},
        {field::guest_cr4, cr4},
        {field::guest_ia32_efer, efer},
        {field::guest_ia32_pat, reset_pat},
        {field::guest_dr7, kvm::nested::bit_layout::dr7.always_ones},
        {field::guest_rflags, kvm::nested::bit_layout::rflags.always_ones},
        {field::guest_rip, built_rip},
        {field::guest_rsp, 0xe000},
        {field::guest_es_selector, data},
        {field::guest_cs_selector, cs},
        {field::guest_ss_selector, data},
        {field::guest_ds_selector, data},
        {field::guest_fs_selector, data},
        {field::guest_gs_selector, data},
        {field::guest_tr_selector, tr},
        {field::guest_es_limit, 0xffff'ffff},
        {field::guest_cs_limit, 0xffff'ffff},
        {field::guest_ss_limit, 0xffff'ffff},
        {field::guest_ds_limit, 0xffff'ffff},
        {field::guest_fs_limit, 0xffff'ffff},
        {field::guest_gs_limit, 0xffff'ffff},
        {field::guest_tr_limit, 0x67},
        {field::guest_es_ar_bytes, data_rights},
        {field::guest_cs_ar_bytes, code_rights},
        {field::guest_ss_ar_bytes, data_rights},
        {field::guest_ds_ar_bytes, data_rights},
        {field::guest_fs_ar_bytes, data_rights},
        {field::guest_gs_ar_bytes, data_rights},
        {field::guest_ldtr_ar_bytes, unusable},
        {field::guest_tr_ar_bytes, tr_rights},
    };
    Bytes state(state_size);
    lab::store<std::uint16_t>(state, flags_at, kvm::nested::uapi::state_flag::guest_mode);
    lab::store<std::uint16_t>(state, format_at, kvm::nested::uapi::state_format::vmx);
    lab::store<std::uint32_t>(state, size_at, state_size);
    lab::store<std::uint64_t>(state, vmxon_at, vmxon_address);
    lab::store<std::uint64_t>(state, vmcs12_at, vmcs12_address);
    for (const auto& [where, value] : values)
        store(state, where, value);
    return state;
}

/// In the first word of a VMCS, beside its revision (Intel SDM Vol. 3, 25.2).
inline constexpr std::uint32_t shadow_indicator = 1u << 31;

/// Where built_l2_with_shadow() has its shadow VMCS.
inline constexpr std::uint64_t shadow_address = 0x7000;

/// The same with VMCS shadowing: L1 gave L2 a VMCS of its own, which travels as a second page.
inline Bytes built_l2_with_shadow(const machine::Machine& machine) {
    auto state = built_l2(machine);
    state.resize(state_size_with_shadow);
    lab::store<std::uint32_t>(state, size_at, state_size_with_shadow);
    store(state, field::secondary_controls,
          adjusted(machine, msr::secondary, secondary::ept | secondary::shadow_vmcs));
    store(state, field::vmread_bitmap, 0xa000);
    store(state, field::vmwrite_bitmap, 0xb000);
    store(state, field::vmcs_link_pointer, shadow_address);
    lab::store<std::uint32_t>(state, shadow_at, kvm::nested::uapi::vmcs12_revision | shadow_indicator);
    return state;
}

/// KVM_SET_NESTED_STATE looks at the first word of the shadow VMCS in guest memory.
inline void place_shadow_vmcs(const machine::Machine& machine) {
    lab::store<std::uint32_t>(machine.memory(), shadow_address,
                              kvm::nested::uapi::vmcs12_revision | shadow_indicator);
}

/// Bytes of a vmcs12 that KVM fetches from L2's own VMCS only when somebody asks for them: the guest's
/// segments but for CS and SS rights, and pending debug exceptions.
struct Range {
    std::uint16_t begin, end;
};
consteval Range from_to(kvm::nested::Vmcs12Fields::Name first, kvm::nested::Vmcs12Fields::Name last) {
    return {static_cast<std::uint16_t>(first.field().offset), static_cast<std::uint16_t>(last.field().end())};
}
inline constexpr std::array fetched_late = std::to_array<Range>({
    from_to("guest_es_base", "guest_idtr_base"),
    from_to("guest_pending_dbg_exceptions", "guest_pending_dbg_exceptions"),
    from_to("guest_es_limit", "guest_es_ar_bytes"),
    from_to("guest_ds_ar_bytes", "guest_tr_ar_bytes"),
    from_to("guest_es_selector", "guest_tr_selector"),
});

/// Takes the vCPU out of nested operation as if L2 had never been active. Where L2 was forced out, KVM still
/// means to fetch L2's segments, and the next GET with a current VMCS does it, from a VMCS that is new and
/// empty by then (Linux 6.1 to 7.3). So let it do that now.
inline void clear_and_forget(const machine::Machine& machine) {
    static const State some_vmcs = [&] {
        auto bytes = built_l2(machine);
        lab::store<std::uint16_t>(bytes, flags_at, 0);
        return must(State::parse(bytes));
    }();
    must(nested(machine).clear_nested_state());
    must(nested(machine).set_nested_state(some_vmcs));
    static_cast<void>(must(nested(machine).nested_state()));
    must(nested(machine).clear_nested_state());
}

/// KVM_CAP_HYPERV_ENLIGHTENED_VMCS. Without Hyper-V in CPUID as well L1 has no use for it.
inline void enable_enlightened_vmcs(const machine::Machine& machine) {
    std::uint16_t version = 0;
    kvm_enable_cap enable = {};
    enable.cap = KVM_CAP_HYPERV_ENLIGHTENED_VMCS;
    enable.args[0] = reinterpret_cast<std::uintptr_t>(&version);
    must_ioctl(machine.vcpu_fd(), KVM_ENABLE_CAP, &enable, "KVM_CAP_HYPERV_ENLIGHTENED_VMCS");
}

/// A new machine, no guest in it, whose vCPU may use VMX.
inline machine::Machine bare_machine() {
    auto machine = must(machine::Machine::create());
    if (!set_msr(machine, msr::feature_control, 5)) // locked, VMX outside SMX
        give_up("IA32_FEATURE_CONTROL cannot be set");
    place_shadow_vmcs(machine);
    return machine;
}

} // namespace lab::vmx
