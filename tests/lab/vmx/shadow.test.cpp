// SPDX-License-Identifier: MIT
//
// VMCS shadowing: L1 has given L2 a VMCS of its own, which KVM keeps beside the vmcs12. While L2 runs it is
// the second page of the nested state. While L1 runs it is in memory again, and KVM_GET_NESTED_STATE writes a
// page that it does not speak of: first the hazard, with the bare ioctl; then that no way through the library
// leads to it.
#include "scenarios.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::must;

constexpr auto untouched = std::byte{0xa5};
constexpr std::size_t with_shadow = lab::vmx::state_size_with_shadow;
constexpr std::uint64_t shadow_vmcs = 0x1d000;   // vmx_shadow.S: SHADOW_VMCS
constexpr lab::vmx::Field shadowed_field{88, 8}; // vmx_shadow.S: SHADOWED_FIELD, the TSC offset

lab::Scenario shadow_scenario(guests::Image image) {
    return {.image = image, .parameters = {.flags = guests::nested_paging}};
}

constexpr const char* told = "0x27:0x11c0 0x10:0x1 0x27:0x12c0 0x23:0x12 0x10:0x2 0x27:0x12c0 HLT";

/// L1 after L2 has exited: its current VMCS still has the shadow VMCS linked.
const lab::Vm& l1_with_shadow(guests::Image image) {
    static const auto reached = lab::run_until(shadow_scenario(image), guests::port::phase, 2);
    return reached.vm;
}

} // namespace

TEST_CASE("a shadow VMCS travels while L2 uses it: what L1 and what L2 wrote into it is there") {
    const auto scenario = shadow_scenario(IMAGE(vmx_shadow));
    const auto journey = lab::check_survives(scenario, told);

    const auto& state = journey.at(guests::port::phase, 1);
    CHECK(state.phase() == kvm::nested::Phase::vmx_l2_active);
    CHECK(state.size() == with_shadow);
    const auto shadow = lab::vmx::l2_of(state).shadow_vmcs12();
    REQUIRE(shadow);
    CHECK(lab::load<std::uint64_t>(*shadow, shadowed_field.offset) == 0x12c0);
    lab::capture_at("l2-shadow-vmcs", scenario, guests::port::phase, 1);

    const auto& exited = journey.at(guests::port::phase, 2);
    CHECK(exited.phase() == kvm::nested::Phase::vmx_current_vmcs);
    CHECK(exited.size() == lab::vmx::state_size);
    lab::capture_at("l1-shadow-vmcs", scenario, guests::port::phase, 2);
}

TEST_CASE("while L2 runs, memory has an old shadow VMCS, and L2 notices if that is taken") {
    const auto scenario = shadow_scenario(IMAGE(vmx_shadow));
    CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 1)
          == "0x27:0x11c0 0x10:0x1 shutdown (triple fault)");

    auto [source, telling] = lab::run_until(scenario, guests::port::phase, 1);
    const auto saved = lab::save(source);
    const auto with_old_shadow = lab::vmx::in_nested([&](std::span<std::byte> state) {
        std::ranges::copy(saved.memory.subspan(shadow_vmcs, 4096), state.begin() + lab::vmx::shadow_at);
    });
    CHECK(lab::vmx::told_after_edit(scenario, saved, telling, with_old_shadow)
          == "0x27:0x11c0 0x10:0x1 0x27:0x11c0 0x23:0x12 0x10:0x2 0x27:0x11c0 HLT");
}

TEST_CASE("the hazard: with L1 running and a shadow VMCS linked, KVM speaks of 4224 bytes and writes 8320") {
    const int vcpu = l1_with_shadow(IMAGE(vmx_shadow)).machine.vcpu_fd();
    for (const std::uint32_t declared : {4224u, 4225u, 8319u, 8320u}) {
        CAPTURE(declared);
        lab::Bytes buffer(with_shadow, untouched);
        lab::store(buffer, lab::size_at, declared);
        const auto got = lab::raw_get(vcpu, buffer.data());
        CHECK(got.value == 0);
        CHECK(lab::load<std::uint32_t>(buffer, lab::size_at) == lab::vmx::state_size);
        // A kernel that has learnt to stop is as good. None had in 2026.
        const auto last = std::ranges::find_last_if(buffer, [](std::byte byte) { return byte != untouched; });
        const auto written = static_cast<std::size_t>(last.begin() - buffer.begin()) + 1;
        CHECK((written == with_shadow || written == lab::vmx::state_size));
        if (declared == 4224)
            std::println("note: told of {} bytes, this kernel's GET wrote {} more behind them, and said {}",
                         declared, written - declared, lab::vmx::state_size);
    }

    // The same against a fence: where the kernel wants to write there is no memory.
    const lab::Fenced fenced{lab::vmx::state_size};
    lab::store<std::uint32_t>(fenced.bytes(), lab::size_at, lab::vmx::state_size);
    const auto got = lab::raw_get(vcpu, fenced.data());
    CHECK((got.value == 0 || got.error_number == EFAULT));
}

TEST_CASE(
    "that page is out of reach: every call of the library that gets, gets into an object with room for it") {
    const auto& machine = l1_with_shadow(IMAGE(vmx_shadow)).machine;
    const auto vcpu = lab::vmx::nested(machine);
    const auto any = lab::nested(machine);

    // In place, over what was there before.
    const lab::EndingAtFence<lab::vmx::State> state{[] { return lab::vmx::State{}; }};
    for (int i = 0; i < 2; ++i) {
        CHECK(vcpu.nested_state(*state));
        CHECK(state->bytes().size() == lab::vmx::state_size);
        CHECK(state->phase() == kvm::nested::Phase::vmx_current_vmcs);
    }
    const lab::EndingAtFence<kvm::nested::NestedStateBuffer> buffer{
        [] { return kvm::nested::NestedStateBuffer{}; }};
    CHECK(any.nested_state(*buffer));
    CHECK(buffer->bytes().size() == lab::vmx::state_size);

    // By value, into the returned object itself.
    const lab::EndingAtFence<std::expected<lab::vmx::State, kvm::nested::Error>> returned{
        [&] { return vcpu.nested_state(); }};
    REQUIRE(returned->has_value());
    CHECK((*returned)->bytes().size() == lab::vmx::state_size);
    const lab::EndingAtFence<std::expected<kvm::nested::NestedStateBuffer, kvm::nested::Error>> returned_any{
        [&] { return any.nested_state(); }};
    REQUIRE(returned_any->has_value());

    // Those that get on the way to something else.
    CHECK(vcpu.verify_nested_state(*state));
    CHECK(any.verify_nested_state(*buffer));
    CHECK(vcpu.set_nested_state(*state));
    const auto whole = must(l1_with_shadow(IMAGE(vmx_shadow)).whole().save());
    CHECK(whole.nested.bytes().size() == lab::vmx::state_size);
    CHECK(whole.nested == *buffer);
}

TEST_SUITE_END();
