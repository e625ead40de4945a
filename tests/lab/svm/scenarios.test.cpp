// SPDX-License-Identifier: MIT
//
// The phases guest at every exit.
#include "support/svm.hpp"

#include "support/scenario.hpp"

TEST_SUITE_BEGIN("svm");

TEST_CASE("a guest that moves at every exit goes through all phases of SVM as if it had stayed") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const lab::Scenario scenario{.image = guests::phases(guests::Vendor::svm),
                                     .parameters = {.flags = flags}};
        const auto journey = lab::check_survives(
            scenario, "0x10:0x1 0x10:0x2 0x10:0x3 0x10:0x4 0x10:0x5 0x10:0x6 0x10:0x7 HLT");
        CHECK(journey.at(guests::port::phase, PHASE_GIF_CLEAR).phase()
              == kvm::nested::Phase::svm_outside_l2_gif_clear);
        CHECK(journey.at(guests::port::phase, PHASE_L2).phase() == kvm::nested::Phase::svm_l2_active);
        CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, PHASE_L2)
              == "0x10:0x1 0x10:0x2 0x10:0x3 0x10:0x4 0x10:0x5 shutdown (triple fault)");
    }
}

TEST_SUITE_END();
