// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <sys/utsname.h>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

const uapi::CpuidEntry* find(std::span<const uapi::CpuidEntry> entries, std::uint32_t function,
                             std::uint32_t index) noexcept {
    // An entry that does not depend on the index has any.
    constexpr std::uint32_t index_is_significant = 1;
    const auto found = std::ranges::find_if(entries, [&](const uapi::CpuidEntry& entry) {
        return entry.function == function
               && (entry.index == index || (entry.flags & index_is_significant) == 0);
    });
    return found == entries.end() ? nullptr : &*found;
}

std::uint32_t in(const uapi::CpuidEntry& entry, FeatureBit::Register which) noexcept {
    switch (which) {
    case FeatureBit::Register::eax:
        return entry.eax;
    case FeatureBit::Register::ebx:
        return entry.ebx;
    case FeatureBit::Register::ecx:
        return entry.ecx;
    case FeatureBit::Register::edx:
        return entry.edx;
    }
    return 0;
}

Features features_of(std::span<const uapi::CpuidEntry> entries) noexcept {
    Features features;
    for (const auto& bit : feature_bits) {
        const auto* entry = find(entries, bit.function, bit.index);
        features.set(bit.feature, entry != nullptr && (in(*entry, bit.in) >> bit.bit & 1) != 0);
    }
    constexpr std::uint32_t hyperv_interface = 0x4000'0001, hyperv_signature = 0x3123'7648; // "Hv#1"
    const auto* entry = find(entries, hyperv_interface, 0);
    features.set(Feature::hyperv, entry != nullptr && entry->eax == hyperv_signature);
    return features;
}

/// The bits of IA32_PERF_GLOBAL_CTRL by CPUID.0AH (Intel SDM Vol. 3 section 20.2): general counters from bit
/// 0, fixed ones from bit 32 on.
std::uint64_t perf_global_ctrl_of(std::span<const uapi::CpuidEntry> entries) noexcept {
    constexpr std::uint32_t leaf = 0xa;
    const auto* entry = find(entries, leaf, 0);
    const auto version = entry == nullptr ? 0 : entry->eax & 0xff;
    if (version == 0)
        return 0;
    const auto ones = [](std::uint32_t count) { return (std::uint64_t{1} << std::min(count, 31U)) - 1; };
    const auto general = entry->eax >> 8 & 0xff, fixed = version > 1 ? entry->edx & 0x1f : 0;
    return ones(general) | ones(fixed) << 32;
}

/// Enters what a guest's CPUID says.
void enter_cpuid(Destination& destination, std::span<const uapi::CpuidEntry> entries) {
    destination.guest = features_of(entries);
    constexpr std::uint32_t address_sizes = 0x8000'0008;
    constexpr std::uint8_t without = 36; // what KVM takes
    const auto* sizes = find(entries, address_sizes, 0);
    destination.maxphyaddr = sizes == nullptr ? without : static_cast<std::uint8_t>(sizes->eax & 0xff);
    destination.svm = {};
    if (const auto* svm = find(entries, svm::Capabilities::function, 0))
        destination.svm = {.features = svm->edx, .asids = svm->ebx};
    const auto counters = perf_global_ctrl_of(entries);
    destination.perf_global_ctrl = destination.perf_global_ctrl.value_or(counters) & counters;
}

} // namespace

std::expected<Destination, Error> capture_host(SystemFd system, IoctlRef ioctl) {
    const detail::VcpuCalls calls{Operation::capture, system, VmFd{-1}, VcpuFd{-1}, nullptr, ioctl};
    const auto capacity =
        ioctl.with_number(system.number, uapi::request::check_extension, nested::uapi::cap_nested_state);
    if (capacity.value < 0)
        return std::unexpected(calls.system_failed(uapi::request::check_extension, capacity));

    Destination host;
    host.nested = capacity.value != 0;
    if (capacity.value == static_cast<int>(Vmx::capacity))
        host.vendor = VendorId::vmx;
    if (capacity.value == static_cast<int>(Svm::capacity))
        host.vendor = VendorId::svm;
    if (utsname names{}; ::uname(&names) == 0)
        host.kernel = kernel_version(names.release);

    if (const auto entries = calls.supported_cpuid()) {
        enter_cpuid(host, *entries);
        host.host = host.guest;
        host.nested_paging = host.guest[Feature::npt] == Known::yes;
    }
    for (auto index = vmx::Capabilities::first; index <= vmx::Capabilities::last; ++index)
        if (const auto value = calls.feature_msr(index))
            host.vmx.set(index, *value);
    if (!host.vendor && !host.vmx.empty())
        host.vendor = VendorId::vmx;
    if (!host.vendor && host.guest[Feature::svm] == Known::yes)
        host.vendor = VendorId::svm;
    return host;
}

Destination destination_of(const VcpuState& state, const Destination& host) {
    auto vcpu = host;
    enter_cpuid(vcpu, state.cpuid);
    for (const auto* msrs : {&state.feature_msrs, &state.msrs})
        for (const auto& msr : *msrs)
            vcpu.vmx.set(msr.index, msr.value);
    vcpu.efer = state.sregs.efer;
    vcpu.cr0 = state.sregs.cr0;
    vcpu.cr3 = state.sregs.cr3;
    vcpu.cr4 = state.sregs.cr4;
    vcpu.smm = state.events.smi_smm != 0;
    vcpu.enlightened_vmcs = state.requirements.enlightened_vmcs;
    vcpu.disabled_quirks = state.requirements.disabled_quirks;
    vcpu.exception_payload = state.requirements.exception_payload;
    if (state.tsc_khz != 0)
        vcpu.tsc_khz = state.tsc_khz;
    return vcpu;
}

std::expected<Destination, Error> WholeVcpu::capture(const Destination& host) const {
    const auto calls = this->calls(Operation::capture);
    VcpuState state;
    state.requirements = requirements_;
    const MsrLists none;
    const SaveOptions options;
    if (const auto saved = detail::save_cpuid({calls, host_, requirements_, state, options, none}); !saved)
        return std::unexpected(saved.error());
    if (const auto got = calls.call(uapi::request::get_sregs2, &state.sregs); !got)
        return std::unexpected(got.error());
    if (const auto got = calls.call(uapi::request::get_vcpu_events, &state.events); !got)
        return std::unexpected(got.error());
    for (auto index = vmx::Capabilities::first; index <= vmx::Capabilities::last; ++index)
        state.feature_msrs.push_back({.index = index, .reserved = 0, .value = 0});
    if (const auto read = calls.read_msrs(state.feature_msrs); !read)
        return std::unexpected(read.error());
    auto vcpu = host;
    vcpu.vmx = {}; // those of the vCPU alone: without VMX in its CPUID it has none
    return destination_of(state, vcpu);
}

} // namespace kvm::vcpu
