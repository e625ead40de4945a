// SPDX-License-Identifier: MIT
//
// A state put together of a header and pages that C++ code edits.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::compose;
using kvm::nested::Errc;
using kvm::nested::header_of;
using kvm::nested::NestedState;
using kvm::nested::Phase;
using kvm::nested::Svm;
using kvm::nested::Vmcb12;
using kvm::nested::Vmcs12;
using kvm::nested::Vmx;
namespace svm = kvm::nested::svm;
namespace uapi = kvm::nested::uapi;
namespace vmx = kvm::nested::vmx;

uapi::VmxHeader vmx_header() {
    uapi::VmxHeader header{};
    header.vmxon_pa = 0x1000;
    header.vmcs12_pa = 0x2000;
    return header;
}

/// Put together again after `edit` has changed the page, as a VMM would; nothing where it has another phase.
template <class View, class State>
std::optional<State> edited(const State& state, auto&& edit) {
    std::optional<State> result;
    state.visit(kvm::nested::overloaded{[&](const View& view) {
                                            auto page = view.image();
                                            edit(page);
                                            const auto again = compose(view.header(), page);
                                            REQUIRE(again.has_value());
                                            result = *again;
                                        },
                                        [](const auto&) {}});
    return result;
}

TEST_CASE("a page that is taken, edited and put back differs in what was edited alone") {
    const auto bytes = unit::vmx_l2();
    const auto state = NestedState<Vmx>::parse(std::span{bytes}.first(4224));
    REQUIRE(state.has_value());
    CHECK(edited<vmx::L2Active>(*state, [](Vmcs12&) {}) == *state);
    const auto moved = edited<vmx::L2Active>(*state, [](Vmcs12& page) {
        page.guest_rip = 0x1234;
        set(page.secondary_vm_exec_control, vmx::Secondary::enable_pml);
    });
    REQUIRE(moved.has_value());
    std::size_t differences = 0;
    kvm::nested::difference(state->bytes(), moved->bytes(),
                            [&](const kvm::nested::Difference& what) noexcept {
                                ++differences;
                                const auto name = what.field->name;
                                CHECK((name == "guest_rip" || name == "secondary_vm_exec_control"));
                            });
    CHECK(differences == 2);
}

TEST_CASE("a VMCB is edited likewise, and its intercepts as one") {
    const auto state = NestedState<Svm>::parse(unit::svm_l2());
    REQUIRE(state.has_value());
    const auto changed = edited<svm::L2Active>(*state, [](Vmcb12& page) {
        clear(page.intercepts, svm::Intercept::msr_prot);
        set(page.intercepts, svm::Intercept::idle_hlt);
        page.rip = 0x1234;
    });
    REQUIRE(changed.has_value());
    bool seen = false;
    changed->visit(kvm::nested::overloaded{[&](const svm::L2Active& l2) {
                                               seen = true;
                                               CHECK(l2.fields()["rip"] == 0x1234);
                                               CHECK(has(l2.image().intercepts, svm::Intercept::idle_hlt));
                                               CHECK_FALSE(
                                                   has(l2.image().intercepts, svm::Intercept::msr_prot));
                                           },
                                           [](const auto&) {}});
    CHECK(seen);
}

TEST_CASE("a state is built from nothing") {
    Vmcs12 page{}, shadow{};
    page.hdr = uapi::vmcs12_revision;
    const auto header = header_of(0, vmx_header());
    const auto current = compose(header, page);
    REQUIRE(current.has_value());
    CHECK(current->phase() == Phase::vmx_current_vmcs);
    CHECK(current->bytes().size() == 4224);

    page.vmcs_link_pointer = 0x3000;
    set(page.cpu_based_vm_exec_control, vmx::Primary::activate_secondary_controls);
    set(page.secondary_vm_exec_control, vmx::Secondary::vmcs_shadowing);
    shadow.hdr = kvm::nested::shadow_vmcs12_revision;
    const auto l2 = header_of(uapi::state_flag::guest_mode, vmx_header());
    const auto with_shadow = compose(l2, page, shadow);
    REQUIRE(with_shadow.has_value());
    bool seen = false;
    with_shadow->visit(kvm::nested::overloaded{[&](const vmx::L2Active& view) {
                                                   seen = true;
                                                   CHECK(view.image() == page);
                                                   CHECK(view.shadow_image() == shadow);
                                               },
                                               [](const auto&) {}});
    CHECK(seen);
}

TEST_CASE("what cannot be a state is refused as it is from bytes") {
    const auto refusal = [](const auto& composed) {
        REQUIRE_FALSE(composed.has_value());
        return composed.error().code;
    };
    Vmcs12 page{}, shadow{};
    const auto header = header_of(0, vmx_header());
    CHECK(refusal(compose(header, page)) == Errc::bad_vmcs12_revision);
    CHECK(refusal(compose(header, Vmcb12{})) == Errc::wrong_vendor);
    page.hdr = uapi::vmcs12_revision;
    auto without_address = vmx_header();
    without_address.vmcs12_pa = uapi::no_address;
    CHECK(refusal(compose(header_of(0, without_address), page)) == Errc::payload_without_vmcs12);

    const auto l2 = header_of(uapi::state_flag::guest_mode, vmx_header());
    page.vmcs_link_pointer = 0x9000;
    set(page.cpu_based_vm_exec_control, vmx::Primary::activate_secondary_controls);
    set(page.secondary_vm_exec_control, vmx::Secondary::vmcs_shadowing);
    CHECK(refusal(compose(l2, page)) == Errc::shadow_vmcs12_missing);
    CHECK(refusal(compose(l2, page, shadow)) == Errc::bad_shadow_vmcs12_revision);

    const auto state = NestedState<Svm>::parse(unit::svm_l2());
    REQUIRE(state.has_value());
    Vmcb12 vmcb{};
    vmcb.asid = 1;
    CHECK(refusal(compose(state->header(), vmcb)) == Errc::vmrun_not_intercepted);
    set(vmcb.intercepts, svm::Intercept::vmrun);
    CHECK(compose(state->header(), vmcb).has_value());
    vmcb.asid = 0;
    CHECK(refusal(compose(state->header(), vmcb)) == Errc::asid_zero);
}

} // namespace
