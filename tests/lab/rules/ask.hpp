// SPDX-License-Identifier: MIT
//
// A state set on a vCPU of a condition, and what the kernel said and kept.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "conditions.hpp"

namespace rules {

using kvm::nested::Answer, kvm::nested::Keeps;

/// One case: what is set where, and from where.
struct Case {
    const Condition* on;
    const lab::Bytes* start; ///< set before; null: outside nested operation
    lab::Bytes state;
};

/// What the kernel said.
struct Said {
    kvm::nested::IoctlResult result{};
    lab::Bytes before, after;
};

inline Said ask(const Case& one) {
    one.on->reset();
    Said said;
    if (one.start != nullptr)
        static_cast<void>(
            lab::raw_set(one.on->fd(), one.start->data())); // may be refused: some vCPUs take none
    said.before = lab::read_back(one.on->fd());
    said.result = lab::raw_set(one.on->fd(), one.state.data());
    said.after = lab::read_back(one.on->fd());
    return said;
}

inline bool is(const kvm::nested::IoctlResult& result, Answer answer) {
    switch (answer) {
    case Answer::einval:
        return result.value == -1 && result.error_number == EINVAL;
    case Answer::efault:
        return result.value == -1 && result.error_number == EFAULT;
    case Answer::enomem:
        return result.value == -1 && result.error_number == ENOMEM;
    case Answer::positive:
        return result.value == 2;
    case Answer::success:
        return result.value == 0;
    }
    return false;
}

/// Of a state that GET gives: what tells where the vCPU is.
struct Where {
    std::uint16_t flags;
    std::uint64_t vmxon, vmcs12;
    std::uint16_t smm_flags;
    bool operator==(const Where&) const = default;
};
inline Where where(const lab::Bytes& state) {
    return {lab::load<std::uint16_t>(state, lab::flags_at), lab::load<std::uint64_t>(state, 8),
            lab::load<std::uint64_t>(state, 16), lab::load<std::uint16_t>(state, 24)};
}

inline constexpr std::uint64_t none = ~std::uint64_t{0};

/// What is not as `keeps` says; empty: all is.
inline std::string wrongly_kept(Keeps keeps, const Case& one, const Said& said) {
    const auto before = where(said.before), after = where(said.after), wanted = where(one.state);
    const auto expect = [](bool ok, std::string_view what) { return ok ? std::string{} : std::string{what}; };
    constexpr std::uint16_t guest_mode = 1;
    switch (keeps) {
    case Keeps::unchanged:
        return expect(before == after, "the vCPU's state changed");
    case Keeps::not_in_vmx_operation:
        return expect(after.vmxon == none, "the vCPU is in VMX operation");
    case Keeps::vmxon:
        return expect(after.vmxon == wanted.vmxon && after.vmcs12 == none && (after.flags & guest_mode) == 0,
                      "not VMXON alone");
    case Keeps::current_vmcs:
    case Keeps::overwritten:
        return expect(after.vmxon == wanted.vmxon && (after.vmcs12 == wanted.vmcs12)
                          && (after.flags & guest_mode) == 0,
                      "not the new VMCS");
    case Keeps::l2_active:
        return expect((after.flags & guest_mode) != 0, "L2 is not active");
    }
    return "?";
}

inline std::string answer_text(const kvm::nested::IoctlResult& result) {
    return result.value < 0 ? std::string{kvm::nested::errno_name(result.error_number)}
                            : std::format("returned {}", result.value);
}

inline kvm::nested::Findings check(const Case& one) {
    return kvm::nested::check(one.state, one.on->to);
}

} // namespace rules
