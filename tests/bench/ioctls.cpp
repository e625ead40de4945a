// SPDX-License-Identifier: MIT
//
// How many ioctls a whole vCPU takes, counted through the seam, beside the least that its groups need. Fails
// where a save or a restore makes more than two besides.
//
// The two: KVM_CHECK_EXTENSION for the size of the XSAVE area, which differs from host to host, so that the
// kernel neither writes nor reads behind it; and, in a restore, KVM_GET_MSRS for the MSRs that nobody can
// write, which are compared instead. Each MSR that the host refuses takes one more.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <format>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

import unit.vcpu.support;

namespace {

using kvm::nested::VendorId;
using kvm::vcpu::Step;
using kvm::vcpu::VcpuState;
using unit::FakeKvm;

constexpr std::size_t allowed_besides = 2;

/// Ioctls for so many MSRs: KVM takes fewer than 256 at once.
constexpr std::size_t parts(std::size_t msrs) {
    return (msrs + 254) / 255;
}

/// Groups are what has a section in the file form.
template <class Need>
std::size_t sum_over_steps(Need need) {
    std::size_t sum = 0;
    for (const auto& ordered : kvm::vcpu::restore_order)
        sum += need(ordered.step, kvm::vcpu::section_type(ordered.step) != 0);
    return sum;
}

/// One for each group, and what the last exit left to be done.
std::size_t least_to_save(const VcpuState& state) {
    return sum_over_steps([&](Step step, bool is_group) -> std::size_t {
        switch (step) {
        case Step::pending_io:
            return 1;
        case Step::feature_msrs:
            return parts(state.feature_msrs.size());
        case Step::msrs:
            return parts(state.msrs.size());
        case Step::one_regs: // the list, and each
            return 1 + state.one_regs.size();
        default:
            return is_group;
        }
    });
}

/// Into what a state is restored, and how.
struct Target {
    bool shifted = false;   ///< with a TscShift
    bool was_in_l2 = false; ///< else the vCPU is fresh
    kvm::vcpu::Requirements requirements = {};
};

/// What the nested state needs besides KVM_SET_NESTED_STATE.
std::size_t least_for_nested(const VcpuState& state, const Target& target) {
    switch (state.nested.phase()) {
    case kvm::nested::Phase::vmx_current_vmcs: // read back, and set once more where KVM has spoilt it
    case kvm::nested::Phase::vmx_smm_current_vmcs:
    case kvm::nested::Phase::vmx_smm_interrupted_l2:
        return target.was_in_l2 ? 2 : 1;
    case kvm::nested::Phase::vmx_l2_active: // L1's TSC, to hold the deadline of a preemption timer against
        return (std::bit_cast<kvm::nested::uapi::VmxHeader>(state.nested.header().vendor).flags
                & kvm::nested::uapi::vmx_flag::preemption_timer_deadline)
               != 0;
    default:
        return 0;
    }
}

/// One for each group that the state has, and the steps around them that are the library's.
std::size_t least_to_restore(const VcpuState& state, const Target& target) {
    return sum_over_steps([&](Step step, bool is_group) -> std::size_t {
        switch (step) {
        case Step::capabilities: // whether they are on has to be known before anything is written
        case Step::pending_io:
        case Step::clear_nested_state:
            return 1;
        case Step::vcpu_capabilities:
            return std::size_t{state.requirements.enlightened_vmcs}
                   + (state.requirements.hyperv_synic != kvm::vcpu::HypervSynic::off);
        case Step::feature_msrs:
            return parts(state.feature_msrs.size());
        case Step::msrs:
            return parts(state.msrs.size());
        case Step::tsc_offset: // else the TSC is one of the MSRs
            return target.shifted;
        case Step::one_regs:
            return state.one_regs.size();
        case Step::xcrs: // KVM refuses to set none
            return state.xcrs.count != 0;
        case Step::nested_state:
            return 1 + least_for_nested(state, target);
        default:
            return is_group;
        }
    });
}

bool all_well = true;

/// A line of the table, which the README has as well.
void print(const std::string& line) {
    static const std::string readme = [] {
        std::ifstream file{README};
        return std::string{std::istreambuf_iterator{file}, {}};
    }();
    const bool known = readme.contains("\n    " + line + "\n");
    all_well = all_well && known;
    std::printf("%s%s\n", line.c_str(), known ? "" : "   NOT IN THE README");
}

void report(std::string_view what, VendorId vendor, std::size_t least, std::size_t made) {
    print(std::format("{:<32} {} {:7} {:7}", what, vendor == VendorId::vmx ? "vmx" : "svm", least, made));
    if (made <= least + allowed_besides)
        return;
    std::printf("bench: %zu too many\n", made - least - allowed_besides);
    all_well = false;
}

void expect(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "bench: %s\n", what);
    std::exit(1);
}

