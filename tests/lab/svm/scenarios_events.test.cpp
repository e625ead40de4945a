// SPDX-License-Identifier: MIT
//
// Events on their way: injected by L1 with VMRUN, virtual interrupts, interrupts of L1's own APIC.
#include "support/svm.hpp"

#include "support/scenario.hpp"

#include "support/capture.hpp"

#include "support/svm_control.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

namespace control = lab::svm::control;
using lab::must;

struct Injected {
    const char* what;
    const char* place;   ///< of a capture
    std::uint32_t event; ///< EVENTINJ, its lower half
    std::uint16_t port;  ///< where the guest tells how many of them came
};

constexpr std::array injected = std::to_array<Injected>({
    {"an external interrupt", "interrupt", 0x8000'0030, 0x24},
    {"an exception with an error code", "exception", 0x8000'0b0d, 0x25},
    {"an NMI", "nmi", 0x8000'0202, 0x26},
});

constexpr std::uint32_t rounds = 16;

/// What svm_inject tells if all its events come, but for `missing` of those on `port`.
std::string told(std::uint16_t port = 0, std::uint32_t missing = 0) {
    auto line = std::format("0x22:{:#x}", 4 * rounds);
    for (const auto& row : injected)
        line += std::format(" {:#x}:{:#x}", row.port, rounds - (row.port == port ? missing : 0));
    return line + " HLT";
}

} // namespace

TEST_CASE("an event that L1 injects comes exactly once, though L2 moves between VMRUN and its delivery") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_inject),
                                     .parameters = {.flags = flags, .rounds = rounds}};
        CHECK(lab::told_undisturbed(scenario) == told());
        for (const auto& row : injected) {
            INFO("injected: " << std::string_view{row.what});
            lab::Bytes bytes;
            auto caught = lab::caught(scenario, [&](const kvm::nested::NestedStateBuffer& state) {
                bytes.assign(state.bytes().begin(), state.bytes().end());
                return lab::svm::run_pending(state)
                       && lab::svm::control_field<std::uint32_t>(state, control::event_inj) == row.event;
            });
            REQUIRE(caught);
            lab::capture(std::format("l2-run-pending-{}", row.place), bytes);
            CHECK(caught->saved.phase() == kvm::nested::Phase::svm_l2_active);
            CHECK(caught->saved.state.nested.size() == lab::svm::state_size);
            CHECK(lab::told_after(scenario, *caught) == told());

            // EVENTINJ of the nested state is where it travels. Where KVM was about to enter L2 when the
            // interruption came, it is among the events, too, as injected already; it comes once all the
            // same, and only who forgets both forgets it.
            auto& events = caught->saved.state.events;
            lab::svm::set_control_field(caught->saved, control::event_inj, std::uint32_t{0});
            events.interrupt_injected = events.exception_injected = events.nmi_injected = 0;
            CHECK(lab::told_after(scenario, *caught) == told(row.port, 1));
        }
    }
}

// --- virtual interrupts

TEST_CASE("a virtual interrupt that L1 made pending with V_IRQ is taken once, when L2 sets IF") {
    constexpr auto v_irq = kvm::nested::mask(kvm::nested::svm::IntCtl::v_irq);
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_virtual_interrupt), .parameters = {.flags = flags}};
        const auto journey =
            lab::check_survives(scenario, "0x10:0x1 0x24:0x0 0x10:0x2 0x24:0x1 0x23:0x81 0x27:0x0 0x10:0x3 "
                                          "0x23:0x81 0x27:0x100 0x24:0x1 HLT");
        const auto pending = [&](std::uint32_t phase) {
            const auto& state = journey.at(guests::port::phase, phase);
            CHECK(state.phase() == kvm::nested::Phase::svm_l2_active);
            CHECK_FALSE(lab::svm::run_pending(state));
            return (lab::svm::control_field<std::uint64_t>(state, control::int_ctl) & v_irq) != 0;
        };
        lab::capture_at("l2-virtual-interrupt", scenario, guests::port::phase, 1);
        CHECK(pending(1));
        CHECK_FALSE(pending(2)); // in the handler
        CHECK(pending(3));

        // Where nothing leads L2's alias to memory, it ends at once; else the interrupt never comes.
        const auto without =
            lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1);
        CHECK(without
              == (flags == guests::nested_paging
                      ? "0x10:0x1 KVM exit reason 6"
                      : "0x10:0x1 0x24:0x0 0x24:0x0 0x10:0x3 0x10:0x2 shutdown (triple fault)"));

        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
        lab::Caught forgotten{lab::save(source), telling};
        lab::svm::set_control_field(
            forgotten.saved, control::int_ctl,
            lab::svm::control_field<std::uint64_t>(forgotten.saved.state.nested, control::int_ctl) & ~v_irq);
        CHECK(lab::told_after(scenario, forgotten)
              == "0x10:0x1 0x24:0x0 0x24:0x0 0x23:0x81 0x27:0x0 0x10:0x3 0x23:0x81 0x27:0x100 0x24:0x0 HLT");
    }
}

// --- interrupts of L1's APIC

