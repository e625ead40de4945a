// SPDX-License-Identifier: MIT
//
// The rules of KVM_SET_NESTED_STATE on VMX, in the order in which KVM asks them (Linux 6.1 to 7.3), and
// behind them what it takes and leaves out without a word. Sections are those of the Intel SDM, Volume 3.
module;
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:vmx_rules;
import :uapi;
import :vendor;
import :bit_layout;
import :vmx_bit_layout;
import :capabilities;
import :field;
import :header;
import :vmcs12;
import :parts;
import :error;
import :destination;
import :rule;
import :state_case;

export namespace kvm::nested {

/// The first word of a shadow vmcs12.
inline constexpr std::uint32_t shadow_vmcs12_revision =
    uapi::vmcs12_revision | static_cast<std::uint32_t>(mask(vmx::VmcsRevision::shadow_vmcs));

/// Bytes of a vmcs12 that KVM_SET_NESTED_STATE reads; a state of fewer has none.
inline constexpr std::size_t size_with_vmcs12 = uapi::header_size + uapi::vmcs12_size;
inline constexpr std::size_t size_with_shadow_vmcs12 = size_with_vmcs12 + uapi::page_size;

/// A state and a destination, as the rules of VMX look at them.
class VmxCase : public StateCase {
  public:
    using StateCase::has, StateCase::violated;
    static constexpr VendorId vendor = VendorId::vmx;
    using Name = Vmcs12Fields::Name;

    constexpr VmxCase(const uapi::StateHeader& header, std::span<const std::byte> payload,
                      const Destination& to) noexcept
        : StateCase{header, payload, to}, vmx_{std::bit_cast<uapi::VmxHeader>(header.vendor)} {
        if (!vmxon())
            return;
        reach(Reached::vmx_operation);
        if (header.size < size_with_vmcs12 || given() < size_with_vmcs12)
            return;
        reach(Reached::vmcs12);
        if (!has(uapi::state_flag::guest_mode))
            return;
        reach(Reached::l2_active);
        if (links_shadow())
            reach(Reached::shadow_vmcs12);
    }

    constexpr const uapi::VmxHeader& vmx() const noexcept { return vmx_; }
    constexpr bool vmxon() const noexcept { return vmx_.vmxon_pa != uapi::no_address; }
    constexpr bool vmcs12() const noexcept { return vmx_.vmcs12_pa != uapi::no_address; }
    constexpr bool smm_has(std::uint16_t flag) const noexcept { return (vmx_.smm_flags & flag) != 0; }

    /// A field of the vmcs12. Only where Reached::vmcs12 is.
    constexpr std::uint64_t operator[](Name name) const noexcept { return read(payload(), name.field()); }
    constexpr bool pin(vmx::PinBased bit) const noexcept {
        return nested::has((*this)["pin_based_vm_exec_control"], bit);
    }
    constexpr bool primary(vmx::Primary bit) const noexcept {
        return nested::has((*this)["cpu_based_vm_exec_control"], bit);
    }
    constexpr bool secondary(vmx::Secondary bit) const noexcept {
        return primary(vmx::Primary::activate_secondary_controls)
               && nested::has((*this)["secondary_vm_exec_control"], bit);
    }
    constexpr bool exit(vmx::ExitControl bit) const noexcept {
        return nested::has((*this)["vm_exit_controls"], bit);
    }
    constexpr bool entry(vmx::EntryControl bit) const noexcept {
        return nested::has((*this)["vm_entry_controls"], bit);
    }
    constexpr bool links_shadow() const noexcept {
        return secondary(vmx::Secondary::vmcs_shadowing) && (*this)["vmcs_link_pointer"] != uapi::no_address;
    }

    // --- judgements about a field

    static constexpr std::uint16_t offset(Name name) noexcept {
        return static_cast<std::uint16_t>(uapi::header_size + name.field().offset);
    }
    static constexpr Judgement violated(bool violation, Name name, std::uint64_t bits = 0) noexcept {
        return StateCase::violated(violation, offset(name), bits);
    }
    constexpr Judgement page(Name name) const noexcept {
        return address((*this)[name], 4096, 1, offset(name));
    }

    /// The controls are as a capability MSR allows.
    template <vmx::Controls E>
    constexpr Judgement controls(Name name) const noexcept {
        const auto allowed = to().vmx.template allowed<E>();
        if (!allowed)
            return unknown(Needs::capabilities, offset(name));
        const auto refused = allowed->refused(static_cast<std::uint32_t>((*this)[name]));
        return violated(refused != 0, name, refused);
    }
    /// No controls but `allowed`.
    constexpr Judgement only(Name name, std::uint64_t allowed) const noexcept {
        const auto refused = (*this)[name] & ~allowed;
        return violated(refused != 0, name, refused);
    }
    /// A part of a capability MSR.
    constexpr std::optional<std::uint64_t> capability(std::uint32_t msr, unsigned first,
                                                      unsigned width) const noexcept {
        const auto value = to().vmx[msr];
        return value ? std::optional{*value >> first & ((std::uint64_t{1} << width) - 1)} : std::nullopt;
    }
    constexpr Known has_capability(std::uint32_t msr, unsigned bit) const noexcept {
        const auto value = capability(msr, bit, 1);
        return value ? known(std::optional{*value != 0}) : Known::unknown;
    }
    /// A control register has no bits but those that `fixed1` allows, and all of `fixed0`.
    constexpr Judgement fixed(Name name, std::uint32_t fixed0_msr, std::uint32_t fixed1_msr,
                              std::uint64_t dropped_from_fixed0 = 0) const noexcept {
        const auto value = (*this)[name];
        const auto fixed0 = to().vmx[fixed0_msr], fixed1 = to().vmx[fixed1_msr];
        const auto missing = fixed0 ? *fixed0 & ~dropped_from_fixed0 & ~value : 0;
        const auto surplus = fixed1 ? value & ~*fixed1 : 0;
        if ((missing | surplus) != 0)
            return violated(true, name, missing | surplus);
        return fixed0 && fixed1 ? holds : unknown(Needs::capabilities, offset(name));
    }
    /// An MSR area.
    constexpr Judgement msr_area(Name count, Name area) const noexcept {
        const auto entries = (*this)[count];
        if (entries == 0)
            return holds;
        constexpr std::uint64_t size_of_entry = 16, entries_per_unit = 512;
        const auto units = capability(vmx::msr::misc, 25, 3);
        const auto too_many = !units ? unknown(Needs::capabilities, offset(count))
                                     : violated(entries > entries_per_unit * (*units + 1), count);
        return all(address((*this)[area], size_of_entry, size_of_entry * entries, offset(area)),
                   if_known(from_7.in(to().kernel), Needs::kernel, too_many));
    }
    /// An MSR's address, or a segment's base. 6.1 takes the width of linear addresses of the vCPU's current
    /// CR4, later kernels that of the host.
    constexpr Judgement canonical_base(Name name, std::uint64_t value) const noexcept {
        if (is_canonical(value, narrow_addresses)) // on every host, and so are nearly all
            return holds;
        const auto by_vcpu =
            !to().cr4 ? Known::unknown : known(std::optional{nested::has(*to().cr4, Cr4::la57)});
        const auto by_host = to().host[Feature::la57];
        const auto new_rule = from_6_12.in(to().kernel);
        const auto old_answer = canonical(value, by_vcpu, Needs::registers, offset(name));
        const auto new_answer = canonical(value, by_host, Needs::host_cpuid, offset(name));
        return either(new_rule, new_answer, old_answer, offset(name));
    }
    constexpr Judgement canonical_base(Name name) const noexcept {
        return canonical_base(name, (*this)[name]);
    }
    /// RIP after a VM exit: by the vCPU's CR4 up to 6.12, by L1's from 7.x on.
    constexpr Judgement canonical_host_rip() const noexcept {
        const Name name{"host_rip"};
        if (is_canonical((*this)[name], narrow_addresses))
            return holds;
        const auto by_vcpu =
            !to().cr4 ? Known::unknown : known(std::optional{nested::has(*to().cr4, Cr4::la57)});
        const auto by_l1 = known(std::optional{nested::has((*this)["host_cr4"], Cr4::la57)});
        return either(from_7.in(to().kernel), canonical((*this)[name], by_l1, Needs::bytes, offset(name)),
                      canonical((*this)[name], by_vcpu, Needs::registers, offset(name)), offset(name));
    }
    constexpr Judgement cr4(Name name) const noexcept {
        return all(fixed(name, vmx::msr::cr4_fixed0, vmx::msr::cr4_fixed1),
                   reserved_cr4((*this)[name], offset(name)));
    }
    constexpr Judgement valid_efer(Name name) const noexcept { return efer((*this)[name], offset(name)); }
    constexpr Judgement cr3(Name name) const noexcept { return legal_cr3((*this)[name], offset(name)); }
    constexpr Judgement pat(Name name) const noexcept { return violated(!is_valid_pat((*this)[name]), name); }
    constexpr Judgement perf_global_ctrl(Name name) const noexcept {
        const auto value = (*this)[name];
        if (value == 0)
            return holds;
        if (!to().perf_global_ctrl)
            return unknown(Needs::performance_counters, offset(name));
        const auto reserved = value & ~*to().perf_global_ctrl;
        return violated(reserved != 0, name, reserved);
    }
    /// IA32_S_CET, SSP and the interrupt-SSP table, as both halves of CET have them.
    constexpr Judgement cet(Name s_cet, Name ssp, Name table) const noexcept {
        using enum SCet;
        const auto value = (*this)[s_cet];
        constexpr auto shadow_stack_bits = mask(sh_stk_en, wr_shstk_en);
        constexpr std::uint64_t reserved = 0x3c0; // bits 9:6
        constexpr std::uint64_t branch_tracking_bits = ~(shadow_stack_bits | reserved);
        const auto without = [&](Feature feature, std::uint64_t bits) {
            const auto found = value & bits;
            if (found == 0)
                return holds;
            return if_known(negation(to().guest[feature]), Needs::guest_cpuid, violated(true, s_cet, found));
        };
        // Suppress and wait-for-ENDBRANCH exclude each other.
        const bool both = (value >> 10 & 3) == 3;
        return all(violated((value & reserved) != 0, s_cet, value & reserved),
                   without(Feature::shstk, shadow_stack_bits), without(Feature::ibt, branch_tracking_bits),
                   violated((value >> 12) % 4 != 0, s_cet, 0x3000), violated(both, s_cet, 0xc00),
                   violated((*this)[ssp] % 4 != 0, ssp), canonical_base(table));
    }
    /// What an enlightened VMCS cannot have.
    constexpr Judgement fits_enlightened_vmcs() const noexcept;
    /// The memory at the link pointer.
    constexpr Judgement link() const noexcept;
    constexpr Judgement ept_pointer() const noexcept;
    constexpr Judgement debugctl() const noexcept;

