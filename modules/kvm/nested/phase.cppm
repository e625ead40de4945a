// SPDX-License-Identifier: MIT
//
// The phase of a state: which of the few situations that a vCPU can be in. Two things decide it, both read
// from top to bottom: the rules of KVM_SET_NESTED_STATE that it breaks on any vCPU, and a table of what is
// left.
module;
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <type_traits>
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
import :destination;
import :rule;
import :vmx_rules;
import :svm_rules;

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

namespace flag = uapi::state_flag;

/// One phase.
template <class Case>
struct PhaseRow {
    Phase phase;
    bool (*applies)(const Case&) noexcept;
};

/// What is left where no rule refuses, VMX.
inline constexpr std::array vmx_phases = std::to_array<PhaseRow<VmxCase>>({
    {Phase::vmx_off, [](const VmxCase& c) noexcept { return !c.vmxon(); }},
    {Phase::vmx_smm_interrupted_l2,
     [](const VmxCase& c) noexcept { return c.smm_has(uapi::smm_flag::guest_mode); }},
    {Phase::vmx_smm_current_vmcs,
     [](const VmxCase& c) noexcept { return c.vmx().smm_flags != 0 && c.reaches(Reached::vmcs12); }},
    {Phase::vmx_smm_vmxon_only, [](const VmxCase& c) noexcept { return c.vmx().smm_flags != 0; }},
    {Phase::vmx_l2_active, [](const VmxCase& c) noexcept { return c.has(flag::guest_mode); }},
    {Phase::vmx_current_vmcs, [](const VmxCase& c) noexcept { return c.reaches(Reached::vmcs12); }},
    {Phase::vmx_vmxon_only, [](const VmxCase&) noexcept { return true; }},
});

/// What is left, SVM.
inline constexpr std::array svm_phases = std::to_array<PhaseRow<SvmCase>>({
    {Phase::svm_l2_active, [](const SvmCase& c) noexcept { return c.has(flag::guest_mode); }},
    {Phase::svm_outside_l2_gif_set, [](const SvmCase& c) noexcept { return c.has(flag::gif_set); }},
    {Phase::svm_outside_l2_gif_clear, [](const SvmCase&) noexcept { return true; }},
});

} // namespace kvm::nested

namespace kvm::nested::detail {

/// Any vCPU at all: what is violated here, is so on each.
inline constexpr Destination anywhere{};

/// The rules that parse() asks: those with a cause.
template <const auto& rules>
inline constexpr auto refusals = [] {
    constexpr auto of_parse = [](const auto& rule) { return rule.cause.has_value(); };
    std::array<typename std::remove_cvref_t<decltype(rules)>::value_type,
               static_cast<std::size_t>(std::ranges::count_if(rules, of_parse))>
        found{};
    std::ranges::copy_if(rules, found.begin(), of_parse);
    return found;
}();

/// The phase, or the first rule that refuses.
template <const auto& rules, class Case, std::size_t Phases>
constexpr std::expected<Phase, Error> decide(const Case& c,
                                             const std::array<PhaseRow<Case>, Phases>& phases) noexcept {
    for (const auto& rule : refusals<rules>) {
        if (!c.reaches(rule.reached))
            continue;
        if (const auto judgement = rule.judge(c); judgement.outcome == Judgement::Outcome::violated)
            return std::unexpected{Error{.code = *rule.cause,
                                         .operation = Operation::parse,
                                         .detail_kind = offset_in(Case::vendor),
                                         .detail = judgement.offset}};
    }
    for (const auto& row : phases)
        if (row.applies(c))
            return row.phase;
    return Phase::unrecognised;
}

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// The phase of a state whose format says which vendor's it is.
/// @param payload what follows the header
constexpr std::expected<Phase, Error> phase_of(const uapi::StateHeader& header,
                                               std::span<const std::byte> payload) noexcept {
    if (header.format == Vmx::format)
        return detail::decide<vmx_rules>(VmxCase{header, payload, detail::anywhere}, vmx_phases);
    if (header.format == Svm::format)
        return detail::decide<svm_rules>(SvmCase{header, payload, detail::anywhere}, svm_phases);
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
