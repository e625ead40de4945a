// SPDX-License-Identifier: MIT
//
// What the bits of a value mean, as data: types, and the tables of what Intel and AMD share. The vendors' own
// tables are in vmx_bit_layout and svm_bit_layout. Names are those of the manuals: the Intel SDM and the AMD
// APM.
module;
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
export module kvm.nested:bit_layout;
import :uapi;

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
    bool redacted = false;                   ///< an address, or a result of what the guest computes

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
    bits,    ///< named bits: kept, but for those that are redacted and undefined bits
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

/// The bits of a name that comes at run time; none if there are none.
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

/// What redacting leaves of a value of named bits.
constexpr std::uint64_t kept_bits(const BitLayout& layout, std::uint64_t value) noexcept {
    std::uint64_t kept = layout.always_ones;
    for (const auto& bits : layout.bits)
        if (!bits.redacted)
            kept |= bits.mask();
    return value & kept;
}

} // namespace kvm::nested

namespace kvm::nested::detail {
inline void there_are_no_bits_of_this_name() noexcept {}
} // namespace kvm::nested::detail

export namespace kvm::nested {

/// The bits of a name that is known: bits(bit_layout::rflags, "IOPL").of(value). A wrong one does not
/// compile.
consteval NamedBits bits(const BitLayout& layout, std::string_view name) {
    for (const auto& candidate : layout.bits)
        if (candidate.name == name)
            return candidate;
    detail::there_are_no_bits_of_this_name();
    return {};
}

} // namespace kvm::nested

export namespace kvm::nested {

/// Vectors of exceptions, in an exception bitmap (Intel SDM Vol. 3 table 6-1, AMD APM Vol. 2 section 8.2).
enum class Exception : std::uint8_t {
    de = 0,
    db = 1,
    nmi = 2,
    bp = 3,
    of = 4,
    br = 5,
    ud = 6,
    nm = 7,
    df = 8,
    vector_9 = 9,
    ts = 10,
    np = 11,
    ss = 12,
    gp = 13,
    pf = 14,
    vector_15 = 15,
    mf = 16,
    ac = 17,
    mc = 18,
    xm = 19,
    ve = 20,
    cp = 21,
    vector_22 = 22,
    vector_23 = 23,
    vector_24 = 24,
    vector_25 = 25,
    vector_26 = 26,
    vector_27 = 27,
    hv = 28,
    vc = 29,
    sx = 30,
    vector_31 = 31,
};

/// A page fault's error code (Intel SDM Vol. 3 section 4.7, AMD APM Vol. 2 section 8.4.2).
enum class PageFaultError : std::uint8_t {
    p = 0,
    wr = 1,
    us = 2,
    rsvd = 3,
    id = 4,
    pk = 5,
    ss = 6,
    hlat = 7,
    sgx = 15,
    rmp = 31,
};

/// CR0 (Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.1).
enum class Cr0 : std::uint8_t {
    pe = 0,
    mp = 1,
    em = 2,
    ts = 3,
    et = 4,
    ne = 5,
    wp = 16,
    am = 18,
    nw = 29,
    cd = 30,
    pg = 31,
};

/// CR4 (Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.3).
enum class Cr4 : std::uint8_t {
    vme = 0,
    pvi = 1,
    tsd = 2,
    de = 3,
    pse = 4,
    pae = 5,
    mce = 6,
    pge = 7,
    pce = 8,
    osfxsr = 9,
    osxmmexcpt = 10,
    umip = 11,
    la57 = 12,
    vmxe = 13,
    smxe = 14,
    fsgsbase = 16,
    pcide = 17,
    osxsave = 18,
    kl = 19,
    smep = 20,
    smap = 21,
    pke = 22,
    cet = 23,
    pks = 24,
    uintr = 25,
    lam_sup = 28,
    fred = 32,
};

/// EFER (Intel SDM Vol. 3 section 2.2.1, AMD APM Vol. 2 section 3.1.7).
enum class Efer : std::uint8_t {
    sce = 0,
    lme = 8,
    lma = 10,
    nxe = 11,
    svme = 12,
    lmsle = 13,
    ffxsr = 14,
    tce = 15,
    mcommit = 17,
    intwb = 18,
    uaie = 20,
    aibrse = 21,
};

/// RFLAGS (Intel SDM Vol. 1 section 3.4.3, AMD APM Vol. 2 section 3.1.6).
enum class Rflags : std::uint8_t {
    cf = 0,
    pf = 2,
    af = 4,
    zf = 6,
    sf = 7,
    tf = 8,
    if_ = 9,
    df = 10,
    of = 11,
    nt = 14,
    rf = 16,
    vm = 17,
    ac = 18,
    vif = 19,
    vip = 20,
    id = 21,
};

/// DR6 (Intel SDM Vol. 3 section 18.2, AMD APM Vol. 2 section 13.1.1).
enum class Dr6 : std::uint8_t {
    not_bld = 11,
    bd = 13,
    bs = 14,
    bt = 15,
    not_rtm = 16,
};

/// DR7 (the same sections as DR6).
enum class Dr7 : std::uint8_t {
    l0 = 0,
    g0 = 1,
    l1 = 2,
    g1 = 3,
    l2 = 4,
    g2 = 5,
    l3 = 6,
    g3 = 7,
    le = 8,
    ge = 9,
    rtm = 11,
    gd = 13,
};

/// IA32_DEBUGCTL (Intel SDM Vol. 3 section 18.4.1, AMD APM Vol. 2 section 13.1.1.6).
enum class DebugCtl : std::uint8_t {
    lbr = 0,
    btf = 1,
    bld = 2,
    tr = 6,
    bts = 7,
    btint = 8,
    bts_off_os = 9,
    bts_off_usr = 10,
    freeze_lbrs_on_pmi = 11,
    freeze_perfmon_on_pmi = 12,
    enable_uncore_pmi = 13,
    freeze_while_smm = 14,
    rtm = 15,
};

/// IA32_S_CET (Intel SDM Vol. 1 section 17.1.2, AMD APM Vol. 2 section 18.11).
enum class SCet : std::uint8_t {
    sh_stk_en = 0,
    wr_shstk_en = 1,
    endbr_en = 2,
    leg_iw_en = 3,
    no_track_en = 4,
    suppress_dis = 5,
    suppress = 10,
    tracker = 11,
};

} // namespace kvm::nested

