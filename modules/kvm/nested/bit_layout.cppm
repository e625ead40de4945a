// SPDX-License-Identifier: MIT
//
// What the bits of a value mean, as data: types, and the tables of what Intel and AMD share. The vendors' own
// tables are in vmx_bit_layout and svm_bit_layout. Names are those of the manuals: the Intel SDM and the AMD
// APM.
module;
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:bit_layout;

export namespace kvm::nested {

/// A value with a name of its own, or a range of them that are told apart by a number behind the name.
struct NamedValue {
    std::uint64_t value;
    std::string_view name;
    std::uint64_t last = 0; ///< of a range; else 0
};

/// How a part of a value is to be read.
enum class BitsForm : std::uint8_t {
    flag,        ///< one bit
    number,      ///< small, in decimal; or one of named values
    hexadecimal, ///< a number that nobody counts with
    address,     ///< an address in its place, not shifted
    each,        ///< every bit stands for itself: the name with the number of the bit in the part
};

/// Bits with a name.
struct NamedBits {
    std::uint8_t first;
    std::uint8_t last;
    std::string_view name;
    BitsForm form = BitsForm::flag;
    std::span<const NamedValue> values = {}; ///< of a number

    constexpr std::uint64_t mask() const noexcept {
        return (~std::uint64_t{0} >> (63 - last)) & (~std::uint64_t{0} << first);
    }
    constexpr std::uint64_t of(std::uint64_t value) const noexcept { return (value & mask()) >> first; }
};

/// How a value as a whole is to be read, which also decides what redacting keeps of it.
enum class ValueKind : std::uint8_t {
    value,   ///< a register's content, or other data of the guest: redacted
    address, ///< a guest physical address: redacted, but for whether it is page-aligned
    number,  ///< a count, an index, an identifier: kept
    mask,    ///< a number that nobody counts with, such as a limit: kept
    bits,    ///< named bits: kept, but for addresses and undefined bits
    code,    ///< one of named values: kept
    pat,     ///< eight memory types, one a byte: kept
    bytes,   ///< reserved, or no number at all: redacted
};

struct BitLayout {
    ValueKind kind;
    std::span<const NamedBits> bits = {};
    std::span<const NamedValue> values = {};
    /// Reserved bits that are set in every legal value.
    std::uint64_t always_ones = 0;
};

/// The name of a value; none if it has none. Of a range the name that all share.
constexpr std::optional<NamedValue> find(std::span<const NamedValue> values, std::uint64_t value) noexcept {
    for (const auto& candidate : values)
        if (value == candidate.value || (candidate.value < value && value <= candidate.last))
            return candidate;
    return std::nullopt;
}

/// The bits of that name; none if there are none.
constexpr std::optional<NamedBits> find(const BitLayout& layout, std::string_view name) noexcept {
    for (const auto& bits : layout.bits)
        if (bits.name == name)
            return bits;
    return std::nullopt;
}

/// What is set in `value` and has no name.
constexpr std::uint64_t undefined_bits(const BitLayout& layout, std::uint64_t value) noexcept {
    std::uint64_t known = layout.always_ones;
    for (const auto& bits : layout.bits)
        known |= bits.mask();
    return value & ~known;
}

} // namespace kvm::nested

namespace kvm::nested::bit_layout {

constexpr NamedBits flag(unsigned bit, std::string_view name) {
    const auto n = static_cast<std::uint8_t>(bit);
    return {n, n, name};
}
constexpr NamedBits part(unsigned first, unsigned last, std::string_view name,
                         std::span<const NamedValue> values = {}, BitsForm form = BitsForm::number) {
    return {static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(last), name, form, values};
}
constexpr NamedBits part(unsigned first, unsigned last, std::string_view name, BitsForm form) {
    return part(first, last, name, {}, form);
}
constexpr BitLayout of_bits(std::span<const NamedBits> bits, std::uint64_t always_ones = 0) {
    return {ValueKind::bits, bits, {}, always_ones};
}
constexpr BitLayout of_codes(std::span<const NamedValue> values) {
    return {ValueKind::code, {}, values, 0};
}

} // namespace kvm::nested::bit_layout

