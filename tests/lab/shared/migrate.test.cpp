// SPDX-License-Identifier: MIT
//
// A running nested guest moves between virtual machines, through WholeVcpu and the file form.
#include "support/migration.hpp"

namespace {

using guests::Phase;
using lab::must;
using lab::Vm;

machine::Exit at_phase(Phase phase) {
    return machine::PortOut{.port = guests::port::phase, .size = 4, .value = std::to_underlying(phase)};
}

std::span<const Phase> phases() {
    return guests::phase_order(lab::guest_vendor());
}

/// The phases guest has to go through all phases behind `phase` and halt.
void check_goes_on_from(const Vm& vm, Phase phase) {
    const auto all = phases();
    for (auto next = std::ranges::find(all, phase) + 1; next != all.end(); ++next)
        REQUIRE(must(vm.machine.run()) == at_phase(*next));
    CHECK(must(vm.machine.run()) == machine::Exit{machine::Halted{}});
}

/// The phases guest stopped at `phase`, its OUT not completed.
Vm phases_guest_at(Phase phase, std::uint64_t flags) {
    auto vm = lab::started(lab::phases_guest(), {.flags = flags});
    lab::run_to(vm.machine, phase);
    return vm;
}

/// The stress guest interrupted in the middle of L2.
Vm stress_guest_in_l2(std::uint64_t flags) {
    auto vm = lab::started(lab::stress_guest(), {.flags = flags, .rounds = 1'000'000});
    for (int i = 0; i < 1000; ++i) {
        must(vm.machine.run(std::chrono::microseconds{300 + i}));
        if (must(vm.whole().nested().nested_state()).phase() == lab::l2_active())
            return vm;
    }
    lab::give_up("the stress guest was never interrupted in L2");
}

} // namespace

TEST_CASE("L2 moves to a new virtual machine at each of its reports, and nothing is lost") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        auto vm = lab::started(lab::migrate_guest(), {.flags = flags, .rounds = lab::migrate_rounds});
        for (std::uint32_t round = 1; round <= lab::migrate_rounds; ++round) {
            CAPTURE(round);
            const auto exit = must(vm.machine.run());
            REQUIRE(exit == machine::Exit{machine::PortOut{guests::port::progress, 4, round}});
            const auto saved = lab::save(vm);
            CHECK(saved.phase() == lab::l2_active());
            vm = lab::bare_vm();
            lab::restore(vm, saved);
        }
        lab::check_goes_on(vm, lab::migrate_rounds + 1);
        CHECK(must(vm.machine.run()) == machine::Exit{machine::Halted{}});
        CHECK(std::ranges::all_of(vm.machine.memory().subspan(lab::used_memory),
                                  [](std::byte byte) { return byte == std::byte{}; }));
    }
}

TEST_CASE("a state can be restored twice, and the source goes on to the same end as both copies") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto source = lab::migrate_guest_at(3, flags);
        const auto saved = lab::save(source);
        const auto first = lab::bare_vm();
        const auto second = lab::bare_vm();
        lab::restore(first, saved);
        lab::check_goes_on(first, 4);
        lab::restore(second, saved);
        lab::check_goes_on(source, 4);
        lab::check_goes_on(second, 4);
    }
}

TEST_CASE("what is restored is what a second save finds") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto copy = lab::bare_vm();
        lab::restore(copy, saved);
        auto again = must(copy.whole().save());
        CHECK(kvm::nested::equivalent(again.nested, saved.state.nested));
        CHECK(again.requirements == saved.state.requirements);
        CHECK(again.cpuid == saved.state.cpuid);
        CHECK(again.feature_msrs == saved.state.feature_msrs);
        CHECK(again.tsc_khz == saved.state.tsc_khz);
        CHECK(again.sregs == saved.state.sregs);
        CHECK(again.regs == saved.state.regs);
        CHECK(again.xsave == saved.state.xsave);
        CHECK(again.xcrs == saved.state.xcrs);
        CHECK(again.debugregs == saved.state.debugregs);
        CHECK(again.events == saved.state.events);
        CHECK(again.mp_state == saved.state.mp_state);
        CHECK(again.lapic == saved.state.lapic);

        // The clocks go on. All other MSRs are the same.
        constexpr std::uint32_t hyperv_time_reference = 0x40000020, hyperv_vp_runtime = 0x40000010;
        REQUIRE(again.msrs.size() == saved.state.msrs.size());
        for (std::size_t i = 0; i < again.msrs.size(); ++i) {
            const auto index = again.msrs[i].index;
            CAPTURE(index);
            CHECK(index == saved.state.msrs[i].index);
            if (index != kvm::vcpu::uapi::msr::tsc && index != hyperv_time_reference
                && index != hyperv_vp_runtime)
                CHECK(again.msrs[i].value == saved.state.msrs[i].value);
        }
    }
}

TEST_CASE("a guest moves in every phase, from before it turns virtualization on to after L2 has exited") {
    for (const auto flags : lab::paging_modes)
        for (const auto phase : phases()) {
            CAPTURE(flags);
            CAPTURE(std::to_underlying(phase));
            const auto source = phases_guest_at(phase, flags);
            const auto saved = lab::save(source);
            const auto copy = lab::bare_vm();
            lab::restore(copy, saved);
            check_goes_on_from(copy, phase);
            check_goes_on_from(source, phase);
        }
}