export namespace kvm::nested::bit_layout {

/// The layout whose flags an enumeration numbers; null if it is none of these.
template <class>
inline constexpr const BitLayout* of = nullptr;

} // namespace kvm::nested::bit_layout

namespace kvm::nested::bit_layout {

template <class E>
    requires std::is_scoped_enum_v<E>
constexpr NamedBits flag(E bit, std::string_view name) {
    const auto number = static_cast<std::uint8_t>(bit);
    return {number, number, name};
}
/// A flag of the kernel's header, by its mask.
constexpr NamedBits flag(std::unsigned_integral auto mask, std::string_view name) {
    const auto number = static_cast<std::uint8_t>(std::countr_zero(mask));
    return {number, number, name};
}
/// A flag that is a result of what the guest computes.
template <class E>
constexpr NamedBits status(E bit, std::string_view name) {
    auto result = flag(bit, name);
    result.redacted = true;
    return result;
}
constexpr NamedBits part(unsigned first, unsigned last, std::string_view name,
                         std::span<const NamedValue> values = {}, BitsForm form = BitsForm::number) {
    return {static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(last), name, form, values,
            form == BitsForm::address};
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

export namespace kvm::nested {

/// An enumeration of bits: Cr0, vmx::Secondary, svm::IntCtl.
template <class E>
concept BitEnum = bit_layout::of<E> != nullptr;

/// The bits as a number.
template <BitEnum E, std::same_as<E>... More>
constexpr std::uint64_t mask(E bit, More... more) noexcept {
    return ((std::uint64_t{1} << static_cast<unsigned>(bit)) | ...
            | (std::uint64_t{1} << static_cast<unsigned>(more)));
}
/// Whether the bit is set: has(page.secondary_vm_exec_control, vmx::Secondary::enable_ept).
template <BitEnum E>
constexpr bool has(std::unsigned_integral auto value, E bit) noexcept {
    return (value & mask(bit)) != 0;
}
/// Sets the bits: set(page.secondary_vm_exec_control, vmx::Secondary::enable_ept,
/// vmx::Secondary::enable_vpid).
template <BitEnum E, std::same_as<E>... More>
constexpr void set(std::unsigned_integral auto& value, E bit, More... more) noexcept {
    value = static_cast<std::remove_reference_t<decltype(value)>>(value | mask(bit, more...));
}
/// Clears the bits.
template <BitEnum E, std::same_as<E>... More>
constexpr void clear(std::unsigned_integral auto& value, E bit, More... more) noexcept {
    value = static_cast<std::remove_reference_t<decltype(value)>>(value & ~mask(bit, more...));
}

} // namespace kvm::nested

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
    flag(Exception::de, "#DE"),
    flag(Exception::db, "#DB"),
    flag(Exception::nmi, "NMI"),
    flag(Exception::bp, "#BP"),
    flag(Exception::of, "#OF"),
    flag(Exception::br, "#BR"),
    flag(Exception::ud, "#UD"),
    flag(Exception::nm, "#NM"),
    flag(Exception::df, "#DF"),
    flag(Exception::vector_9, "vector 9"),
    flag(Exception::ts, "#TS"),
    flag(Exception::np, "#NP"),
    flag(Exception::ss, "#SS"),
    flag(Exception::gp, "#GP"),
    flag(Exception::pf, "#PF"),
    flag(Exception::vector_15, "vector 15"),
    flag(Exception::mf, "#MF"),
    flag(Exception::ac, "#AC"),
    flag(Exception::mc, "#MC"),
    flag(Exception::xm, "#XM"),
    flag(Exception::ve, "#VE"),
    flag(Exception::cp, "#CP"),
    flag(Exception::vector_22, "vector 22"),
    flag(Exception::vector_23, "vector 23"),
    flag(Exception::vector_24, "vector 24"),
    flag(Exception::vector_25, "vector 25"),
    flag(Exception::vector_26, "vector 26"),
    flag(Exception::vector_27, "vector 27"),
    flag(Exception::hv, "#HV"),
    flag(Exception::vc, "#VC"),
    flag(Exception::sx, "#SX"),
    flag(Exception::vector_31, "vector 31"),
});
inline constexpr BitLayout exceptions = of_bits(exception_bits);
template <>
inline constexpr const BitLayout* of<Exception> = &exceptions;

