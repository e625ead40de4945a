// SPDX-License-Identifier: MIT
//
// What belongs to a VM and to none of its vCPUs: clocks that agree, whenever each vCPU is restored, and
// interrupt controllers. The guests tell what they find (guests/clocks.S, guests/devices.S).
#include <cmath>
#include <thread>

#include "support/cpuid.hpp"
#include "support/migration.hpp"

#include "guests/images.hpp"

namespace {

using kvm::vcpu::Downtime;
using lab::must;
using lab::Vm;

constexpr std::uint16_t told_port = 0x27;

// --- clocks

constexpr machine::Options two_vcpus{.vcpus = 2};
constexpr std::uint64_t stack_of(unsigned vcpu) {
    return guests::l1_stack + vcpu * 0x1000;
}

/// What KVM writes into guest memory for kvmclock (struct pvclock_vcpu_time_info).
struct KvmClock {
    std::uint32_t version, padding;
    std::uint64_t tsc, nanoseconds;
    std::uint32_t multiplier;
    std::int8_t shift;
    std::uint8_t flags, more_padding[2];
};
static_assert(sizeof(KvmClock) == 32);

/// A vCPU's two clocks at one moment, as the guest reads them.
struct Reading {
    std::uint64_t tsc;
    double nanoseconds;
};

std::uint32_t told(const Vm& vm, unsigned vcpu) {
    const auto exit = must(vm.machine.run(lab::patience, vcpu));
    const auto* out = lab::on_port(exit, told_port);
    if (out == nullptr)
        lab::give_up("the guest does not tell: " + machine::describe(exit));
    return out->value;
}

Reading read(const Vm& vm, unsigned vcpu) {
    const std::uint64_t low = told(vm, vcpu);
    const auto tsc = static_cast<std::uint64_t>(told(vm, vcpu)) << 32 | low;
    const auto clock = lab::load<KvmClock>(vm.machine.memory(), stack_of(vcpu) - 64);
    const auto ticks = static_cast<double>(static_cast<std::int64_t>(tsc - clock.tsc));
    return {tsc,
            static_cast<double>(clock.nanoseconds) + std::ldexp(ticks * clock.multiplier, clock.shift - 32)};
}

/// One reading of the second vCPU between two of the first.
struct Round {
    Reading first, second, again;

    explicit Round(const Vm& vm) : first{read(vm, 0)}, second{read(vm, 1)}, again{read(vm, 0)} {}

    /// No farther apart than the two readings of the first.
    [[nodiscard]] bool agrees() const { return first.tsc <= second.tsc && second.tsc <= again.tsc; }
};

/// What a VMM has saved.
struct SavedVm {
    kvm::vcpu::VmState vm;
    std::array<kvm::vcpu::VcpuState, 2> vcpus;
    lab::Bytes memory;

    explicit SavedVm(const Vm& source)
        : vm{must(source.whole_vm().save(kvm::nested::VcpuFd{source.machine.vcpu_fd()}))},
          vcpus{must(source.whole(0).save()), must(source.whole(1).save())} {
        const auto used = source.machine.memory().first(lab::used_memory);
        memory.assign(used.begin(), used.end());
    }
};

/// A VM that is being restored, each vCPU on its own.
struct Destination {
    Vm vm = lab::bare_vm(two_vcpus);
    const SavedVm& saved;
    std::optional<kvm::vcpu::TscShift> shift;

    Destination(const SavedVm& what, std::optional<Downtime> downtime) : saved{what} {
        lab::put_memory(vm, saved.memory);
        if (downtime)
            shift = must(
                vm.whole_vm().restore_clock(saved.vm, *downtime, kvm::nested::VcpuFd{vm.machine.vcpu_fd()}));
    }
    void restore(unsigned vcpu) const {
        const auto whole = vm.whole(vcpu);
        lab::check_report(
            must(shift ? whole.restore(saved.vcpus[vcpu], *shift) : whole.restore(saved.vcpus[vcpu])));
    }
};

/// How far one reading is behind another one, in milliseconds.
double tsc_ms(const Reading& from, const Reading& to, double khz) {
    return static_cast<double>(static_cast<std::int64_t>(to.tsc - from.tsc)) / khz;
}
double clock_ms(const Reading& from, const Reading& to) {
    return (to.nanoseconds - from.nanoseconds) / 1e6;
}

// --- the local APIC's timer in TSC-deadline mode

constexpr machine::Options with_apic{.supported_cpuid = false, .kernel_apic = true};
constexpr std::uint32_t tsc_deadline_msr = 0x6e0, timer_vector = 0x40;

/// A register of the local APIC (Intel SDM Vol. 3 section 11.4.1).
template <class Edit>
void edit_lapic(const Vm& vm, std::size_t offset, Edit&& edit) {
    kvm_lapic_state lapic = {};
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_GET_LAPIC, &lapic, "KVM_GET_LAPIC");
    std::uint32_t value = 0;
    std::memcpy(&value, lapic.regs + offset, sizeof value);
    if (!edit(value))
        return;
    std::memcpy(lapic.regs + offset, &value, sizeof value);
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SET_LAPIC, &lapic, "KVM_SET_LAPIC");
}

