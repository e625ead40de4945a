// SPDX-License-Identifier: MIT
//
// What a rule of KVM_SET_NESTED_STATE is, as data: what must hold, how it is decided, and what the kernel
// does where it does not hold. The rules themselves are in :vmx_rules and :svm_rules.
module;
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:rule;
import :text;
import :error;
import :destination;

export namespace kvm::nested {

/// How sure it is that a rule that does not hold makes KVM_SET_NESTED_STATE fail.
enum class Certainty : std::uint8_t {
    fails,
    may_fail, ///< something that the rule needs is not known
    silent,   ///< it succeeds, and the vCPU is not what the state says
};
std::string_view name(Certainty) noexcept;

/// What KVM_SET_NESTED_STATE comes back with.
enum class Answer : std::uint8_t {
    einval,
    efault,
    enomem,
    positive, ///< 2, with errno untouched
    success,
};
std::string_view name(Answer) noexcept;

/// What the vCPU has after the failure.
enum class Keeps : std::uint8_t {
    unchanged,            ///< its nested state as it was
    not_in_vmx_operation, ///< nothing: the old state is gone, VMX operation left
    vmxon,                ///< VMX operation with the new VMXON address, no current VMCS
    current_vmcs,         ///< VMX operation with the new addresses, L2 not active
    overwritten,          ///< the same, and CR0, CR4, EFER, DR7 and RFLAGS of the vCPU are L2's
    l2_active,            ///< the new state, L2 active
};
std::string_view description(Keeps) noexcept;

/// What a rule looks at. The destination's part of it is what may be unknown.
enum class Needs : std::uint16_t {
    bytes = 0, ///< the state alone
    kernel = 1 << 0,
    nested = 1 << 1,
    maxphyaddr = 1 << 2,
    guest_cpuid = 1 << 3,
    host_cpuid = 1 << 4,
    capabilities = 1 << 5,
    smm = 1 << 6,
    registers = 1 << 7, ///< EFER, CR0, CR3 or CR4 of the vCPU
    enlightened_vmcs = 1 << 8,
    quirks = 1 << 9,
    nested_paging = 1 << 10,
    performance_counters = 1 << 11,
    guest_memory = 1 << 12,
    caller_memory = 1 << 13, ///< whether bytes behind the state can be read
    kernel_memory = 1 << 14,
    vendor = 1 << 15,
};
constexpr Needs operator|(Needs a, Needs b) noexcept {
    return static_cast<Needs>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
constexpr Needs operator&(Needs a, Needs b) noexcept {
    return static_cast<Needs>(static_cast<unsigned>(a) & static_cast<unsigned>(b));
}
/// All of them in words, separated by ", ": "the guest's MAXPHYADDR, the kernel's version".
Text<768> description(Needs) noexcept;

/// How far the kernel has come when it looks at a rule. A rule of a later step is not reached by states that
/// are done before.
enum class Reached : std::uint8_t {
    always,
    vmx_operation, ///< the old state is gone, the VMXON address is set
    vmcs12,        ///< `size` has room for a vmcs12
    l2_active,     ///< GUEST_MODE
    shadow_vmcs12, ///< the vmcs12 links to one
    vmcb12,        ///< SVM: GUEST_MODE, and `size` has room for a VMCB
};

/// Some kernels in a row.
struct Kernels {
    KernelVersion from, to; ///< both belong to them
};

/// In which kernels a rule applies: those that were seen with it, and those that were seen without it. Of any
/// other nobody knows.
struct Applies {
    std::span<const Kernels> with = {};
    std::span<const Kernels> without = {}; ///< empty: it applies in all of them

    constexpr Known in(const std::optional<KernelVersion>& kernel) const noexcept {
        const auto among = [&](std::span<const Kernels> ranges) {
            for (const auto& range : ranges)
                if (range.from <= *kernel && *kernel <= range.to)
                    return true;
            return false;
        };
        if (without.empty())
            return Known::yes;
        if (!kernel)
            return Known::unknown;
        return among(with) ? Known::yes : among(without) ? Known::no : Known::unknown;
    }
};

} // namespace kvm::nested

namespace kvm::nested::detail {

inline constexpr KernelVersion oldest{0, 0, 0}, newest{0xffff, 0, 0};
inline constexpr std::array up_to_6_1 = std::to_array<Kernels>({{oldest, {6, 1, 0xffff}}});
inline constexpr std::array since_6_12 = std::to_array<Kernels>({{{6, 12, 0}, newest}});
inline constexpr std::array before_7 = std::to_array<Kernels>({{oldest, {6, 12, 0xffff}}});
inline constexpr std::array since_7 = std::to_array<Kernels>({{{7, 2, 0}, newest}});
inline constexpr std::array with_stable_6_12_118 =
    std::to_array<Kernels>({{{6, 12, 118}, {6, 12, 0xffff}}, {{7, 3, 0}, newest}});
inline constexpr std::array without_stable_6_12_118 =
    std::to_array<Kernels>({{oldest, {6, 12, 107}}, {{7, 0, 0}, {7, 2, 12}}});

} // namespace kvm::nested::detail

export namespace kvm::nested {

inline constexpr Applies everywhere{};
inline constexpr Applies from_6_12{detail::since_6_12, detail::up_to_6_1};
inline constexpr Applies from_7{detail::since_7, detail::before_7};
inline constexpr Applies up_to_6_12{detail::before_7, detail::since_7};
/// In 7.3, and taken over by stable 6.12 between .107 and .118.
inline constexpr Applies from_7_3_and_6_12_118{detail::with_stable_6_12_118, detail::without_stable_6_12_118};

/// What came of a rule.
struct Judgement {
    enum class Outcome : std::uint8_t { holds, violated, unknown };

