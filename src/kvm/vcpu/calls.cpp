// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <utility>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu::detail {
namespace {

/// The kernel's argument of KVM_GET_MSRS and KVM_SET_MSRS, as large as it may be.
struct MsrBlock {
    static constexpr std::size_t capacity = 255;
    std::uint32_t count;
    std::uint32_t padding;
    std::array<uapi::Msr, capacity> entries; // not initialised
};

/// The same for one MSR.
struct OneMsr {
    std::uint32_t count = 1, padding = 0;
    uapi::Msr entry;
    explicit OneMsr(std::uint32_t index) : entry{.index = index, .reserved = 0, .value = 0} {}
};

/// The kernel's argument of KVM_GET_MSR_INDEX_LIST.
struct MsrList {
    std::uint32_t count;
    std::array<std::uint32_t, uapi::msr_limit> indices; // not initialised
};

/// What a failed ioctl means that belongs on a `wanted` descriptor.
Error failed(const VcpuCalls& calls, DescriptorKind wanted, int fd, unsigned long request,
             IoctlResult result) {
    const auto cause = result.value >= 0
                           ? nested::Errc::unexpected
                           : classify(wanted, result.error_number, descriptor_kind(calls.ioctl, fd));
    Error error{cause, calls.operation};
    error.request = static_cast<std::uint32_t>(request);
    error.raw_result = result.value;
    error.error_number = result.value < 0 ? result.error_number : 0;
    return error;
}

} // namespace

Error VcpuCalls::vcpu_failed(unsigned long request, IoctlResult result) const {
    return failed(*this, DescriptorKind::vcpu, vcpu.number, request, result);
}

Error VcpuCalls::vm_failed(unsigned long request, IoctlResult result) const {
    return failed(*this, DescriptorKind::vm, vm.number, request, result);
}

Error VcpuCalls::system_failed(unsigned long request, IoctlResult result) const {
    return failed(*this, DescriptorKind::system, system.number, request, result);
}

std::unexpected<Error> VcpuCalls::fail(Cause cause, Detail detail) const {
    return std::unexpected{Error{cause, operation, detail}};
}

std::unexpected<Error> VcpuCalls::absurd(unsigned long request, std::uint64_t answer) const {
    Error error{nested::Errc::unexpected, operation, {Detail::Kind::answer, answer}};
    error.request = static_cast<std::uint32_t>(request);
    return std::unexpected{error};
}

Result VcpuCalls::call(unsigned long request, void* argument) const {
    if (const auto result = ioctl(vcpu.number, request, argument); result.value != 0)
        return std::unexpected(vcpu_failed(request, result));
    return {};
}

Result VcpuCalls::set(unsigned long request, const void* argument) const {
    return call(request, const_cast<void*>(argument));
}

std::expected<std::size_t, Error> VcpuCalls::xsave_size() const {
    const auto answer = ioctl.with_number(vm.number, uapi::request::check_extension, uapi::cap::xsave2);
    if (answer.value < 0)
        return std::unexpected(vm_failed(uapi::request::check_extension, answer));
    const auto size = static_cast<std::size_t>(answer.value);
    if (size == 0) // a kernel without KVM_GET_XSAVE2
        return uapi::xsave_size;
    if (size < uapi::xsave_size || size > uapi::xsave_limit)
        return absurd(uapi::request::check_extension, size);
    return size;
}

std::expected<std::vector<std::uint32_t>, Error> VcpuCalls::msr_list(unsigned long request) const {
    MsrList list;
    list.count = uapi::msr_limit;
    const auto got = ioctl(system.number, request, &list);
    if (list.count > list.indices.size()) // E2BIG, or nonsense
        return absurd(request, list.count);
    if (got.value != 0)
        return std::unexpected(system_failed(request, got));
    return std::vector(list.indices.begin(), list.indices.begin() + list.count);
}

// Both ioctls stop at the first MSR that the vCPU does not let them have, and answer how many they have done.

Result VcpuCalls::read_msrs(std::vector<uapi::Msr>& msrs) const {
    std::size_t kept = 0;
    for (std::size_t done = 0; done < msrs.size();) {
        MsrBlock block;
        const auto count = std::min(msrs.size() - done, MsrBlock::capacity);
        block.count = static_cast<std::uint32_t>(count);
        block.padding = 0;
        std::ranges::copy_n(msrs.begin() + static_cast<std::ptrdiff_t>(done),
                            static_cast<std::ptrdiff_t>(count), block.entries.begin());
        const auto got = ioctl(vcpu.number, uapi::request::get_msrs, &block);
        if (got.value < 0)
            return std::unexpected(vcpu_failed(uapi::request::get_msrs, got));
        const auto read = static_cast<std::size_t>(got.value);
        if (read > count)
            return absurd(uapi::request::get_msrs, read);
        for (std::size_t i = 0; i < read; ++i, ++kept)
            msrs[kept] = {.index = msrs[done + i].index, .reserved = 0, .value = block.entries[i].value};
        done += std::min(read + 1, count); // without the one it stopped at
    }
    msrs.resize(kept);
    return {};
}

