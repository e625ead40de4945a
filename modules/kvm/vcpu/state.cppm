// SPDX-License-Identifier: MIT
//
// VcpuState: everything of a vCPU that must travel with its nested state. And the one table of its groups:
// what is known about a group stands in its row and nowhere else. save(), restore(), encode(), parse_vcpu(),
// restore_order and the README's table of it walk the rows.
//
// A new group is an enumerator of Step, a member of VcpuState and a row, all here; its layout and its
// requests are in :uapi, checked in src/kvm/vcpu/uapi.cpp. Only a group that a plain GET and SET of its
// member do not move has functions of its own besides, in src/kvm/vcpu.
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>
export module kvm.vcpu:state;
import kvm.nested;
import :uapi;
import :error;
import :prepare;

export namespace kvm::vcpu {

enum class Step : std::uint8_t {
    capabilities,
    pending_io,
    clear_nested_state,
    memory,
    clock,
    cpuid,
    vcpu_capabilities,
    feature_msrs,
    sregs,
    tsc,
    tsc_offset,
    lapic,
    msrs,
    one_regs,
    xcrs,
    xsave,
    debugregs,
    regs,
    events,
    mp_state,
    nested_state,
    irqchips,
    pit,
    first_run,
};

/// A whole vCPU as a value. WholeVcpu::save() makes it, WholeVcpu::restore() takes it, encode() and
/// parse_vcpu() turn it into bytes and back. While L2 is active the registers here are L2's, and L1's are in
/// `nested`.
struct VcpuState {
    VendorId vendor{};
    Requirements requirements; ///< what the VM must have on; see Requirements
    std::vector<uapi::CpuidEntry> cpuid;
    std::vector<uapi::Msr> feature_msrs; ///< capabilities: what the vCPU's CPUID does not tell
    std::vector<uapi::Msr> msrs;
    /// What KVM_GET_REG_LIST says, since no other interface has it: the shadow-stack pointer, as of
    /// Linux 7.3. Empty on older kernels, and for a guest without shadow stacks.
    std::vector<uapi::OneReg> one_regs;
    std::uint32_t tsc_khz = 0; ///< 0: not known
    /// What L1's TSC is more than the host's, scaled: with VmClock, all TSCs of a VM. None: KVM does not
    /// tell.
    std::optional<std::uint64_t> tsc_offset;
    uapi::Sregs2 sregs{};
    uapi::Regs regs{};
    std::vector<std::byte> xsave; ///< uapi::xsave_size bytes or more
    uapi::Xcrs xcrs{};            ///< count 0 where the vCPU has no XSAVE
    uapi::DebugRegs debugregs{};
    uapi::VcpuEvents events{};
    uapi::MpState mp_state{};
    std::optional<uapi::Lapic> lapic; ///< none where the interrupt controller is not in the kernel
    NestedStateBuffer nested;

    bool operator==(const VcpuState&) const = default;
};

/// The first group that no vCPU can have: more CPUID entries or MSRs than KVM takes, an XSAVE area that is
/// missing or too large, more XCRs than there is room for, no nested state. None: all is well.
std::optional<Step> malformed_group(const VcpuState& state) noexcept;

} // namespace kvm::vcpu

namespace kvm::vcpu::detail {

/// What save() and restore() have at hand while they walk the rows. Complete in src/kvm/vcpu/calls.hpp.
struct Saving;
struct Restoring;

using Result = std::expected<void, Error>;
using Bytes = std::span<const std::byte>;

/// An ioctl, and the name that the kernel has for it.
struct Request {
    unsigned long number = 0;
    std::string_view name = {};
};

/// What makes a step a group: where it is in a VcpuState, in the file, and how it is read and written.
struct Group {
    std::uint32_t section = 0; ///< its type in the file form; 0: not a group
    /// save() reads what has 0 first, then 1, then 2; those of one rank in the order of the rows.
    std::uint8_t save_rank = 2;
    Request get, set; ///< with the member as the argument, unless there is a function
    Result (*save)(const Saving&) = nullptr;
    /// Whether a vCPU can have it: what the number of bytes does not tell. nullptr: whatever it is.
    bool (*valid)(const VcpuState&) = nullptr;
    std::size_t least = 0, most = 0; ///< elements, where the member is a vector
    bool absent_if_empty = false;    ///< a vector that not every kernel fills

