// SPDX-License-Identifier: MIT
//
// A VM around its vCPUs: clock, TSC, interrupt controllers.
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::SystemFd;
using kvm::nested::VcpuFd;
using kvm::nested::VendorId;
using kvm::nested::VmFd;
using kvm::vcpu::Downtime;
using kvm::vcpu::Errc;
using kvm::vcpu::Operation;
using kvm::vcpu::Requirements;
using kvm::vcpu::Step;
using kvm::vcpu::TscShift;
using kvm::vcpu::VmState;
using kvm::vcpu::WholeVm;
using unit::busy;
using unit::FakeKvm;
using unit::whole;
namespace request = unit::request;
namespace cap = unit::cap;

constexpr VcpuFd vcpu{FakeKvm::vcpu};
constexpr std::uint64_t second = 1'000'000; // ticks of the fake's time, a microsecond each

WholeVm vm_of(FakeKvm& fake, const Requirements& requirements = {}) {
    return {kvm::vcpu::already_prepared(requirements), SystemFd{FakeKvm::system}, VmFd{FakeKvm::vm}, fake};
}

/// With time that passes, a microsecond for each ioctl, and all devices.
FakeKvm machine(unsigned seed = 1) {
    auto fake = busy(VendorId::svm, seed);
    fake.time_passes = true;
    fake.ticks = seed * 1000 * second; // each host was switched on at another time
    fake.host_boot = seed * 700;       // in real time
    fake.clock_offset = seed * 5000;
    fake.add_devices(seed);
    return fake;
}

VmState saved_vm(FakeKvm& fake) {
    return *vm_of(fake).save(vcpu);
}

/// What the guest reads.
std::uint64_t guest_tsc(const FakeKvm& fake) {
    return fake.host_tsc() + *fake.tsc_offset;
}

/// Which ioctls set something of the VM or a vCPU, each once in a row.
std::vector<unsigned long> sets_of(const FakeKvm& fake) {
    std::vector<unsigned long> result;
    for (const auto& call : fake.calls)
        for (const auto wanted : {request::set_clock, request::set_irqchip, request::set_pit2,
                                  request::set_device_attr, request::set_lapic, request::set_nested_state})
            if (call.request == wanted && (result.empty() || result.back() != wanted))
                result.push_back(wanted);
    return result;
}

TEST_CASE("the TSC goes on by exactly what the clock went on by, hidden or not") {
    for (const auto downtime : {Downtime::hidden, Downtime::visible}) {
        auto source = machine(1), target = machine(2);
        const auto state = saved_vm(source);
        const auto source_clock = source.clock();
        const auto source_tsc = guest_tsc(source);
        const auto saved_at = source.realtime();
        const auto vcpu_state = *whole(source).save();
        REQUIRE(vcpu_state.tsc_offset == source.tsc_offset);

        // Much later, on a host with another TSC.
        target.ticks += (saved_at - target.realtime()) / 1000 + 20 * second;
        const auto shift = vm_of(target).restore_clock(state, downtime, vcpu);
        REQUIRE(shift.has_value());
        target.ticks += 3 * second; // this vCPU comes late
        const auto report = whole(target).restore(vcpu_state, *shift);
        REQUIRE(report.has_value());
        CHECK_FALSE(report->tsc_offset_refused);

        const auto clock = target.clock() - source_clock;
        CHECK(guest_tsc(target) - source_tsc == clock * 2); // 2 GHz
        const std::uint64_t least = (downtime == Downtime::visible ? 23 : 3) * second * 1000;
        CHECK(clock >= least);
        CHECK(clock < least + second * 1000);
    }
}

TEST_CASE("a destination whose real-time clock is behind does not turn the guest's clocks back") {
    auto source = machine(1), target = machine(2);
    const auto state = saved_vm(source);
    target.host_boot = 0;
    target.ticks = 0;
    REQUIRE(target.realtime() < source.realtime());
    REQUIRE(vm_of(target).restore_clock(state, Downtime::visible, vcpu).has_value());
    CHECK(target.clock() >= state.clock.clock.clock);
}

