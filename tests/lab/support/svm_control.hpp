// SPDX-License-Identifier: MIT
//
// The control area in a nested state of SVM: read, and changed in a saved state for a negative control.
//
// Include it last, after svm.hpp and scenario.hpp.
#pragma once

namespace lab::svm {

namespace control {
consteval std::size_t in_vmcb12(kvm::nested::Vmcb12Fields::Name name) {
    return name.field().offset;
}
inline constexpr std::size_t intercepts_word3 = in_vmcb12("intercepts[3]"), int_ctl = in_vmcb12("int_ctl"),
                             event_inj = in_vmcb12("event_inj");
} // namespace control

inline constexpr std::uint64_t event_valid = kvm::nested::mask(kvm::nested::svm::Event::valid);

template <class T>
T control_field(const kvm::nested::NestedStateBuffer& state, std::size_t offset) {
    return load<T>(state.bytes(), header_size + offset);
}

/// Changes one field of a saved control area.
template <class T>
void set_control_field(Saved& saved, std::size_t offset, T value) {
    Bytes bytes(saved.state.nested.bytes().begin(), saved.state.nested.bytes().end());
    store(std::span{bytes}, header_size + offset, value);
    saved.state.nested = must(kvm::nested::NestedStateBuffer::parse(bytes));
}

inline bool run_pending(const kvm::nested::NestedStateBuffer& state) {
    return (state.flags() & kvm::nested::uapi::state_flag::run_pending) != 0;
}

} // namespace lab::svm
