// SPDX-License-Identifier: MIT
//
// What restore() says when the kernel does not take a part of a state, held against what the vCPU then is.
#include "support/migration.hpp"

namespace {

using kvm::nested::Effect;
using kvm::vcpu::Step;
using kvm::vcpu::VcpuState;
using lab::must;

struct Spoilt {
    const char* what;
    void (*spoil)(VcpuState&);
    Step refused_at;
    Effect effect; ///< on the L2 that the vCPU was in
};

constexpr std::uint64_t efer_svme = kvm::nested::mask(kvm::nested::Efer::svme), reserved_in_cr4 = 1ull << 63;

/// What nothing but KVM_SET_NESTED_STATE finds: on SVM a vCPU that may not nest, on VMX a VMXON region beyond
/// MAXPHYADDR. (The VMX bit of CPUID is frozen by the first run.)
void spoil_nesting(VcpuState& state) {
    constexpr std::size_t vmxon_at = 8;
    if (!lab::is_vmx()) {
        state.sregs.efer &= ~efer_svme;
        return;
    }
    lab::Bytes bytes{state.nested.bytes().begin(), state.nested.bytes().end()};
    lab::store<std::uint64_t>(bytes, vmxon_at, 1ull << 51);
    state.nested = must(kvm::nested::NestedStateBuffer::parse(bytes));
}

std::span<const Spoilt> spoilt_states() {
    static const std::array rows = std::to_array<Spoilt>({
        {"requires what this virtual machine does not have",
         [](VcpuState& state) { state.requirements.disabled_quirks = 1ull << 40; }, Step::capabilities,
         Effect::unchanged},
        {"a reserved bit of CR4", [](VcpuState& state) { state.sregs.cr4 |= reserved_in_cr4; }, Step::sregs,
         Effect::nested_state_lost},
        {"an MP state that there is not", [](VcpuState& state) { state.mp_state.state = 77; }, Step::mp_state,
         Effect::nested_state_lost},
        {"a nested state that the vCPU cannot have", spoil_nesting, Step::nested_state,
         Effect::nested_state_lost},
    });
    return rows;
}

} // namespace

TEST_CASE("an error of restore() says whether the vCPU is still in nested operation, and so it is") {
    for (const auto& [what, spoil, step, effect] : spoilt_states()) {
        CAPTURE(what);
        const auto vm = lab::migrate_guest_at(3, guests::nested_paging);
        const auto saved = lab::save(vm);
        auto state = saved.state;
        spoil(state);
        const auto refused = vm.whole().restore(state);
        REQUIRE_FALSE(refused);
        const auto& error = refused.error();
        INFO(error.message().view());
        if (effect != Effect::unchanged)
            CHECK(error.step == step);
        CHECK(error.effect == effect);
        const bool still_there = must(lab::nested(vm.machine).nested_state()).phase() == lab::l2_active();
        CHECK(still_there == (effect == Effect::unchanged));

        lab::restore(vm, saved); // restoring again is what leads on from there
        lab::check_goes_on(vm, 4);
    }
}

TEST_CASE("an MSR that could be read and cannot be written back is reported with what the vCPU has instead") {
    constexpr std::uint32_t mtrr_default = 0x2ff, mtrr_capability = 0xfe;
    auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    for (const auto index : {mtrr_default, mtrr_capability}) {
        CAPTURE(index);
        const auto vm = lab::bare_vm();
        auto state = saved.state;
        std::erase_if(state.msrs, [&](const auto& msr) { return msr.index == index; });
        constexpr std::uint64_t impossible = 2; // no memory type, and no MTRRs at all
        state.msrs.push_back({.index = index, .reserved = 0, .value = impossible});
        lab::put_memory(vm, saved.memory);
        const auto report = must(vm.whole().restore(state));
        const auto refused = std::ranges::find(report.refused_msrs, index, &kvm::vcpu::RefusedMsr::index);
        REQUIRE(refused != report.refused_msrs.end());
        CHECK(refused->wanted == impossible);
        CHECK(refused->present == lab::get_msr(vm.machine, index));
        CHECK_FALSE(refused->harmless());
        CHECK_FALSE(report.complete());
        lab::check_goes_on(vm, 4);
    }
}