TEST_CASE("without the host's TSC in the clock the TSC is good to the width of a read") {
    auto source = machine(1), target = machine(2);
    source.clock_flags = target.clock_flags = 0;
    const auto state = saved_vm(source);
    const auto source_clock = source.clock(), source_tsc = guest_tsc(source);
    const auto vcpu_state = *whole(source).save();
    CHECK((state.clock.clock.flags & kvm::vcpu::uapi::clock_flag::realtime) != 0); // user space's
    const auto shift = vm_of(target).restore_clock(state, Downtime::hidden, vcpu);
    REQUIRE(shift.has_value());
    REQUIRE(whole(target).restore(vcpu_state, *shift).has_value());
    const auto error =
        static_cast<std::int64_t>(guest_tsc(target) - source_tsc - (target.clock() - source_clock) * 2);
    CHECK(error >= -8000); // two ticks at either end
    CHECK(error <= 8000);
}

TEST_CASE("a kernel that does not tell TSC offsets: the MSR, and the report says so") {
    auto source = machine(1), target = machine(2);
    source.tsc_offset.reset();
    target.tsc_offset.reset();
    const auto state = saved_vm(source);
    CHECK(state.clock.tsc_khz == 0);
    const auto vcpu_state = *whole(source).save();
    CHECK_FALSE(vcpu_state.tsc_offset.has_value());
    const auto shift = vm_of(target).restore_clock(state, Downtime::hidden, vcpu);
    REQUIRE(shift.has_value());
    CHECK(*shift == TscShift{});
    const auto report = whole(target).restore(vcpu_state, *shift);
    REQUIRE(report.has_value());
    CHECK(report->tsc_offset_refused);
    CHECK_FALSE(report->complete());
    CHECK(target.msr[kvm::vcpu::uapi::msr::tsc] == source.msr[kvm::vcpu::uapi::msr::tsc]);
}

TEST_CASE("a vCPU with another frequency than the VM's keeps its TSC by the MSR") {
    auto target = machine(2);
    auto state = *whole(target).save();
    const auto offset = target.tsc_offset;
    const auto report = whole(target).restore(state, TscShift{.cycles = 1, .khz = state.tsc_khz + 1});
    REQUIRE(report.has_value());
    CHECK(report->tsc_offset_refused);
    CHECK(target.tsc_offset == offset);
    CHECK(target.msr[kvm::vcpu::uapi::msr::tsc] > 0);
}

TEST_CASE("with an offset the MSR is left alone, and a single vCPU has the MSR alone") {
    auto target = machine(2);
    auto state = *whole(target).save();
    for (auto& msr : state.msrs)
        if (msr.index == kvm::vcpu::uapi::msr::tsc)
            msr.value = 42;
    target.msr[kvm::vcpu::uapi::msr::tsc] = 7;
    const auto offset = *state.tsc_offset;
    REQUIRE(whole(target).restore(state, TscShift{.cycles = 5, .khz = state.tsc_khz}).has_value());
    CHECK(target.tsc_offset == offset + 5);
    CHECK(target.msr[kvm::vcpu::uapi::msr::tsc] == 7);

    target.calls.clear();
    REQUIRE(whole(target).restore(state).has_value());
    CHECK_FALSE(target.called(request::set_device_attr));
    CHECK(target.msr[kvm::vcpu::uapi::msr::tsc] == 42);
}

TEST_CASE("a VM is restored in the order of the steps, and has everything afterwards") {
    auto source = machine(1), target = machine(2);
    const auto state = saved_vm(source);
    const std::array states{*whole(source).save()};
    const std::array vcpus{whole(target)};
    const auto reports = vm_of(target).restore(state, vcpus, states, Downtime::hidden);
    REQUIRE(reports.has_value());
    REQUIRE(reports->size() == 1);
    CHECK(target.irqchips == source.irqchips);
    CHECK(target.pit == source.pit);
    CHECK(sets_of(target)
          == std::vector<unsigned long>{request::set_clock, request::set_nested_state,
                                        request::set_device_attr, request::set_lapic,
                                        request::set_nested_state, request::set_irqchip, request::set_pit2});
}

TEST_CASE("what is in the kernel on one side alone is refused before anything is touched") {
    const auto refused = [](bool source_has, bool target_has) {
        auto source = machine(1), target = machine(2);
        if (!source_has)
            source.remove_devices();
        if (!target_has)
            target.remove_devices();
        const auto shift = vm_of(target).restore_clock(saved_vm(source), Downtime::hidden, vcpu);
        const bool failed = !shift.has_value();
        if (failed) {
            CHECK(shift.error().cause == Errc::requirement_differs);
            CHECK(shift.error().detail == kvm::vcpu::capability(cap::irqchip));
            CHECK(sets_of(target).empty());
        }
        return failed;
    };
    CHECK(refused(true, false));
    CHECK(refused(false, true));
    CHECK_FALSE(refused(false, false));
}