/// With all that KVM serves, and so with an MSR for each machine check bank.
FakeKvm busy(VendorId vendor, unsigned seed = 1) {
    auto fake = unit::busy(vendor, seed);
    fake.serve_unlisted_msrs();
    return fake;
}

VcpuState count_save(std::string_view what, FakeKvm fake, bool lists_are_known,
                     const kvm::vcpu::Requirements& requirements = {}) {
    const auto lists = kvm::vcpu::MsrLists::ask(kvm::nested::SystemFd{FakeKvm::system}, fake);
    expect(lists.has_value(), "the lists could not be had");
    const auto vcpu = unit::whole(fake, requirements);
    VcpuState state;
    expect(vcpu.save(state, {.lists = lists_are_known ? &*lists : nullptr}).has_value(), "a save failed");
    report(what, fake.vendor, least_to_save(state) + (lists_are_known ? 0 : 2), fake.calls.size());
    return state;
}

void count_restore(std::string_view what, const VcpuState& state, const Target& target = {}) {
    auto fake = busy(state.vendor, 2);
    if (!target.was_in_l2) {
        const auto fresh = kvm::nested::NestedStateBuffer::not_in_nested_operation(state.vendor);
        fake.nested.assign(fresh.bytes().begin(), fresh.bytes().end());
    }
    if (!state.one_regs.empty())
        for (fake.one_regs.emplace(); const auto& saved : state.one_regs)
            fake.one_regs->emplace(saved.id, 0);
    const auto vcpu = unit::whole(fake, target.requirements);
    const auto restored =
        target.shifted ? vcpu.restore(state, {.cycles = 0, .khz = state.tsc_khz}) : vcpu.restore(state);
    expect(restored.has_value(), "a restore failed");
    report(what, state.vendor, least_to_restore(state, target), fake.calls.size());
}

void count(VendorId vendor) {
    count_save("save(), lists not known", busy(vendor), false);
    const auto state = count_save("save(into), lists known", busy(vendor), true);
    count_restore("restore()", state);
    count_restore("  with a TscShift", state, {.shifted = true});
}

/// What only VMX has.
void count_special_cases() {
    auto fake = busy(VendorId::vmx);
    fake.nested[0] = std::byte{}; // no flag: L1 runs
    const auto at_rest = count_save("save(into), L1 runs", fake, true);
    count_restore("restore(), L1 runs", at_rest);
    count_restore("  into a vCPU that was in L2", at_rest, {.was_in_l2 = true});

    constexpr std::uint64_t shadow_stack_pointer = 0x2030'0003'0000'0000;
    constexpr kvm::vcpu::Requirements hyperv{.enlightened_vmcs = true,
                                             .hyperv_synic = kvm::vcpu::HypervSynic::synic2};
    fake = busy(VendorId::vmx);
    fake.nested = unit::l2_active(VendorId::vmx, kvm::nested::uapi::state_flag::evmcs);
    fake.one_regs = {{shadow_stack_pointer, 1}};
    const auto enlightened = count_save("save(into), eVMCS, SynIC, CET", fake, true, hyperv);
    count_restore("restore(), eVMCS, SynIC, CET", enlightened, {.requirements = hyperv});
}

} // namespace

int main() {
    print(std::format("{:<32}     {:>7} {:>7}   at most {} more than needed", "ioctls", "needed", "made",
                      allowed_besides));
    for (const auto vendor : {VendorId::vmx, VendorId::svm})
        count(vendor);
    count_special_cases();
    return all_well ? EXIT_SUCCESS : EXIT_FAILURE;
}