/// Intel SDM Vol. 3 section 4.7, AMD APM Vol. 2 section 8.4.2.
inline constexpr std::array page_fault_error_bits = std::to_array<NamedBits>({
    flag(PageFaultError::p, "P"),
    flag(PageFaultError::wr, "W/R"),
    flag(PageFaultError::us, "U/S"),
    flag(PageFaultError::rsvd, "RSVD"),
    flag(PageFaultError::id, "I/D"),
    flag(PageFaultError::pk, "PK"),
    flag(PageFaultError::ss, "SS"),
    flag(PageFaultError::hlat, "HLAT"),
    flag(PageFaultError::sgx, "SGX"),
    flag(PageFaultError::rmp, "RMP"),
});
inline constexpr BitLayout page_fault_error = of_bits(page_fault_error_bits);
template <>
inline constexpr const BitLayout* of<PageFaultError> = &page_fault_error;

/// Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.1.
inline constexpr std::array cr0_bits = std::to_array<NamedBits>({
    flag(Cr0::pe, "PE"),
    flag(Cr0::mp, "MP"),
    flag(Cr0::em, "EM"),
    flag(Cr0::ts, "TS"),
    flag(Cr0::et, "ET"),
    flag(Cr0::ne, "NE"),
    flag(Cr0::wp, "WP"),
    flag(Cr0::am, "AM"),
    flag(Cr0::nw, "NW"),
    flag(Cr0::cd, "CD"),
    flag(Cr0::pg, "PG"),
});
inline constexpr BitLayout cr0 = of_bits(cr0_bits);
template <>
inline constexpr const BitLayout* of<Cr0> = &cr0;

