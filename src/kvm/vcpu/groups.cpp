// SPDX-License-Identifier: MIT
//
// The groups that a plain GET and SET of their member do not move, but for the MSRs.
module;
#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu::detail {

// --- cpuid

Result save_cpuid(const Saving& saving) {
    // Linux 6.1 does not write the count back on success, so the entries that it leaves alone have to be told
    // by what they were: no CPUID has this function.
    constexpr std::uint32_t untouched = 0xffff'ffff;
    CpuidBlock block;
    block.count = uapi::cpuid_limit;
    block.padding = 0;
    for (auto& entry : block.entries)
        entry.function = untouched;
    if (const auto got = saving.calls.call(uapi::request::get_cpuid2, &block); !got)
        return got;
    if (block.count > uapi::cpuid_limit)
        return saving.calls.absurd(uapi::request::get_cpuid2, block.count);
    const auto given = std::span{block.entries}.first(block.count);
    saving.state.cpuid.assign(given.begin(),
                              std::ranges::find(given, untouched, &uapi::CpuidEntry::function));
    return {};
}

Result restore_cpuid(const Restoring& restoring) {
    CpuidBlock block;
    block.count = static_cast<std::uint32_t>(restoring.state.cpuid.size());
    block.padding = 0;
    std::ranges::copy(restoring.state.cpuid, block.entries.begin());
    return restoring.calls.call(uapi::request::set_cpuid2, &block);
}

// --- lapic

// EINVAL on what has turned out to be a vCPU already: its APIC is not in the kernel.

Result save_lapic(const Saving& saving) {
    auto& lapic = saving.state.lapic;
    const auto got = saving.calls.ioctl(saving.calls.vcpu.number, uapi::request::get_lapic, &lapic.emplace());
    if (got.value == 0)
        return {};
    lapic.reset();
    if (got.value < 0 && got.error_number == EINVAL)
        return {};
    return std::unexpected(saving.calls.vcpu_failed(uapi::request::get_lapic, got));
}

Result restore_lapic(const Restoring& restoring) {
    const auto& [calls, host, state, report, shift] = restoring;
    if (state.lapic)
        return calls.set(uapi::request::set_lapic, &*state.lapic);
    uapi::Lapic unwanted;
    const auto got = calls.ioctl(calls.vcpu.number, uapi::request::get_lapic, &unwanted);
    if (got.value == 0) // it would stay as it is, which is nobody's state
        return calls.fail(Errc::no_vcpu_group, group(Step::lapic));
    if (got.value < 0 && got.error_number == EINVAL)
        return {};
    return std::unexpected(calls.vcpu_failed(uapi::request::get_lapic, got));
}

// --- tsc

Result save_tsc(const Saving& saving) {
    const auto got = saving.calls.ioctl(saving.calls.vcpu.number, uapi::request::get_tsc_khz);
    if (got.value < 0)
        return std::unexpected(saving.calls.vcpu_failed(uapi::request::get_tsc_khz, got));
    saving.state.tsc_khz = static_cast<std::uint32_t>(got.value);
    return {};
}

/// A host without TSC scaling takes no frequency but its own, give or take; that is worth a word, not an end.
/// It can refuse even the one that its new vCPUs have: Linux measures its TSC again after KVM was loaded
/// (seen on 6.1). Whether it is that one only the VM can tell: a refused vCPU says that it has what it was
/// asked for.
Result restore_tsc(const Restoring& restoring) {
    const auto& [calls, host, state, report, shift] = restoring;
    if (state.tsc_khz == 0)
        return {};
    const auto set = calls.ioctl.with_number(calls.vcpu.number, uapi::request::set_tsc_khz, state.tsc_khz);
    if (set.value == 0)
        return {};
    if (set.value > 0 || set.error_number != EINVAL)
        return std::unexpected(calls.vcpu_failed(uapi::request::set_tsc_khz, set));
    const auto of_new_vcpus = calls.ioctl(calls.vm.number, uapi::request::get_tsc_khz); // since Linux 5.18
    report.tsc_khz_refused =
        of_new_vcpus.value < 0 || static_cast<std::uint32_t>(of_new_vcpus.value) != state.tsc_khz;
    return {};
}

