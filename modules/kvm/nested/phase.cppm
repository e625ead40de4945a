// SPDX-License-Identifier: MIT
//
// The phase of a state: which of the few situations that a vCPU can be in. Flags, addresses and size decide
// it, by two tables for each vendor that are read from top to bottom: what no vCPU can be in (with the rule
// of KVM_SET_NESTED_STATE that refuses it), and what is left.
module;
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
export module kvm.nested:phase;
import :uapi;
import :vendor;
import :bit_layout;
import :vmx_bit_layout;
import :svm_bit_layout;
import :field;
import :header;
import :vmcs12;
import :vmcb12;
import :parts;
import :error;
import :vmx_rules;

export namespace kvm::nested {

/// All phases of both vendors, for logs and switches. visit() tells the same in types.
enum class Phase : std::uint8_t {
    none,         ///< an empty NestedStateBuffer
    unrecognised, ///< the kernel's own answer, in a shape that this library does not know

    vmx_off,                ///< not in VMX operation
    vmx_vmxon_only,         ///< VMXON executed, no current VMCS
    vmx_current_vmcs,       ///< L1 runs, a VMCS is current
    vmx_l2_active,          ///< L2 runs
    vmx_smm_vmxon_only,     ///< in SMM; L1 was in VMX operation without a current VMCS
    vmx_smm_current_vmcs,   ///< in SMM; L1 ran, a VMCS was current
    vmx_smm_interrupted_l2, ///< in SMM; L2 ran when the SMI came

    /// L1 runs or nesting is unused (EFER.SVME is not in the state) and GIF is set. A vCPU in SMM that was
    /// entered from L2 looks the same.
    svm_outside_l2_gif_set,
    svm_outside_l2_gif_clear, ///< the same with GIF clear, as CLGI leaves it
    svm_l2_active,            ///< L2 runs
};

std::string_view name(Phase) noexcept;

/// Whether a shadow vmcs12 belongs to this vmcs12 while L2 is active: L1 uses VMCS shadowing, and the link
/// pointer leads somewhere.
constexpr bool links_shadow_vmcs(const Vmcs12Fields& vmcs12) noexcept {
    return has(vmcs12["cpu_based_vm_exec_control"], vmx::Primary::activate_secondary_controls)
           && has(vmcs12["secondary_vm_exec_control"], vmx::Secondary::vmcs_shadowing)
           && vmcs12["vmcs_link_pointer"] != uapi::no_address;
}

/// What decides the phase of a VMX state.
struct VmxFacts {
    static constexpr VendorId vendor = VendorId::vmx;

    std::uint16_t flags = 0;
    std::uint64_t vmxon_pa = uapi::no_address;
    std::uint64_t vmcs12_pa = uapi::no_address;
    std::uint16_t smm_flags = 0;
    std::uint32_t vmx_flags = 0;
    std::uint32_t size = 0;
    std::uint32_t revision = uapi::vmcs12_revision;         ///< the first word of the vmcs12, if there is one
    bool links_shadow = false;                              ///< links_shadow_vmcs() of it
    std::uint32_t shadow_revision = shadow_vmcs12_revision; ///< the first word of the shadow vmcs12

    constexpr bool has(std::uint16_t flag) const noexcept { return (flags & flag) != 0; }
    constexpr bool smm(std::uint16_t flag) const noexcept { return (smm_flags & flag) != 0; }
    constexpr bool vmxon() const noexcept { return vmxon_pa != uapi::no_address; }
    constexpr bool vmcs12() const noexcept { return vmcs12_pa != uapi::no_address; }
    constexpr bool payload() const noexcept { return size > uapi::header_size; }
};

/// What decides the phase of an SVM state.
struct SvmFacts {
    static constexpr VendorId vendor = VendorId::svm;

    std::uint16_t flags = 0;
    std::uint32_t size = 0;
    std::uint64_t vmcb12_pa = 0;
    bool intercepts_vmrun = true; ///< as the control area says, if there is one
    std::uint32_t asid = 1;

