// SPDX-License-Identifier: MIT
//
// What not every processor with SVM has: virtual GIF, virtual NMI, LBR virtualization. Where it is missing,
// the guest that asks for it must not notice a migration either.
#include <fstream>

#include "support/svm.hpp"

#include "support/scenario.hpp"

#include "support/svm_control.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

namespace control = lab::svm::control;
using lab::must;

/// Bits of CPUID 8000000A EDX (AMD APM Vol. 3, appendix E.4.9).
struct Feature {
    const char* name;
    unsigned bit;
};
constexpr Feature lbr_virtualization{"LBR virtualization", 1}, virtual_gif{"virtual GIF", 16},
    virtual_nmi{"virtual NMI", 25};

/// What KVM offers to a vCPU in CPUID 8000000A EDX.
std::uint32_t offered_features() {
    const lab::Vm vm = lab::prepared_vm({});
    const auto state = must(vm.whole().save());
    const auto entry = std::ranges::find(state.cpuid, 0x8000'000au, &kvm::nested::uapi::CpuidEntry::function);
    return entry != state.cpuid.end() ? entry->edx : 0;
}

/// Whether KVM offers it; says so if not.
bool offers(const Feature& feature) {
    const auto features = offered_features();
    const bool offered = (features >> feature.bit & 1) != 0;
    if (!offered)
        lab::not_offered(std::format("{}: CPUID 8000000A EDX is {:#x}, bit {} is clear", feature.name,
                                     features, feature.bit));
    return offered;
}

/// Whether kvm-amd uses the processor's virtual GIF for L1. Otherwise it emulates CLGI and STGI.
bool kvm_uses_virtual_gif() {
    std::string value;
    std::ifstream{"/sys/module/kvm_amd/parameters/vgif"} >> value;
    if (value != "0" && value != "N" && value != "1" && value != "Y")
        lab::give_up("kvm_amd's parameter vgif is '" + value + "'");
    return value == "1" || value == "Y";
}

} // namespace

TEST_CASE("a clear GIF moves, whether the processor has a virtual GIF for L1 or KVM emulates CLGI") {
    const bool uses = kvm_uses_virtual_gif();
    std::println("note: {}", uses ? "L1's GIF is a virtual GIF" : "KVM emulates L1's GIF");
    CHECK(uses == ((offered_features() >> virtual_gif.bit & 1) != 0)); // L1 may have what KVM has
    const lab::Scenario scenario{.image = lab::phases_guest()};
    const auto source = lab::run_until(scenario, guests::port::phase, PHASE_GIF_CLEAR).vm;
    const auto saved = lab::save(source);
    CHECK(saved.phase() == kvm::nested::Phase::svm_outside_l2_gif_clear);
    const auto vm = lab::moved(scenario, saved); // verifies, too
    lab::Telling telling;
    lab::follow(scenario, vm, telling);
    CHECK(telling.line() == "0x10:0x4 0x10:0x5 0x10:0x6 0x10:0x7 HLT");

    const auto other = lab::bare_vm();
    lab::put_memory(other, saved.memory);
    must(lab::restore_without(kvm::vcpu::Step::nested_state, other, saved.state));
    CHECK(must(other.whole().nested().nested_state()).phase() == kvm::nested::Phase::svm_outside_l2_gif_set);
}

TEST_CASE("L2 moves with a GIF of its own that is clear, and with an interrupt that waits for it") {
    constexpr auto v_gif = static_cast<std::uint32_t>(kvm::nested::mask(kvm::nested::svm::IntCtl::vgif));
    if (!offers(virtual_gif))
        return;
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_virtual_gif), .parameters = {.flags = flags}};
        const auto journey = lab::check_survives(
            scenario, "0x10:0x1 0x24:0x0 0x10:0x2 0x24:0x1 0x10:0x3 0x23:0x81 0x27:0x0 HLT");
        const auto v_gif_at = [&](std::uint32_t phase) {
            return lab::svm::control_field<std::uint32_t>(journey.at(guests::port::phase, phase),
                                                          control::int_ctl)
                   & v_gif;
        };
        CHECK(v_gif_at(1) == 0);
        CHECK(v_gif_at(2) == v_gif);
        CHECK(v_gif_at(3) == 0);
        // L1's own GIF, which is what the flag of the state is about, is set all the while.
        CHECK((journey.at(guests::port::phase, 1).flags() & kvm::nested::uapi::state_flag::gif_set) != 0);

        auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
        lab::Caught forgotten{lab::save(source), telling};
        lab::svm::set_control_field(
            forgotten.saved, control::int_ctl,
            lab::svm::control_field<std::uint32_t>(forgotten.saved.state.nested, control::int_ctl) | v_gif);
        // The interrupt comes at once.
        CHECK_FALSE(lab::told_after(scenario, forgotten).contains("0x24:0x0"));
    }
}

TEST_CASE("L2 moves with a virtual NMI pending and blocked") {
    const bool offered = offers(virtual_nmi);
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_virtual_nmi), .parameters = {.flags = flags}};
        lab::check_survives(scenario, offered ? "0x10:0x1 0x10:0x2 0x26:0x1 0x23:0x81 HLT"
                                              : "0x10:0x1 0x26:0x0 0x23:0x81 HLT");
    }
}

TEST_CASE("L2 moves with LBR virtualization on, and has a DEBUGCTL of its own") {
    const bool offered = offers(lbr_virtualization);
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = IMAGE(svm_lbr), .parameters = {.flags = flags}};
        lab::check_survives(scenario, offered ? "0x10:0x1 0x27:0x1 0x23:0x81 0x27:0x0 HLT"
                                              : "0x10:0x1 0x27:0x0 0x23:0x81 0x27:0x0 HLT");
    }
}

TEST_SUITE_END();