    // From the member, by of().
    bool optional = false;                 ///< not every vCPU has it
    std::size_t unit = 0;                  ///< bytes of an element, where the member is a vector
    void* (*object)(VcpuState&) = nullptr; ///< the member, as GET takes it
    bool (*present)(const VcpuState&) = nullptr;
    Bytes (*bytes)(const VcpuState&) = nullptr; ///< as in the file
    /// Makes the member of the file's bytes.
    Result (*parse)(Bytes, VcpuState&) = nullptr;
};

/// What is known about a step.
struct Row {
    Step step;
    std::string_view name;
    std::string_view how;    ///< the ioctl, or whose the step is
    std::string_view reason; ///< why here
    /// What WholeVcpu::restore() does. nullptr: SET of the group, or it is the caller's.
    Result (*restore)(const Restoring&) = nullptr;
    Group group = {};

    constexpr bool is_group() const noexcept { return group.section != 0; }
};

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

inline Result malformed() {
    return std::unexpected(Error{Errc::malformed_section, Operation::file});
}

template <class T>
Result parse_into(T& into, Bytes bytes) {
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>,
                  "no byte of it may be left to chance");
    if (bytes.size() != sizeof into)
        return malformed();
    std::memcpy(&into, bytes.data(), sizeof into);
    return {};
}

/// The rest of a row, by the type of the member: what its bytes are, and how many there may be.
template <auto Member>
constexpr Group of(Group group) {
    using T = std::remove_cvref_t<decltype(std::declval<VcpuState>().*Member)>;
    if constexpr (std::is_same_v<T, NestedStateBuffer>) {
        group.present = [](const VcpuState& state) { return !(state.*Member).is_empty(); };
        group.bytes = [](const VcpuState& state) -> Bytes { return (state.*Member).bytes(); };
        group.parse = [](Bytes bytes, VcpuState& state) -> Result {
            const auto parsed = NestedStateBuffer::parse(bytes);
            if (!parsed)
                return std::unexpected(Error{parsed.error()});
            state.*Member = *parsed;
            return {};
        };
    } else if constexpr (is_vector<T>) {
        using Element = typename T::value_type;
        static_assert(std::has_unique_object_representations_v<Element>);
        group.unit = sizeof(Element);
        group.present = [](const VcpuState&) { return true; };
        if (group.absent_if_empty) {
            group.optional = true;
            group.present = [](const VcpuState& state) { return !(state.*Member).empty(); };
        }
        group.bytes = [](const VcpuState& state) -> Bytes { return std::as_bytes(std::span{state.*Member}); };
        group.parse = [](Bytes bytes, VcpuState& state) -> Result {
            if (bytes.size() % sizeof(Element) != 0)
                return malformed();
            (state.*Member).resize(bytes.size() / sizeof(Element)); // no more than there are bytes
            if (!bytes.empty())
                std::memcpy((state.*Member).data(), bytes.data(), bytes.size());
            return {};
        };
    } else if constexpr (is_optional<T>) {
        group.optional = true;
        group.object = [](VcpuState& state) -> void* { return &(state.*Member).emplace(); };
        group.present = [](const VcpuState& state) { return (state.*Member).has_value(); };
        group.bytes = [](const VcpuState& state) -> Bytes {
            return std::as_bytes(std::span{&*(state.*Member), 1});
        };
        group.parse = [](Bytes bytes, VcpuState& state) -> Result {
            return parse_into((state.*Member).emplace(), bytes);
        };
    } else {
        group.object = [](VcpuState& state) -> void* { return &(state.*Member); };
        group.present = [](const VcpuState&) { return true; };
        group.bytes = [](const VcpuState& state) -> Bytes {
            return std::as_bytes(std::span{&(state.*Member), 1});
        };
        group.parse = [](Bytes bytes, VcpuState& state) -> Result {
            return parse_into(state.*Member, bytes);
        };
    }
    return group;
}

// The groups that a plain GET and SET do not move.
Result save_cpuid(const Saving&);
Result restore_cpuid(const Restoring&);
Result save_feature_msrs(const Saving&);
Result restore_feature_msrs(const Restoring&);
Result save_lapic(const Saving&);
Result restore_lapic(const Restoring&);
Result save_tsc(const Saving&);
Result restore_tsc(const Restoring&);
Result save_tsc_offset(const Saving&);
Result restore_tsc_offset(const Restoring&);
Result save_msrs(const Saving&);
Result restore_msrs(const Restoring&);
Result save_one_regs(const Saving&);
Result restore_one_regs(const Restoring&);
Result save_xcrs(const Saving&);
Result restore_xcrs(const Restoring&);
Result save_xsave(const Saving&);
Result restore_xsave(const Restoring&);
Result save_events(const Saving&);
Result save_nested_state(const Saving&);
Result restore_nested_state(const Restoring&);