    Outcome outcome = Outcome::holds;
    std::uint16_t offset = 0;     ///< of the field in the state
    Needs missing = Needs::bytes; ///< what is not known
    std::uint64_t bits = 0;       ///< the bits of the field that are wrong; 0: the value as a whole
};

constexpr Judgement holds{};

/// The first that is violated; else the first that is unknown.
template <class... More>
constexpr Judgement all(Judgement first, More... more) noexcept {
    const auto consider = [&](Judgement next) {
        if (first.outcome == Judgement::Outcome::holds
            || (first.outcome == Judgement::Outcome::unknown && next.outcome == Judgement::Outcome::violated))
            first = next;
    };
    (consider(more), ...);
    return first;
}
/// A violation that nobody knows to be one, as the condition of the rule is not known.
constexpr Judgement if_known(Known condition, Needs missing, Judgement judgement) noexcept {
    if (condition == Known::no || judgement.outcome == Judgement::Outcome::holds)
        return holds;
    if (condition == Known::yes)
        return judgement;
    judgement.outcome = Judgement::Outcome::unknown;
    if (judgement.missing == Needs::bytes)
        judgement.missing = missing;
    return judgement;
}

/// One rule.
template <class Case>
struct Rule {
    /// Stable. X common, V VMX, C controls, H host state, G guest state, E entering L2, S SVM; P what KVM
    /// takes and never gives out, M what it takes and does not use.
    std::string_view id;
    std::string_view holds;       ///< what must hold, in one sentence
    std::string_view fields = {}; ///< that it is about, separated by ", ", as the kernel spells them
    Needs needs = Needs::bytes;
    Reached reached = Reached::always;
    Certainty certainty = Certainty::fails;
    Applies applies = everywhere;
    Answer answer = Answer::einval;
    Keeps keeps = Keeps::unchanged;
    std::string_view manual = {};   ///< of Intel (SDM Vol. 3) or AMD (APM Vol. 2); empty: KVM's own
    std::optional<Errc> cause = {}; ///< of parse(), which refuses a state that violates it
    std::string_view advice = {};   ///< what to do; empty: the field is to be looked at
    bool is_last = false;           ///< where it is violated, nothing behind it means anything
    Judgement (*judge)(const Case&) noexcept = nullptr;
};

} // namespace kvm::nested
