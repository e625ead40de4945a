// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <expected>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::Effect;
using kvm::nested::VendorId;
using kvm::vcpu::Errc;
using kvm::vcpu::HypervSynic;
using kvm::vcpu::Operation;
using kvm::vcpu::Requirements;
using kvm::vcpu::Step;
using kvm::vcpu::VcpuState;
using unit::busy;
using unit::FakeKvm;
using unit::saved;
using unit::whole;
namespace request = unit::request;
namespace cap = unit::cap;

/// The step that a call belongs to; none for what only asks.
std::optional<Step> step_of(const FakeKvm& fake, const FakeKvm::Call& call, bool& cleared) {
    switch (call.request) {
    case request::get_vcpu_events:
        return Step::capabilities;
    case request::run:
        return Step::pending_io;
    case request::set_nested_state:
        return std::exchange(cleared, true) ? Step::nested_state : Step::clear_nested_state;
    case request::set_cpuid2:
        return Step::cpuid;
    case request::enable_cap:
        return Step::vcpu_capabilities;
    case request::set_msrs:
        return std::ranges::contains(fake.feature_list, call.first_msr) ? Step::feature_msrs : Step::msrs;
    case request::set_sregs2:
        return Step::sregs;
    case request::set_lapic:
        return Step::lapic;
    case request::set_tsc_khz:
        return Step::tsc;
    case request::set_device_attr:
        return Step::tsc_offset;
    case request::set_one_reg:
        return Step::one_regs;
    case request::set_xcrs:
        return Step::xcrs;
    case request::set_xsave:
        return Step::xsave;
    case request::set_debugregs:
        return Step::debugregs;
    case request::set_regs:
        return Step::regs;
    case request::set_vcpu_events:
        return Step::events;
    case request::set_mp_state:
        return Step::mp_state;
    default:
        return std::nullopt;
    }
}

std::vector<Step> steps_of(const FakeKvm& fake, bool cleared = false) {
    std::vector<Step> steps;
    for (const auto& call : fake.calls)
        if (const auto step = step_of(fake, call, cleared); step && (steps.empty() || steps.back() != *step))
            steps.push_back(*step);
    return steps;
}

/// The ioctl that a step behind clear_nested_state begins with; 0: it has none.
unsigned long request_of(Step step) {
    const std::pair<Step, unsigned long> rows[] = {
        {Step::cpuid, request::set_cpuid2},
        {Step::vcpu_capabilities, request::enable_cap},
        {Step::feature_msrs, request::set_msrs},
        {Step::sregs, request::set_sregs2},
        {Step::lapic, request::set_lapic},
        {Step::tsc, request::set_tsc_khz},
        {Step::msrs, request::set_msrs},
        {Step::one_regs, request::set_one_reg},
        {Step::xcrs, request::set_xcrs},
        {Step::xsave, request::set_xsave},
        {Step::debugregs, request::set_debugregs},
        {Step::regs, request::set_regs},
        {Step::events, request::set_vcpu_events},
        {Step::mp_state, request::set_mp_state},
        {Step::tsc_offset, request::set_device_attr},
        {Step::nested_state, request::set_nested_state},
    };
    const auto found = std::ranges::find(rows, step, &std::pair<Step, unsigned long>::first);
    return found != std::end(rows) ? found->second : 0;
}

/// Of the caller, or of WholeVm.
constexpr bool is_elsewhere(Step step) {
    return step == Step::memory || step == Step::clock || step == Step::irqchips || step == Step::pit
           || step == Step::first_run;
}

/// KVM's register of its own for the guest's shadow-stack pointer, 8 bytes.
constexpr std::uint64_t shadow_stack_pointer = 0x2030'0003'0000'0000;

/// With something to do in every step.
VcpuState full_state() {
    auto source = busy(VendorId::vmx, 1);
    source.nested = unit::l2_active(VendorId::vmx, kvm::nested::uapi::state_flag::evmcs);
    source.one_regs = {{shadow_stack_pointer, 1}};
    return *whole(source, {.enlightened_vmcs = true}).save();
}

/// A vCPU that takes it.
FakeKvm full_target() {
    auto target = busy(VendorId::vmx, 2);
    target.one_regs = {{shadow_stack_pointer, 2}};
    return target;
}

/// For the frequency that each fake has.
constexpr kvm::vcpu::TscShift shift{.cycles = 0, .khz = 2'000'000};