    constexpr bool has(std::uint16_t flag) const noexcept { return (flags & flag) != 0; }
};

/// One reason why there is no phase.
template <class Facts>
struct Refusal {
    std::string_view rule; ///< the kernel's check, as the README numbers them
    Errc cause;
    std::size_t offset; ///< of the field to look at
    bool (*applies)(const Facts&) noexcept;
};

/// One phase.
template <class Facts>
struct PhaseRow {
    Phase phase;
    bool (*applies)(const Facts&) noexcept;
};

namespace flag = uapi::state_flag;

} // namespace kvm::nested

namespace kvm::nested::detail {

consteval std::size_t in_vmcs12(std::string_view name) {
    return begin_of(Part::vmcs12) + find_vmcs12_field(name)->offset;
}
consteval std::size_t in_shadow_vmcs12(std::string_view name) {
    return begin_of(Part::shadow_vmcs12) + find_vmcs12_field(name)->offset;
}
consteval std::size_t in_vmcb12(std::string_view name) {
    return begin_of(Part::vmcb) + find_vmcb12_field(name)->offset;
}

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// VMX, in the order in which the kernel checks. Rows without a rule are states that the kernel would take
/// and that no vCPU can be in.
inline constexpr std::array vmx_refusals = std::to_array<Refusal<VmxFacts>>({
    {"X3", Errc::bad_size, header_offset("size"),
     [](const VmxFacts& f) noexcept {
         return f.size != uapi::header_size && f.size != uapi::header_size + uapi::page_size
                && f.size != Vmx::capacity;
     }},
    {"X4", Errc::unknown_flags, header_offset("flags"), [](const VmxFacts& f) noexcept { return (f.flags & ~flag::known) != 0; }},
    {"X5", Errc::run_pending_outside_l2, header_offset("flags"),
     [](const VmxFacts& f) noexcept { return f.has(flag::run_pending) && !f.has(flag::guest_mode); }},
    {"V2", Errc::smm_without_vmxon, header_offset("hdr.vmx.smm.flags"),
     [](const VmxFacts& f) noexcept { return !f.vmxon() && f.smm_flags != 0; }},
    {"V3", Errc::vmcs12_without_vmxon, header_offset("hdr.vmx.vmcs12_pa"),
     [](const VmxFacts& f) noexcept { return !f.vmxon() && f.vmcs12(); }},
    {"V4", Errc::flags_without_vmxon, header_offset("flags"),
     [](const VmxFacts& f) noexcept { return !f.vmxon() && (f.flags & ~flag::evmcs) != 0; }},
    {"V6", Errc::bad_vmxon_address, header_offset("hdr.vmx.vmxon_pa"),
     [](const VmxFacts& f) noexcept { return f.vmxon() && f.vmxon_pa % uapi::page_size != 0; }},
    {"V7", Errc::l2_active_in_smm, header_offset("hdr.vmx.smm.flags"),
     [](const VmxFacts& f) noexcept { return f.smm(uapi::smm_flag::guest_mode) && f.has(flag::guest_mode); }},
    {"V8", Errc::unknown_smm_flags, header_offset("hdr.vmx.smm.flags"),
     [](const VmxFacts& f) noexcept { return (f.smm_flags & ~uapi::smm_flag::known) != 0; }},
    {"V9", Errc::unknown_vmx_flags, header_offset("hdr.vmx.flags"),
     [](const VmxFacts& f) noexcept { return (f.vmx_flags & ~uapi::vmx_flag::known) != 0; }},
    {"V10", Errc::l2_active_in_smm, header_offset("hdr.vmx.smm.flags"),
     [](const VmxFacts& f) noexcept { return f.smm_flags != 0 && f.has(flag::guest_mode); }},
    {"V11", Errc::smm_l2_without_smm_vmxon, header_offset("hdr.vmx.smm.flags"),
     [](const VmxFacts& f) noexcept {
         return f.smm(uapi::smm_flag::guest_mode) && !f.smm(uapi::smm_flag::vmxon);
     }},
    {"V15", Errc::payload_missing, header_offset("size"),
     [](const VmxFacts& f) noexcept {
         return f.vmxon() && !f.payload() && (f.vmcs12() || f.has(flag::evmcs) || f.has(flag::guest_mode));
     }},
    {"", Errc::payload_missing, header_offset("size"),
     [](const VmxFacts& f) noexcept { return f.smm(uapi::smm_flag::guest_mode) && !f.payload(); }},
    {"V17", Errc::payload_without_vmcs12, header_offset("hdr.vmx.vmcs12_pa"),
     [](const VmxFacts& f) noexcept {
         return f.vmxon() && f.payload() && !f.vmcs12() && !f.has(flag::evmcs);
     }},
    {"V16", Errc::bad_vmcs12_address, header_offset("hdr.vmx.vmcs12_pa"),
     [](const VmxFacts& f) noexcept {
         return f.vmcs12() && (f.vmcs12_pa == f.vmxon_pa || f.vmcs12_pa % uapi::page_size != 0);
     }},
    {"V19", Errc::bad_vmcs12_revision, detail::in_vmcs12("hdr"),
     [](const VmxFacts& f) noexcept {
         return f.vmxon() && f.payload() && (f.revision & 0x7fff'ffff) != uapi::vmcs12_revision;
     }},
    {"V21", Errc::shadow_vmcs12_missing, header_offset("size"),
     [](const VmxFacts& f) noexcept {
         return f.has(flag::guest_mode) && f.links_shadow && f.size < Vmx::capacity;
     }},
    {"V23", Errc::bad_shadow_vmcs12_revision, detail::in_shadow_vmcs12("hdr"),
     [](const VmxFacts& f) noexcept {
         return f.has(flag::guest_mode) && f.links_shadow
                && f.shadow_revision != shadow_vmcs12_revision;
     }},
});

/// What is left, VMX.
inline constexpr std::array vmx_phases = std::to_array<PhaseRow<VmxFacts>>({
    {Phase::vmx_off, [](const VmxFacts& f) noexcept { return !f.vmxon(); }},
    {Phase::vmx_smm_interrupted_l2,
     [](const VmxFacts& f) noexcept { return f.smm(uapi::smm_flag::guest_mode); }},
    {Phase::vmx_smm_current_vmcs, [](const VmxFacts& f) noexcept { return f.smm_flags != 0 && f.payload(); }},
    {Phase::vmx_smm_vmxon_only, [](const VmxFacts& f) noexcept { return f.smm_flags != 0; }},
    {Phase::vmx_l2_active, [](const VmxFacts& f) noexcept { return f.has(flag::guest_mode); }},
    {Phase::vmx_current_vmcs, [](const VmxFacts& f) noexcept { return f.payload(); }},
    {Phase::vmx_vmxon_only, [](const VmxFacts&) noexcept { return true; }},
});

/// SVM, in the order in which the kernel checks.
inline constexpr std::array svm_refusals = std::to_array<Refusal<SvmFacts>>({
    {"X3", Errc::bad_size, header_offset("size"),
     [](const SvmFacts& f) noexcept { return f.size != uapi::header_size && f.size != Svm::capacity; }},
    {"X4", Errc::unknown_flags, header_offset("flags"),
     [](const SvmFacts& f) noexcept { return (f.flags & ~flag::known) != 0; }},
    {"X5", Errc::run_pending_outside_l2, header_offset("flags"),
     [](const SvmFacts& f) noexcept { return f.has(flag::run_pending) && !f.has(flag::guest_mode); }},
    {"S2", Errc::flags_of_other_vendor, header_offset("flags"),
     [](const SvmFacts& f) noexcept { return f.has(flag::evmcs) || f.has(flag::mtf_pending); }},
    {"S6", Errc::bad_vmcb12_address, header_offset("hdr.svm.vmcb_pa"),
     [](const SvmFacts& f) noexcept {
         return f.has(flag::guest_mode) && f.vmcb12_pa % uapi::page_size != 0;
     }},
    {"S7", Errc::payload_missing, header_offset("size"),
     [](const SvmFacts& f) noexcept { return f.has(flag::guest_mode) && f.size != Svm::capacity; }},
    {"S9", Errc::vmrun_not_intercepted, detail::in_vmcb12("intercepts[4]"),
     [](const SvmFacts& f) noexcept { return f.has(flag::guest_mode) && !f.intercepts_vmrun; }},
    {"S10", Errc::asid_zero, detail::in_vmcb12("asid"),
     [](const SvmFacts& f) noexcept { return f.has(flag::guest_mode) && f.asid == 0; }},
});

/// What is left, SVM.
inline constexpr std::array svm_phases = std::to_array<PhaseRow<SvmFacts>>({
    {Phase::svm_l2_active, [](const SvmFacts& f) noexcept { return f.has(flag::guest_mode); }},
    {Phase::svm_outside_l2_gif_set, [](const SvmFacts& f) noexcept { return f.has(flag::gif_set); }},
    {Phase::svm_outside_l2_gif_clear, [](const SvmFacts&) noexcept { return true; }},
});

/// The phase, or the first row that refuses.
template <class Facts, std::size_t Refusals, std::size_t Phases>
constexpr std::expected<Phase, Error> decide(const Facts& facts,
                                             const std::array<Refusal<Facts>, Refusals>& refusals,
                                             const std::array<PhaseRow<Facts>, Phases>& phases) noexcept {
    for (const auto& refusal : refusals)
        if (refusal.applies(facts))
            return std::unexpected{Error{.code = refusal.cause,
                                         .operation = Operation::parse,
                                         .detail_kind = offset_in(Facts::vendor),
                                         .detail = refusal.offset}};
    for (const auto& row : phases)
        if (row.applies(facts))
            return row.phase;
    return Phase::unrecognised;
}

constexpr std::expected<Phase, Error> phase_of(const VmxFacts& facts) noexcept {
    return decide(facts, vmx_refusals, vmx_phases);
}
constexpr std::expected<Phase, Error> phase_of(const SvmFacts& facts) noexcept {
    return decide(facts, svm_refusals, svm_phases);
}

/// @param payload what follows the header, if it is all there
constexpr VmxFacts vmx_facts(const uapi::StateHeader& header, std::span<const std::byte> payload) noexcept {
    const auto vmx = std::bit_cast<uapi::VmxHeader>(header.vendor);
    VmxFacts facts{.flags = header.flags,
                   .vmxon_pa = vmx.vmxon_pa,
                   .vmcs12_pa = vmx.vmcs12_pa,
                   .smm_flags = vmx.smm_flags,
                   .vmx_flags = vmx.flags,
                   .size = header.size};
    if (payload.size() >= uapi::page_size) {
        const Vmcs12Fields vmcs12{payload.first<uapi::page_size>()};
        facts.revision = static_cast<std::uint32_t>(vmcs12["hdr"]);
        facts.links_shadow = links_shadow_vmcs(vmcs12);
    }
    if (payload.size() >= 2 * uapi::page_size)
        facts.shadow_revision = static_cast<std::uint32_t>(
            Vmcs12Fields{payload.subspan<uapi::page_size, uapi::page_size>()}["hdr"]);
    return facts;
}

constexpr SvmFacts svm_facts(const uapi::StateHeader& header, std::span<const std::byte> payload) noexcept {
    SvmFacts facts{.flags = header.flags,
                   .size = header.size,
                   .vmcb12_pa = std::bit_cast<uapi::SvmHeader>(header.vendor).vmcb12_pa};
    if (payload.size() >= uapi::page_size) {
        const Vmcb12Fields vmcb12{payload.first<uapi::page_size>()};
        facts.intercepts_vmrun = has(vmcb12["intercepts[4]"], svm::Intercept::vmrun);
        facts.asid = static_cast<std::uint32_t>(vmcb12["asid"]);
    }
    return facts;
}

/// The phase of a state whose format says which vendor's it is.
/// @param payload what follows the header
constexpr std::expected<Phase, Error> phase_of(const uapi::StateHeader& header,
                                               std::span<const std::byte> payload) noexcept {
    if (header.format == Vmx::format)
        return phase_of(vmx_facts(header, payload));
    if (header.format == Svm::format)
        return phase_of(svm_facts(header, payload));
    return std::unexpected{Error{.code = Errc::unknown_format,
                                 .operation = Operation::parse,
                                 .detail_kind = DetailKind::vmx_offset,
                                 .detail = header_offset("format")}};
}

/// The one spelling of a header that has a phase: what the kernel does not look at is zero, and the size is
/// the one that the kernel itself would report.
///
/// | the kernel takes                                        | canonical                    |
/// |---------------------------------------------------------|------------------------------|
/// | bytes of the header that have no meaning yet            | zero                         |
/// | VMX: GIF_SET                                            | clear                        |
/// | VMX: MTF_PENDING outside L2                             | clear                        |
/// | VMX: EVMCS next to a vmcs12 address, or outside VMXON   | clear                        |
/// | VMX: a preemption timer deadline outside L2             | none                         |
/// | VMX: a deadline without its flag                        | zero                         |
/// | VMX: a payload outside VMX operation                    | size 128                     |
/// | VMX: a shadow vmcs12 outside L2, or linked by no vmcs12 | size 4224                    |
/// | SVM: vmcb12 address, gpat or a payload outside L2       | zero, size 128               |
///
/// @param payload what follows the header
///
/// What the kernel takes and parse() does not: sizes that it never reports (VMX 1126 to 4223 and beyond, SVM
/// beyond 4224), of which parse_prefix() takes the slack behind a well-formed state.
constexpr uapi::StateHeader canonical(uapi::StateHeader header, Phase phase,
                                      std::span<const std::byte> payload) noexcept {
    constexpr auto with_one_page = static_cast<std::uint32_t>(uapi::header_size + uapi::page_size);
    if (header.format == Vmx::format) {
        auto vmx = std::bit_cast<uapi::VmxHeader>(header.vendor);
        vmx.padding = 0;
        vmx.reserved = {};
        header.flags &= static_cast<std::uint16_t>(~flag::gif_set);
        if (vmx.vmcs12_pa != uapi::no_address || phase == Phase::vmx_off)
            header.flags &= static_cast<std::uint16_t>(~flag::evmcs);
        if (phase != Phase::vmx_l2_active) {
            header.flags &= static_cast<std::uint16_t>(~flag::mtf_pending);
            vmx.flags = 0;
        }
        if (header.size > with_one_page
            && (phase != Phase::vmx_l2_active
                || !links_shadow_vmcs(Vmcs12Fields{payload.first<uapi::page_size>()})))
            header.size = with_one_page;
        if ((vmx.flags & uapi::vmx_flag::preemption_timer_deadline) == 0)
            vmx.preemption_timer_deadline = 0;
        if (phase == Phase::vmx_off)
            header.size = uapi::header_size;
        header.vendor = std::bit_cast<decltype(header.vendor)>(vmx);
    } else {
        auto svm = std::bit_cast<uapi::SvmHeader>(header.vendor);
        svm.reserved = {};
        if (phase != Phase::svm_l2_active) {
            svm = {};
            header.size = uapi::header_size;
        }
        header.vendor = std::bit_cast<decltype(header.vendor)>(svm);
    }
    return header;
}

} // namespace kvm::nested
