// SPDX-License-Identifier: MIT
//
// Every phase of VMX: what the nested state is there, and that it moves.
#include "scenarios.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using guests::Phase;

struct Expected {
    Phase where;
    kvm::nested::Phase phase;
    std::uint32_t size;
    std::uint64_t vmxon_pa, vmcs12_pa;
};

constexpr auto none = kvm::nested::uapi::no_address;
constexpr auto vmxon = guests::vmxon_address, vmcs12 = guests::vmcs12_address;

constexpr std::array phases = std::to_array<Expected>({
    {Phase::vmx_off, kvm::nested::Phase::vmx_off, 128, none, none},
    {Phase::vmx_on, kvm::nested::Phase::vmx_vmxon_only, 128, vmxon, none},
    {Phase::vmcs_loaded, kvm::nested::Phase::vmx_current_vmcs, 4224, vmxon, vmcs12},
    {Phase::vmcs_written, kvm::nested::Phase::vmx_current_vmcs, 4224, vmxon, vmcs12},
    {Phase::l2, kvm::nested::Phase::vmx_l2_active, 4224, vmxon, vmcs12},
    {Phase::exited, kvm::nested::Phase::vmx_current_vmcs, 4224, vmxon, vmcs12},
    {Phase::vmcs_cleared, kvm::nested::Phase::vmx_vmxon_only, 128, vmxon, none},
    {Phase::vmxoff, kvm::nested::Phase::vmx_off, 128, none, none},
});

} // namespace

TEST_CASE("a guest that moves at every exit goes through all phases of VMX as if it had stayed") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = guests::phases(guests::Vendor::vmx),
                                     .parameters = {.flags = flags}};
        const auto journey = lab::check_survives(
            scenario, "0x10:0x11 0x10:0x12 0x10:0x13 0x10:0x14 0x10:0x5 0x10:0x6 0x10:0x15 0x10:0x16 HLT");
        for (const auto& expected : phases) {
            CAPTURE(std::to_underlying(expected.where));
            const auto& state = journey.at(guests::port::phase, std::to_underlying(expected.where));
            CHECK(state.phase() == expected.phase);
            CHECK(state.size() == expected.size);
            CHECK(lab::load<std::uint64_t>(state.bytes(), lab::vmx::vmxon_at) == expected.vmxon_pa);
            CHECK(lab::load<std::uint64_t>(state.bytes(), lab::vmx::vmcs12_at) == expected.vmcs12_pa);
        }
    }
}

TEST_CASE("JSON carries the state of every phase of VMX, captured") {
    const auto machine = lab::must(machine::Machine::create());
    lab::must(guests::start(machine, guests::phases(guests::Vendor::vmx), {.flags = guests::nested_paging}));
    for (const auto& [place, phase] : std::to_array<std::pair<const char*, Phase>>({
             {"no-vmxon", Phase::vmx_off},
             {"vmxon-without-vmcs", Phase::vmx_on},
             {"current-vmcs", Phase::vmcs_written},
             {"l2", Phase::l2},
             {"l1-after-l2", Phase::exited},
         })) {
        lab::run_to(machine, phase);
        lab::complete_io(machine);
        lab::capture(place, machine);
    }
}

TEST_CASE("in every phase but off, a guest of VMX that moves without its nested state fails") {
    struct Row {
        Phase left_at;
        const char* told;
    };
    // Outside VMX operation a VMX instruction is an invalid opcode, and L2 goes on as if it were L1.
    for (const auto& [left_at, told] : std::to_array<Row>({
             {Phase::vmx_off,
              "0x10:0x11 0x10:0x12 0x10:0x13 0x10:0x14 0x10:0x5 0x10:0x6 0x10:0x15 0x10:0x16 HLT"},
             {Phase::vmx_on, "0x10:0x11 0x10:0x12 shutdown (triple fault)"},
             {Phase::vmcs_loaded, "0x10:0x11 0x10:0x12 0x10:0x13 shutdown (triple fault)"},
             {Phase::vmcs_written, "0x10:0x11 0x10:0x12 0x10:0x13 0x10:0x14 shutdown (triple fault)"},
             {Phase::l2, "0x10:0x11 0x10:0x12 0x10:0x13 0x10:0x14 0x10:0x5 shutdown (triple fault)"},
             {Phase::exited,
              "0x10:0x11 0x10:0x12 0x10:0x13 0x10:0x14 0x10:0x5 0x10:0x6 shutdown (triple fault)"},
         })) {
        const lab::Scenario scenario{.image = guests::phases(guests::Vendor::vmx),
                                     .parameters = {.flags = guests::nested_paging}};
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase,
                                std::to_underlying(left_at))
              == told);
    }
}

TEST_SUITE_END();