// --- tsc_offset

namespace {

uapi::DeviceAttribute tsc_offset_at(const void* value) {
    return {.flags = 0, .group = 0, .attribute = 0, .address = reinterpret_cast<std::uintptr_t>(value)};
}

/// What a kernel says that does not have the attribute.
bool unknown(IoctlResult result) {
    return result.value < 0
           && (result.error_number == ENXIO || result.error_number == EINVAL
               || result.error_number == ENOTTY);
}

} // namespace

std::expected<std::optional<std::uint64_t>, Error> read_tsc_offset(const VcpuCalls& calls) {
    std::uint64_t offset = 0;
    auto attribute = tsc_offset_at(&offset);
    const auto got = calls.ioctl(calls.vcpu.number, uapi::request::get_device_attr, &attribute);
    if (got.value == 0)
        return offset;
    const auto error = calls.vcpu_failed(uapi::request::get_device_attr, got);
    if (unknown(got) && descriptor_kind(calls.ioctl, calls.vcpu.number) == DescriptorKind::vcpu)
        return std::nullopt;
    return std::unexpected(error);
}

Result save_tsc_offset(const Saving& saving) {
    const auto offset = read_tsc_offset(saving.calls);
    if (!offset)
        return std::unexpected(offset.error());
    saving.state.tsc_offset = *offset;
    return {};
}

/// Nothing without the VM's shift: then the MSR is written, and KVM guesses.
Result restore_tsc_offset(const Restoring& restoring) {
    const auto& [calls, host, state, report, shift] = restoring;
    if (shift == nullptr)
        return {};
    report.tsc_offset_refused = true;
    if (!state.tsc_offset || shift->khz == 0 || shift->khz != state.tsc_khz)
        return {};
    const std::uint64_t offset = *state.tsc_offset + shift->cycles;
    auto attribute = tsc_offset_at(&offset);
    const auto set = calls.ioctl(calls.vcpu.number, uapi::request::set_device_attr, &attribute);
    report.tsc_offset_refused = set.value != 0;
    if (set.value == 0 || unknown(set))
        return {};
    return std::unexpected(calls.vcpu_failed(uapi::request::set_device_attr, set));
}

// --- one_regs

/// Linux 6.1 and 6.12 do not know the list and say EINVAL; 7.3 lists nothing for a guest without shadow
/// stacks.
Result save_one_regs(const Saving& saving) {
    const auto& calls = saving.calls;
    auto& registers = saving.state.one_regs;
    registers.clear();
    struct {
        std::uint64_t count = uapi::one_reg_limit;
        std::array<std::uint64_t, uapi::one_reg_limit> ids; // not initialised
    } list;
    const auto listed = calls.ioctl(calls.vcpu.number, uapi::request::get_reg_list, &list);
    if (listed.value < 0 && (listed.error_number == EINVAL || listed.error_number == ENOTTY))
        return {};
    if (list.count > list.ids.size()) // E2BIG, or nonsense
        return calls.absurd(uapi::request::get_reg_list, list.count);
    if (listed.value != 0)
        return std::unexpected(calls.vcpu_failed(uapi::request::get_reg_list, listed));
    for (const auto id : std::span{list.ids}.first(static_cast<std::size_t>(list.count))) {
        if (uapi::one_reg_size_log2(id) > 3) // wider than 8 bytes: half of it would be lost
            return calls.absurd(uapi::request::get_reg_list, id);
        auto& added = registers.emplace_back(uapi::OneReg{.id = id, .value = 0});
        uapi::OneRegAddress at{.id = id, .address = reinterpret_cast<std::uintptr_t>(&added.value)};
        if (const auto got = calls.call(uapi::request::get_one_reg, &at); !got)
            return got;
    }
    return {};
}

