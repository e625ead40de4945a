// SPDX-License-Identifier: MIT
//
// Views: each phase has exactly the accessors that mean something in it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

namespace vmx = kvm::nested::vmx;
namespace svm = kvm::nested::svm;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Phase;
using kvm::nested::Svm;
using kvm::nested::Vmx;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

#define HAS(accessor)                                                                                        \
    template <class V>                                                                                       \
    concept has_##accessor = requires(const V& view) { view.accessor(); }
HAS(header);
HAS(vmxon_pa);
HAS(vmcs12_pa);
HAS(vmcs12);
HAS(enlightened_vmcs);
HAS(smm_flags);
HAS(run_pending);
HAS(mtf_pending);
HAS(preemption_timer_deadline);
HAS(shadow_vmcs12);
HAS(gif);
HAS(vmcb12_pa);
HAS(gpat);
HAS(control_area);
HAS(l1_save_area);

// In VMX operation: not outside of it.
static_assert(!has_vmxon_pa<vmx::Off> && has_vmxon_pa<vmx::VmxonOnly>);
static_assert(has_vmxon_pa<vmx::CurrentVmcs> && has_vmxon_pa<vmx::L2Active>);
static_assert(has_vmxon_pa<vmx::SmmVmxonOnly> && has_vmxon_pa<vmx::SmmCurrentVmcs>
              && has_vmxon_pa<vmx::SmmInterruptedL2>);

// A current VMCS: not with VMXON alone.
template <class V>
constexpr bool shows_a_vmcs12 = has_vmcs12_pa<V> && has_vmcs12<V> && has_enlightened_vmcs<V>;
template <class V>
constexpr bool shows_no_vmcs12 = !has_vmcs12_pa<V> && !has_vmcs12<V> && !has_enlightened_vmcs<V>;
static_assert(shows_no_vmcs12<vmx::Off> && shows_no_vmcs12<vmx::VmxonOnly>
              && shows_no_vmcs12<vmx::SmmVmxonOnly>);
static_assert(shows_a_vmcs12<vmx::CurrentVmcs> && shows_a_vmcs12<vmx::L2Active>
              && shows_a_vmcs12<vmx::SmmCurrentVmcs> && shows_a_vmcs12<vmx::SmmInterruptedL2>);

// L2 active: not with L1 running, and not in SMM, from where L2 was interrupted.
template <class V>
constexpr bool shows_l2 =
    has_run_pending<V> && has_mtf_pending<V> && has_preemption_timer_deadline<V> && has_shadow_vmcs12<V>;
template <class V>
constexpr bool shows_no_l2 =
    !has_run_pending<V> && !has_mtf_pending<V> && !has_preemption_timer_deadline<V> && !has_shadow_vmcs12<V>;
static_assert(shows_l2<vmx::L2Active>);
static_assert(shows_no_l2<vmx::Off> && shows_no_l2<vmx::VmxonOnly> && shows_no_l2<vmx::CurrentVmcs>);
static_assert(shows_no_l2<vmx::SmmVmxonOnly> && shows_no_l2<vmx::SmmCurrentVmcs>
              && shows_no_l2<vmx::SmmInterruptedL2>);

// In SMM: not outside of it.
static_assert(has_smm_flags<vmx::SmmVmxonOnly> && has_smm_flags<vmx::SmmCurrentVmcs>
              && has_smm_flags<vmx::SmmInterruptedL2>);
static_assert(!has_smm_flags<vmx::Off> && !has_smm_flags<vmx::VmxonOnly> && !has_smm_flags<vmx::CurrentVmcs>
              && !has_smm_flags<vmx::L2Active>);

// SVM: GIF always, a vmcb12 in L2 only.
template <class V>
constexpr bool shows_a_vmcb12 =
    has_vmcb12_pa<V> && has_gpat<V> && has_run_pending<V> && has_control_area<V> && has_l1_save_area<V>;
template <class V>
constexpr bool shows_no_vmcb12 =
    !has_vmcb12_pa<V> && !has_gpat<V> && !has_run_pending<V> && !has_control_area<V> && !has_l1_save_area<V>;
static_assert(has_gif<svm::OutsideL2GifSet> && has_gif<svm::OutsideL2GifClear> && has_gif<svm::L2Active>);
static_assert(shows_a_vmcb12<svm::L2Active>);
static_assert(shows_no_vmcb12<svm::OutsideL2GifSet> && shows_no_vmcb12<svm::OutsideL2GifClear>);

// No vendor's words at the other's views.
static_assert(!has_gif<vmx::L2Active> && !has_vmcb12_pa<vmx::L2Active> && !has_control_area<vmx::L2Active>);
static_assert(!has_vmxon_pa<svm::L2Active> && !has_vmcs12<svm::L2Active> && !has_mtf_pending<svm::L2Active>);

// What is not understood shows its header and nothing else; what is empty shows nothing.
static_assert(has_header<kvm::nested::Unrecognised> && shows_no_vmcs12<kvm::nested::Unrecognised>
              && shows_no_vmcb12<kvm::nested::Unrecognised> && !has_gif<kvm::nested::Unrecognised>);
static_assert(!has_header<kvm::nested::Empty>);

// Lengths are types.
template <class V>
using vmcs12_of = decltype(std::declval<const V&>().vmcs12());
static_assert(std::is_same_v<vmcs12_of<vmx::L2Active>, std::span<const std::byte, 4096>>);
static_assert(std::is_same_v<decltype(std::declval<const svm::L2Active&>().control_area()),
                             std::span<const std::byte, 1024>>);
static_assert(std::is_same_v<decltype(std::declval<const svm::L2Active&>().l1_save_area()),
                             std::span<const std::byte, 744>>);

