// SPDX-License-Identifier: MIT
//
// The least that a VMM needs: the nested state of a vCPU saved and put back.
#include <fcntl.h>
#include <print>
#include <sys/ioctl.h>

#include "machine/linux_kvm.hpp"

import kvm.nested;

namespace nested = kvm::nested;

int failed(const nested::Error& error) {
    std::println(stderr, "save: {}", error);
    return 1;
}

int main() {
    const int system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    const int vcpu = ioctl(ioctl(system, KVM_CREATE_VM, 0), KVM_CREATE_VCPU, 0);

    const auto host = nested::Host<nested::Any>::probe(nested::SystemFd{system});
    if (!host)
        return failed(host.error());
    const nested::Vcpu guest{*host, nested::VcpuFd{vcpu}};

    const auto saved = guest.nested_state();
    if (!saved)
        return failed(saved.error());
    std::println("saved: {}; {} bytes to carry", *saved, saved->bytes().size());

    if (const auto put = guest.set_nested_state(*saved); !put)
        return failed(put.error());
    std::println("put back: the vCPU holds it again");
}