/// Whether the timer's interrupt waits in the IRR. The guest takes none.
bool timer_fired(const Vm& vm) {
    constexpr std::size_t interrupt_requests = 0x200;
    bool fired = false;
    edit_lapic(vm, interrupt_requests + timer_vector / 32 * 0x10, [&](std::uint32_t& requests) {
        fired = (requests >> timer_vector % 32 & 1) != 0;
        return false;
    });
    return fired;
}

// --- devices

constexpr machine::Options with_devices{.kernel_devices = true};
constexpr std::uint32_t pic_masks = 0x5aa5, pit_mode = 0x36;   // devices.S
constexpr std::uint64_t redirection_5 = 0x0300'0000'0001'8035; // to APIC 3, masked, level, vector 0x35

kvm_irqchip ioapic_of(const Vm& vm) {
    kvm_irqchip chip = {};
    chip.chip_id = KVM_IRQCHIP_IOAPIC;
    lab::must_ioctl(vm.machine.vm_fd(), KVM_GET_IRQCHIP, &chip, "KVM_GET_IRQCHIP");
    return chip;
}

__u64& redirection(kvm_irqchip& chip) {
    return chip.chip.ioapic.redirtbl[5].bits;
}

} // namespace

TEST_CASE("vCPUs restored three seconds apart read one TSC, and kvmclock agrees, whether the downtime shows "
          "or not") {
    const auto source = lab::prepared_vm(two_vcpus);
    for (unsigned vcpu = 0; vcpu < 2; ++vcpu) {
        must(source.machine.load(guests::image_address, IMAGE(clocks)));
        must(source.machine.start_long_mode(guests::image_address, stack_of(vcpu), vcpu));
    }
    const double khz = ::ioctl(source.machine.vcpu_fd(), KVM_GET_TSC_KHZ, 0);
    const Round before{source};
    CHECK(before.agrees());
    const SavedVm saved{source};
    REQUIRE(saved.vm.clock.tsc_khz != 0);
    std::this_thread::sleep_for(std::chrono::seconds{1});

    const Destination visible{saved, Downtime::visible}, hidden{saved, Downtime::hidden},
        each_alone{saved, std::nullopt};
    for (const auto* destination : {&visible, &hidden, &each_alone})
        destination->restore(0);
    std::this_thread::sleep_for(std::chrono::seconds{3});
    for (const auto* destination : {&visible, &hidden, &each_alone})
        destination->restore(1);

    const Round in_hidden{hidden.vm};
    const Round in_visible{visible.vm}; // later
    const Round of_each_alone{each_alone.vm};
    for (const auto& round : {in_hidden, in_visible}) {
        CHECK(round.agrees());
        for (const auto& reading : {round.first, round.second, round.again}) {
            // Nothing goes backwards, and both clocks go on by the same time; of the difference a part in ten
            // thousand is what rounding the frequency makes. (A KVM that was loaded before the kernel knew
            // the frequency of its TSC fails here: machine/init waits.)
            CHECK(tsc_ms(before.again, reading, khz) > 0);
            CHECK(clock_ms(before.again, reading) > 0);
            CHECK(std::abs(tsc_ms(before.again, reading, khz) - clock_ms(before.again, reading))
                  < 1 + clock_ms(before.again, reading) / 10'000);
        }
    }
    // The second that passed before is in the visible one's time alone.
    CHECK(tsc_ms(in_hidden.first, in_visible.first, khz) >= 999);
    CHECK(clock_ms(in_hidden.first, in_visible.first) >= 999);

    // Each with the TSC that it was saved with: the second is late by what passed between the two restores.
    CHECK_FALSE(of_each_alone.agrees());
    CHECK(tsc_ms(of_each_alone.first, of_each_alone.second, khz) < -2000);
}

TEST_CASE("the TSC-deadline timer fires at its TSC after the move, whether the downtime shows or not") {
    const auto source = lab::prepared_vm(with_apic);
    lab::SupportedCpuid cpuid{source.machine, KVM_GET_SUPPORTED_CPUID};
    for (auto& entry : cpuid.entries())
        if (entry.function == 1)
            entry.ecx |= 1u << 24; // the mode, which 6.1 and 6.12 leave to user space
    cpuid.give(source.machine);
    must(source.machine.load(guests::image_address, IMAGE(clocks)));
    must(source.machine.start_long_mode(guests::image_address, stack_of(0)));
    constexpr std::size_t spurious_vector = 0xf0, timer = 0x320;
    edit_lapic(source, spurious_vector, [](std::uint32_t& value) {
        constexpr std::uint32_t enabled = 0x100;
        value |= enabled;
        return true;
    });
    edit_lapic(source, timer, [](std::uint32_t& value) {
        constexpr std::uint32_t deadline_mode = 2u << 17;
        value = deadline_mode | timer_vector;
        return true;
    });
    const auto second = std::uint64_t{1000}
                        * static_cast<std::uint64_t>(::ioctl(source.machine.vcpu_fd(), KVM_GET_TSC_KHZ, 0));
    const auto deadline = read(source, 0).tsc + second / 4; // a guest that spins is slow under Bochs
    REQUIRE(lab::set_msr(source.machine, tsc_deadline_msr, deadline));
    const kvm::nested::VcpuFd of_source{source.machine.vcpu_fd()};
    const auto vm_state = must(source.whole_vm().save(of_source));
    const auto vcpu_state = must(source.whole().save());

    for (const auto downtime : {Downtime::hidden, Downtime::visible}) {
        CAPTURE(static_cast<int>(downtime));
        const auto vm = lab::bare_vm(with_apic);
        lab::put_memory(vm, source.machine.memory());
        const std::array vcpus{vm.whole()};
        for (const auto& report : must(vm.whole_vm().restore(vm_state, vcpus, {&vcpu_state, 1}, downtime)))
            lab::check_report(report);
        CHECK(lab::get_msr(vm.machine, tsc_deadline_msr) == deadline);
        CHECK(!timer_fired(vm));
        std::uint64_t before = 0, after = read(vm, 0).tsc; // around the moment at which it was seen to fire
        while (!timer_fired(vm) && after < deadline + second) {
            before = after;
            after = read(vm, 0).tsc;
        }
        CHECK(timer_fired(vm));
        // KVM sets the request some microseconds ahead (kvm's parameter lapic_timer_advance), and then waits.
        CHECK(after + second / 50'000 >= deadline);
        CHECK(before < deadline + second / 10);
    }
}

TEST_CASE("a guest finds its PICs, its PIT and its IOAPIC as it left them, and does not if they were not "
          "restored") {
    const auto source = lab::prepared_vm(with_devices);
    must(source.machine.load(guests::image_address, IMAGE(devices)));
    must(source.machine.start_long_mode(guests::image_address, guests::l1_stack));
    CHECK(told(source, 0) == 0);
    auto ioapic = ioapic_of(source);
    redirection(ioapic) = redirection_5;
    lab::must_ioctl(source.machine.vm_fd(), KVM_SET_IRQCHIP, &ioapic, "KVM_SET_IRQCHIP");

    const auto vm_state = must(source.whole_vm().save(kvm::nested::VcpuFd{source.machine.vcpu_fd()}));
    const auto vcpu_state = must(source.whole().save());
    REQUIRE(vm_state.irqchips);
    REQUIRE(vm_state.pit);
    for (const bool with_the_vm : {true, false}) {
        CAPTURE(with_the_vm);
        auto bare = with_devices;
        bare.supported_cpuid = false;
        const auto vm = lab::prepared_vm(bare);
        lab::put_memory(vm, source.machine.memory());
        if (with_the_vm) {
            const std::array vcpus{vm.whole()};
            const auto reports =
                must(vm.whole_vm().restore(vm_state, vcpus, {&vcpu_state, 1}, Downtime::hidden));
            REQUIRE(reports.size() == 1);
            lab::check_report(reports.front());
        } else {
            lab::check_report(must(vm.whole().restore(vcpu_state)));
        }
        CHECK((told(vm, 0) == pic_masks) == with_the_vm);
        CHECK((told(vm, 0) == pit_mode) == with_the_vm);
        auto found = ioapic_of(vm);
        CHECK((redirection(found) == redirection_5) == with_the_vm);
    }
}

TEST_CASE("a VM that has not the same devices in the kernel is refused before anything is touched") {
    const auto with = lab::prepared_vm(with_devices), without = lab::prepared_vm({});
    const auto any = [](const Vm& vm) { return kvm::nested::VcpuFd{vm.machine.vcpu_fd()}; };
    const auto refused = [&](const Vm& from, const Vm& to) {
        const auto shift =
            to.whole_vm().restore_clock(must(from.whole_vm().save(any(from))), Downtime::hidden, any(to));
        return !shift && shift.error().cause == kvm::vcpu::Errc::requirement_differs;
    };
    CHECK(refused(with, without));
    CHECK(refused(without, with));
}
