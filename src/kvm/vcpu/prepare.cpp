// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

/// A capability of the VM and what KVM_ENABLE_CAP is given with it; 0: not wanted.
struct Wanted {
    std::uint32_t capability;
    std::uint64_t argument;
};

std::array<Wanted, 5> wanted_of(const Requirements& requirements) noexcept {
    return {{{uapi::cap::exception_payload, requirements.exception_payload},
             {uapi::cap::triple_fault_event, requirements.triple_fault_event},
             {uapi::cap::disable_quirks2, requirements.disabled_quirks},
             {uapi::cap::x2apic_api, requirements.x2apic_api},
             {uapi::cap::apic_bus_cycles_ns, requirements.apic_bus_cycle_ns}}};
}

/// The capabilities of each vCPU: 0 where it is not wanted.
std::array<std::uint32_t, 2> wanted_of_vcpus(const Requirements& requirements) noexcept {
    return {requirements.enlightened_vmcs ? uapi::cap::enlightened_vmcs : 0,
            synic_capability(requirements.hyperv_synic)};
}

} // namespace

std::expected<void, Error> compatible(Operation operation, const Requirements& here,
                                      const Requirements& there) noexcept {
    const auto mismatch = [&](Errc cause, std::uint32_t number) {
        return std::unexpected{Error{cause, operation, capability(number)}};
    };
    if (there.exception_payload && !here.exception_payload)
        return mismatch(Errc::not_prepared, uapi::cap::exception_payload);
    if (there.triple_fault_event && !here.triple_fault_event)
        return mismatch(Errc::not_prepared, uapi::cap::triple_fault_event);
    if (there.enlightened_vmcs && !here.enlightened_vmcs)
        return mismatch(Errc::not_prepared, uapi::cap::enlightened_vmcs);
    // The rest would be taken, and mean something else.
    if (here.disabled_quirks != there.disabled_quirks)
        return mismatch(Errc::requirement_differs, uapi::cap::disable_quirks2);
    if (here.x2apic_api != there.x2apic_api)
        return mismatch(Errc::requirement_differs, uapi::cap::x2apic_api);
    if (std::max(here.apic_bus_cycle_ns, 1u) != std::max(there.apic_bus_cycle_ns, 1u))
        return mismatch(Errc::requirement_differs, uapi::cap::apic_bus_cycles_ns);
    if (there.hyperv_synic != HypervSynic::off && here.hyperv_synic != there.hyperv_synic)
        return mismatch(here.hyperv_synic == HypervSynic::off ? Errc::not_prepared
                                                              : Errc::requirement_differs,
                        synic_capability(there.hyperv_synic));
    return {};
}

std::expected<Prepared, Error> prepare(SystemFd system, VmFd vm, const Requirements& requirements,
                                       IoctlRef ioctl) {
    const detail::VcpuCalls calls{Operation::prepare, system, vm, VcpuFd{-1}, nullptr, ioctl};
    const auto not_offered = [&](std::uint32_t number) {
        return calls.fail(Errc::requirement_not_offered, capability(number));
    };
    const auto wanted = wanted_of(requirements);

    // All are asked for before any is switched on: a failure leaves the VM as it was.
    for (const auto& [number, argument] : wanted) {
        if (argument == 0)
            continue;
        const auto offered = ioctl.with_number(vm.number, uapi::request::check_extension, number);
        if (offered.value < 0)
            return std::unexpected(calls.vm_failed(uapi::request::check_extension, offered));
        // The answer is a bit mask where the argument is one, else whether there is the capability.
        const auto known = static_cast<std::uint64_t>(offered.value);
        if (number == uapi::cap::apic_bus_cycles_ns ? known == 0 : (argument & ~known) != 0)
            return not_offered(number);
    }
    for (const auto number : wanted_of_vcpus(requirements)) { // the VM has nothing to say about them
        if (number == 0)
            continue;
        const auto offered = ioctl.with_number(system.number, uapi::request::check_extension, number);
        if (offered.value < 0)
            return std::unexpected(calls.system_failed(uapi::request::check_extension, offered));
        if (offered.value == 0)
            return not_offered(number);
    }

    for (const auto& [number, argument] : wanted) {
        if (argument == 0)
            continue;
        uapi::EnableCap enable{};
        enable.capability = number;
        enable.arguments[0] = argument;
        if (const auto set = ioctl(vm.number, uapi::request::enable_cap, &enable); set.value != 0) {
            auto error = calls.vm_failed(uapi::request::enable_cap, set);
            error.detail = capability(number);
            return std::unexpected(error);
        }
    }
    return already_prepared(requirements);
}

} // namespace kvm::vcpu