TEST_CASE("a guest is rolled back in its own virtual machine, from wherever it has come to") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto vm = lab::migrate_guest_at(2, flags);
        const auto saved = lab::save(vm);
        lab::restore(vm, saved); // at once
        CHECK(must(vm.machine.run()) == machine::Exit{machine::PortOut{guests::port::progress, 4, 3}});
        lab::restore(vm, saved); // from L2, with an OUT that is not completed
        lab::check_goes_on(vm, 3);
        lab::restore(vm, saved); // from L1, with an OUT that is not completed
        lab::check_goes_on(vm, 3);
        CHECK(must(vm.machine.run()) == machine::Exit{machine::Halted{}});
        lab::restore(vm, saved); // from HLT
        lab::check_goes_on(vm, 3);
    }
}

TEST_CASE("a guest is restored into the vCPU of another guest, whatever phase that is in") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto other_flags = flags ^ guests::nested_paging;
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));

        for (const auto phase : phases()) {
            CAPTURE(std::to_underlying(phase));
            const auto used = phases_guest_at(phase, other_flags);
            lab::restore(used, saved);
            lab::check_goes_on(used, 4);
        }
        const auto interrupted = stress_guest_in_l2(other_flags);
        lab::restore(interrupted, saved);
        lab::check_goes_on(interrupted, 4);

        // And a guest that is outside L2 into one that is in L2.
        for (const auto phase : phases()) {
            if (phase == Phase::l2)
                continue;
            CAPTURE(std::to_underlying(phase));
            const auto outside = lab::save(phases_guest_at(phase, flags));
            const auto in_l2 = lab::migrate_guest_at(5, other_flags);
            lab::restore(in_l2, outside);
            check_goes_on_from(in_l2, phase);
        }
    }
}

TEST_CASE("a restored vCPU that is cleared no longer verifies, and can be restored again") {
    const auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    const auto vm = lab::bare_vm();
    lab::restore(vm, saved);
    const auto nested = vm.whole().nested();
    CHECK(nested.verify_nested_state(saved.state.nested));
    CHECK(nested.clear_nested_state());
    CHECK(must(nested.nested_state()).phase() == lab::not_nested());
    const auto verdict = nested.verify_nested_state(saved.state.nested);
    REQUIRE_FALSE(verdict);
    CHECK(verdict.error().code == kvm::nested::Errc::not_equivalent);
    lab::restore(vm, saved);
    lab::check_goes_on(vm, 4);
}

TEST_CASE("without the nested state L2 runs on as if it were L1, and the guest fails") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto vm = lab::bare_vm();
        lab::put_memory(vm, saved.memory);
        must(lab::restore_without(kvm::vcpu::Step::nested_state, vm, saved.state));
        const auto story = lab::follow(vm.machine);
        CHECK(lab::what_is_wrong(story, 4, lab::migrate_rounds)
              == "L2's intercepted OUT comes to user space");
    }
}

TEST_CASE("without completing the pending I/O the OUT happens twice") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto source = lab::migrate_guest_at(3, flags);
        // save() always completes it, so this is done by hand: the registers and events of before.
        kvm_regs regs = {};
        kvm_vcpu_events events = {};
        lab::must_ioctl(source.machine.vcpu_fd(), KVM_GET_REGS, &regs, "KVM_GET_REGS");
        lab::must_ioctl(source.machine.vcpu_fd(), KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS");
        const auto saved = lab::save(source);
        CHECK(regs.rip != saved.state.regs.rip);
        CHECK(events.exception.pending == 0);
        CHECK(saved.state.events.exception_pending == 1); // the single step that ends with the OUT

        const auto vm = lab::bare_vm();
        lab::restore(vm, saved);
        lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SET_REGS, &regs, "KVM_SET_REGS");
        lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
        const auto story = lab::follow(vm.machine);
        CHECK(lab::what_is_wrong(story, 4, lab::migrate_rounds) == "L2 reports 3 instead of 4");
        CHECK(lab::what_is_wrong(story, 3, lab::migrate_rounds) == ""); // L2 itself does not notice
    }
}

TEST_CASE("a TSC frequency is reported as refused exactly if the vCPU does not get it") {
    const auto vm = lab::bare_vm();
    const int own = ::ioctl(vm.machine.vcpu_fd(), KVM_GET_TSC_KHZ, 0);
    REQUIRE(own > 0);
    if (::ioctl(vm.machine.vcpu_fd(), KVM_SET_TSC_KHZ, static_cast<long>(own)) != 0)
        std::println("note: KVM refuses the TSC frequency that its own vCPUs have, {} kHz", own);

    auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    CHECK(saved.state.tsc_khz == static_cast<std::uint32_t>(own));
    lab::restore(vm, saved); // checks that nothing is reported
    lab::check_goes_on(vm, 4);

    // Slower than the processor: only a processor that scales the TSC can do that.
    saved.state.tsc_khz /= 2;
    const bool scales = ::ioctl(vm.machine.system_fd(), KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
        must(vm.whole().abandon());
        lab::put_memory(vm, saved.memory);
        const auto report = must(vm.whole().restore(saved.state));
        CHECK(report.tsc_khz_refused == !scales);
        CHECK(report.complete() == !report.tsc_khz_refused);
        lab::check_goes_on(vm, 4);
    }
}