/// Intel SDM Vol. 3 section 2.5, AMD APM Vol. 2 section 3.1.3.
inline constexpr std::array cr4_bits = std::to_array<NamedBits>({
    flag(Cr4::vme, "VME"),
    flag(Cr4::pvi, "PVI"),
    flag(Cr4::tsd, "TSD"),
    flag(Cr4::de, "DE"),
    flag(Cr4::pse, "PSE"),
    flag(Cr4::pae, "PAE"),
    flag(Cr4::mce, "MCE"),
    flag(Cr4::pge, "PGE"),
    flag(Cr4::pce, "PCE"),
    flag(Cr4::osfxsr, "OSFXSR"),
    flag(Cr4::osxmmexcpt, "OSXMMEXCPT"),
    flag(Cr4::umip, "UMIP"),
    flag(Cr4::la57, "LA57"),
    flag(Cr4::vmxe, "VMXE"),
    flag(Cr4::smxe, "SMXE"),
    flag(Cr4::fsgsbase, "FSGSBASE"),
    flag(Cr4::pcide, "PCIDE"),
    flag(Cr4::osxsave, "OSXSAVE"),
    flag(Cr4::kl, "KL"),
    flag(Cr4::smep, "SMEP"),
    flag(Cr4::smap, "SMAP"),
    flag(Cr4::pke, "PKE"),
    flag(Cr4::cet, "CET"),
    flag(Cr4::pks, "PKS"),
    flag(Cr4::uintr, "UINTR"),
    flag(Cr4::lam_sup, "LAM_SUP"),
    flag(Cr4::fred, "FRED"),
});
inline constexpr BitLayout cr4 = of_bits(cr4_bits);
template <>
inline constexpr const BitLayout* of<Cr4> = &cr4;

/// Intel SDM Vol. 3 section 2.2.1, AMD APM Vol. 2 section 3.1.7.
inline constexpr std::array efer_bits = std::to_array<NamedBits>({
    flag(Efer::sce, "SCE"),
    flag(Efer::lme, "LME"),
    flag(Efer::lma, "LMA"),
    flag(Efer::nxe, "NXE"),
    flag(Efer::svme, "SVME"),
    flag(Efer::lmsle, "LMSLE"),
    flag(Efer::ffxsr, "FFXSR"),
    flag(Efer::tce, "TCE"),
    flag(Efer::mcommit, "MCOMMIT"),
    flag(Efer::intwb, "INTWB"),
    flag(Efer::uaie, "UAIE"),
    flag(Efer::aibrse, "AIBRSE"),
});
inline constexpr BitLayout efer = of_bits(efer_bits);
template <>
inline constexpr const BitLayout* of<Efer> = &efer;

/// Intel SDM Vol. 1 section 3.4.3, AMD APM Vol. 2 section 3.1.6. Bit 1 is always set.
inline constexpr std::array rflags_bits = std::to_array<NamedBits>({
    status(Rflags::cf, "CF"),
    status(Rflags::pf, "PF"),
    status(Rflags::af, "AF"),
    status(Rflags::zf, "ZF"),
    status(Rflags::sf, "SF"),
    flag(Rflags::tf, "TF"),
    flag(Rflags::if_, "IF"),
    flag(Rflags::df, "DF"),
    status(Rflags::of, "OF"),
    part(12, 13, "IOPL"),
    flag(Rflags::nt, "NT"),
    flag(Rflags::rf, "RF"),
    flag(Rflags::vm, "VM"),
    flag(Rflags::ac, "AC"),
    flag(Rflags::vif, "VIF"),
    flag(Rflags::vip, "VIP"),
    flag(Rflags::id, "ID"),
});
inline constexpr BitLayout rflags = of_bits(rflags_bits, 0x2);
template <>
inline constexpr const BitLayout* of<Rflags> = &rflags;

