// SPDX-License-Identifier: MIT
//
// A guest of Hyper-V's interface with a synthetic timer: it goes on getting its ticks after each move, and
// finds what it has set up.
#include "support/cpuid.hpp"
#include "support/msrs.hpp"

#include "guests/images.hpp"

namespace lab {
guests::Image synic_guest() {
    return IMAGE(synic);
}
} // namespace lab

namespace {

using namespace std::chrono_literals;
using lab::Vm;

// guests/synic.S
constexpr std::uint64_t direct = 0x100; ///< FLAG_DIRECT
constexpr std::uint16_t interrupts_port = 0x24;

lab::Scenario scenario_with(std::uint64_t flags) {
    return {.image = lab::synic_guest(),
            .parameters = {.flags = flags},
            .machine = {.kernel_apic = true},
            .requirements = {.hyperv_synic = kvm::vcpu::HypervSynic::synic2},
            .arrange = [](const Vm& vm) {
                lab::be_hyperv(vm.machine);
                lab::must(vm.whole().enable_capabilities());
            }};
}

constexpr const char* told = "0x10:0x1 0x24:0x1 0x24:0x2 0x24:0x3 0x24:0x4 0x10:0x2 shutdown (triple fault)";

} // namespace

TEST_CASE("a Hyper-V guest goes on getting its timer's messages after each move") {
    lab::check_survives(scenario_with(0), told);
}

TEST_CASE("a Hyper-V guest goes on getting its timer's interrupts after each move") {
    lab::check_survives(scenario_with(direct), told);
}

TEST_CASE("without the MSRs that KVM does not list a Hyper-V guest's timers are silent") {
    for (const auto flags : {std::uint64_t{0}, direct}) {
        CAPTURE(flags);
        const auto scenario = scenario_with(flags);
        auto [source, telling] = lab::run_until(scenario, interrupts_port, 1);
        lab::Caught forgotten{lab::save(source), telling};
        lab::forget_unlisted_msrs(source.machine, forgotten.saved.state);
        // A tick that its APIC had before the save may still come.
        CHECK(lab::told_after(scenario, forgotten, 500ms).ends_with("interrupted (time limit)"));
    }
}