TEST_CASE("what was saved is what the other vCPU has afterwards") {
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        const auto state = saved(vendor, 1);
        auto target = busy(vendor, 2);
        const auto vcpu = whole(target);
        const auto report = vcpu.restore(state);
        REQUIRE(report.has_value());
        CHECK(report->refused_msrs.empty());
        auto again = vcpu.save();
        REQUIRE(again.has_value());
        // Six MSRs are nobody's to write; all else is equal.
        for (auto& msr : again->feature_msrs)
            if (std::ranges::contains(kvm::vcpu::uapi::msr::derived, msr.index))
                msr.value = std::uint64_t{msr.index} * 1000 + 1;
        again->tsc_offset = state.tsc_offset; // the TSC is set as an MSR, whatever offset that takes
        CHECK(*again == state);
    }
}

TEST_CASE("a vmcs12 that is restored onto a vCPU that was in L2 does not pay for the L2 of then") {
    auto source = busy(VendorId::vmx, 1);
    source.nested[0] = std::byte{}; // L1 runs, a VMCS is current
    const auto state = *whole(source).save();
    REQUIRE(state.nested.phase() == kvm::nested::Phase::vmx_current_vmcs);
    auto target = busy(VendorId::vmx, 2);
    const auto vcpu = whole(target);
    REQUIRE(vcpu.restore(state).has_value());
    CHECK(vcpu.nested().verify_nested_state(state.nested).has_value());
    CHECK(std::ranges::equal(target.nested, state.nested.bytes()));
}

TEST_CASE("the ioctls come in restore_order") {
    auto target = full_target();
    REQUIRE(whole(target, {.enlightened_vmcs = true}).restore(full_state(), shift).has_value());
    std::vector<Step> expected;
    for (const auto& ordered : kvm::vcpu::restore_order)
        if (!is_elsewhere(ordered.step))
            expected.push_back(ordered.step);
    const auto steps = steps_of(target);
    CHECK(steps == expected);
    CHECK(kvm::vcpu::keeps_restore_order(steps));
}

TEST_CASE("a pending exception survives, although KVM_SET_REGS drops one") {
    const auto state = saved();
    REQUIRE(state.events.exception_pending == 1);
    auto target = busy(VendorId::svm, 2);
    REQUIRE(whole(target).restore(state).has_value());
    CHECK(target.events.exception_pending == 1);
}

TEST_CASE("each failing ioctl gives an error with its step, and nothing follows it") {
    const std::pair<unsigned long, Step> rows[] = {
        {request::get_vcpu_events, Step::capabilities},
        {request::run, Step::pending_io},
        {request::set_nested_state, Step::clear_nested_state},
        {request::set_cpuid2, Step::cpuid},
        {request::enable_cap, Step::vcpu_capabilities},
        {request::set_msrs, Step::feature_msrs},
        {request::get_msrs, Step::feature_msrs},
        {request::set_sregs2, Step::sregs},
        {request::set_lapic, Step::lapic},
        {request::set_tsc_khz, Step::tsc},
        {request::set_xcrs, Step::xcrs},
        {request::check_extension, Step::xsave},
        {request::set_xsave, Step::xsave},
        {request::set_debugregs, Step::debugregs},
        {request::set_regs, Step::regs},
        {request::set_vcpu_events, Step::events},
        {request::set_mp_state, Step::mp_state},
    };
    const auto state = full_state();
    for (const auto& [failing, step] : rows) {
        CAPTURE(name(step));
        auto target = full_target();
        const auto vcpu = whole(target, {.enlightened_vmcs = true});
        target.failure = {.request = failing, .error_number = ENOMEM};
        const auto report = vcpu.restore(state);
        REQUIRE_FALSE(report.has_value());
        CHECK(report.error().operation == Operation::restore);
        CHECK(report.error().step == step);
        CHECK(report.error().request == failing);
        CHECK(report.error().cause == kvm::nested::Errc::out_of_memory);
        CHECK(report.error().error_number == ENOMEM);
        const auto first = std::ranges::find(target.calls, failing, &FakeKvm::Call::request);
        // What comes behind only asks what kind of descriptor it was, and what the vCPU holds.
        for (auto call = first + 1; call != target.calls.end(); ++call) {
            const bool asks =
                call->request == request::get_api_version || call->request == request::check_extension
                || call->request == request::get_tsc_khz || call->request == request::get_nested_state
                || call->request == request::get_supported_hv_cpuid;
            CHECK(asks);
        }
    }
}

