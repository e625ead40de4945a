// SPDX-License-Identifier: MIT
//
// What the tests of KVM_GET_NESTED_STATE share: a vCPU in L2 and one that has never nested, of either vendor,
// and how far the kernel wrote.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

namespace lab {

inline constexpr auto untouched = std::byte{0xa5};

inline const machine::Machine& never_nested() {
    static const machine::Machine machine = must(machine::Machine::create());
    return machine;
}

/// L2 runs, without anything that makes its state longer than 4224 bytes.
inline const machine::Machine& with_l2_active() {
    static const machine::Machine machine = [] {
        auto machine = must(machine::Machine::create());
        const auto vendor = is_vmx() ? guests::Vendor::vmx : guests::Vendor::svm;
        must(guests::start(machine, guests::phases(vendor), {.flags = guests::nested_paging}));
        run_to(machine, guests::Phase::l2);
        return machine;
    }();
    return machine;
}

inline const machine::Machine& vcpu_at(bool l2_active) {
    return l2_active ? with_l2_active() : never_nested();
}

/// What L2 takes there.
inline constexpr std::size_t l2_state_size = 4224;

/// Bytes from `from` to the last one that GET changed.
inline std::size_t written(std::span<const std::byte> bytes, std::size_t from) {
    std::size_t end = from;
    for (std::size_t i = from; i < bytes.size(); ++i)
        if (bytes[i] != untouched)
            end = i + 1;
    return end - from;
}

inline std::uint32_t size_in(std::span<const std::byte> bytes) {
    return load<std::uint32_t>(bytes, size_at);
}

/// Calls `function` with the vendor of this host as its template argument.
template <class Function>
void with_vendor(Function&& function) {
    if (is_vmx())
        function.template operator()<kvm::nested::Vmx>();
    else
        function.template operator()<kvm::nested::Svm>();
}

} // namespace lab
