// SPDX-License-Identifier: MIT
//
// What the scenarios of VMX share: ports of vmx_lab.inc, and moves with another nested state than the saved
// one.
//
// Include it last: it ends the includes and imports kvm.vcpu.
#pragma once

#include "support/vmx.hpp"

#include "support/scenario.hpp"

namespace lab::vmx {

inline constexpr std::uint16_t exit_reason_port = 0x23, interrupts_port = 0x24, value_port = 0x27,
                               smi_port = 0x28;

/// The view of a state whose L2 is active.
inline kvm::nested::vmx::L2Active l2_of(const kvm::nested::NestedStateBuffer& state) {
    std::optional<kvm::nested::vmx::L2Active> view;
    state.visit(kvm::nested::overloaded{[&](const kvm::nested::vmx::L2Active& l2) { view = l2; },
                                        [](const auto&) {}});
    if (!view)
        give_up(std::format("L2 is not active: {}", state));
    return *view;
}

/// Changes the bytes of a nested state.
template <class Edit>
void edit_nested(kvm::vcpu::VcpuState& state, Edit&& edit) {
    Bytes bytes{state.nested.bytes().begin(), state.nested.bytes().end()};
    edit(std::span{bytes});
    state.nested = must(kvm::nested::NestedStateBuffer::parse(bytes));
}

/// The same as an edit of the whole state.
template <class Edit>
auto in_nested(Edit edit) {
    return [=](kvm::vcpu::VcpuState& state) { edit_nested(state, edit); };
}

/// What a guest tells on the whole that moves from where it was caught, its state changed by `edit`.
template <class Edit>
std::string told_after_edit(const Scenario& scenario, const Saved& saved, Telling telling, Edit&& edit) {
    auto state = saved.state;
    edit(state);
    const auto vm = destination(scenario, saved);
    put_memory(vm, saved.memory);
    must(vm.whole().restore(state));
    follow(scenario, vm, telling);
    return telling.line();
}

} // namespace lab::vmx
