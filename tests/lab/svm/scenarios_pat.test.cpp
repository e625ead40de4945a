// SPDX-License-Identifier: MIT
//
// An L2 with a page attribute table of its own: Linux 7.x with KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT disabled.
#include "support/svm.hpp"

#include "support/scenario.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using lab::must;

constexpr kvm::vcpu::Requirements separate{.disabled_quirks = kvm::nested::uapi::quirk_nested_svm_shared_pat};

bool offers_separate_pat() {
    const auto machine = must(machine::Machine::create());
    const int quirks = ::ioctl(machine.vm_fd(), KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);
    if (quirks > 0 && (static_cast<std::uint64_t>(quirks) & separate.disabled_quirks) != 0)
        return true;
    lab::not_offered(std::format("KVM_CAP_DISABLE_QUIRKS2 offers {:#x}, without bit 11", quirks));
    const auto prepared = kvm::vcpu::prepare(kvm::nested::SystemFd{machine.system_fd()},
                                             kvm::nested::VmFd{machine.vm_fd()}, separate);
    REQUIRE_FALSE(prepared);
    CHECK(prepared.error().cause == kvm::vcpu::Errc::requirement_not_offered);
    return false;
}

std::uint64_t gpat(const kvm::nested::NestedStateBuffer& state) {
    return lab::load<std::uint64_t>(state.bytes(), lab::svm::gpat_at);
}

/// Moves at the first report into a virtual machine whose quirk is not as the source's, though the state says
/// that it is: what a VMM does that forgets the quirk.
std::string told_with_other_quirk(const lab::Scenario& scenario, const kvm::vcpu::Requirements& other) {
    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
    auto saved = lab::save(source);
    const auto vm = lab::bare_vm(scenario.machine, other);
    lab::put_memory(vm, saved.memory);
    const auto refused = vm.whole().restore(saved.state);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().cause == kvm::vcpu::Errc::requirement_differs);
    CHECK(refused.error().detail == kvm::vcpu::capability(kvm::vcpu::uapi::cap::disable_quirks2));

    saved.state.requirements = other;
    must(vm.whole().restore(saved.state));
    // Nobody refuses that. Where L2 had a PAT of its own, only reading back tells that it is gone.
    const auto verified = vm.whole().nested().verify_nested_state(saved.state.nested);
    CHECK(verified.has_value() == (gpat(saved.state.nested) == 0));
    if (!verified) {
        CHECK(verified.error().code == kvm::nested::Errc::not_equivalent);
        CHECK(verified.error().detail == lab::svm::gpat_at);
    }
    lab::follow(scenario, vm, telling);
    return telling.line();
}

constexpr const char* shared_told =
    "0x10:0x1 0x27:0x70401 0x10:0x2 0x27:0x70404 0x23:0x81 0x27:0x70404 0x27:0x70405 HLT";

} // namespace

TEST_CASE("L1 and L2 share one PAT unless the quirk is disabled, and it moves with either") {
    const lab::Scenario scenario{.image = IMAGE(svm_pat), .parameters = {.flags = guests::nested_paging}};
    const auto journey = lab::check_survives(scenario, shared_told);
    CHECK(gpat(journey.at(guests::port::phase, 1)) == 0);
    CHECK(gpat(journey.at(guests::port::phase, 2)) == 0);
}

TEST_CASE("L1 and L2 keep PATs of their own when L2 moves, and L2's is lost where the quirk is on") {
    if (!offers_separate_pat())
        return;
    const lab::Scenario scenario{
        .image = IMAGE(svm_pat), .parameters = {.flags = guests::nested_paging}, .requirements = separate};
    const auto journey =
        lab::check_survives(scenario, "0x10:0x1 0x27:0x70405 0x10:0x2 0x27:0x70404 0x23:0x81 "
                                      "0x27:0x70401 0x27:0x70404 HLT");
    lab::capture_at("l2-separate-pat", scenario, guests::port::phase, 1);
    CHECK(gpat(journey.at(guests::port::phase, 1)) == 0x0007'0406'0007'0405);
    CHECK(gpat(journey.at(guests::port::phase, 2)) == 0x0007'0406'0007'0404);
    CHECK(told_with_other_quirk(scenario, {}) == shared_told);
}

TEST_CASE("from where the quirk is on to where it is off L2 comes without a PAT: all memory uncacheable") {
    if (!offers_separate_pat())
        return;
    const lab::Scenario scenario{.image = IMAGE(svm_pat), .parameters = {.flags = guests::nested_paging}};
    CHECK(told_with_other_quirk(scenario, separate)
          == "0x10:0x1 0x27:0x0 0x10:0x2 0x27:0x70404 0x23:0x81 0x27:0x70401 0x27:0x70404 HLT");
}

TEST_SUITE_END();