// The steps that are no groups.
Result check_capabilities(const Restoring&);
Result complete_pending_io(const Restoring&);
Result clear_nested_state(const Restoring&);
Result enable_vcpu_capabilities(const Restoring&);

/// No reserved bits in the file that the kernel would be given.
template <std::vector<uapi::Msr> VcpuState::* Member>
bool reserved_are_zero(const VcpuState& state) {
    return std::ranges::all_of(state.*Member, [](const uapi::Msr& msr) { return msr.reserved == 0; });
}

namespace request = uapi::request;

/// The order that works on every kernel from Linux 6.1 to 7.3.
inline constexpr std::array rows = std::to_array<Row>({
    {.step = Step::capabilities,
     .name = "capabilities",
     .how = "KVM_ENABLE_CAP on the VM: prepare()",
     .reason = "exception payload, triple fault event and quirks cannot be changed once events have been "
               "restored, and KVM cannot be asked for them later",
     .restore = check_capabilities},
    {.step = Step::pending_io,
     .name = "pending_io",
     .how = "KVM_RUN with immediate_exit",
     .reason = "a vCPU that is not fresh may still owe the end of an instruction, which writes registers and "
               "memory",
     .restore = complete_pending_io},
    {.step = Step::clear_nested_state,
     .name = "clear_nested_state",
     .how = "KVM_SET_NESTED_STATE with nothing in it",
     .reason = "in VMX operation feature MSRs are refused, with L2 active CPUID is (7.x) or goes to L2; and "
               "leaving L2 can write a shadow VMCS back to memory",
     .restore = clear_nested_state},
    {.step = Step::memory,
     .name = "memory",
     .how = "memory slots and their contents: the caller's",
     .reason = "VMX reads the link pointer's VMCS when the nested state is set, and the first run reads the "
               "rest"},
    {.step = Step::clock,
     .name = "clock",
     .how = "KVM_SET_CLOCK on the VM: WholeVm",
     .reason =
         "TSC offsets are worked out against it, and MSRs that make KVM write the time into guest memory "
         "take it from here"},
    {.step = Step::cpuid,
     .name = "cpuid",
     .how = "KVM_SET_CPUID2",
     .reason = "decides which MSRs and control bits there are, the width of addresses, and whether the vCPU "
               "may nest",
     .restore = restore_cpuid,
     .group = of<&VcpuState::cpuid>({.section = 1,
                                     .get = {request::get_cpuid2, "KVM_GET_CPUID2"},
                                     .set = {request::set_cpuid2, "KVM_SET_CPUID2"},
                                     .save = save_cpuid,
                                     .most = uapi::cpuid_limit})},
    {.step = Step::vcpu_capabilities,
     .name = "vcpu_capabilities",
     .how = "KVM_ENABLE_CAP on the vCPU",
     .reason = "the enlightened VMCS changes the VMX capabilities, and without it an enlightened nested "
               "state is refused; without the SynIC its MSRs are",
     .restore = enable_vcpu_capabilities},
    {.step = Step::feature_msrs,
     .name = "feature_msrs",
     .how = "KVM_SET_MSRS with the MSRs of KVM_GET_MSR_FEATURE_INDEX_LIST",
     .reason = "the nested state is checked against the VMX capabilities, and they are frozen by the first "
               "run",
     .restore = restore_feature_msrs,
     .group = of<&VcpuState::feature_msrs>({.section = 2,
                                            .get = {request::get_msrs, "KVM_GET_MSRS"},
                                            .set = {request::set_msrs, "KVM_SET_MSRS"},
                                            .save = save_feature_msrs,
                                            .valid = reserved_are_zero<&VcpuState::feature_msrs>,
                                            .most = uapi::msr_limit})},
    {.step = Step::sregs,
     .name = "sregs",
     .how = "KVM_SET_SREGS2",
     .reason = "EFER.SVME must be set before an SVM state; a later write drops the state or L2's CR0 and CR4 "
               "shadows; the APIC base decides how the APIC page is read",
     .group = of<&VcpuState::sregs>({.section = 5,
                                     .get = {request::get_sregs2, "KVM_GET_SREGS2"},
                                     .set = {request::set_sregs2, "KVM_SET_SREGS2"}})},
    {.step = Step::tsc,
     .name = "tsc",
     .how = "KVM_SET_TSC_KHZ",
     .reason = "the TSC is scaled by the frequency that is set when it or its offset is written",
     .restore = restore_tsc,
     .group = of<&VcpuState::tsc_khz>({.section = 4,
                                       .get = {request::get_tsc_khz, "KVM_GET_TSC_KHZ"},
                                       .set = {request::set_tsc_khz, "KVM_SET_TSC_KHZ"},
                                       .save = save_tsc})},
    {.step = Step::tsc_offset,
     .name = "tsc_offset",
     .how = "KVM_SET_DEVICE_ATTR, KVM_VCPU_TSC_OFFSET: with the VM's TscShift",
     .reason = "changing the frequency moves the TSC; the timers of the local APIC and of VMX are armed "
               "against the "
               "TSC of the moment",
     .restore = restore_tsc_offset,
     .group = of<&VcpuState::tsc_offset>({.section = 14,
                                          .get = {request::get_device_attr, "KVM_GET_DEVICE_ATTR"},
                                          .set = {request::set_device_attr, "KVM_SET_DEVICE_ATTR"},
                                          .save = save_tsc_offset})},
    {.step = Step::lapic,
     .name = "lapic",
     .how = "KVM_SET_LAPIC",
     .reason = "needs the APIC base, and the TSC deadline MSR is dropped unless the timer is in that mode",
     .restore = restore_lapic,
     .group = of<&VcpuState::lapic>({.section = 12,
                                     .get = {request::get_lapic, "KVM_GET_LAPIC"},
                                     .set = {request::set_lapic, "KVM_SET_LAPIC"},
                                     .save = save_lapic})},
    {.step = Step::msrs,
     .name = "msrs",
     .how = "KVM_SET_MSRS with the other MSRs",
     .reason = "the VMX-preemption timer is set against L1's TSC, a pending VM entry takes PAT and DEBUGCTL "
               "from here; IA32_FEATURE_CONTROL = 0 afterwards would drop the nested state",
     .restore = restore_msrs,
     .group = of<&VcpuState::msrs>({.section = 3,
                                    .get = {request::get_msrs, "KVM_GET_MSRS"},
                                    .set = {request::set_msrs, "KVM_SET_MSRS"},
                                    .save = save_msrs,
                                    .valid = reserved_are_zero<&VcpuState::msrs>,
                                    .most = uapi::msr_limit})},
    {.step = Step::one_regs,
     .name = "one_regs",
     .how = "KVM_SET_ONE_REG with what KVM_GET_REG_LIST says",
     .reason = "needs CPUID; with L2 active the nested state takes L2's shadow-stack pointer from here",
     .restore = restore_one_regs,
     .group = of<&VcpuState::one_regs>({.section = 15,
                                        .get = {request::get_one_reg, "KVM_GET_ONE_REG"},
                                        .set = {request::set_one_reg, "KVM_SET_ONE_REG"},
                                        .save = save_one_regs,
                                        .most = uapi::one_reg_limit,
                                        .absent_if_empty = true})},
    {.step = Step::xcrs,
     .name = "xcrs",
     .how = "KVM_SET_XCRS",
     .reason = "needs CR4.OSXSAVE's CPUID; tells which parts of the XSAVE area are in use",
     .restore = restore_xcrs,
     .group = of<&VcpuState::xcrs>(
         {.section = 8,
          .get = {request::get_xcrs, "KVM_GET_XCRS"},
          .set = {request::set_xcrs, "KVM_SET_XCRS"},
          .save = save_xcrs,
          .valid = [](const VcpuState& state) { return state.xcrs.count <= state.xcrs.entries.size(); }})},
    {.step = Step::xsave,
     .name = "xsave",
     .how = "KVM_SET_XSAVE",
     .reason = "needs CPUID, which decides its size and parts",
     .restore = restore_xsave,
     .group = of<&VcpuState::xsave>({.section = 7,
                                     .get = {request::get_xsave2, "KVM_GET_XSAVE2"},
                                     .set = {request::set_xsave, "KVM_SET_XSAVE"},
                                     .save = save_xsave,
                                     .least = uapi::xsave_size,
                                     .most = uapi::xsave_limit})},
    {.step = Step::debugregs,
     .name = "debugregs",
     .how = "KVM_SET_DEBUGREGS",
     .reason = "DR7 is taken into the nested state when that is set",
     .group = of<&VcpuState::debugregs>({.section = 9,
                                         .get = {request::get_debugregs, "KVM_GET_DEBUGREGS"},
                                         .set = {request::set_debugregs, "KVM_SET_DEBUGREGS"}})},
    {.step = Step::regs,
     .name = "regs",
     .how = "KVM_SET_REGS",
     .reason = "KVM_SET_REGS drops a pending exception, so it comes before the events",
     .group = of<&VcpuState::regs>({.section = 6,
                                    .get = {request::get_regs, "KVM_GET_REGS"},
                                    .set = {request::set_regs, "KVM_SET_REGS"}})},
    {.step = Step::events,
     .name = "events",
     .how = "KVM_SET_VCPU_EVENTS",
     .reason = "the nested state is checked against SMM, and a later change of SMM drops it silently",
     .group = of<&VcpuState::events>({.section = 10,
                                      .save_rank = 1, // without a payload it delivers what is pending
                                      .get = {request::get_vcpu_events, "KVM_GET_VCPU_EVENTS"},
                                      .set = {request::set_vcpu_events, "KVM_SET_VCPU_EVENTS"},
                                      .save = save_events})},
    {.step = Step::mp_state,
     .name = "mp_state",
     .how = "KVM_SET_MP_STATE",
     .reason = "is refused or accepted by what the events say of INIT and SMI",
     .group = of<&VcpuState::mp_state>(
         {.section = 11,
          .save_rank = 0, // accepts a pending INIT or SIPI, which changes all the rest
          .get = {request::get_mp_state, "KVM_GET_MP_STATE"},
          .set = {request::set_mp_state, "KVM_SET_MP_STATE"}})},
    {.step = Step::nested_state,
     .name = "nested_state",
     .how = "KVM_SET_NESTED_STATE",
     .reason = "is checked against everything above and takes L2's registers from it: last",
     .restore = restore_nested_state,
     .group =
         of<&VcpuState::nested>({.section = 13,
                                 .get = {request::get_nested_state, "KVM_GET_NESTED_STATE"},
                                 .set = {request::set_nested_state, "KVM_SET_NESTED_STATE"},
                                 .save = save_nested_state,
                                 .valid = [](const VcpuState& state) { return !state.nested.is_empty(); }})},
    {.step = Step::irqchips,
     .name = "irqchips",
     .how = "KVM_SET_IRQCHIP on the VM: WholeVm",
     .reason = "what waits in the IOAPIC goes into the local APICs at once, so all of them come before"},
    {.step = Step::pit,
     .name = "pit",
     .how = "KVM_SET_PIT2 on the VM: WholeVm",
     .reason = "it starts to count, and interrupts through the others"},
    {.step = Step::first_run,
     .name = "first_run",
     .how = "KVM_RUN: WholeVcpu::first_run()",
     .reason = "only now KVM maps the pages that the nested state refers to, and can fail without an errno"},
});

