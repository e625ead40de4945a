// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
module kvm.nested;

namespace kvm::nested {
namespace {

// The bit of CPUID that says the guest may nest, as KVM_GET_SUPPORTED_CPUID offers it.
constexpr std::uint32_t vmx_leaf = 1, vmx_ecx = 1u << 5;           // Intel SDM Vol. 2, CPUID leaf 1
constexpr std::uint32_t svm_leaf = 0x8000'0001, svm_ecx = 1u << 2; // AMD APM Vol. 3, CPUID Fn8000_0001

/// A capability that Linux has had since 5.14, which is far younger than nested state.
constexpr unsigned long cap_sregs2 = 200;

struct SupportedCpuid {
    static constexpr std::uint32_t capacity = 256; // KVM's own limit
    std::uint32_t count = capacity;
    std::uint32_t padding = 0;
    std::array<uapi::CpuidEntry, capacity> entries;

    const uapi::CpuidEntry* find(std::uint32_t leaf) const noexcept {
        for (std::uint32_t i = 0; i < count && i < capacity; ++i)
            if (entries[i].function == leaf)
                return &entries[i];
        return nullptr;
    }
    bool offers(std::uint32_t leaf, std::uint32_t ecx) const noexcept {
        const auto* entry = find(leaf);
        return entry != nullptr && (entry->ecx & ecx) != 0;
    }
};

Error error_at(IoctlRef ioctl, Operation operation, int fd, IoctlResult result) noexcept {
    return classify(operation, result.value, result.error_number, {.descriptor = descriptor_kind(ioctl, fd)});
}

/// Whether a GET could spoil what the vCPU holds. With an enlightened VMCS that was set and has not run yet,
/// L1 running, GET puts KVM's own shadow VMCS over the vmcs12 (Linux 6.1, 6.12, 7.3), and the SET that failed
/// may have left such a state of an earlier one in force. Which state is in force only GET tells, but
/// KVM_GET_SUPPORTED_HV_CPUID on the vCPU has a version of enlightened VMCSs exactly where they are enabled
/// there, and changes nothing. A KVM without Hyper-V support does not know the request.
bool may_have_enlightened_vmcs(IoctlRef ioctl, int fd) noexcept {
    constexpr std::uint32_t nested_features = 0x4000'000a, versions = 0xffff; // EAX: lowest and highest
    SupportedCpuid cpuid;
    if (const auto got = ioctl(fd, uapi::request::get_supported_hv_cpuid, &cpuid); got.value != 0)
        return got.error_number != EINVAL && got.error_number != ENOTTY;
    const auto* entry = cpuid.find(nested_features);
    return entry != nullptr && (entry->eax & versions) != 0;
}

std::unexpected<Error> no_host(Errc code, int raw_result = 0) noexcept {
    return std::unexpected{Error{.code = code, .operation = Operation::probe, .raw_result = raw_result}};
}

} // namespace

DescriptorKind descriptor_kind(IoctlRef ioctl, int fd) noexcept {
    const auto system = ioctl(fd, uapi::request::get_api_version);
    if (system.value >= 0)
        return DescriptorKind::system;
    if (system.error_number == EBADF)
        return DescriptorKind::not_open;
    if (ioctl.with_number(fd, uapi::request::check_extension, uapi::cap_nested_state).value >= 0)
        return DescriptorKind::vm;
    const auto vcpu = ioctl(fd, uapi::request::get_tsc_khz); // needs nothing and changes nothing
    if (vcpu.value >= 0)
        return DescriptorKind::vcpu;
    if (vcpu.error_number == ENOTTY)
        return DescriptorKind::not_kvm;
    return DescriptorKind::unknown; // EIO: a VM or vCPU of another process
}

namespace detail {

std::expected<VendorId, Error> probe(IoctlRef ioctl, int fd) noexcept {
    if (const auto version = ioctl(fd, uapi::request::get_api_version); version.value < 0)
        return std::unexpected(error_at(ioctl, Operation::probe, fd, version));
    const auto capacity = ioctl.with_number(fd, uapi::request::check_extension, uapi::cap_nested_state);
    if (capacity.value < 0)
        return std::unexpected(error_at(ioctl, Operation::probe, fd, capacity));
    if (capacity.value == 0) {
        // Linux 7.x with nested=0 says the same as a kernel before nested state.
        const bool recent = ioctl.with_number(fd, uapi::request::check_extension, cap_sregs2).value > 0;
        return no_host(recent ? Errc::nesting_off : Errc::not_supported);
    }
    if (capacity.value != static_cast<int>(Vmx::capacity)
        && capacity.value != static_cast<int>(Svm::capacity))
        return std::unexpected(Error{.code = Errc::capacity_unknown,
                                     .operation = Operation::probe,
                                     .detail_kind = DetailKind::bytes,
                                     .detail = static_cast<std::uint64_t>(capacity.value)});

    SupportedCpuid cpuid;
    if (const auto got = ioctl(fd, uapi::request::get_supported_cpuid, &cpuid); got.value != 0)
        return std::unexpected(error_at(ioctl, Operation::probe, fd, got));
    const bool vmx = cpuid.offers(vmx_leaf, vmx_ecx);
    const bool svm = cpuid.offers(svm_leaf, svm_ecx);
    const auto vendor = capacity.value == static_cast<int>(Vmx::capacity) ? VendorId::vmx : VendorId::svm;
    if (!vmx && !svm)
        return no_host(Errc::nesting_off); // Linux up to 6.12 with nested=0
    if (vmx == svm || vmx != (vendor == VendorId::vmx))
        return no_host(Errc::vendor_unclear);
    return vendor;
}

Failure get_failed(IoctlRef ioctl, int fd, IoctlResult result) noexcept {
    return Failure{error_at(ioctl, Operation::get_nested_state, fd, result)};
}

Failure set_failed(IoctlRef ioctl, int fd, IoctlResult result,
                   std::span<const std::byte> attempted) noexcept {
    Context context{.descriptor = descriptor_kind(ioctl, fd), .attempted = attempted};
    NestedStateBuffer found; // armed: full capacity, so that KVM cannot write beyond it
    if (NestedStateView{attempted}.vendor() != VendorId::vmx || !may_have_enlightened_vmcs(ioctl, fd)) {
        const auto got = ioctl(fd, uapi::request::get_nested_state, &found);
        if (got.value == 0 && found.vendor())
            context.found = found.bytes();
        context.nesting_off = got.value < 0 && got.error_number == EINVAL;
    }
    return Failure{classify(Operation::set_nested_state, result.value, result.error_number, context)};
}

} // namespace detail
} // namespace kvm::nested