TEST_CASE("a nested state that is refused is the kernel's last word") {
    const auto state = saved();
    auto target = busy(VendorId::svm, 2);
    const auto vcpu = whole(target);
    target.failure = {.request = request::set_nested_state, .value = 2, .from = 2};
    const auto report = vcpu.restore(state);
    REQUIRE_FALSE(report.has_value());
    CHECK(report.error().cause == kvm::nested::Errc::entry_failed);
    CHECK(report.error().raw_result == 2);
}

TEST_CASE("behind the step that clears the nested state every error says that it is lost") {
    const auto state = full_state();
    for (const auto& ordered : kvm::vcpu::restore_order) {
        CAPTURE(ordered.name);
        const auto set = request_of(ordered.step);
        if (set == 0)
            continue;
        auto target = full_target();
        const auto vcpu = whole(target, {.enlightened_vmcs = true});
        target.failure = {.request = set, .error_number = EINVAL};
        if (ordered.step == Step::nested_state)
            target.failure->from = 2;
        if (ordered.step == Step::msrs)
            target.failure->from = 2;
        const auto report = vcpu.restore(state, shift);
        if (ordered.step == Step::tsc || ordered.step == Step::tsc_offset) { // worth a word, not an end
            CHECK(report.has_value());
            continue;
        }
        REQUIRE_FALSE(report.has_value());
        CHECK(report.error().step == ordered.step);
        CHECK(report.error().effect == Effect::nested_state_lost);
        const auto message = report.error().message();
        CHECK(message.view().contains("the vCPU's nested state is lost"));
        CHECK_FALSE(message.view().contains("documented order"));
    }
}

TEST_CASE("up to that step an error says that the nested state is what it was") {
    const auto state = full_state();
    for (const auto failing : {request::get_vcpu_events, request::run}) {
        auto target = full_target();
        const auto before = target.nested;
        const auto vcpu = whole(target, {.enlightened_vmcs = true});
        target.failure = {.request = failing, .error_number = EINVAL};
        const auto report = vcpu.restore(state);
        REQUIRE_FALSE(report.has_value());
        CHECK(report.error().effect == Effect::unchanged);
        CHECK(target.nested == before);
    }
}

TEST_CASE("an MSR that is refused is reported, and the ones behind it are written") {
    const auto state = saved(VendorId::svm, 1);
    auto target = busy(VendorId::svm, 2);
    target.refused = {0x10, 0x4b564d06, 0x480};
    target.msr[0x4b564d06] = std::uint64_t{0x4b564d06} * 1000 + 1; // has it already
    target.unreadable = {0x10};
    const auto report = whole(target).restore(state);
    REQUIRE(report.has_value());
    REQUIRE(report->refused_msrs.size() == 3);
    CHECK(report->refused_msrs[0].index == 0x480);
    CHECK(report->refused_msrs[0].wanted == 0x480 * 1000 + 1);
    CHECK(report->refused_msrs[0].present == 0x480 * 1000 + 2);
    CHECK_FALSE(report->refused_msrs[0].harmless());
    CHECK(report->refused_msrs[1].index == 0x10);
    CHECK_FALSE(report->refused_msrs[1].present.has_value());
    CHECK_FALSE(report->refused_msrs[1].harmless());
    CHECK(report->refused_msrs[2].index == 0x4b564d06);
    CHECK(report->refused_msrs[2].harmless());
    CHECK_FALSE(report->complete());
    for (const std::uint32_t index : {0x3au, 0x277u, 0xc0010117u, 0x6e0u, 0x8bu})
        CHECK(target.msr[index] == std::uint64_t{index} * 1000 + 1);
}

