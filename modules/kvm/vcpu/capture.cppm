// SPDX-License-Identifier: MIT
//
// A Destination from life: what check() needs to know of a vCPU, of a saved one, or of a host that has no VM
// yet.
module;
#include <expected>
export module kvm.vcpu:capture;
import kvm.nested;
import :error;
import :state;

export namespace kvm::vcpu {

/// What any vCPU of this host could at most be: the kernel's version, KVM_GET_SUPPORTED_CPUID, and the VMX
/// capability MSRs that KVM_GET_MSRS gives on /dev/kvm. Needs no VM. Registers stay unknown, and so does what
/// a VMM enables. What KVM does not tell is left unknown; the one error is a descriptor that is not /dev/kvm.
[[nodiscard]] std::expected<Destination, Error> capture_host(SystemFd system, IoctlRef ioctl = system_call);

/// The vCPU that `state` makes of one on the host that `host` describes: what KVM_SET_NESTED_STATE meets in
/// restore_order, where it comes after all that it depends on.
[[nodiscard]] Destination destination_of(const VcpuState& state, const Destination& host);

} // namespace kvm::vcpu