    /// The word in an event's low 12 bits.
    constexpr std::uint64_t event() const noexcept { return (*this)["vm_entry_intr_info_field"]; }
    constexpr bool event_valid() const noexcept { return nested::has(event(), vmx::EntryEvent::valid); }
    constexpr unsigned event_type() const noexcept { return event() >> 8 & 7; }
    constexpr unsigned event_vector() const noexcept { return event() & 0xff; }

  private:
    uapi::VmxHeader vmx_;
};

constexpr Judgement VmxCase::fits_enlightened_vmcs() const noexcept {
    const auto enlightened = both(known(to().enlightened_vmcs), to().guest[Feature::hyperv]);
    if (enlightened == Known::no)
        return holds;
    using enum vmx::Secondary;
    using vmx::EntryControl, vmx::ExitControl, vmx::PinBased, vmx::Primary;
    // 6.1 has a list of what is not supported, and refuses the high half of the VM functions; later kernels
    // have a list of what is supported.
    const auto without = [this](Name name, std::uint64_t bits) {
        return violated(((*this)[name] & bits) != 0, name, (*this)[name] & bits);
    };
    const auto old_answer = all(
        without("pin_based_vm_exec_control",
                mask(PinBased::process_posted_interrupts, PinBased::activate_vmx_preemption_timer)),
        without("secondary_vm_exec_control",
                mask(virtual_interrupt_delivery, virtualize_apic_accesses, apic_register_virtualization,
                     enable_pml, enable_vm_functions, vmcs_shadowing, use_tsc_scaling, pause_loop_exiting)),
        without("vm_exit_controls", mask(ExitControl::save_vmx_preemption_timer_value)),
        without("vm_function_control", mask(vmx::VmFunction::eptp_switching) | ~std::uint64_t{0xffff'ffff}));
    constexpr std::uint64_t pin_default1 = 0x16, primary_default1 = 0x0401'e172, exit_default1 = 0x0003'6dff,
                            entry_default1 = 0x11ff;
    constexpr auto secondary_up_to_6_12 = mask(
        virtualize_x2apic_mode, wbinvd_exiting, enable_vpid, enable_ept, unrestricted_guest,
        descriptor_table_exiting, enable_rdtscp, enable_invpcid, enable_xsaves_xrstors, rdseed_exiting,
        rdrand_exiting, use_tsc_scaling, enable_user_wait_and_pause, intel_pt_uses_guest_physical_addresses,
        conceal_vmx_from_pt, vmm_bus_lock_detection, instruction_timeout, enable_encls_exiting);
    const auto is_7 = from_7.in(to().kernel);
    constexpr auto mbec = mask(mode_based_execute_control_for_ept);
    const auto secondary =
        all(only("secondary_vm_exec_control", secondary_up_to_6_12 | mbec),
            if_known(negation(is_7), Needs::kernel, only("secondary_vm_exec_control", secondary_up_to_6_12)));
    const auto new_answer = all(
        only("pin_based_vm_exec_control",
             pin_default1
                 | mask(PinBased::external_interrupt_exiting, PinBased::nmi_exiting, PinBased::virtual_nmis)),
        only("cpu_based_vm_exec_control",
             primary_default1
                 | mask(Primary::hlt_exiting, Primary::cr3_load_exiting, Primary::cr3_store_exiting,
                        Primary::unconditional_io_exiting, Primary::mov_dr_exiting,
                        Primary::use_tsc_offsetting, Primary::mwait_exiting, Primary::monitor_exiting,
                        Primary::invlpg_exiting, Primary::rdpmc_exiting, Primary::interrupt_window_exiting,
                        Primary::cr8_load_exiting, Primary::cr8_store_exiting, Primary::rdtsc_exiting,
                        Primary::use_tpr_shadow, Primary::use_io_bitmaps, Primary::monitor_trap_flag,
                        Primary::use_msr_bitmaps, Primary::nmi_window_exiting, Primary::pause_exiting,
                        Primary::activate_secondary_controls)),
        secondary,
        only("vm_exit_controls",
             exit_default1
                 | mask(ExitControl::save_debug_controls, ExitControl::acknowledge_interrupt_on_exit,
                        ExitControl::host_address_space_size, ExitControl::load_ia32_perf_global_ctrl,
                        ExitControl::save_ia32_pat, ExitControl::load_ia32_pat, ExitControl::save_ia32_efer,
                        ExitControl::load_ia32_efer, ExitControl::clear_ia32_bndcfgs,
                        ExitControl::conceal_vmx_from_pt, ExitControl::clear_ia32_rtit_ctl)),
        only("vm_entry_controls",
             entry_default1
                 | mask(EntryControl::load_debug_controls, EntryControl::ia_32e_mode_guest,
                        EntryControl::load_ia32_perf_global_ctrl, EntryControl::load_ia32_pat,
                        EntryControl::load_ia32_efer, EntryControl::load_ia32_bndcfgs,
                        EntryControl::conceal_vmx_from_pt, EntryControl::load_ia32_rtit_ctl)),
        only("vm_function_control", 0));
    const auto answer =
        either(from_6_12.in(to().kernel), new_answer, old_answer, offset("secondary_vm_exec_control"));
    return if_known(enlightened, to().enlightened_vmcs ? Needs::guest_cpuid : Needs::enlightened_vmcs,
                    answer);
}

constexpr Judgement VmxCase::link() const noexcept {
    const Name name{"vmcs_link_pointer"};
    const auto address = (*this)[name];
    if (address == uapi::no_address)
        return holds;
    if (const auto legal = page(name); legal.outcome != Judgement::Outcome::holds)
        return legal;
    if (to().memory.read == nullptr)
        return unknown(Needs::guest_memory, offset(name));
    std::array<std::byte, sizeof(std::uint32_t)> word{};
    if (!to().memory.read(to().memory.context, address, word))
        return violated(true, name);
    const auto expected = uapi::vmcs12_revision
                          | (secondary(vmx::Secondary::vmcs_shadowing)
                                 ? static_cast<std::uint32_t>(mask(vmx::VmcsRevision::shadow_vmcs))
                                 : 0);
    return violated(std::bit_cast<std::uint32_t>(word) != expected, name);
}

constexpr Judgement VmxCase::ept_pointer() const noexcept {
    const Name name{"ept_pointer"};
    const auto value = (*this)[name];
    const auto needs = [&](unsigned capability_bit, std::uint64_t bits) {
        const auto has = has_capability(vmx::msr::ept_vpid_cap, capability_bit);
        if (has == Known::yes)
            return holds;
        return has == Known::no ? violated(true, name, bits) : unknown(Needs::capabilities, offset(name));
    };
    constexpr unsigned memory_type = 7, walk = 7 << 3, reserved = 0x1f << 7; // fields of the pointer
    const auto type = value & memory_type, levels = value >> 3 & 7;
    return all(type == 0   ? needs(8, memory_type)
               : type == 6 ? needs(14, memory_type)
                           : violated(true, name, memory_type),
               levels == 3   ? needs(6, walk)
               : levels == 4 ? needs(7, walk)
                             : violated(true, name, walk),
               violated((value & reserved) != 0, name, value & reserved), address(value, 1, 1, offset(name)),
               nested::has(value, vmx::EptPointer::accessed_and_dirty_flags)
                   ? needs(21, mask(vmx::EptPointer::accessed_and_dirty_flags))
                   : holds);
}

constexpr Judgement VmxCase::debugctl() const noexcept {
    using enum DebugCtl;
    const Name name{"guest_ia32_debugctl"};
    const auto value = (*this)[name];
    const auto unless = [&](std::uint64_t bits, Known supported, Needs missing) {
        if ((value & bits) == 0 || supported == Known::yes)
            return holds;
        return supported == Known::no ? violated(true, name, value & bits) : unknown(missing, offset(name));
    };
    constexpr auto tolerated = mask(lbr, btf), lbr_format = mask(freeze_lbrs_on_pmi),
                   conditional = mask(bld, rtm, freeze_while_smm);
    const auto others = value & ~(tolerated | lbr_format | conditional);
    const auto freeze_allowed =
        both(from_6_12.in(to().kernel),
             !to().disabled_quirks
                 ? Known::unknown
                 : known(std::optional{(*to().disabled_quirks & quirk::vmcs12_allow_freeze_in_smm) == 0}));
    return all(violated((*this)["guest_dr7"] >> 32 != 0, "guest_dr7"), violated(others != 0, name, others),
               unless(mask(bld),
                      both(to().host[Feature::bus_lock_detect], to().guest[Feature::bus_lock_detect]),
                      Needs::guest_cpuid),
               unless(mask(rtm), both(to().host[Feature::rtm], to().guest[Feature::rtm]), Needs::guest_cpuid),
               // Needs a vCPU with LBRs, which is not visible from outside.
               unless(lbr_format, Known::unknown, Needs::performance_counters),
               unless(mask(freeze_while_smm), freeze_allowed, to().kernel ? Needs::quirks : Needs::kernel));
}

} // namespace kvm::nested

namespace kvm::nested::detail {

namespace flag = uapi::state_flag;
using vmx::EntryControl, vmx::ExitControl, vmx::PinBased, vmx::Primary, vmx::Secondary;

constexpr std::uint16_t segment_rpl_and_table = 7;

inline constexpr auto vmx_rules_after_the_common_ones = std::to_array<Rule<VmxCase>>({
    {.id = "V1",
     .holds = "the format is 0, VMX",
     .fields = "format",
     .needs = Needs::vendor,
     .cause = Errc::unknown_format,
     .advice = "a state goes only to a host of its own vendor",
     .is_last = true,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.header().format != Vmx::format, header_offset("format"));
         }},
    {.id = "V2",
     .holds = "outside VMX operation the SMM flags are 0",
     .fields = "hdr.vmx.vmxon_pa, hdr.vmx.smm.flags",
     .cause = Errc::smm_without_vmxon,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(!c.vmxon() && c.vmx().smm_flags != 0, header_offset("hdr.vmx.smm.flags"));
         }},
    {.id = "V3",
     .holds = "outside VMX operation there is no vmcs12 address",
     .fields = "hdr.vmx.vmxon_pa, hdr.vmx.vmcs12_pa",
     .cause = Errc::vmcs12_without_vmxon,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(!c.vmxon() && c.vmcs12(), header_offset("hdr.vmx.vmcs12_pa"));
         }},
    {.id = "V4",
     .holds = "outside VMX operation no flag but EVMCS is set",
     .fields = "hdr.vmx.vmxon_pa, flags",
     .cause = Errc::flags_without_vmxon,
     .judge =
         [](const VmxCase& c) noexcept {
             const auto surplus = c.header().flags & ~flag::evmcs;
             return c.violated(!c.vmxon() && surplus != 0, header_offset("flags"),
                               static_cast<std::uint64_t>(surplus));
         }},
    {.id = "V5",
     .holds = "the guest's CPUID has VMX",
     .fields = "hdr.vmx.vmxon_pa",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmx_operation,
     .manual = "24.6",
     .advice = "KVM_SET_CPUID2 with VMX in leaf 1 comes before; on a host without nesting KVM takes it away",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.needs_feature(Feature::vmx, header_offset("hdr.vmx.vmxon_pa"));
         }},
    {.id = "V6",
     .holds = "the VMXON region is page-aligned and below 2^MAXPHYADDR",
     .fields = "hdr.vmx.vmxon_pa",
     .needs = Needs::maxphyaddr,
     .reached = Reached::vmx_operation,
     .manual = "25.11.5",
     .cause = Errc::bad_vmxon_address,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.address(c.vmx().vmxon_pa, uapi::page_size, 1, header_offset("hdr.vmx.vmxon_pa"));
         }},
    {.id = "V7",
     .holds = "L2 is either active or was interrupted by an SMI, not both",
     .fields = "hdr.vmx.smm.flags, flags",
     .cause = Errc::l2_active_in_smm,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.smm_has(uapi::smm_flag::guest_mode) && c.has(flag::guest_mode),
                               header_offset("hdr.vmx.smm.flags"));
         }},
    {.id = "V8",
     .holds = "no unknown SMM flag is set",
     .fields = "hdr.vmx.smm.flags",
     .cause = Errc::unknown_smm_flags,
     .judge =
         [](const VmxCase& c) noexcept {
             const auto unknown = c.vmx().smm_flags & ~uapi::smm_flag::known;
             return c.violated(unknown != 0, header_offset("hdr.vmx.smm.flags"),
                               static_cast<std::uint64_t>(unknown));
         }},
    {.id = "V9",
     .holds = "no unknown flag of the VMX header is set",
     .fields = "hdr.vmx.flags",
     .cause = Errc::unknown_vmx_flags,
     .judge =
         [](const VmxCase& c) noexcept {
             const auto unknown = c.vmx().flags & ~uapi::vmx_flag::known;
             return c.violated(unknown != 0, header_offset("hdr.vmx.flags"), unknown);
         }},
    {.id = "V10",
     .holds = "in SMM neither L2 is active nor an entry pending, outside SMM the SMM flags are 0",
     .fields = "hdr.vmx.smm.flags, flags",
     .needs = Needs::smm,
     .cause = Errc::l2_active_in_smm,
     .advice = "KVM_SET_VCPU_EVENTS, which brings the vCPU into SMM, comes before",
     .judge =
         [](const VmxCase& c) noexcept {
             const bool of_smm = c.vmx().smm_flags != 0,
                        of_l2 = (c.header().flags & (flag::guest_mode | flag::run_pending)) != 0;
             const auto violated =
                 c.violated(true, of_smm ? header_offset("hdr.vmx.smm.flags") : header_offset("flags"));
             if (!of_smm && !of_l2)
                 return holds;
             if (of_smm && of_l2)
                 return violated;
             const auto in_smm = known(c.to().smm);
             return if_known(of_l2 ? in_smm : negation(in_smm), Needs::smm, violated);
         }},
    {.id = "V11",
     .holds = "an L2 that an SMI interrupted has VMX operation to go back to",
     .fields = "hdr.vmx.smm.flags",
     .cause = Errc::smm_l2_without_smm_vmxon,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.smm_has(uapi::smm_flag::guest_mode) && !c.smm_has(uapi::smm_flag::vmxon),
                               header_offset("hdr.vmx.smm.flags"));
         }},
    {.id = "V12",
     .holds = "EVMCS needs VMX in CPUID and KVM_CAP_HYPERV_ENLIGHTENED_VMCS on the vCPU",
     .fields = "flags",
     .needs = Needs::guest_cpuid | Needs::enlightened_vmcs,
     .advice = "KVM_ENABLE_CAP of KVM_CAP_HYPERV_ENLIGHTENED_VMCS on the vCPU comes before",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.has(flag::evmcs))
                 return holds;
             const auto violated = c.violated(true, header_offset("flags"), flag::evmcs);
             return all(
                 c.needs_feature(Feature::vmx, header_offset("flags")),
                 if_known(negation(known(c.to().enlightened_vmcs)), Needs::enlightened_vmcs, violated));
         }},
    // Nothing tells beforehand; behind a failure errno does.
    {.id = "V14",
     .holds = "the kernel has memory for what L2 needs",
     .needs = Needs::kernel_memory,
     .reached = Reached::vmx_operation,
     .answer = Answer::enomem,
     .keeps = Keeps::not_in_vmx_operation,
     .judge = [](const VmxCase&) noexcept { return holds; }},
    {.id = "V15",
     .holds = "a state without a vmcs12 has neither an address of one nor L2 active nor EVMCS",
     .fields = "size",
     .reached = Reached::vmx_operation,
     .keeps = Keeps::vmxon,
     .cause = Errc::payload_missing,
     .advice = "the state was cut off",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.header().size < size_with_vmcs12
                                   && (c.vmcs12() || c.has(flag::evmcs) || c.has(flag::guest_mode)),
                               header_offset("size"));
         }},
    {.id = "P2",
     .holds = "an L2 that an SMI interrupted has its vmcs12",
     .fields = "hdr.vmx.smm.flags, size",
     .reached = Reached::vmx_operation,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .cause = Errc::payload_missing,
     .advice = "KVM takes it, and RSM has no L2 to go back to",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.smm_has(uapi::smm_flag::guest_mode) && c.header().size < size_with_vmcs12,
                               header_offset("size"));
         }},
    {.id = "V16",
     .holds = "the vmcs12 address is page-aligned, below 2^MAXPHYADDR and not the VMXON region",
     .fields = "hdr.vmx.vmcs12_pa, hdr.vmx.vmxon_pa",
     .needs = Needs::maxphyaddr,
     .reached = Reached::vmcs12,
     .keeps = Keeps::vmxon,
     .manual = "25.11.1",
     .cause = Errc::bad_vmcs12_address,
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.vmcs12())
                 return holds;
             constexpr auto offset = header_offset("hdr.vmx.vmcs12_pa");
             return all(c.violated(c.vmx().vmcs12_pa == c.vmx().vmxon_pa, offset),
                        c.address(c.vmx().vmcs12_pa, uapi::page_size, 1, offset));
         }},
    {.id = "V17",
     .holds = "a vmcs12 without an address is an enlightened one",
     .fields = "hdr.vmx.vmcs12_pa, flags",
     .reached = Reached::vmcs12,
     .keeps = Keeps::vmxon,
     .cause = Errc::payload_without_vmcs12,
     .advice = "VMX operation without a current VMCS is a state of 128 bytes",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(!c.vmcs12() && !c.has(flag::evmcs), header_offset("hdr.vmx.vmcs12_pa"));
         }},
    {.id = "V18",
     .holds = "the vmcs12 can be read",
     .fields = "size",
     .needs = Needs::caller_memory,
     .reached = Reached::vmx_operation,
     .answer = Answer::efault,
     .keeps = Keeps::current_vmcs,
     .advice = "the buffer ends before the vmcs12 does",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.header().size >= size_with_vmcs12 && c.given() < size_with_vmcs12
                        ? c.unknown(Needs::caller_memory, header_offset("size"))
                        : holds;
         }},
    {.id = "V19",
     .holds = "the vmcs12 has KVM's revision, 0x11e57ed0",
     .fields = "hdr",
     .reached = Reached::vmcs12,
     .keeps = Keeps::current_vmcs,
     .manual = "25.2",
     .cause = Errc::bad_vmcs12_revision,
     .advice = "the state is not of a Linux KVM",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto revision = c["hdr"] & ~mask(vmx::VmcsRevision::shadow_vmcs);
             return c.violated(revision != uapi::vmcs12_revision, "hdr");
         }},
    {.id = "V21",
     .holds = "where L2 uses a shadow VMCS, the state has it",
     .fields = "size",
     .reached = Reached::shadow_vmcs12,
     .keeps = Keeps::current_vmcs,
     .manual = "25.10",
     .cause = Errc::shadow_vmcs12_missing,
     .advice = "the state was cut off",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.header().size < size_with_shadow_vmcs12, header_offset("size"));
         }},
    {.id = "V22",
     .holds = "the shadow vmcs12 can be read",
     .fields = "size",
     .needs = Needs::caller_memory,
     .reached = Reached::shadow_vmcs12,
     .answer = Answer::efault,
     .keeps = Keeps::current_vmcs,
     .advice = "the buffer ends before the shadow vmcs12 does",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.header().size >= size_with_shadow_vmcs12 && c.given() < size_with_shadow_vmcs12
                        ? c.unknown(Needs::caller_memory, header_offset("size"))
                        : holds;
         }},
    {.id = "V23",
     .holds = "the shadow vmcs12 has KVM's revision and is marked as one",
     .fields = "hdr",
     .reached = Reached::shadow_vmcs12,
     .keeps = Keeps::current_vmcs,
     .manual = "25.2",
     .cause = Errc::bad_shadow_vmcs12_revision,
     .judge =
         [](const VmxCase& c) noexcept {
             constexpr auto begin = begin_of(Part::shadow_vmcs12);
             if (c.header().size < size_with_shadow_vmcs12 || c.given() < size_with_shadow_vmcs12)
                 return holds;
             const auto word =
                 read(c.payload().subspan(begin - uapi::header_size), Vmcs12Fields::Name{"hdr"}.field());
             return c.violated(word != shadow_vmcs12_revision, begin);
         }},
    // --- execution controls
    {.id = "C1",
     .holds = "the pin-based controls are as the capability MSR allows",
     .fields = "pin_based_vm_exec_control",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge = [](const VmxCase& c) noexcept { return c.controls<PinBased>("pin_based_vm_exec_control"); }},
    {.id = "C2",
     .holds = "the primary controls are as the capability MSR allows",
     .fields = "cpu_based_vm_exec_control",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge = [](const VmxCase& c) noexcept { return c.controls<Primary>("cpu_based_vm_exec_control"); }},
    {.id = "C3",
     .holds = "the secondary controls, where they are active, are as the capability MSR allows",
     .fields = "secondary_vm_exec_control",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.primary(Primary::activate_secondary_controls)
                        ? c.controls<Secondary>("secondary_vm_exec_control")
                        : holds;
         }},
    {.id = "C4",
     .holds = "the CR3-target count is not above the limit in IA32_VMX_MISC",
     .fields = "cr3_target_count",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto count = c["cr3_target_count"];
             const auto limit = c.capability(vmx::msr::misc, 16, 9);
             if (limit)
                 return c.violated(count > *limit, "cr3_target_count");
             return count == 0 ? holds : c.unknown(Needs::capabilities, c.offset("cr3_target_count"));
         }},
    {.id = "C5",
     .holds = "the I/O bitmaps are page-aligned and below 2^MAXPHYADDR",
     .fields = "io_bitmap_a, io_bitmap_b",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.primary(Primary::use_io_bitmaps) ? all(c.page("io_bitmap_a"), c.page("io_bitmap_b"))
                                                       : holds;
         }},
    {.id = "C6",
     .holds = "the MSR bitmap is page-aligned and below 2^MAXPHYADDR",
     .fields = "msr_bitmap",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.primary(Primary::use_msr_bitmaps) ? c.page("msr_bitmap") : holds;
         }},
    {.id = "C7",
     .holds = "the virtual-APIC page is page-aligned and below 2^MAXPHYADDR",
     .fields = "virtual_apic_page_addr",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.primary(Primary::use_tpr_shadow) ? c.page("virtual_apic_page_addr") : holds;
         }},
    {.id = "C8",
     .holds = "with a TPR shadow and no virtual-interrupt delivery the TPR threshold is below 16",
     .fields = "tpr_threshold",
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.primary(Primary::use_tpr_shadow)
                                   && !c.secondary(Secondary::virtual_interrupt_delivery)
                                   && c["tpr_threshold"] >> 4 != 0,
                               "tpr_threshold");
         }},
    {.id = "C9",
     .holds = "the APIC-access page is page-aligned and below 2^MAXPHYADDR",
     .fields = "apic_access_addr",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.secondary(Secondary::virtualize_apic_accesses) ? c.page("apic_access_addr") : holds;
         }},
    {.id = "C10",
     .holds = "the controls of APIC virtualization fit each other",
     .fields = "secondary_vm_exec_control, pin_based_vm_exec_control, vm_exit_controls, posted_intr_nv, "
               "cpu_based_vm_exec_control",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             using enum Secondary;
             const bool x2apic = c.secondary(virtualize_x2apic_mode),
                        delivery = c.secondary(virtual_interrupt_delivery),
                        posted = c.pin(PinBased::process_posted_interrupts);
             if (!x2apic && !delivery && !posted && !c.secondary(apic_register_virtualization))
                 return holds;
             return all(c.violated(x2apic && c.secondary(virtualize_apic_accesses),
                                   "secondary_vm_exec_control",
                                   mask(virtualize_x2apic_mode, virtualize_apic_accesses)),
                        c.violated(delivery && !c.pin(PinBased::external_interrupt_exiting),
                                   "pin_based_vm_exec_control", mask(PinBased::external_interrupt_exiting)),
                        c.violated(posted && !delivery, "secondary_vm_exec_control",
                                   mask(virtual_interrupt_delivery)),
                        c.violated(posted && !c.exit(ExitControl::acknowledge_interrupt_on_exit),
                                   "vm_exit_controls", mask(ExitControl::acknowledge_interrupt_on_exit)),
                        c.violated(posted && (c["posted_intr_nv"] & 0xff00) != 0, "posted_intr_nv", 0xff00),
                        c.violated(!c.primary(Primary::use_tpr_shadow), "cpu_based_vm_exec_control",
                                   mask(Primary::use_tpr_shadow)));
         }},
    {.id = "C11",
     .holds = "the posted-interrupt descriptor is 64-byte aligned and below 2^MAXPHYADDR",
     .fields = "posted_intr_desc_addr",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.pin(PinBased::process_posted_interrupts)
                        ? c.address(c["posted_intr_desc_addr"], 64, 1, c.offset("posted_intr_desc_addr"))
                        : holds;
         }},
    {.id = "C12",
     .holds = "virtual NMIs need NMI exiting, and NMI-window exiting needs virtual NMIs",
     .fields = "pin_based_vm_exec_control, cpu_based_vm_exec_control",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             const bool virtual_nmis = c.pin(PinBased::virtual_nmis);
             return all(c.violated(virtual_nmis && !c.pin(PinBased::nmi_exiting), "pin_based_vm_exec_control",
                                   mask(PinBased::nmi_exiting)),
                        c.violated(!virtual_nmis && c.primary(Primary::nmi_window_exiting),
                                   "cpu_based_vm_exec_control", mask(Primary::nmi_window_exiting)));
         }},
    {.id = "C13",
     .holds = "PML needs EPT and a page-aligned log below 2^MAXPHYADDR",
     .fields = "secondary_vm_exec_control, pml_address",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.secondary(Secondary::enable_pml))
                 return holds;
             return all(c.violated(!c.secondary(Secondary::enable_ept), "secondary_vm_exec_control",
                                   mask(Secondary::enable_ept)),
                        c.page("pml_address"));
         }},
    {.id = "C14",
     .holds = "an unrestricted guest needs EPT",
     .fields = "secondary_vm_exec_control",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.secondary(Secondary::unrestricted_guest)
                                   && !c.secondary(Secondary::enable_ept),
                               "secondary_vm_exec_control", mask(Secondary::enable_ept));
         }},
    {.id = "C15",
     .holds = "mode-based execute control needs EPT",
     .fields = "secondary_vm_exec_control",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.secondary(Secondary::mode_based_execute_control_for_ept)
                                   && !c.secondary(Secondary::enable_ept),
                               "secondary_vm_exec_control", mask(Secondary::enable_ept));
         }},
    {.id = "C16",
     .holds = "the bitmaps of VMCS shadowing are page-aligned and below 2^MAXPHYADDR",
     .fields = "vmread_bitmap, vmwrite_bitmap",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.secondary(Secondary::vmcs_shadowing)
                        ? all(c.page("vmread_bitmap"), c.page("vmwrite_bitmap"))
                        : holds;
         }},
    {.id = "C17",
     .holds = "with VPIDs L2's is not 0",
     .fields = "virtual_processor_id",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.secondary(Secondary::enable_vpid) && c["virtual_processor_id"] == 0,
                               "virtual_processor_id");
         }},
    {.id = "C18",
     .holds = "saving the VMX-preemption timer needs the timer",
     .fields = "vm_exit_controls",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.exit(ExitControl::save_vmx_preemption_timer_value)
                                   && !c.pin(PinBased::activate_vmx_preemption_timer),
                               "vm_exit_controls", mask(ExitControl::save_vmx_preemption_timer_value));
         }},
    {.id = "C19",
     .holds = "the EPT pointer has a memory type, a walk length and flags that IA32_VMX_EPT_VPID_CAP offers, "
              "and lies below 2^MAXPHYADDR",
     .fields = "ept_pointer",
     .needs = Needs::capabilities | Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.secondary(Secondary::enable_ept) ? c.ept_pointer() : holds;
         }},
    {.id = "C20",
     .holds = "VM functions are those that IA32_VMX_VMFUNC offers; EPTP switching needs EPT and a list",
     .fields = "vm_function_control, secondary_vm_exec_control, eptp_list_address",
     .needs = Needs::capabilities | Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.secondary(Secondary::enable_vm_functions))
                 return holds;
             const auto functions = c["vm_function_control"];
             const auto offered = c.to().vmx[vmx::msr::vm_functions];
             const auto surplus = offered ? functions & ~*offered : 0;
             return all(c.violated(surplus != 0, "vm_function_control", surplus),
                        offered || functions == 0
                            ? holds
                            : c.unknown(Needs::capabilities, c.offset("vm_function_control")),
                        !has(functions, vmx::VmFunction::eptp_switching)
                            ? holds
                            : all(c.violated(!c.secondary(Secondary::enable_ept), "secondary_vm_exec_control",
                                             mask(Secondary::enable_ept)),
                                  c.page("eptp_list_address")));
         }},
    {.id = "C21",
     .holds = "with TSC scaling the multiplier is not 0",
     .fields = "tsc_multiplier",
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.secondary(Secondary::use_tsc_scaling) && c["tsc_multiplier"] == 0,
                               "tsc_multiplier");
         }},
    // --- exit and entry controls
    {.id = "C22",
     .holds = "the VM-exit controls are as the capability MSR allows",
     .fields = "vm_exit_controls",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.2",
     .judge = [](const VmxCase& c) noexcept { return c.controls<ExitControl>("vm_exit_controls"); }},
    {.id = "C23",
     .holds = "the MSR areas of VM exits are aligned, below 2^MAXPHYADDR and, from 7.x on, not too long",
     .fields =
         "vm_exit_msr_load_count, vm_exit_msr_load_addr, vm_exit_msr_store_count, vm_exit_msr_store_addr",
     .needs = Needs::maxphyaddr | Needs::capabilities | Needs::kernel,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return all(c.msr_area("vm_exit_msr_load_count", "vm_exit_msr_load_addr"),
                        c.msr_area("vm_exit_msr_store_count", "vm_exit_msr_store_addr"));
         }},
    {.id = "C24",
     .holds = "the VM-entry controls are as the capability MSR allows",
     .fields = "vm_entry_controls",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge = [](const VmxCase& c) noexcept { return c.controls<EntryControl>("vm_entry_controls"); }},
    {.id = "C25",
     .holds = "the event to inject has a type that there is; type 7 needs the monitor trap flag",
     .fields = "vm_entry_intr_info_field",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             constexpr unsigned reserved = 1, other = 7;
             constexpr std::uint64_t type = 0x700;
             if (!c.event_valid())
                 return holds;
             if (c.event_type() == reserved)
                 return c.violated(true, "vm_entry_intr_info_field", type);
             if (c.event_type() != other)
                 return holds;
             const auto primary = c.to().vmx.allowed<Primary>();
             return primary ? c.violated(!has(primary->may_be_1, Primary::monitor_trap_flag),
                                         "vm_entry_intr_info_field", type)
                            : c.unknown(Needs::capabilities, c.offset("vm_entry_intr_info_field"));
         }},
    {.id = "C26",
     .holds = "the event's vector fits its type: NMI 2, exception up to 31, other 0",
     .fields = "vm_entry_intr_info_field",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto type = c.event_type(), vector = c.event_vector();
             return c.violated(c.event_valid()
                                   && ((type == 2 && vector != 2) || (type == 3 && vector > 31)
                                       || (type == 7 && vector != 0)),
                               "vm_entry_intr_info_field", 0xff);
         }},
    {.id = "C27",
     .holds = "an error code is delivered exactly with the exceptions that have one, in protected mode",
     .fields = "vm_entry_intr_info_field, guest_cr0",
     .needs = Needs::capabilities | Needs::kernel,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.event_valid())
                 return holds;
             const bool error_code = has(c.event(), vmx::EntryEvent::deliver_error_code);
             const bool protected_mode =
                 !c.secondary(Secondary::unrestricted_guest) || has(c["guest_cr0"], Cr0::pe);
             const auto violated = [&](bool violation) {
                 return c.violated(violation, "vm_entry_intr_info_field",
                                   mask(vmx::EntryEvent::deliver_error_code));
             };
             if (!protected_mode || c.event_type() != 3)
                 return violated(error_code);
             constexpr std::uint32_t with_error_code = 0x2'7d00; // 8, 10 to 14, 17; KVM leaves #CP out
             const auto vector = c.event_vector();
             const auto exact = violated(error_code != (vector < 32 && (with_error_code >> vector & 1) != 0));
             // 7.x asks only where IA32_VMX_BASIC has bit 56 clear.
             const auto is_7 = from_7.in(c.to().kernel), relaxed = c.has_capability(vmx::msr::basic, 56);
             return if_known(negation(both(is_7, relaxed)),
                             is_7 == Known::unknown ? Needs::kernel : Needs::capabilities, exact);
         }},
    {.id = "C28",
     .holds = "bits 31:16 of the error code are 0",
     .fields = "vm_entry_exception_error_code",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.event_valid() && has(c.event(), vmx::EntryEvent::deliver_error_code)
                                   && c["vm_entry_exception_error_code"] >> 16 != 0,
                               "vm_entry_exception_error_code", 0xffff'0000);
         }},
    {.id = "C29",
     .holds = "bits 30:12 of the event are 0",
     .fields = "vm_entry_intr_info_field",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             constexpr std::uint64_t reserved = 0x7fff'f000;
             return c.violated(c.event_valid() && (c.event() & reserved) != 0, "vm_entry_intr_info_field",
                               c.event() & reserved);
         }},
    {.id = "C30",
     .holds = "an event of software has an instruction length up to 15; 0 needs IA32_VMX_MISC bit 30",
     .fields = "vm_entry_instruction_len",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto type = c.event_type();
             if (!c.event_valid() || type < 4 || type > 6)
                 return holds;
             const auto length = c["vm_entry_instruction_len"];
             if (length != 0)
                 return c.violated(length > 15, "vm_entry_instruction_len");
             return if_known(negation(c.has_capability(vmx::msr::misc, 30)), Needs::capabilities,
                             c.violated(true, "vm_entry_instruction_len"));
         }},
    {.id = "C31",
     .holds = "the MSR area of VM entries is aligned, below 2^MAXPHYADDR and, from 7.x on, not too long",
     .fields = "vm_entry_msr_load_count, vm_entry_msr_load_addr",
     .needs = Needs::maxphyaddr | Needs::capabilities | Needs::kernel,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.1.3",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.msr_area("vm_entry_msr_load_count", "vm_entry_msr_load_addr");
         }},
    {.id = "C32",
     .holds = "where enlightened VMCSs are enabled, no control is set that they do not have",
     .fields =
         "pin_based_vm_exec_control, cpu_based_vm_exec_control, secondary_vm_exec_control, vm_exit_controls, "
         "vm_entry_controls, vm_function_control",
     .needs = Needs::enlightened_vmcs | Needs::guest_cpuid | Needs::kernel,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .judge = [](const VmxCase& c) noexcept { return c.fits_enlightened_vmcs(); }},
    // --- host state
    {.id = "H1",
     .holds = "L1's CR0 has the bits that VMX fixes",
     .fields = "host_cr0",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.fixed("host_cr0", vmx::msr::cr0_fixed0, vmx::msr::cr0_fixed1);
         }},
    {.id = "H2",
     .holds = "L1's CR4 has the bits that VMX fixes and none that the vCPU lacks",
     .fields = "host_cr4",
     .needs = Needs::capabilities | Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge = [](const VmxCase& c) noexcept { return c.cr4("host_cr4"); }},
    {.id = "H3",
     .holds = "L1's CR3 lies below 2^MAXPHYADDR",
     .fields = "host_cr3",
     .needs = Needs::maxphyaddr | Needs::guest_cpuid,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge = [](const VmxCase& c) noexcept { return c.cr3("host_cr3"); }},
    {.id = "H4",
     .holds = "L1's CR4.CET needs its CR0.WP",
     .fields = "host_cr0, host_cr4",
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(has(c["host_cr4"], Cr4::cet) && !has(c["host_cr0"], Cr0::wp), "host_cr0",
                               mask(Cr0::wp));
         }},
    {.id = "H5",
     .holds = "L1's SYSENTER addresses are canonical",
     .fields = "host_ia32_sysenter_esp, host_ia32_sysenter_eip",
     .needs = Needs::host_cpuid | Needs::kernel | Needs::registers,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return all(c.canonical_base("host_ia32_sysenter_esp"),
                        c.canonical_base("host_ia32_sysenter_eip"));
         }},
    {.id = "H6",
     .holds = "L1's PAT, where it is loaded, has memory types in each byte",
     .fields = "host_ia32_pat",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.exit(ExitControl::load_ia32_pat) ? c.pat("host_ia32_pat") : holds;
         }},
    {.id = "H7",
     .holds = "L1's IA32_PERF_GLOBAL_CTRL, where it is loaded, has no counter that the vCPU lacks",
     .fields = "host_ia32_perf_global_ctrl",
     .needs = Needs::performance_counters,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.exit(ExitControl::load_ia32_perf_global_ctrl)
                        ? c.perf_global_ctrl("host_ia32_perf_global_ctrl")
                        : holds;
         }},
    {.id = "H8",
     .holds =
         "L1's mode fits: 64-bit with CR4.PAE; 32-bit without a 64-bit L2, CR4.PCIDE and a RIP above 4 GB",
     .fields = "host_cr4, vm_entry_controls, host_rip",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.4",
     .judge =
         [](const VmxCase& c) noexcept {
             if (c.exit(ExitControl::host_address_space_size))
                 return c.violated(!has(c["host_cr4"], Cr4::pae), "host_cr4", mask(Cr4::pae));
             return all(c.violated(c.entry(EntryControl::ia_32e_mode_guest), "vm_entry_controls",
                                   mask(EntryControl::ia_32e_mode_guest)),
                        c.violated(has(c["host_cr4"], Cr4::pcide), "host_cr4", mask(Cr4::pcide)),
                        c.violated(c["host_rip"] >> 32 != 0, "host_rip"));
         }},
    {.id = "H9",
     .holds = "L1's selectors have RPL 0 and the GDT; CS and TR are not null, nor is SS in 32-bit mode",
     .fields = "host_cs_selector, host_ss_selector, host_ds_selector, host_es_selector, host_fs_selector, "
               "host_gs_selector, host_tr_selector",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.3",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto low_bits = [&](VmxCase::Name name) {
                 return c.violated((c[name] & segment_rpl_and_table) != 0, name, segment_rpl_and_table);
             };
             return all(
                 low_bits("host_cs_selector"), low_bits("host_ss_selector"), low_bits("host_ds_selector"),
                 low_bits("host_es_selector"), low_bits("host_fs_selector"), low_bits("host_gs_selector"),
                 low_bits("host_tr_selector"), c.violated(c["host_cs_selector"] == 0, "host_cs_selector"),
                 c.violated(c["host_tr_selector"] == 0, "host_tr_selector"),
                 c.violated(c["host_ss_selector"] == 0 && !c.exit(ExitControl::host_address_space_size),
                            "host_ss_selector"));
         }},
    {.id = "H10",
     .holds = "L1's bases and RIP are canonical",
     .fields = "host_fs_base, host_gs_base, host_gdtr_base, host_idtr_base, host_tr_base, host_rip",
     .needs = Needs::host_cpuid | Needs::kernel | Needs::registers,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.3",
     .judge =
         [](const VmxCase& c) noexcept {
             return all(c.canonical_base("host_fs_base"), c.canonical_base("host_gs_base"),
                        c.canonical_base("host_gdtr_base"), c.canonical_base("host_idtr_base"),
                        c.canonical_base("host_tr_base"), c.canonical_host_rip());
         }},
    {.id = "H11",
     .holds = "L1's EFER, where it is loaded, is valid, and LMA and LME are the host address-space size",
     .fields = "host_ia32_efer",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.exit(ExitControl::load_ia32_efer))
                 return holds;
             const auto efer = c["host_ia32_efer"];
             const bool wide = c.exit(ExitControl::host_address_space_size);
             return all(c.valid_efer("host_ia32_efer"),
                        c.violated(has(efer, Efer::lma) != wide, "host_ia32_efer", mask(Efer::lma)),
                        c.violated(has(efer, Efer::lme) != wide, "host_ia32_efer", mask(Efer::lme)));
         }},
    {.id = "H12",
     .holds = "L1's CET state, where it is loaded, is valid",
     .fields = "host_s_cet, host_ssp, host_ssp_tbl",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.2.2",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.exit(ExitControl::load_cet_state))
                 return holds;
             const auto common = c.cet("host_s_cet", "host_ssp", "host_ssp_tbl");
             if (c.exit(ExitControl::host_address_space_size))
                 return all(common, c.canonical_base("host_s_cet"), c.canonical_base("host_ssp"));
             return all(common, c.violated(c["host_s_cet"] >> 32 != 0, "host_s_cet"),
                        c.violated(c["host_ssp"] >> 32 != 0, "host_ssp"));
         }},
    // --- guest state
    {.id = "G1",
     .holds = "L2's CR0 has the bits that VMX fixes, but for PE and PG of an unrestricted guest",
     .fields = "guest_cr0",
     .needs = Needs::capabilities,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             const bool unrestricted = c.secondary(Secondary::unrestricted_guest);
             return c.fixed("guest_cr0", vmx::msr::cr0_fixed0, vmx::msr::cr0_fixed1,
                            unrestricted ? mask(Cr0::pe, Cr0::pg) : 0);
         }},
    {.id = "G2",
     .holds = "L2's CR4 has the bits that VMX fixes and none that the vCPU lacks",
     .fields = "guest_cr4",
     .needs = Needs::capabilities | Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge = [](const VmxCase& c) noexcept { return c.cr4("guest_cr4"); }},
    {.id = "G3",
     .holds = "L2's CR4.CET needs its CR0.WP",
     .fields = "guest_cr0, guest_cr4",
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(has(c["guest_cr4"], Cr4::cet) && !has(c["guest_cr0"], Cr0::wp), "guest_cr0",
                               mask(Cr0::wp));
         }},
    {.id = "G4",
     .holds = "L2's debug controls, where they are loaded, have no bit that the vCPU lacks",
     .fields = "guest_dr7, guest_ia32_debugctl",
     .needs =
         Needs::guest_cpuid | Needs::host_cpuid | Needs::kernel | Needs::quirks | Needs::performance_counters,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.entry(EntryControl::load_debug_controls) ? c.debugctl() : holds;
         }},
    {.id = "G5",
     .holds = "L2's PAT, where it is loaded, has memory types in each byte",
     .fields = "guest_ia32_pat",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.entry(EntryControl::load_ia32_pat) ? c.pat("guest_ia32_pat") : holds;
         }},
    {.id = "G6",
     .holds = "the VMCS link pointer is all ones, or a VMCS of KVM's is in memory there",
     .fields = "vmcs_link_pointer",
     .needs = Needs::guest_memory | Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.5",
     .advice = "guest memory has to be in place before KVM_SET_NESTED_STATE",
     .judge = [](const VmxCase& c) noexcept { return c.link(); }},
    {.id = "G7",
     .holds = "L2's IA32_PERF_GLOBAL_CTRL, where it is loaded, has no counter that the vCPU lacks",
     .fields = "guest_ia32_perf_global_ctrl",
     .needs = Needs::performance_counters,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.entry(EntryControl::load_ia32_perf_global_ctrl)
                        ? c.perf_global_ctrl("guest_ia32_perf_global_ctrl")
                        : holds;
         }},
    {.id = "G8",
     .holds = "L2's CR0.PG needs CR0.PE",
     .fields = "guest_cr0",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(has(c["guest_cr0"], Cr0::pg) && !has(c["guest_cr0"], Cr0::pe), "guest_cr0",
                               mask(Cr0::pe));
         }},
    {.id = "G9",
     .holds = "a 64-bit L2 has CR4.PAE and CR0.PG",
     .fields = "guest_cr4, guest_cr0",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.entry(EntryControl::ia_32e_mode_guest))
                 return holds;
             return all(c.violated(!has(c["guest_cr4"], Cr4::pae), "guest_cr4", mask(Cr4::pae)),
                        c.violated(!has(c["guest_cr0"], Cr0::pg), "guest_cr0", mask(Cr0::pg)));
         }},
    {.id = "G10",
     .holds = "L2's EFER, where it is loaded by a pending entry, is valid, and LMA is the IA-32e mode",
     .fields = "guest_ia32_efer",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.has(flag::run_pending) || !c.entry(EntryControl::load_ia32_efer))
                 return holds;
             const auto efer = c["guest_ia32_efer"];
             const bool wide = c.entry(EntryControl::ia_32e_mode_guest);
             return all(c.valid_efer("guest_ia32_efer"),
                        c.violated(has(efer, Efer::lma) != wide, "guest_ia32_efer", mask(Efer::lma)),
                        c.violated(has(c["guest_cr0"], Cr0::pg) && has(efer, Efer::lme) != wide,
                                   "guest_ia32_efer", mask(Efer::lme)));
         }},
    {.id = "G11",
     .holds = "L2's IA32_BNDCFGS, where it is loaded, has a canonical base and bits 11:2 clear",
     .fields = "guest_bndcfgs",
     .needs = Needs::host_cpuid | Needs::kernel | Needs::registers,
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.entry(EntryControl::load_ia32_bndcfgs))
                 return holds;
             constexpr std::uint64_t reserved = 0xffc, low = 0xfff;
             const auto value = c["guest_bndcfgs"];
             return all(c.canonical_base("guest_bndcfgs", value & ~low),
                        c.violated((value & reserved) != 0, "guest_bndcfgs", value & reserved));
         }},
    {.id = "G12",
     .holds = "L2's CET state, where it is loaded, is valid",
     .fields = "guest_s_cet, guest_ssp, guest_ssp_tbl",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::l2_active,
     .applies = from_7,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.1",
     .judge =
         [](const VmxCase& c) noexcept {
             if (!c.entry(EntryControl::load_cet_state))
                 return holds;
             const auto ssp = c["guest_ssp"];
             return all(
                 c.cet("guest_s_cet", "guest_ssp", "guest_ssp_tbl"),
                 c.canonical(ssp, c.to().host[Feature::la57], Needs::host_cpuid, c.offset("guest_ssp"), 1));
         }},
    {.id = "G13",
     .holds = "L2 is active, halted or waits for a SIPI",
     .fields = "guest_activity_state",
     .reached = Reached::l2_active,
     .keeps = Keeps::current_vmcs,
     .manual = "27.3.1.5",
     .judge =
         [](const VmxCase& c) noexcept {
             const auto state = c["guest_activity_state"];
             return c.violated(state != 0 && state != 1 && state != 3, "guest_activity_state");
         }},
    // --- entering L2
    {.id = "E1",
     .holds = "L2's CR3 lies below 2^MAXPHYADDR",
     .fields = "guest_cr3",
     .needs = Needs::maxphyaddr | Needs::guest_cpuid,
     .reached = Reached::l2_active,
     .answer = Answer::positive,
     .keeps = Keeps::overwritten,
     .manual = "27.3.1.1",
     .advice =
         "restore all registers before anything else: the vCPU has L2's control registers and is not in L2",
     .judge = [](const VmxCase& c) noexcept { return c.cr3("guest_cr3"); }},
    // --- taken, and not all of it used
    {.id = "M1",
     .holds = "GIF_SET is not set: VMX has no GIF",
     .fields = "flags",
     .reached = Reached::vmx_operation,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.has(flag::gif_set), header_offset("flags"), flag::gif_set);
         }},
    {.id = "M2",
     .holds = "a pending monitor trap flag is L2's",
     .fields = "flags",
     .reached = Reached::vmx_operation,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "without L2 KVM forgets it",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.has(flag::mtf_pending) && !c.has(flag::guest_mode), header_offset("flags"),
                               flag::mtf_pending);
         }},
    {.id = "M3",
     .holds = "EVMCS comes with a guest whose CPUID has Hyper-V",
     .fields = "flags",
     .needs = Needs::guest_cpuid,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "the enlightened VMCS is never mapped, and nothing says so: give the guest Hyper-V's CPUID",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.has(flag::evmcs) ? if_known(negation(c.to().guest[Feature::hyperv]), Needs::guest_cpuid,
                                                  c.violated(true, header_offset("flags"), flag::evmcs))
                                       : holds;
         }},
    {.id = "M4",
     .holds = "an enlightened VMCS has no address in the state",
     .fields = "flags, hdr.vmx.vmcs12_pa",
     .reached = Reached::vmcs12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "the address wins, and EVMCS has no effect",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(c.has(flag::evmcs) && c.vmcs12(), header_offset("hdr.vmx.vmcs12_pa"));
         }},
    {.id = "M5",
     .holds = "a state outside VMX operation has no vmcs12",
     .fields = "size, hdr.vmx.vmxon_pa",
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "KVM does not look at it",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated(!c.vmxon() && c.header().size > uapi::header_size, header_offset("size"));
         }},
    {.id = "M6",
     .holds = "a deadline of the VMX-preemption timer has its flag",
     .fields = "hdr.vmx.flags, hdr.vmx.preemption_timer_deadline",
     .reached = Reached::vmx_operation,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "without the flag KVM does not look at it",
     .judge =
         [](const VmxCase& c) noexcept {
             return c.violated((c.vmx().flags & uapi::vmx_flag::known) == 0
                                   && c.vmx().preemption_timer_deadline != 0,
                               header_offset("hdr.vmx.preemption_timer_deadline"));
         }},
});

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All rules of VMX in the kernel's order.
inline constexpr auto vmx_rules =
    detail::joined(detail::common_rules<VmxCase>, detail::vmx_rules_after_the_common_ones);

} // namespace kvm::nested
