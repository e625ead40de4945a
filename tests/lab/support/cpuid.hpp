// SPDX-License-Identifier: MIT
//
// CPUIDs that KVM offers, to be given to a vCPU.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

namespace lab {

/// What KVM answers to KVM_GET_SUPPORTED_CPUID or its sisters.
class SupportedCpuid {
  public:
    SupportedCpuid(const machine::Machine& machine, unsigned long request) {
        cpuid().nent = capacity;
        must_ioctl(machine.system_fd(), request, storage_.data(), "KVM_GET_SUPPORTED_CPUID");
    }
    [[nodiscard]] std::span<kvm_cpuid_entry2> entries() { return {cpuid().entries, cpuid().nent}; }

    /// Takes the leaves of the hypervisor, 0x40000000 on, from the other one.
    void replace_hypervisor(SupportedCpuid other) {
        const auto ours = [](const kvm_cpuid_entry2& entry) { return entry.function >> 28 != 4; };
        const auto kept = std::ranges::stable_partition(entries(), ours);
        cpuid().nent -= static_cast<std::uint32_t>(kept.size());
        for (const auto& entry : other.entries())
            cpuid().entries[cpuid().nent++] = entry;
    }
    void give(const machine::Machine& machine) {
        must_ioctl(machine.vcpu_fd(), KVM_SET_CPUID2, storage_.data(), "KVM_SET_CPUID2");
    }

  private:
    static constexpr std::uint32_t capacity = 128;
    kvm_cpuid2& cpuid() { return *reinterpret_cast<kvm_cpuid2*>(storage_.data()); }

    static_assert(sizeof(kvm_cpuid2) % alignof(kvm_cpuid_entry2) == 0);
    alignas(kvm_cpuid2)
        std::array<std::byte, sizeof(kvm_cpuid2) + 2 * capacity * sizeof(kvm_cpuid_entry2)> storage_;
};

/// Gives the vCPU the CPUID of a Hyper-V host, in place of KVM's own.
inline void be_hyperv(const machine::Machine& machine) {
    SupportedCpuid cpuid{machine, KVM_GET_SUPPORTED_CPUID};
    cpuid.replace_hypervisor({machine, KVM_GET_SUPPORTED_HV_CPUID});
    cpuid.give(machine);
}

} // namespace lab