std::expected<std::vector<uapi::CpuidEntry>, Error> VcpuCalls::supported_cpuid() const {
    CpuidBlock block;
    block.count = uapi::cpuid_limit;
    block.padding = 0;
    const auto got = ioctl(system.number, uapi::request::get_supported_cpuid, &block);
    if (got.value != 0)
        return std::unexpected(system_failed(uapi::request::get_supported_cpuid, got));
    if (block.count > uapi::cpuid_limit)
        return absurd(uapi::request::get_supported_cpuid, block.count);
    return std::vector(block.entries.begin(), block.entries.begin() + block.count);
}

std::optional<std::uint64_t> VcpuCalls::feature_msr(std::uint32_t index) const {
    OneMsr block{index};
    return ioctl(system.number, uapi::request::get_msrs, &block).value == 1 ? std::optional{block.entry.value}
                                                                            : std::nullopt;
}

std::expected<std::uint64_t, Error> VcpuCalls::read_tsc() const {
    OneMsr block{uapi::msr::tsc};
    const auto got = ioctl(vcpu.number, uapi::request::get_msrs, &block);
    if (got.value < 0)
        return std::unexpected(vcpu_failed(uapi::request::get_msrs, got));
    if (got.value != 1)
        return absurd(uapi::request::get_msrs, static_cast<std::uint64_t>(got.value));
    return block.entry.value;
}

std::expected<std::vector<std::size_t>, Error> VcpuCalls::write_msrs(std::span<const uapi::Msr> msrs) const {
    std::vector<std::size_t> refused;
    for (std::size_t done = 0; done < msrs.size();) {
        MsrBlock block;
        const auto count = std::min(msrs.size() - done, MsrBlock::capacity);
        block.count = static_cast<std::uint32_t>(count);
        block.padding = 0;
        std::ranges::copy(msrs.subspan(done, count), block.entries.begin());
        const auto set = ioctl(vcpu.number, uapi::request::set_msrs, &block);
        if (set.value < 0)
            return std::unexpected(vcpu_failed(uapi::request::set_msrs, set));
        const auto written = static_cast<std::size_t>(set.value);
        if (written > count)
            return absurd(uapi::request::set_msrs, written);
        done += written;
        if (written < count)
            refused.push_back(done++);
    }
    return refused;
}

Result VcpuCalls::complete_io() const {
    // KVM looks whether it is 0. A value of our own tells our request from a kick, which writes 1 and may
    // come at any time from a signal handler or another thread: that stays for the KVM_RUN it was meant for.
    constexpr std::uint8_t nobody = 0, ours = 2;
    exchange_immediate_exit(nobody, ours);
    const auto run = ioctl(vcpu.number, uapi::request::run);
    exchange_immediate_exit(ours, nobody);
    if (run.value >= 0)
        return fail(Errc::exit_pending, {Detail::Kind::exit_reason, run_word(uapi::run_page::exit_reason)});
    if (run.error_number == EINTR || run.error_number == EAGAIN) // EAGAIN: waits for its SIPI
        return {};
    return std::unexpected(vcpu_failed(uapi::request::run, run));
}

std::uint8_t VcpuCalls::immediate_exit() const noexcept {
    return std::to_integer<std::uint8_t>(
        *static_cast<const volatile std::byte*>(run_page + uapi::run_page::immediate_exit));
}

void VcpuCalls::exchange_immediate_exit(std::uint8_t from, std::uint8_t to) const noexcept {
    auto& byte = *reinterpret_cast<std::uint8_t*>(run_page + uapi::run_page::immediate_exit);
    __atomic_compare_exchange_n(&byte, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

std::uint32_t VcpuCalls::run_word(std::size_t offset) const noexcept {
    return *reinterpret_cast<const volatile std::uint32_t*>(run_page + offset);
}

void VcpuCalls::run_word(std::size_t offset, std::uint32_t value) const noexcept {
    *reinterpret_cast<volatile std::uint32_t*>(run_page + offset) = value;
}

} // namespace kvm::vcpu::detail