/// Intel SDM Vol. 3 section 18.2, AMD APM Vol. 2 section 13.1.1.
// BLD and RTM are clear where the event happened.
inline constexpr std::array dr6_bits = std::to_array<NamedBits>({
    part(0, 3, "B", BitsForm::each),
    flag(Dr6::not_bld, "not BLD"),
    flag(Dr6::bd, "BD"),
    flag(Dr6::bs, "BS"),
    flag(Dr6::bt, "BT"),
    flag(Dr6::not_rtm, "not RTM"),
});
inline constexpr BitLayout dr6 = of_bits(dr6_bits, 0xfffe'07f0);
template <>
inline constexpr const BitLayout* of<Dr6> = &dr6;
inline constexpr std::array dr7_bits = std::to_array<NamedBits>({
    flag(Dr7::l0, "L0"),  flag(Dr7::g0, "G0"),  flag(Dr7::l1, "L1"),   flag(Dr7::g1, "G1"),
    flag(Dr7::l2, "L2"),  flag(Dr7::g2, "G2"),  flag(Dr7::l3, "L3"),   flag(Dr7::g3, "G3"),
    flag(Dr7::le, "LE"),  flag(Dr7::ge, "GE"),  flag(Dr7::rtm, "RTM"), flag(Dr7::gd, "GD"),
    part(16, 17, "R/W0"), part(18, 19, "LEN0"), part(20, 21, "R/W1"),  part(22, 23, "LEN1"),
    part(24, 25, "R/W2"), part(26, 27, "LEN2"), part(28, 29, "R/W3"),  part(30, 31, "LEN3"),
});
inline constexpr BitLayout dr7 = of_bits(dr7_bits, 0x400);
template <>
inline constexpr const BitLayout* of<Dr7> = &dr7;

/// IA32_DEBUGCTL: Intel SDM Vol. 3 section 18.4.1. AMD's DebugCtl has its first two bits (APM Vol. 2 section
/// 13.1.1.6).
inline constexpr std::array debugctl_bits = std::to_array<NamedBits>({
    flag(DebugCtl::lbr, "LBR"),
    flag(DebugCtl::btf, "BTF"),
    flag(DebugCtl::bld, "BLD"),
    flag(DebugCtl::tr, "TR"),
    flag(DebugCtl::bts, "BTS"),
    flag(DebugCtl::btint, "BTINT"),
    flag(DebugCtl::bts_off_os, "BTS_OFF_OS"),
    flag(DebugCtl::bts_off_usr, "BTS_OFF_USR"),
    flag(DebugCtl::freeze_lbrs_on_pmi, "FREEZE_LBRS_ON_PMI"),
    flag(DebugCtl::freeze_perfmon_on_pmi, "FREEZE_PERFMON_ON_PMI"),
    flag(DebugCtl::enable_uncore_pmi, "ENABLE_UNCORE_PMI"),
    flag(DebugCtl::freeze_while_smm, "FREEZE_WHILE_SMM"),
    flag(DebugCtl::rtm, "RTM"),
});
inline constexpr BitLayout debugctl = of_bits(debugctl_bits);
template <>
inline constexpr const BitLayout* of<DebugCtl> = &debugctl;

/// IA32_S_CET: Intel SDM Vol. 1 section 17.1.2, AMD APM Vol. 2 section 18.11.
inline constexpr std::array cet_bits = std::to_array<NamedBits>({
    flag(SCet::sh_stk_en, "SH_STK_EN"),
    flag(SCet::wr_shstk_en, "WR_SHSTK_EN"),
    flag(SCet::endbr_en, "ENDBR_EN"),
    flag(SCet::leg_iw_en, "LEG_IW_EN"),
    flag(SCet::no_track_en, "NO_TRACK_EN"),
    flag(SCet::suppress_dis, "SUPPRESS_DIS"),
    flag(SCet::suppress, "SUPPRESS"),
    flag(SCet::tracker, "TRACKER"),
    part(12, 63, "bitmap base", BitsForm::address),
});
inline constexpr BitLayout cet = of_bits(cet_bits);
template <>
inline constexpr const BitLayout* of<SCet> = &cet;

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
    flag(uapi::state_flag::guest_mode, "GUEST_MODE"),
    flag(uapi::state_flag::run_pending, "RUN_PENDING"),
    flag(uapi::state_flag::evmcs, "EVMCS"),
    flag(uapi::state_flag::mtf_pending, "MTF_PENDING"),
    flag(uapi::state_flag::gif_set, "GIF_SET"),
});
inline constexpr BitLayout state_flags = of_bits(state_flag_bits);
inline constexpr std::array state_format_names = std::to_array<NamedValue>({{0, "VMX"}, {1, "SVM"}});
inline constexpr BitLayout state_format = of_codes(state_format_names);
inline constexpr std::array smm_flag_bits = std::to_array<NamedBits>({
    flag(uapi::smm_flag::guest_mode, "GUEST_MODE"),
    flag(uapi::smm_flag::vmxon, "VMXON"),
});
inline constexpr BitLayout smm_flags = of_bits(smm_flag_bits);
inline constexpr std::array vmx_header_flag_bits =
    std::to_array<NamedBits>({flag(uapi::vmx_flag::preemption_timer_deadline, "PREEMPTION_TIMER_DEADLINE")});
inline constexpr BitLayout vmx_header_flags = of_bits(vmx_header_flag_bits);

} // namespace kvm::nested::bit_layout
