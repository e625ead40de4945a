// SPDX-License-Identifier: MIT
//
// What the tests of SVM alone share.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

namespace lab::svm {

using State = kvm::nested::NestedState<kvm::nested::Svm>;

/// The proof that this host nests SVM.
inline kvm::nested::Host<kvm::nested::Svm> host() {
    return host_of<kvm::nested::Svm>();
}

inline kvm::nested::Vcpu<kvm::nested::Svm> nested(const machine::Machine& machine) {
    return {host(), kvm::nested::VcpuFd{machine.vcpu_fd()}};
}

/// A new machine in which svm_phases has come to `phase`.
inline machine::Machine machine_at(guests::Phase phase, std::uint64_t flags = guests::nested_paging) {
    auto machine = must(machine::Machine::create());
    must(guests::start(machine, guests::phases(guests::Vendor::svm), {.flags = flags}));
    run_to(machine, phase);
    return machine;
}

/// A machine whose L2 runs. One for all tests that only look, or put back what they found: a new one takes
/// some 50 ms in the emulated machine.
inline const machine::Machine& shared_l2() {
    static const machine::Machine machine = machine_at(guests::Phase::l2);
    return machine;
}

// Offsets in the header.
inline constexpr std::size_t vmcb12_at = kvm::nested::header_offset("hdr.svm.vmcb_pa"),
                             gpat_at = kvm::nested::header_offset("hdr.svm.gpat");
inline constexpr std::size_t state_size = 4224;

} // namespace lab::svm