TEST_CASE("a VM that is not prepared, or has not as many vCPUs, is refused before anything is touched") {
    auto source = machine(1), target = machine(2);
    const auto states = std::array{*whole(source).save()};
    const auto vcpus = std::array{whole(target)};
    const auto state = *vm_of(source, {.x2apic_api = 1}).save(vcpu);
    auto refused = vm_of(target).restore(state, vcpus, states, Downtime::hidden);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().cause == Errc::requirement_differs);
    CHECK(refused.error().detail == kvm::vcpu::capability(cap::x2apic_api));
    CHECK(target.calls.empty());
    refused = vm_of(target, {.x2apic_api = 1}).restore(state, vcpus, {}, Downtime::hidden);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().cause == Errc::requirement_differs);
    CHECK(target.calls.empty());
}

TEST_CASE("each failing ioctl of a VM gives an error that names the ioctl and the step, and nothing is set "
          "after it") {
    struct Row {
        unsigned long request;
        Step step;
    };
    for (const auto& row : {Row{request::get_tsc_khz, Step::clock}, Row{request::get_clock, Step::clock},
                            Row{request::get_device_attr, Step::clock}, Row{request::get_msrs, Step::clock},
                            Row{request::get_irqchip, Step::irqchips}, Row{request::get_pit2, Step::pit}}) {
        auto fake = machine();
        fake.failure = {.request = row.request, .error_number = ENOMEM};
        const auto state = vm_of(fake).save(vcpu);
        REQUIRE_FALSE(state.has_value());
        CHECK(state.error().cause == kvm::nested::Errc::out_of_memory);
        CHECK(state.error().operation == Operation::save);
        CHECK(state.error().step == row.step);
        CHECK(state.error().request == static_cast<std::uint32_t>(row.request));
    }
    auto source = machine(1);
    const auto state = saved_vm(source);
    const std::array states{*whole(source).save()};
    for (const auto& row : {Row{request::get_irqchip, Step::irqchips}, Row{request::get_pit2, Step::pit},
                            Row{request::set_tsc_khz, Step::clock}, Row{request::set_clock, Step::clock},
                            Row{request::get_device_attr, Step::clock}, Row{request::get_clock, Step::clock},
                            Row{request::set_device_attr, Step::tsc_offset},
                            Row{request::set_irqchip, Step::irqchips}, Row{request::set_pit2, Step::pit}}) {
        auto target = machine(2);
        const std::array vcpus{whole(target)};
        target.failure = {.request = row.request, .error_number = ENOMEM};
        const auto reports = vm_of(target).restore(state, vcpus, states, Downtime::hidden);
        REQUIRE_FALSE(reports.has_value());
        CHECK(reports.error().cause == kvm::nested::Errc::out_of_memory);
        CHECK(reports.error().operation == Operation::restore);
        CHECK(reports.error().step == row.step);
        CHECK(reports.error().request == static_cast<std::uint32_t>(row.request));
        const auto sets = sets_of(target);
        const bool last = sets.empty() || sets.back() == row.request || row.request == request::get_clock
                          || row.request == request::get_device_attr;
        CHECK(last);
    }
}

TEST_CASE("a frequency that the host refuses is no end") {
    auto source = machine(1), target = machine(2);
    const auto state = saved_vm(source);
    target.failure = {.request = request::set_tsc_khz, .error_number = EINVAL};
    CHECK(vm_of(target).restore_clock(state, Downtime::hidden, vcpu).has_value());
}

TEST_CASE("a KVM that was built without interrupt controllers says ENOTTY") {
    auto fake = machine(1);
    fake.remove_devices();
    fake.no_device_errno = ENOTTY;
    const auto state = vm_of(fake).save(vcpu);
    REQUIRE(state.has_value());
    CHECK_FALSE(state->irqchips.has_value());
    CHECK_FALSE(state->pit.has_value());
    // On what is no VM the same errno means that.
    const WholeVm wrong{kvm::vcpu::already_prepared({}), SystemFd{FakeKvm::system}, VmFd{99}, fake};
    CHECK(wrong.save(vcpu).error().cause == kvm::nested::Errc::bad_descriptor);
}

} // namespace
