// SPDX-License-Identifier: MIT
//
// The vCPUs that states are set on, each in a situation of its own, and the good states to begin with.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "../support/get.hpp"
#include "../support/set_table.hpp"
#include "../support/svm.hpp"
#include "../support/vmx.hpp"
#include "mutate.hpp"

namespace rules {

/// Room for the largest state; what the kernel may read is always there.
inline constexpr std::size_t room = 8320;

/// Which of Condition::good a state is.
namespace base {
enum Vmx : std::size_t { rich, built, shadow, pending, software, saved, current, in_smm, vmxon, off };
enum Svm : std::size_t { l2, l2_with_event, l2_pending, gif_set, gif_clear };
} // namespace base

/// One vCPU, as it is before each case.
struct Condition {
    std::string name;
    lab::Vm vm;
    kvm::nested::Destination to;
    kvm_sregs2 sregs{};
    std::vector<kvm::vcpu::uapi::OneReg> one_regs = {}; ///< with shadow stacks: SSP
    bool smm = false;
    std::vector<lab::Bytes> good; ///< states to change; the first of them this vCPU takes
    unsigned maxphyaddr = lab::maxphyaddr;

    [[nodiscard]] const machine::Machine& machine() const { return vm.machine; }
    [[nodiscard]] int fd() const { return vm.machine.vcpu_fd(); }

    /// Outside nested operation, with its registers.
    void reset() const {
        if (smm)
            lab::set_smm(machine(), false);
        lab::must(lab::nested(machine()).clear_nested_state());
        lab::set_sregs(machine(), sregs);
        reset_shadow_stacks();
        if (smm)
            lab::set_smm(machine(), true);
    }

    /// KVM takes L2's CET state from the vCPU's where no entry is pending, and leaves there what an L2 had.
    void reset_shadow_stacks() const {
        for (auto reg : one_regs) {
            const kvm::vcpu::uapi::OneRegAddress argument{reg.id,
                                                          reinterpret_cast<std::uintptr_t>(&reg.value)};
            lab::must_ioctl(fd(), kvm::vcpu::uapi::request::set_one_reg, &argument, "KVM_SET_ONE_REG");
        }
        if (!one_regs.empty())
            for (const std::uint32_t msr : {0x6a2u, 0x6a8u}) // IA32_S_CET, IA32_INTERRUPT_SSP_TABLE_ADDR
                if (!lab::set_msr(machine(), msr, 0))
                    lab::give_up("an MSR of CET cannot be cleared");
    }
};

/// What a condition is made of.
struct Recipe {
    std::string_view name;
    unsigned maxphyaddr = lab::maxphyaddr;
    std::uint32_t function = 0; ///< of CPUID: bits to take away there
    kvm::nested::FeatureBit::Register in = kvm::nested::FeatureBit::Register::eax;
    std::uint32_t without = 0;
    bool smm = false;
    bool long_mode = false;
    bool enlightened_vmcs = false;
    bool hyperv = false;
    std::uint64_t disabled_quirks = 0;
    std::uint32_t narrowed_msr = 0; ///< a capability MSR without `narrowed_bits`
    std::uint64_t narrowed_bits = 0;
    std::uint64_t cr3 = 0; ///< SVM
    bool svme = true;      ///< SVM
};

/// All of this vendor's. Made once, by the first who asks.
const std::vector<Condition>& conditions();

} // namespace rules