/// One BitLayout for each kind of value. The arrays are what they are made of.
export namespace kvm::nested::bit_layout {

inline constexpr BitLayout value{ValueKind::value};
inline constexpr BitLayout address{ValueKind::address};
inline constexpr BitLayout number{ValueKind::number};
inline constexpr BitLayout mask{ValueKind::mask};
inline constexpr BitLayout pat{ValueKind::pat};
inline constexpr BitLayout bytes{ValueKind::bytes};

/// Intel SDM Vol. 3 table 6-1, AMD APM Vol. 2 section 8.2.
inline constexpr std::array exception_names = std::to_array<NamedValue>({
    {0, "#DE"},  {1, "#DB"},  {2, "NMI"},  {3, "#BP"},  {4, "#OF"},  {5, "#BR"},  {6, "#UD"},  {7, "#NM"},
    {8, "#DF"},  {10, "#TS"}, {11, "#NP"}, {12, "#SS"}, {13, "#GP"}, {14, "#PF"}, {16, "#MF"}, {17, "#AC"},
    {18, "#MC"}, {19, "#XM"}, {20, "#VE"}, {21, "#CP"}, {28, "#HV"}, {29, "#VC"}, {30, "#SX"},
});

/// A bit for each vector. Vectors that have no name are numbers.
inline constexpr std::array exception_bits = std::to_array<NamedBits>({
    flag(0, "#DE"),        flag(1, "#DB"),        flag(2, "NMI"),        flag(3, "#BP"),
    flag(4, "#OF"),        flag(5, "#BR"),        flag(6, "#UD"),        flag(7, "#NM"),
    flag(8, "#DF"),        flag(9, "vector 9"),   flag(10, "#TS"),       flag(11, "#NP"),
    flag(12, "#SS"),       flag(13, "#GP"),       flag(14, "#PF"),       flag(15, "vector 15"),
    flag(16, "#MF"),       flag(17, "#AC"),       flag(18, "#MC"),       flag(19, "#XM"),
    flag(20, "#VE"),       flag(21, "#CP"),       flag(22, "vector 22"), flag(23, "vector 23"),
    flag(24, "vector 24"), flag(25, "vector 25"), flag(26, "vector 26"), flag(27, "vector 27"),
    flag(28, "#HV"),       flag(29, "#VC"),       flag(30, "#SX"),       flag(31, "vector 31"),
});
inline constexpr BitLayout exceptions = of_bits(exception_bits);

/// Intel SDM Vol. 3 section 4.7, AMD APM Vol. 2 section 8.4.2.
inline constexpr std::array page_fault_error_bits = std::to_array<NamedBits>({
    flag(0, "P"),
    flag(1, "W/R"),
    flag(2, "U/S"),
    flag(3, "RSVD"),
    flag(4, "I/D"),
    flag(5, "PK"),
    flag(6, "SS"),
    flag(7, "HLAT"),
    flag(15, "SGX"),
    flag(31, "RMP"),
});
inline constexpr BitLayout page_fault_error = of_bits(page_fault_error_bits);

/// Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.1.
inline constexpr std::array cr0_bits = std::to_array<NamedBits>({
    flag(0, "PE"),
    flag(1, "MP"),
    flag(2, "EM"),
    flag(3, "TS"),
    flag(4, "ET"),
    flag(5, "NE"),
    flag(16, "WP"),
    flag(18, "AM"),
    flag(29, "NW"),
    flag(30, "CD"),
    flag(31, "PG"),
});
inline constexpr BitLayout cr0 = of_bits(cr0_bits);

/// Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.3.
inline constexpr std::array cr4_bits = std::to_array<NamedBits>({
    flag(0, "VME"),         flag(1, "PVI"),    flag(2, "TSD"),      flag(3, "DE"),    flag(4, "PSE"),
    flag(5, "PAE"),         flag(6, "MCE"),    flag(7, "PGE"),      flag(8, "PCE"),   flag(9, "OSFXSR"),
    flag(10, "OSXMMEXCPT"), flag(11, "UMIP"),  flag(12, "LA57"),    flag(13, "VMXE"), flag(14, "SMXE"),
    flag(16, "FSGSBASE"),   flag(17, "PCIDE"), flag(18, "OSXSAVE"), flag(19, "KL"),   flag(20, "SMEP"),
    flag(21, "SMAP"),       flag(22, "PKE"),   flag(23, "CET"),     flag(24, "PKS"),  flag(25, "UINTR"),
    flag(28, "LAM_SUP"),    flag(32, "FRED"),
});
inline constexpr BitLayout cr4 = of_bits(cr4_bits);

/// Intel SDM Vol. 3 section 2.2.1, AMD APM Vol. 2 section 3.1.7.
inline constexpr std::array efer_bits = std::to_array<NamedBits>({
    flag(0, "SCE"),
    flag(8, "LME"),
    flag(10, "LMA"),
    flag(11, "NXE"),
    flag(12, "SVME"),
    flag(13, "LMSLE"),
    flag(14, "FFXSR"),
    flag(15, "TCE"),
    flag(17, "MCOMMIT"),
    flag(18, "INTWB"),
    flag(20, "UAIE"),
    flag(21, "AIBRSE"),
});
inline constexpr BitLayout efer = of_bits(efer_bits);

/// Intel SDM Vol. 1 section 3.4.3, AMD APM Vol. 2 section 3.1.6. Bit 1 is always set.
inline constexpr std::array rflags_bits = std::to_array<NamedBits>({
    flag(0, "CF"),
    flag(2, "PF"),
    flag(4, "AF"),
    flag(6, "ZF"),
    flag(7, "SF"),
    flag(8, "TF"),
    flag(9, "IF"),
    flag(10, "DF"),
    flag(11, "OF"),
    part(12, 13, "IOPL"),
    flag(14, "NT"),
    flag(16, "RF"),
    flag(17, "VM"),
    flag(18, "AC"),
    flag(19, "VIF"),
    flag(20, "VIP"),
    flag(21, "ID"),
});
inline constexpr BitLayout rflags = of_bits(rflags_bits, 0x2);

/// Intel SDM Vol. 3 section 18.2, AMD APM Vol. 2 section 13.1.1.
// BLD and RTM are clear where the event happened.
inline constexpr std::array dr6_bits = std::to_array<NamedBits>({
    part(0, 3, "B", BitsForm::each),
    flag(11, "not BLD"),
    flag(13, "BD"),
    flag(14, "BS"),
    flag(15, "BT"),
    flag(16, "not RTM"),
});
inline constexpr BitLayout dr6 = of_bits(dr6_bits, 0xfffe'07f0);
inline constexpr std::array dr7_bits = std::to_array<NamedBits>({
    flag(0, "L0"),        flag(1, "G0"),        flag(2, "L1"),        flag(3, "G1"),
    flag(4, "L2"),        flag(5, "G2"),        flag(6, "L3"),        flag(7, "G3"),
    flag(8, "LE"),        flag(9, "GE"),        flag(11, "RTM"),      flag(13, "GD"),
    part(16, 17, "R/W0"), part(18, 19, "LEN0"), part(20, 21, "R/W1"), part(22, 23, "LEN1"),
    part(24, 25, "R/W2"), part(26, 27, "LEN2"), part(28, 29, "R/W3"), part(30, 31, "LEN3"),
});
inline constexpr BitLayout dr7 = of_bits(dr7_bits, 0x400);

/// IA32_DEBUGCTL: Intel SDM Vol. 3 section 18.4.1. AMD's DebugCtl has its first two bits (APM Vol. 2 section
/// 13.1.1.6).
inline constexpr std::array debugctl_bits = std::to_array<NamedBits>({
    flag(0, "LBR"),
    flag(1, "BTF"),
    flag(2, "BLD"),
    flag(6, "TR"),
    flag(7, "BTS"),
    flag(8, "BTINT"),
    flag(9, "BTS_OFF_OS"),
    flag(10, "BTS_OFF_USR"),
    flag(11, "FREEZE_LBRS_ON_PMI"),
    flag(12, "FREEZE_PERFMON_ON_PMI"),
    flag(13, "ENABLE_UNCORE_PMI"),
    flag(14, "FREEZE_WHILE_SMM"),
    flag(15, "RTM"),
});
inline constexpr BitLayout debugctl = of_bits(debugctl_bits);

/// IA32_S_CET: Intel SDM Vol. 1 section 17.1.2, AMD APM Vol. 2 section 18.11.
inline constexpr std::array cet_bits = std::to_array<NamedBits>({
    flag(0, "SH_STK_EN"),
    flag(1, "WR_SHSTK_EN"),
    flag(2, "ENDBR_EN"),
    flag(3, "LEG_IW_EN"),
    flag(4, "NO_TRACK_EN"),
    flag(5, "SUPPRESS_DIS"),
    flag(10, "SUPPRESS"),
    flag(11, "TRACKER"),
    part(12, 63, "bitmap base", BitsForm::address),
});
inline constexpr BitLayout cet = of_bits(cet_bits);

/// Memory types of a PAT entry: Intel SDM Vol. 3 section 12.12.2, AMD APM Vol. 2 section 7.8.1.
inline constexpr std::array memory_types = std::to_array<NamedValue>({
    {0, "UC"},
    {1, "WC"},
    {4, "WT"},
    {5, "WP"},
    {6, "WB"},
    {7, "UC-"},
});

/// Flags of the state's header (Linux, struct kvm_nested_state).
inline constexpr std::array state_flag_bits = std::to_array<NamedBits>({
    flag(0, "GUEST_MODE"),
    flag(1, "RUN_PENDING"),
    flag(2, "EVMCS"),
    flag(3, "MTF_PENDING"),
    flag(8, "GIF_SET"),
});
inline constexpr BitLayout state_flags = of_bits(state_flag_bits);
inline constexpr std::array state_format_names = std::to_array<NamedValue>({{0, "VMX"}, {1, "SVM"}});
inline constexpr BitLayout state_format = of_codes(state_format_names);
inline constexpr std::array smm_flag_bits = std::to_array<NamedBits>({
    flag(0, "GUEST_MODE"),
    flag(1, "VMXON"),
});
inline constexpr BitLayout smm_flags = of_bits(smm_flag_bits);
inline constexpr std::array vmx_header_flag_bits =
    std::to_array<NamedBits>({flag(0, "PREEMPTION_TIMER_DEADLINE")});
inline constexpr BitLayout vmx_header_flags = of_bits(vmx_header_flag_bits);

} // namespace kvm::nested::bit_layout