template <class State>
State parsed(const Bytes& bytes) {
    auto state = State::parse(bytes);
    REQUIRE(state.has_value());
    return *state;
}

/// What visit() hands out, as the enumerator that its type stands for.
template <class State>
Phase visited(const State& state) {
    return state.visit([](const auto& view) { return std::remove_cvref_t<decltype(view)>::phase; });
}

TEST_CASE("visit hands out the view whose type is the phase, from a typed state and from a buffer alike") {
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto buffer = parsed<NestedStateBuffer>(sample.bytes);
        CHECK(buffer.phase() == sample.phase);
        CHECK(visited(buffer) == sample.phase);
        if (sample.vendor == kvm::nested::VendorId::vmx)
            CHECK(visited(parsed<NestedState<Vmx>>(sample.bytes)) == sample.phase);
        else
            CHECK(visited(parsed<NestedState<Svm>>(sample.bytes)) == sample.phase);
    }
    CHECK(visited(NestedStateBuffer{}) == Phase::none);
}

TEST_CASE("overloaded picks the lambda that fits the phase and leaves the rest to the last one") {
    const auto word = [](const auto& state) {
        return state.visit(kvm::nested::overloaded{[](const vmx::L2Active&) { return 1; },
                                                   [](const vmx::WithVmcs12&) { return 2; },
                                                   [](const auto&) { return 3; }});
    };
    CHECK(word(parsed<NestedState<Vmx>>(
              VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}))
          == 1);
    CHECK(word(NestedState<Vmx>{}) == 3);
}

TEST_CASE("a view of L2 on VMX shows what the header and the pages hold") {
    const auto state = parsed<NestedState<Vmx>>(VmxBlob{.flags = 0xb,
                                                        .vmxon_pa = 0x1000,
                                                        .vmcs12_pa = 0x2000,
                                                        .vmx_flags = 1,
                                                        .deadline = 0xabcdef,
                                                        .size = 8320});
    bool seen = false;
    state.visit(kvm::nested::overloaded{[&](const vmx::L2Active& l2) {
                                            seen = true;
                                            CHECK(l2.vmxon_pa() == 0x1000);
                                            CHECK(l2.vmcs12_pa().value_or(0) == 0x2000);
                                            CHECK_FALSE(l2.enlightened_vmcs());
                                            CHECK(l2.run_pending());
                                            CHECK(l2.mtf_pending());
                                            CHECK(l2.preemption_timer_deadline().value_or(0) == 0xabcdef);
                                            CHECK(unit::offset_in(&state, l2.vmcs12().data()) == 128);
                                            REQUIRE(l2.shadow_vmcs12().has_value());
                                            CHECK(unit::offset_in(&state, l2.shadow_vmcs12()->data())
                                                  == 128 + 4096);
                                            CHECK(&l2.header() == &state.header());
                                        },
                                        [](const auto&) {}});
    CHECK(seen);

    const auto plain =
        parsed<NestedState<Vmx>>(VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224});
    plain.visit(kvm::nested::overloaded{[](const vmx::L2Active& l2) {
                                            CHECK_FALSE(l2.run_pending());
                                            CHECK_FALSE(l2.mtf_pending());
                                            CHECK_FALSE(l2.preemption_timer_deadline().has_value());
                                            CHECK_FALSE(l2.shadow_vmcs12().has_value());
                                        },
                                        [](const auto&) { FAIL_CHECK("another phase"); }});
}

TEST_CASE("an enlightened VMCS has no address") {
    const auto state = parsed<NestedState<Vmx>>(VmxBlob{.flags = 4, .vmxon_pa = 0x1000, .size = 4224});
    state.visit(kvm::nested::overloaded{[](const vmx::CurrentVmcs& view) {
                                            CHECK(view.enlightened_vmcs());
                                            CHECK_FALSE(view.vmcs12_pa().has_value());
                                        },
                                        [](const auto&) { FAIL_CHECK("another phase"); }});
}

TEST_CASE("in SMM the view tells what the SMI interrupted") {
    const auto flags = [](const NestedState<Vmx>& state) {
        return state.visit(
            kvm::nested::overloaded{[](const vmx::SmmVmxonOnly& view) { return int{view.smm_flags()}; },
                                    [](const vmx::SmmCurrentVmcs& view) { return int{view.smm_flags()}; },
                                    [](const vmx::SmmInterruptedL2& view) { return int{view.smm_flags()}; },
                                    [](const auto&) { return -1; }});
    };
    CHECK(flags(parsed<NestedState<Vmx>>(VmxBlob{.vmxon_pa = 0x1000, .smm_flags = 2})) == 2);
    CHECK(flags(parsed<NestedState<Vmx>>(
              VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .smm_flags = 3, .size = 4224}))
          == 3);
    CHECK(flags(NestedState<Vmx>::vmxon_only(0x1000)) == -1);
}

TEST_CASE("a view of L2 on SVM shows the controls of L2 and the save area of L1") {
    const auto state = parsed<NestedState<Svm>>(
        SvmBlob{.flags = 3, .vmcb12_pa = 0x3000, .gpat = 0x0007040600070406, .size = 4224});
    bool seen = false;
    state.visit(kvm::nested::overloaded{[&](const svm::L2Active& l2) {
                                            seen = true;
                                            CHECK(l2.vmcb12_pa() == 0x3000);
                                            CHECK(l2.gpat() == 0x0007040600070406);
                                            CHECK(l2.run_pending());
                                            CHECK_FALSE(l2.gif());
                                            CHECK(unit::offset_in(&state, l2.control_area().data()) == 128);
                                            CHECK(unit::offset_in(&state, l2.l1_save_area().data())
                                                  == 128 + 1024);
                                        },
                                        [](const auto&) {}});
    CHECK(seen);
}

} // namespace
