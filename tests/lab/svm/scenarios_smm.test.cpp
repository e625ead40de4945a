// SPDX-License-Identifier: MIT
//
// System management mode, entered from L1 and from L2.
#include "support/svm.hpp"

#include "support/scenario.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using lab::must;

constexpr std::uint64_t intercept_smi = 0x100; ///< a parameter of svm_smm
constexpr std::uint16_t smi_port = 0x28, exit_code_port = 0x23;

void send_smi(const lab::Vm& vm) {
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_SMI, 0L, "KVM_SMI");
}

lab::Scenario smm_scenario(guests::Image image, std::uint64_t flags) {
    return {.image = image,
            .parameters = {.flags = flags},
            .machine = {.smm = true},
            .act = [](const lab::Vm& vm, const machine::PortOut& out) {
                if (out.port == guests::port::phase && (out.value == 1 || out.value == 3))
                    send_smi(vm);
            }};
}

/// What a guest tells that moves at the exit of its SMI handler number `smi`, and loses a part of its memory
/// on the way.
std::string told_without_memory(const lab::Scenario& scenario, std::uint32_t smi, std::size_t address,
                                std::size_t size) {
    auto [source, telling] = lab::run_until(scenario, smi_port, smi);
    const auto vm = lab::moved(scenario, lab::save(source));
    std::ranges::fill(vm.machine.memory().subspan(address, size), std::byte{});
    lab::follow(scenario, vm, telling);
    return telling.line();
}

constexpr std::size_t state_save_area = 0x3fe00, state_save_area_size = 0x200; ///< SMBASE + 0xfe00
constexpr std::size_t page_size = 4096;

constexpr const char* smis_told =
    "0x10:0x1 0x28:0x1 0x10:0x2 0x10:0x3 0x28:0x2 0x21:0x7 0x23:0x81 0x21:0x38 HLT";
constexpr const char* intercepted_smis_told =
    "0x10:0x1 0x28:0x1 0x10:0x2 0x10:0x3 0x23:0x62 0x28:0x2 0x10:0x4 0x21:0x7 0x23:0x81 0x21:0x38 HLT";

} // namespace

TEST_CASE("a guest moves in the middle of an SMI that interrupted L1, and of one that interrupted L2") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto scenario = smm_scenario(IMAGE(svm_smm), flags);
        const auto journey = lab::check_survives(scenario, smis_told);
        for (const std::uint32_t smi : {1u, 2u}) {
            CAPTURE(smi);
            const auto& in_smm = journey.stop(smi_port, smi).saved.state;
            CHECK(in_smm.events.smi_smm == 1);
            CHECK(in_smm.nested.size() == 128);
            // It looks like outside L2. With GIF clear, if L2 was interrupted on 7.x; else with GIF set.
            if (smi == 1 || in_smm.nested.phase() != kvm::nested::Phase::svm_outside_l2_gif_clear)
                CHECK(in_smm.nested.phase() == kvm::nested::Phase::svm_outside_l2_gif_set);
            lab::capture_at(smi == 1 ? "smm-from-l1" : "smm-from-l2", scenario, smi_port, smi);
        }

        // Not in SMM, and so no RSM.
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::events, smi_port, 2)
              == "0x10:0x1 0x28:0x1 0x10:0x2 0x10:0x3 0x28:0x2 shutdown (triple fault)");
        // What leads back to L2 is in SMRAM, what leads back from there to L1 is in L1's HSAVE page. Both are
        // memory.
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, smi_port, 2) == smis_told);
        CHECK(told_without_memory(scenario, 2, state_save_area, state_save_area_size) != smis_told);
        CHECK(told_without_memory(scenario, 2, guests::hsave_address, page_size) != smis_told);
    }
}

TEST_CASE("an SMI that L1 intercepts ends L2, and is taken by L1 when it sets GIF") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto scenario = smm_scenario(IMAGE(svm_smm), flags | intercept_smi);
        const auto journey = lab::check_survives(scenario, intercepted_smis_told);
        const auto& ended = journey.stop(exit_code_port, 0x62).saved.state;
        CHECK(ended.nested.phase() == kvm::nested::Phase::svm_outside_l2_gif_clear);
        CHECK(ended.events.smi_pending == 1);
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::events, exit_code_port, 0x62)
              == "0x10:0x1 0x28:0x1 0x10:0x2 0x10:0x3 0x23:0x62 0x10:0x4 0x21:0x7 0x23:0x81 0x21:0x38 HLT");
    }
}

TEST_CASE("an SMI that is pending when L2 moves is taken at the destination, by whom L1 wants it to be") {
    for (const auto flags : lab::paging_modes)
        for (const auto intercept : {std::uint64_t{0}, intercept_smi}) {
            CAPTURE(flags);
            CAPTURE(intercept);
            const auto scenario = smm_scenario(IMAGE(svm_smm), flags | intercept);
            auto [source, telling] = lab::run_until(scenario, guests::port::phase, 3);
            send_smi(source);
            const lab::Caught pending{lab::save(source), telling};
            CHECK(pending.saved.phase() == kvm::nested::Phase::svm_l2_active);
            CHECK(pending.saved.state.events.smi_pending == 1);
            CHECK(lab::told_after(scenario, pending) == (intercept != 0 ? intercepted_smis_told : smis_told));
        }
}

TEST_CASE("L2 is restored into a vCPU in SMM only if the events come before the nested state") {
    const auto scenario = smm_scenario(IMAGE(svm_smm), guests::nested_paging);
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 3);
    const auto saved = lab::save(source);
    const auto in_smm = lab::run_until(scenario, smi_port, 1).vm;

    must(in_smm.whole().abandon());
    lab::put_memory(in_smm, saved.memory);
    must(lab::restore_without({kvm::vcpu::Step::events, kvm::vcpu::Step::nested_state}, in_smm, saved.state));
    const auto early = in_smm.whole().nested().set_nested_state(saved.state.nested);
    REQUIRE_FALSE(early);
    CHECK(early.error().code == kvm::nested::Errc::refused);
    CHECK(early.error().effect == kvm::nested::Effect::unchanged);

    lab::restore(in_smm, saved);
    scenario.act(in_smm, {.port = guests::port::phase, .size = 4, .value = 3});
    lab::follow(scenario, in_smm, telling);
    CHECK(telling.line() == smis_told);
}

TEST_SUITE_END();