namespace {

constexpr std::uint32_t vector = 0x40;
constexpr std::uint16_t exit_code_port = 0x23;

/// svm_interrupt.S says what it means.
constexpr const char* interrupts_told =
    "0x10:0x1 0x10:0x2 0x23:0x81 0x24:0x0 0x24:0x1 0x10:0x3 0x23:0x60 0x24:0x1 0x24:0x2 0x10:0x4 0x23:0x81 "
    "0x24:0x2 shutdown (triple fault)";

/// What a device does that interrupts the vCPU (Intel SDM Vol. 3, Message Address Register Format).
void interrupt(const lab::Vm& vm) {
    kvm_msi message = {};
    message.address_lo = 0xfee00000;
    message.data = vector;
    lab::must_ioctl(vm.machine.vm_fd(), KVM_SIGNAL_MSI, &message, "KVM_SIGNAL_MSI");
}

lab::Scenario interrupt_scenario(guests::Image image, std::uint64_t flags) {
    return {.image = image,
            .parameters = {.flags = flags},
            .machine = {.kernel_apic = true},
            .act = [](const lab::Vm& vm, const machine::PortOut& out) {
                if (out.port == guests::port::phase && (out.value == 1 || out.value == 3))
                    interrupt(vm);
            }};
}

} // namespace

TEST_CASE("an interrupt that L1 cannot take yet stays pending while L2 runs and moves, and is taken once") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto scenario = interrupt_scenario(IMAGE(svm_interrupt), flags);
        const auto journey = lab::check_survives(scenario, interrupts_told);
        CHECK(journey.at(guests::port::phase, 2).phase() == kvm::nested::Phase::svm_l2_active);
        CHECK(journey.at(exit_code_port, 0x60).phase() == kvm::nested::Phase::svm_outside_l2_gif_clear);

        // Without the APIC there is no interrupt, neither the pending one nor another.
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::lapic, guests::port::phase, 2)
              == "0x10:0x1 0x10:0x2 0x23:0x81 0x24:0x0 0x24:0x0 0x10:0x3 0x10:0x4 0x23:0x81 0x24:0x0 "
                 "0x24:0x0 0x23:0x81 0x24:0x0 shutdown (triple fault)");
        // L2 goes on as if it were L1, with L1's IF clear.
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 2)
              == "0x10:0x1 0x10:0x2 0x10:0x3 0x10:0x4 shutdown (triple fault)");
        // GIF is set too early, and so the interrupt is taken too early.
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, exit_code_port, 0x60)
              == "0x10:0x1 0x10:0x2 0x23:0x81 0x24:0x0 0x24:0x1 0x10:0x3 0x23:0x60 0x24:0x2 0x24:0x2 "
                 "0x10:0x4 0x23:0x81 0x24:0x2 shutdown (triple fault)");
    }
}

TEST_CASE("an interrupt that is to end L2 is pending when L2 moves, and ends it at the destination") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto scenario = interrupt_scenario(IMAGE(svm_interrupt), flags);
        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 3);
        interrupt(source);
        const lab::Caught pending{lab::save(source), telling};
        CHECK(pending.saved.phase() == kvm::nested::Phase::svm_l2_active);
        CHECK(lab::told_after(scenario, pending) == interrupts_told);
        lab::follow(scenario, source, telling);
        CHECK(telling.line() == interrupts_told);
    }
}

TEST_CASE(
    "RUN_PENDING makes L2 get its event before L1 gets an interrupt, and without it the event is lost") {
    const auto told = [](std::uint32_t l2_interrupts, std::uint32_t l1_interrupts) {
        return std::format("0x22:{:#x} 0x24:{:#x} 0x27:{:#x} shutdown (triple fault)", rounds, l2_interrupts,
                           l1_interrupts);
    };
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_run_pending),
                                     .parameters = {.flags = flags, .rounds = rounds},
                                     .machine = {.kernel_apic = true}};
        CHECK(lab::told_undisturbed(scenario) == told(rounds, 0));
        auto caught = lab::caught(scenario, [](const kvm::nested::NestedStateBuffer& state) {
            return lab::svm::run_pending(state)
                   && (lab::svm::control_field<std::uint32_t>(state, control::event_inj)
                       & lab::svm::event_valid)
                          != 0;
        });
        REQUIRE(caught);
        const auto told_when_interrupted = [&] {
            const auto vm = lab::moved(scenario, caught->saved);
            interrupt(vm);
            auto telling = caught->telling;
            lab::follow(scenario, vm, telling);
            return telling.line();
        };
        CHECK(told_when_interrupted() == told(rounds, 1));

        auto& saved = caught->saved.state;
        saved.events.interrupt_injected = 0; // see above: it may be there, too
        CHECK(told_when_interrupted() == told(rounds, 1));
        lab::Bytes bytes(saved.nested.bytes().begin(), saved.nested.bytes().end());
        lab::store(
            std::span{bytes}, lab::flags_at,
            static_cast<std::uint16_t>(saved.nested.flags() & ~kvm::nested::uapi::state_flag::run_pending));
        saved.nested = must(kvm::nested::NestedStateBuffer::parse(bytes));
        CHECK(told_when_interrupted() == told(rounds - 1, 1));
    }
}

TEST_SUITE_END();