Result restore_one_regs(const Restoring& restoring) {
    for (const auto& saved : restoring.state.one_regs) {
        uapi::OneRegAddress at{.id = saved.id, .address = reinterpret_cast<std::uintptr_t>(&saved.value)};
        if (const auto set = restoring.calls.call(uapi::request::set_one_reg, &at); !set)
            return set;
    }
    return {};
}

// --- xcrs

Result save_xcrs(const Saving& saving) {
    auto& xcrs = saving.state.xcrs;
    if (const auto got = saving.calls.call(uapi::request::get_xcrs, &xcrs); !got)
        return got;
    if (xcrs.count > xcrs.entries.size())
        return saving.calls.absurd(uapi::request::get_xcrs, xcrs.count);
    return {};
}

Result restore_xcrs(const Restoring& restoring) {
    const auto& xcrs = restoring.state.xcrs;
    return xcrs.count == 0 ? Result{} // KVM refuses to set none
                           : restoring.calls.set(uapi::request::set_xcrs, &xcrs);
}

// --- xsave

Result save_xsave(const Saving& saving) {
    const auto size = saving.calls.xsave_size();
    if (!size)
        return std::unexpected(size.error());
    // KVM leaves alone what this vCPU's area does not take, and an earlier save may have been another vCPU's.
    saving.state.xsave.resize(uapi::xsave_size);
    saving.state.xsave.resize(*size);
    return saving.calls.call(*size > uapi::xsave_size ? uapi::request::get_xsave2 : uapi::request::get_xsave,
                             saving.state.xsave.data());
}

/// KVM reads as much as this vCPU's area takes, whatever the state has.
Result restore_xsave(const Restoring& restoring) {
    const auto size = restoring.calls.xsave_size();
    if (!size)
        return std::unexpected(size.error());
    const auto& saved = restoring.state.xsave;
    if (saved.size() >= *size)
        return restoring.calls.set(uapi::request::set_xsave, saved.data());
    auto area = saved;
    area.resize(*size);
    return restoring.calls.set(uapi::request::set_xsave, area.data());
}

// --- events

/// And what the vCPU's VM turns out to have on, which KVM tells by the flags of the events alone.
Result save_events(const Saving& saving) {
    const auto& calls = saving.calls;
    const auto& promised = saving.promised;
    auto& state = saving.state;
    if (const auto got = calls.call(uapi::request::get_vcpu_events, &state.events); !got)
        return got;
    const struct {
        bool promised;
        std::uint32_t flag;
        std::uint32_t capability;
        bool& found;
    } rows[] = {
        {promised.exception_payload, uapi::event_flag::payload, uapi::cap::exception_payload,
         state.requirements.exception_payload},
        {promised.triple_fault_event, uapi::event_flag::triple_fault, uapi::cap::triple_fault_event,
         state.requirements.triple_fault_event},
    };
    state.requirements = promised;
    for (const auto& row : rows) {
        row.found = (state.events.flags & row.flag) != 0;
        if (row.promised && !row.found)
            return calls.fail(Errc::not_prepared, capability(row.capability));
    }
    return {};
}

// --- nested_state

Result save_nested_state(const Saving& saving) {
    auto& state = saving.state;
    const Vcpu<Any, IoctlRef> vcpu{saving.host, saving.calls.vcpu, saving.calls.ioctl};
    if (const auto got = vcpu.nested_state(state.nested); !got)
        return std::unexpected(Error{got.error()});
    if (state.nested.vendor() != saving.host.vendor())
        return saving.calls.fail(nested::Errc::wrong_vendor, group(Step::nested_state));
    // The kernel itself says that it is on, promised or not.
    if ((state.nested.flags() & uapi::state_flag::evmcs) != 0)
        state.requirements.enlightened_vmcs = true;
    return {};
}