consteval bool rows_are_whole() {
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto& row = rows[i];
        if (row.step != static_cast<Step>(i) || row.name.empty() || row.how.empty() || row.reason.empty())
            return false;
        if (!row.is_group())
            continue;
        for (std::size_t j = 0; j < i; ++j)
            if (rows[j].group.section == row.group.section)
                return false;
        // Either plain in a direction, or with a function of its own.
        if (row.group.get.number == 0 || row.group.set.number == 0)
            return false;
        if (row.group.object == nullptr && (row.group.save == nullptr || row.restore == nullptr))
            return false;
    }
    return rows.back().step == Step::first_run;
}
static_assert(rows_are_whole());

constexpr const Row& row(Step step) noexcept {
    return rows[static_cast<std::size_t>(step)];
}

/// The rows of the groups, as save() reads them.
inline constexpr auto save_order = [] {
    constexpr auto groups = std::ranges::count_if(rows, &Row::is_group);
    std::array<Step, static_cast<std::size_t>(groups)> order{};
    std::size_t count = 0;
    for (const int rank : {0, 1, 2})
        for (const auto& row : rows)
            if (row.is_group() && row.group.save_rank == rank)
                order[count++] = row.step;
    return order;
}();

/// The group that has this type in the file form; nullptr: none has.
constexpr const Row* find_section(std::uint32_t type) noexcept {
    const auto found = std::ranges::find_if(
        rows, [&](const Row& row) { return row.is_group() && row.group.section == type; });
    return found != rows.end() ? &*found : nullptr;
}

/// Whether a vCPU can have what the state has of a group.
bool well_formed(const Group& group, const VcpuState& state) noexcept;

} // namespace kvm::vcpu::detail

export namespace kvm::vcpu {

constexpr std::string_view name(Step step) noexcept {
    const auto index = static_cast<std::size_t>(step);
    return index < detail::rows.size() ? detail::rows[index].name : "?";
}

/// The type that a group has in the file form; 0: the step is no group.
constexpr std::uint32_t section_type(Step step) noexcept {
    return detail::row(step).group.section;
}

} // namespace kvm::vcpu
