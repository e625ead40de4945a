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
inline constexpr std::size_t vmxon_at = 8, vmcs12_at = 16, smm_flags_at = 24, vmx_flags_at = 28,
                             deadline_at = 32;
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

/// By the kernel's names, but for the five control words.
namespace field {
inline constexpr Field revision{0, 4};
inline constexpr Field abort{4, 4}, launch_state{8, 4};
inline constexpr Field io_bitmap_a{40, 8}, io_bitmap_b{48, 8}, msr_bitmap{56, 8},
    vm_exit_msr_store_addr{64, 8}, vm_exit_msr_load_addr{72, 8}, vm_entry_msr_load_addr{80, 8},
    virtual_apic_page_addr{96, 8}, apic_access_addr{104, 8}, posted_intr_desc_addr{112, 8},
    ept_pointer{120, 8}, vmcs_link_pointer{176, 8}, guest_ia32_debugctl{184, 8}, guest_ia32_pat{192, 8},
    guest_ia32_efer{200, 8}, guest_ia32_perf_global_ctrl{208, 8}, guest_pdptr0{216, 8}, guest_bndcfgs{248, 8},
    host_ia32_pat{256, 8}, host_ia32_efer{264, 8}, host_ia32_perf_global_ctrl{272, 8}, vmread_bitmap{280, 8},
    vmwrite_bitmap{288, 8}, vm_function_control{296, 8}, eptp_list_address{304, 8}, pml_address{312, 8},
    tsc_multiplier{328, 8};
inline constexpr Field guest_linear_address{416, 8}, guest_cr0{424, 8}, guest_cr3{432, 8}, guest_cr4{440, 8},
    guest_cs_base{456, 8}, guest_gdtr_base{512, 8}, guest_dr7{528, 8}, guest_rsp{536, 8}, guest_rip{544, 8},
    guest_rflags{552, 8}, guest_pending_dbg_exceptions{560, 8}, host_cr0{584, 8}, host_cr3{592, 8},
    host_cr4{600, 8}, host_fs_base{608, 8}, host_gs_base{616, 8}, host_tr_base{624, 8},
    host_gdtr_base{632, 8}, host_idtr_base{640, 8}, host_ia32_sysenter_esp{648, 8},
    host_ia32_sysenter_eip{656, 8}, host_rsp{664, 8}, host_rip{672, 8}, host_s_cet{680, 8}, host_ssp{688, 8},
    host_ssp_tbl{696, 8}, guest_s_cet{704, 8}, guest_ssp{712, 8}, guest_ssp_tbl{720, 8};
inline constexpr Field pin_controls{744, 4}, primary_controls{748, 4}, exception_bitmap{752, 4},
    cr3_target_count{764, 4}, exit_controls{768, 4}, vm_exit_msr_store_count{772, 4},
    vm_exit_msr_load_count{776, 4}, entry_controls{780, 4}, vm_entry_msr_load_count{784, 4},
    vm_entry_intr_info_field{788, 4}, vm_entry_exception_error_code{792, 4}, vm_entry_instruction_len{796, 4},
    tpr_threshold{800, 4}, secondary_controls{804, 4}, vm_exit_reason{812, 4},
    vm_exit_instruction_len{832, 4}, guest_es_limit{840, 4}, guest_cs_limit{844, 4}, guest_ss_limit{848, 4},
    guest_ds_limit{852, 4}, guest_fs_limit{856, 4}, guest_gs_limit{860, 4}, guest_ldtr_limit{864, 4},
    guest_tr_limit{868, 4}, guest_es_ar_bytes{880, 4}, guest_cs_ar_bytes{884, 4}, guest_ss_ar_bytes{888, 4},
    guest_ds_ar_bytes{892, 4}, guest_fs_ar_bytes{896, 4}, guest_gs_ar_bytes{900, 4},
    guest_ldtr_ar_bytes{904, 4}, guest_tr_ar_bytes{908, 4}, guest_interruptibility_info{912, 4},
    guest_activity_state{916, 4}, vmx_preemption_timer_value{928, 4};
inline constexpr Field virtual_processor_id{960, 2}, posted_intr_nv{962, 2}, guest_intr_status{980, 2},
    guest_es_selector{964, 2}, guest_cs_selector{966, 2}, guest_ss_selector{968, 2},
    guest_ds_selector{970, 2}, guest_fs_selector{972, 2}, guest_gs_selector{974, 2},
    guest_tr_selector{978, 2}, host_es_selector{982, 2}, host_cs_selector{984, 2}, host_ss_selector{986, 2},
    host_ds_selector{988, 2}, host_fs_selector{990, 2}, host_gs_selector{992, 2}, host_tr_selector{994, 2};
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

namespace pin {
inline constexpr std::uint32_t external_interrupts = 1u << 0, nmi = 1u << 3, virtual_nmis = 1u << 5,
                               preemption_timer = 1u << 6, posted_interrupts = 1u << 7;
}
namespace primary {
inline constexpr std::uint32_t hlt = 1u << 7, tpr_shadow = 1u << 21, nmi_window = 1u << 22,
                               io_bitmaps = 1u << 25, monitor_trap = 1u << 27, msr_bitmaps = 1u << 28,
                               secondary_controls = 1u << 31;
}
namespace secondary {
inline constexpr std::uint32_t apic_accesses = 1u << 0, ept = 1u << 1, x2apic_mode = 1u << 4, vpid = 1u << 5,
                               unrestricted_guest = 1u << 7, apic_registers = 1u << 8,
                               virtual_interrupts = 1u << 9, vm_functions = 1u << 13, shadow_vmcs = 1u << 14,
                               pml = 1u << 17, mode_based_execute = 1u << 22, tsc_scaling = 1u << 25;
}
namespace exit {
inline constexpr std::uint32_t host_64_bit = 1u << 9, load_perf_global_ctrl = 1u << 12,
                               ack_interrupt = 1u << 15, load_pat = 1u << 19, save_efer = 1u << 20,
                               load_efer = 1u << 21, save_preemption_timer = 1u << 22, load_cet = 1u << 28;
}
namespace entry {
inline constexpr std::uint32_t load_debug_controls = 1u << 2, ia32e_guest = 1u << 9,
                               load_perf_global_ctrl = 1u << 13, load_pat = 1u << 14, load_efer = 1u << 15,
                               load_bndcfgs = 1u << 16, load_cet = 1u << 20;
}

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
    constexpr std::uint64_t cr0_pe_et_ne_pg = 0x8000'0031, cr4_pae_vmxe = 0x2020, efer_lme_lma = 0x500,
                            reset_pat = 0x0007'0406'0007'0406, data_rights = 0xc093, none = ~0ull;
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
        {field::ept_pointer, built_ept | 3u << 3 | 6u}, // four levels, write-back
        {field::vmcs_link_pointer, none},
        {field::tsc_multiplier, std::uint64_t{1} << 48},
        {field::host_cr0, cr0_pe_et_ne_pg},
        {field::host_cr3, 0x3000},
        {field::host_cr4, cr4_pae_vmxe},
        {field::host_ia32_efer, efer_lme_lma},
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
        {field::guest_cr0, cr0_pe_et_ne_pg},
        {field::guest_cr3, 0x30000},
        {field::guest_cr4, cr4_pae_vmxe},
        {field::guest_ia32_efer, efer_lme_lma},
        {field::guest_ia32_pat, reset_pat},
        {field::guest_dr7, 0x400},
        {field::guest_rflags, 2},
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
        {field::guest_cs_ar_bytes, 0xa09b},
        {field::guest_ss_ar_bytes, data_rights},
        {field::guest_ds_ar_bytes, data_rights},
        {field::guest_fs_ar_bytes, data_rights},
        {field::guest_gs_ar_bytes, data_rights},
        {field::guest_ldtr_ar_bytes, 0x10000}, // unusable
        {field::guest_tr_ar_bytes, 0x8b},
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

/// Where built_l2_with_shadow() has its shadow VMCS.
inline constexpr std::uint64_t shadow_address = 0x7000;

/// The same with VMCS shadowing: L1 gave L2 a VMCS of its own, which travels as a second page.
inline Bytes built_l2_with_shadow(const machine::Machine& machine) {
    constexpr std::uint32_t shadow_indicator = 1u << 31;
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
                              kvm::nested::uapi::vmcs12_revision | 1u << 31);
}

/// Bytes of a vmcs12 that KVM fetches from L2's own VMCS only when somebody asks for them: the guest's
/// segments but for CS and SS rights, and pending debug exceptions.
struct Range {
    std::uint16_t begin, end;
};
inline constexpr std::array fetched_late = std::to_array<Range>({
    {448, 528}, // bases, GDTR, IDTR
    {560, 568}, // pending debug exceptions
    {840, 884}, // limits, ES rights
    {892, 912}, // DS to TR rights
    {964, 980}, // selectors
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
