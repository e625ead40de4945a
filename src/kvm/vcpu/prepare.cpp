// SPDX-License-Identifier: MIT
module;
#include <algorithm>
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

std::unexpected<Error> not_offered(std::uint32_t capability) {
    return std::unexpected{
        Error{.code = Errc::requirement_not_offered, .operation = Operation::prepare, .detail = capability}};
}

} // namespace

std::expected<void, Error> compatible(const Requirements& here, const Requirements& there) noexcept {
    const auto mismatch = [](Errc code, std::uint32_t capability) {
        return std::unexpected{Error{.code = code, .operation = Operation::prepare, .detail = capability}};
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
    const detail::VcpuCalls calls{system, vm, VcpuFd{-1}, nullptr, ioctl};
    const auto wanted = wanted_of(requirements);

    // All are asked for before any is switched on: a failure leaves the VM as it was.
    for (const auto& [capability, argument] : wanted) {
        if (argument == 0)
            continue;
        const auto offered = ioctl.with_number(vm.number, uapi::request::check_extension, capability);
        if (offered.value < 0)
            return std::unexpected(calls.vm_failed(Operation::prepare, offered));
        // The answer is a bit mask where the argument is one, else whether there is the capability.
        const auto known = static_cast<std::uint64_t>(offered.value);
        if (capability == uapi::cap::apic_bus_cycles_ns ? known == 0 : (argument & ~known) != 0)
            return not_offered(capability);
    }
    for (const auto capability : wanted_of_vcpus(requirements)) { // the VM has nothing to say about them
        if (capability == 0)
            continue;
        const auto offered = ioctl.with_number(system.number, uapi::request::check_extension, capability);
        if (offered.value < 0)
            return std::unexpected(calls.system_failed(Operation::prepare, offered));
        if (offered.value == 0)
            return not_offered(capability);
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
