// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

/// A capability of the VM and what KVM_ENABLE_CAP is given with it; 0: not wanted.
struct Wanted {
    std::uint32_t capability;
    std::uint64_t argument;
};

std::array<Wanted, 3> wanted_of(const Requirements& requirements) noexcept {
    return {{{uapi::cap::exception_payload, requirements.exception_payload},
             {uapi::cap::triple_fault_event, requirements.triple_fault_event},
             {uapi::cap::disable_quirks2, requirements.disabled_quirks}}};
}

std::unexpected<Error> not_offered(std::uint32_t capability) {
    return std::unexpected{
        Error{.code = Errc::requirement_not_offered, .operation = Operation::prepare, .detail = capability}};
}

} // namespace

std::expected<Prepared, Error> prepare(SystemFd system, VmFd vm, const Requirements& requirements,
                                       IoctlRef ioctl) {
    const detail::VcpuCalls calls{system, vm, VcpuFd{-1}, nullptr, ioctl};
    const auto wanted = wanted_of(requirements);

    // All are asked for before any is switched on: a failure leaves the VM as it was.
    for (const auto& [capability, argument] : wanted) {
        if (argument == 0)
            continue;
        const auto offered = ioctl.with_number(vm.number, uapi::request::check_extension, capability);
        if (offered.value < 0)
            return std::unexpected(calls.vm_failed(Operation::prepare, offered));
        // The answer is a bit mask for quirks, and 1 for the others.
        if ((argument & ~static_cast<std::uint64_t>(offered.value)) != 0)
            return not_offered(capability);
    }
    if (requirements.enlightened_vmcs) { // a vCPU's, so the VM has nothing to say
        const auto offered =
            ioctl.with_number(system.number, uapi::request::check_extension, uapi::cap::enlightened_vmcs);
        if (offered.value < 0)
            return std::unexpected(calls.system_failed(Operation::prepare, offered));
        if (offered.value == 0)
            return not_offered(uapi::cap::enlightened_vmcs);
    }

    for (const auto& [capability, argument] : wanted) {
        if (argument == 0)
            continue;
        uapi::EnableCap enable{};
        enable.capability = capability;
        enable.arguments[0] = argument;
        if (const auto set = ioctl(vm.number, uapi::request::enable_cap, &enable); set.value != 0) {
            auto error = calls.vm_failed(Operation::prepare, set);
            error.detail = capability;
            return std::unexpected(error);
        }
    }
    return already_prepared(requirements);
}

} // namespace kvm::vcpu