TEST_CASE("banks for machine checks are set up as they were, and a host that cannot is reported") {
    auto source = busy(VendorId::vmx);
    source.machine_checks = 10 | 1 << 10;
    const auto state = *whole(source).save();
    auto same = source, target = busy(VendorId::vmx, 2);
    REQUIRE(whole(target).restore(state).has_value());
    CHECK(target.machine_checks == source.machine_checks);
    REQUIRE(whole(same).restore(state).has_value());
    CHECK_FALSE(same.called(request::set_up_machine_checks)); // it would clear what the banks hold
    target.machine_checks = 0x20;
    target.machine_checks_can_be_set_up = false;
    const auto report = whole(target).restore(state);
    REQUIRE(report.has_value());
    const auto reported = std::ranges::find(report->derived_msrs, 0x179u, &kvm::vcpu::RefusedMsr::index);
    REQUIRE(reported != report->derived_msrs.end());
    CHECK(reported->name() == "IA32_MCG_CAP");
    CHECK(reported->present == 0x20);
    CHECK_FALSE(report->complete());
}

TEST_CASE("registers that only KVM_GET_REG_LIST has travel, and old kernels have none") {
    auto source = busy(VendorId::vmx);
    CHECK((*whole(source).save()).one_regs.empty());
    source.one_regs = {{shadow_stack_pointer, 0x7fff'f000}, {shadow_stack_pointer + 1, 5}};
    const auto state = *whole(source).save();
    REQUIRE(state.one_regs.size() == 2);
    unit::Bytes file;
    const auto append = [&](std::span<const std::byte> bytes) -> std::expected<void, kvm::vcpu::Error> {
        file.insert(file.end(), bytes.begin(), bytes.end());
        return {};
    };
    REQUIRE(kvm::vcpu::encode(state, append).has_value());
    const auto parsed = kvm::vcpu::parse_vcpu(file);
    REQUIRE(parsed.has_value());
    CHECK(parsed->state == state);

    auto target = busy(VendorId::vmx, 2);
    target.one_regs = {{shadow_stack_pointer, 0}, {shadow_stack_pointer + 1, 0}};
    REQUIRE(whole(target).restore(state).has_value());
    CHECK(target.one_regs == source.one_regs);

    target.one_regs.reset();
    const auto refused = whole(target).restore(state);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().step == Step::one_regs);
    CHECK(refused.error().message().view().contains("KVM_SET_ONE_REG"));
}

TEST_CASE("a register that is wider than its place, or a list without end, is not saved in half") {
    auto source = busy(VendorId::vmx);
    source.one_regs = {{shadow_stack_pointer + (std::uint64_t{1} << 52), 0}}; // 16 bytes
    CHECK(whole(source).save().error().step == Step::one_regs);
    source.one_regs.emplace();
    for (std::uint64_t i = 0; i <= kvm::vcpu::uapi::one_reg_limit; ++i)
        (*source.one_regs)[shadow_stack_pointer + i] = 0;
    CHECK(whole(source).save().error().step == Step::one_regs);
}

TEST_CASE("if every MSR is refused, every MSR is reported") {
    auto state = saved();
    state.msrs.clear();
    for (std::uint32_t i = 0; i < 300; ++i)
        state.msrs.push_back({.index = 0x1000 + i, .reserved = 0, .value = i});
    auto target = busy(VendorId::svm, 2);
    for (const auto& msr : state.msrs)
        target.refused.insert(msr.index);
    const auto report = whole(target).restore(state);
    REQUIRE(report.has_value());
    REQUIRE(report->refused_msrs.size() == 300);
    for (std::uint32_t i = 0; i < 300; ++i)
        CHECK(report->refused_msrs[i].index == 0x1000 + i);
}

TEST_CASE("the VMX capabilities that nobody can write are compared instead") {
    const auto state = saved(VendorId::vmx, 1);
    auto target = busy(VendorId::vmx, 1);
    target.refused = {0x481, 0x482, 0x483, 0x484, 0x487, 0x489};
    auto report = whole(target).restore(state);
    REQUIRE(report.has_value());
    CHECK(report->complete());
    CHECK(report->refused_msrs.empty());
    CHECK(report->derived_msrs.empty());

    target.msr[0x487] += 5;
    report = whole(target).restore(state);
    REQUIRE(report.has_value());
    CHECK(report->refused_msrs.empty());
    REQUIRE(report->derived_msrs.size() == 1);
    CHECK(report->derived_msrs[0] == kvm::vcpu::RefusedMsr{0x487, 0x487 * 1000 + 1, 0x487 * 1000 + 6});
    CHECK_FALSE(report->complete());
}

TEST_CASE("a TSC frequency that this host cannot give is reported") {
    const auto state = saved();
    auto target = busy(VendorId::svm, 2);
    const auto vcpu = whole(target);
    target.failure = {.request = request::set_tsc_khz, .error_number = EINVAL};
    const auto report = vcpu.restore(state);
    REQUIRE(report.has_value());
    CHECK(report->tsc_khz_refused);
    CHECK_FALSE(report->complete());
}

TEST_CASE("a TSC frequency that is refused is no loss if new vCPUs have it anyway") {
    const auto state = saved();
    auto target = busy(VendorId::svm, 2);
    const auto vcpu = whole(target);
    target.failure = {.request = request::set_tsc_khz, .error_number = EINVAL};
    for (const int khz : {2'000'000, 1'999'999}) {
        target.vm_tsc_khz = khz;
        const auto report = vcpu.restore(state);
        REQUIRE(report.has_value());
        CHECK(report->tsc_khz_refused == (khz != 2'000'000));
    }
}

TEST_CASE("a VM that is not prepared for the state is refused before anything is touched") {
    const auto refused = [](const Requirements& needs, const Requirements& has) {
        auto state = saved(VendorId::vmx);
        state.requirements = needs;
        auto target = busy(VendorId::vmx, 2);
        const auto report = whole(target, has).restore(state);
        REQUIRE_FALSE(report.has_value());
        CHECK(target.calls.empty());
        return report.error();
    };
    CHECK(refused({}, {.exception_payload = false}).cause == Errc::not_prepared);
    CHECK(refused({}, {.exception_payload = false}).detail == kvm::vcpu::capability(cap::exception_payload));
    CHECK(refused({}, {.triple_fault_event = false}).detail
          == kvm::vcpu::capability(cap::triple_fault_event));
    CHECK(refused({.enlightened_vmcs = true}, {}).detail == kvm::vcpu::capability(cap::enlightened_vmcs));
    CHECK(refused({.disabled_quirks = 1}, {}).cause == Errc::requirement_differs);
    CHECK(refused({}, {.disabled_quirks = 1}).cause == Errc::requirement_differs);
    CHECK(refused({}, {.disabled_quirks = 1}).detail == kvm::vcpu::capability(cap::disable_quirks2));
    CHECK(refused({.x2apic_api = 1}, {}).detail == kvm::vcpu::capability(cap::x2apic_api));
    CHECK(refused({}, {.apic_bus_cycle_ns = 40}).detail == kvm::vcpu::capability(cap::apic_bus_cycles_ns));
    CHECK(refused({.hyperv_synic = HypervSynic::synic}, {}).cause == Errc::not_prepared);
    CHECK(refused({.hyperv_synic = HypervSynic::synic2}, {.hyperv_synic = HypervSynic::synic}).cause
          == Errc::requirement_differs);
}

TEST_CASE("a VM that has more on than the state needs is good enough") {
    auto state = saved(VendorId::vmx);
    state.requirements.exception_payload = false;
    state.requirements.apic_bus_cycle_ns = 1; // as KVM has it
    auto target = busy(VendorId::vmx, 2);
    CHECK(whole(target, {.enlightened_vmcs = true, .hyperv_synic = HypervSynic::synic})
              .restore(state)
              .has_value());
    CHECK(target.enabled_on_vcpu.empty());
}

TEST_CASE("a promise that the VM does not keep is found out before anything is written") {
    const auto state = saved();
    for (const auto& [flag, number] :
         {std::pair{0x10u, cap::exception_payload}, std::pair{0x20u, cap::triple_fault_event}}) {
        auto target = busy(VendorId::svm, 2);
        const auto regs = target.regs;
        target.events_flags &= ~flag;
        const auto report = whole(target).restore(state);
        REQUIRE_FALSE(report.has_value());
        CHECK(report.error().cause == Errc::not_prepared);
        CHECK(report.error().detail == kvm::vcpu::capability(number));
        CHECK(steps_of(target) == std::vector{Step::capabilities});
        CHECK(target.regs == regs);
    }
}

TEST_CASE("a state that is not whole, or of the other vendor, is refused before anything is touched") {
    const auto refused = [](auto spoil) {
        auto state = saved();
        spoil(state);
        auto target = busy(VendorId::svm, 2);
        const auto report = whole(target).restore(state);
        REQUIRE_FALSE(report.has_value());
        CHECK(target.calls.empty());
        return report.error();
    };
    CHECK(refused([](VcpuState& state) { state = VcpuState{}; }).cause == kvm::nested::Errc::wrong_vendor);
    CHECK(refused([](VcpuState& state) { state = saved(VendorId::vmx); }).cause
          == kvm::nested::Errc::wrong_vendor);
    CHECK(refused([](VcpuState& state) { state.nested = saved(VendorId::vmx).nested; }).cause
          == kvm::nested::Errc::wrong_vendor);
    CHECK(refused([](VcpuState& state) { state.nested.clear(); }).cause == kvm::nested::Errc::no_state);
    CHECK(refused([](VcpuState& state) { state.xsave.clear(); }).cause == Errc::no_vcpu_group);
    CHECK(refused([](VcpuState& state) { state.xsave.clear(); }).detail == kvm::vcpu::group(Step::xsave));
    CHECK(refused([](VcpuState& state) { state.cpuid.resize(257); }).cause == Errc::no_vcpu_group);
    CHECK(refused([](VcpuState& state) { state.xcrs.count = 17; }).cause == Errc::no_vcpu_group);
}

TEST_CASE("a vCPU that is not fresh ends its instruction, however many exits that takes, and leaves L2") {
    const auto state = saved();
    auto target = busy(VendorId::svm, 2);
    target.runs = {{.exit_reason = 6}, {.exit_reason = 6}, {.exit_reason = 6}};
    REQUIRE(whole(target).restore(state).has_value());
    CHECK(std::ranges::count(target.calls, request::run, &FakeKvm::Call::request) == 4);

    target = busy(VendorId::svm, 2);
    target.runs = {{.exit_reason = 6}};
    const auto before = target.regs;
    REQUIRE(whole(target).abandon().has_value());
    CHECK(target.regs == before);
    CHECK(target.nested.size() == 128);
    CHECK(std::ranges::count(target.calls, request::run, &FakeKvm::Call::request) == 2);

    target.runs.assign(1000, {.exit_reason = 6}); // and one that never ends is given up
    const auto abandoned = whole(target).abandon();
    REQUIRE_FALSE(abandoned.has_value());
    CHECK(abandoned.error().cause == Errc::exit_pending);
}

TEST_CASE("the XSAVE area is as large as the target reads, whatever the state has") {
    auto state = saved();
    for (const std::size_t size : {4096u, 11008u})
        for (const int reads : {0, 4096, 11008}) {
            CAPTURE(size);
            CAPTURE(reads);
            state.xsave.assign(size, std::byte{0x5a});
            const std::size_t taken = reads == 11008 ? 11008 : 4096;
            // More is no more where it is zero: a guest with the permission to use AMX that has not used it.
            std::fill(state.xsave.begin() + static_cast<std::ptrdiff_t>(std::min(size, taken)),
                      state.xsave.end(), std::byte{});
            auto target = busy(VendorId::svm, 2);
            target.offered[cap::xsave2] = reads;
            REQUIRE(whole(target).restore(state).has_value());
            for (std::size_t i = 0; i < taken; ++i)
                if (target.xsave[i] != (i < size ? std::byte{0x5a} : std::byte{0}))
                    FAIL("byte ", i);
        }
}

TEST_CASE(
    "an XSAVE area with more in it than the target has room for is refused before anything is touched") {
    auto state = saved();
    state.xsave.assign(11008, std::byte{});
    for (const std::size_t used : {4096u, 11007u})
        for (const int reads : {0, 4096, 8192}) {
            if (used < static_cast<std::size_t>(reads))
                continue;
            CAPTURE(used);
            CAPTURE(reads);
            state.xsave[used] = std::byte{1};
            auto target = busy(VendorId::svm, 2);
            const auto vcpu = whole(target);
            target.offered[cap::xsave2] = reads;
            const auto report = vcpu.restore(state);
            REQUIRE_FALSE(report.has_value());
            CHECK(report.error().cause == Errc::xsave_too_large);
            CHECK(report.error().detail.kind == kvm::vcpu::Detail::Kind::bytes);
            CHECK(report.error().detail.value == static_cast<unsigned>(std::max(reads, 4096)));
            CHECK(report.error().effect == Effect::unchanged);
            CHECK(target.calls.size() == 1); // the question how large it is
            CHECK(target.called(request::check_extension));
            state.xsave[used] = std::byte{};
        }
}

TEST_CASE("no XCR is set where there is none") {
    auto state = saved();
    state.xcrs = {};
    auto target = busy(VendorId::svm, 2);
    REQUIRE(whole(target).restore(state).has_value());
    CHECK_FALSE(target.called(request::set_xcrs));
}

TEST_CASE("an interrupt controller must be in the kernel on both sides or on neither") {
    auto with = saved(), without = saved();
    without.lapic.reset();
    auto target = busy(VendorId::svm, 2);
    auto report = whole(target).restore(without);
    REQUIRE_FALSE(report.has_value());
    CHECK(report.error().cause == Errc::no_vcpu_group);
    CHECK(report.error().step == Step::lapic);
    CHECK(report.error().detail == kvm::vcpu::group(Step::lapic));

    target.lapic.reset();
    CHECK(whole(target).restore(without).has_value());
    report = whole(target).restore(with);
    REQUIRE_FALSE(report.has_value());
    CHECK(report.error().cause == kvm::nested::Errc::refused);
    CHECK(report.error().step == Step::lapic);
}

TEST_CASE("the enlightened VMCS is switched on where it is required") {
    auto fake = busy(VendorId::vmx);
    REQUIRE(whole(fake).enable_capabilities().has_value());
    CHECK(fake.enabled_on_vcpu.empty());
    REQUIRE(whole(fake, {.enlightened_vmcs = true}).enable_capabilities().has_value());
    REQUIRE(fake.enabled_on_vcpu.size() == 1);
    CHECK(fake.enabled_on_vcpu[0].capability == cap::enlightened_vmcs);
    CHECK(fake.enabled_on_vcpu[0].arguments[0] != 0);
}

TEST_CASE("the SynIC is switched on where it is required, before the MSRs") {
    auto source = busy(VendorId::vmx, 1);
    const auto state = *whole(source, {.hyperv_synic = HypervSynic::synic2}).save();
    auto target = busy(VendorId::vmx, 2);
    REQUIRE(whole(target, {.hyperv_synic = HypervSynic::synic2}).restore(state).has_value());
    REQUIRE(target.enabled_on_vcpu.size() == 1);
    CHECK(target.enabled_on_vcpu[0].capability == cap::hyperv_synic2);
    CHECK(target.enabled_on_vcpu[0].arguments[0] == 0);

    target.failure = {.request = request::enable_cap, .error_number = EINVAL};
    const auto failed = whole(target, {.hyperv_synic = HypervSynic::synic2}).enable_capabilities();
    REQUIRE_FALSE(failed.has_value());
    CHECK(failed.error().cause == kvm::nested::Errc::refused);
    CHECK(failed.error().detail == kvm::vcpu::capability(cap::hyperv_synic2));
}

TEST_CASE("a preemption timer whose deadline has passed is set to fire soon, and the report says so") {
    constexpr std::size_t flags_at = 28, deadline_at = 32; // in the nested state
    constexpr std::uint64_t tsc = 320'000'000, now = tsc / 32, millisecond = 2'000'000 / 32;
    const struct {
        std::uint64_t deadline, set;
    } rows[] = {{1, now + millisecond},
                {now, now + millisecond},
                {now + millisecond, now + millisecond},
                {now + millisecond + 1, now + millisecond + 1}};
    for (const auto& row : rows) {
        auto source = busy(VendorId::vmx, 1), target = busy(VendorId::vmx, 2);
        source.msr[kvm::vcpu::uapi::msr::tsc] = tsc;
        const std::uint32_t flags = kvm::nested::uapi::vmx_flag::preemption_timer_deadline;
        std::memcpy(source.nested.data() + flags_at, &flags, sizeof flags);
        std::memcpy(source.nested.data() + deadline_at, &row.deadline, sizeof row.deadline);
        const auto report = whole(target).restore(*whole(source).save());
        REQUIRE(report.has_value());
        CHECK(report->preemption_timer_was_over == (row.set != row.deadline));
        std::uint64_t set = 0;
        std::memcpy(&set, target.nested.data() + deadline_at, sizeof set);
        CHECK(set == row.set);
        CHECK(std::equal(target.nested.begin(), target.nested.begin() + deadline_at, source.nested.begin()));
        CHECK(std::equal(target.nested.begin() + deadline_at + 8, target.nested.end(),
                         source.nested.begin() + deadline_at + 8, source.nested.end()));
    }
}

} // namespace