namespace {

/// Whether the state has a vmcs12 and L2 does not run.
bool has_vmcs12_at_rest(Phase phase) {
    return phase == Phase::vmx_current_vmcs || phase == Phase::vmx_smm_current_vmcs
           || phase == Phase::vmx_smm_interrupted_l2;
}

/// Once more where KVM spoils what it has just taken. On VMX a vCPU that was in L2 owes that L2's segments to
/// its vmcs12: KVM copies them out of the hardware's VMCS only when somebody asks. Taking the vCPU out of
/// nested operation does not settle the debt, so it falls on the vmcs12 that comes next, whose segments the
/// next GET, VMREAD or VMCLEAR overwrites with those of a VMCS that never ran: zeroes (seen on
/// Linux 6.1, 6.12 and 7.3). Reading back settles it, and what is set then stays.
std::expected<void, nested::Error> set_for_good(const Vcpu<Any, IoctlRef>& vcpu,
                                                const NestedStateBuffer& state) {
    const auto set = vcpu.set_nested_state(state);
    if (!set || !has_vmcs12_at_rest(state.phase()))
        return set;
    const auto verified = vcpu.verify_nested_state(state);
    if (verified || verified.error().code != nested::Errc::not_equivalent)
        return verified;
    return vcpu.set_nested_state(state);
}

} // namespace

namespace {

/// The deadline of L2's VMX-preemption timer, in L1's TSC divided by 32; none: none runs.
std::optional<std::uint64_t> timer_deadline(const NestedStateBuffer& state) {
    if (state.phase() != Phase::vmx_l2_active)
        return std::nullopt;
    const auto header = std::bit_cast<uapi::VmxHeader>(state.header().vendor);
    return (header.flags & uapi::vmx_flag::preemption_timer_deadline) != 0
               ? std::optional{header.preemption_timer_deadline}
               : std::nullopt;
}

/// The same state with another deadline.
std::expected<NestedStateBuffer, nested::Error> with_deadline(const NestedStateBuffer& state,
                                                              std::uint64_t deadline) {
    constexpr std::size_t at =
        offsetof(uapi::StateHeader, vendor) + offsetof(uapi::VmxHeader, preemption_timer_deadline);
    std::array<std::byte, Any::capacity> bytes; // of which only the state's are written and read
    const auto size = state.bytes().size();
    std::ranges::copy(state.bytes(), bytes.begin());
    std::memcpy(bytes.data() + at, &deadline, sizeof deadline);
    return NestedStateBuffer::parse(std::span{bytes}.first(size));
}

} // namespace

/// KVM subtracts L1's TSC from the deadline of the VMX-preemption timer without a look at the sign, so one
/// that has passed, while the vCPU stood or in a downtime that shows, would not come for hours (seen on Linux
/// 6.1, 6.12 and 7.3). It is moved to the near future: far enough not to pass before KVM has seen it.
Result restore_nested_state(const Restoring& restoring) {
    const auto& state = restoring.state.nested;
    const auto vcpu = restoring.nested();
    const auto set = [&](const NestedStateBuffer& what) -> Result {
        if (const auto done = set_for_good(vcpu, what); !done)
            return std::unexpected(Error{done.error()});
        return {};
    };
    const auto deadline = timer_deadline(state);
    if (!deadline)
        return set(state);
    constexpr std::uint64_t cycles_per_unit = 32;
    const auto tsc = restoring.calls.read_tsc();
    if (!tsc)
        return std::unexpected(tsc.error());
    const auto soonest = (*tsc + restoring.state.tsc_khz) / cycles_per_unit; // a millisecond ahead
    if (*deadline >= soonest)
        return set(state);
    const auto moved = with_deadline(state, soonest);
    if (!moved)
        return std::unexpected(Error{moved.error()});
    restoring.report.preemption_timer_was_over = true;
    return set(*moved);
}

} // namespace kvm::vcpu::detail
