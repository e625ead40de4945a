// SPDX-License-Identifier: MIT
//
// L2's port accesses: those that L1 intercepts, those that user space sees, and those that are half done when
// the vCPU is saved.
#include "support/svm.hpp"

#include "support/scenario.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using lab::must;

/// What the device behind the port that L2 reads from has to say, one byte more with each.
void provide_input(const machine::Machine& machine) {
    auto& run = machine.run_page();
    auto* const data = reinterpret_cast<std::uint8_t*>(&run) + run.io.data_offset;
    for (std::uint32_t i = 0; i < run.io.size * run.io.count; ++i)
        data[i] = static_cast<std::uint8_t>(0xd0 + i);
}

bool wants_input(const machine::Machine& machine, const machine::Exit& exit) {
    const auto& run = machine.run_page();
    return exit == machine::Exit{machine::OtherExit{KVM_EXIT_IO}} && run.io.direction == KVM_EXIT_IO_IN;
}

/// What the vCPU does in between, at each exit.
enum class At : std::uint8_t { stays, moves, moves_before_input };

/// Like the scenario's own telling, but for a guest that reads from ports, too.
std::string told(const lab::Scenario& scenario, At each_exit) {
    auto vm = lab::start(scenario);
    lab::Telling telling;
    for (int i = 0; i < lab::most_writes; ++i) {
        const auto exit = must(vm.machine.run(lab::patience));
        const bool input = wants_input(vm.machine, exit);
        if (const auto* out = std::get_if<machine::PortOut>(&exit)) {
            telling.add(*out);
        } else if (input) {
            const auto& io = vm.machine.run_page().io;
            telling.end(std::format("IN {:#x} {}x{}", io.port, io.size, io.count));
            if (each_exit != At::moves_before_input)
                provide_input(vm.machine);
        } else {
            telling.end(machine::describe(exit));
            break;
        }
        if (each_exit != At::stays) {
            const auto saved = lab::save(vm);
            if (input)
                CHECK(saved.phase() == kvm::nested::Phase::svm_l2_active);
            vm = lab::moved(scenario, saved);
        }
    }
    return telling.line();
}

/// Moves at a write, with RIP and the other registers as they are before KVM has completed it.
std::string told_without_completing(const lab::Scenario& scenario, std::uint16_t port, std::uint32_t value) {
    auto [source, telling] = lab::run_until(scenario, port, value);
    kvm_regs regs = {};
    lab::must_ioctl(source.machine.vcpu_fd(), KVM_GET_REGS, &regs, "KVM_GET_REGS");
    const auto vm = lab::moved(scenario, lab::save(source)); // which completes it
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SET_REGS, &regs, "KVM_SET_REGS");
    lab::follow(scenario, vm, telling);
    return telling.line();
}

} // namespace

TEST_CASE("L2 moves in the middle of each kind of port access, and L1 sees those that it intercepts") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_io), .parameters = {.flags = flags}};
        const std::string begins = "0x10:0x1 0x27:0x400040 0x27:0x400041 0x27:0x11c0611e IN 0x60 4x1 ";
        const auto ends =
            "0x27:0xd3d2d1d0 0x50:0x4c 0x50:0x32 0x50:0x69 0x50:0x6f IN 0x60 1x4 0x27:0xd3d2d1d0 "
            "0x23:0x81 HLT";
        CHECK(told(scenario, At::stays) == begins + ends);
        CHECK(told(scenario, At::moves) == begins + ends);

        const auto too_early = told(scenario, At::moves_before_input);
        CHECK(too_early.starts_with(begins));
        CHECK_FALSE(too_early.contains("0xd3d2d1d0")); // L2 goes on with what was not there yet
    }
}

TEST_CASE("without completing it, L2's OUT happens twice") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_io), .parameters = {.flags = flags}};
        CHECK(told_without_completing(scenario, guests::port::phase, 1)
              == "0x10:0x1 0x10:0x1 0x27:0x400040 0x27:0x400041 0x27:0x11c0611e KVM exit reason 2");
    }
}

TEST_SUITE_END();
