// SPDX-License-Identifier: MIT
//
// What the lab's tests share: guests brought to a place of interest, the two ioctls without the library. For
// either vendor; svm.hpp and vmx.hpp add what belongs to one.
//
// Include it last: it ends the includes and imports kvm.nested.
#pragma once

#include <machine/linux_kvm.hpp>
#include <machine/machine.hpp>

#include <doctest/doctest.h>

#include "fence.hpp"
#include "guests/lab_guests.hpp"
#include "verdict.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <format>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <print>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

import kvm.nested;

namespace lab {

using Bytes = std::vector<std::byte>;

// --- preparing

/// For what is not under test: a failure ends the test.
template <class T>
T must(machine::Result<T> result) {
    if (!result)
        give_up(result.error().message());
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class T>
T must(std::expected<T, kvm::nested::Error> result) {
    if (!result)
        give_up(std::string{result.error().message().view()});
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

/// An ioctl that belongs to the preparation.
template <class T>
void must_ioctl(int fd, unsigned long request, T argument, const char* what) {
    if (::ioctl(fd, request, argument) < 0)
        give_up(std::format("{}: errno {}", what, errno));
}

/// The proof that this host nests vendor V, or any.
template <kvm::nested::VendorOrAny V>
kvm::nested::Host<V> host_of() {
    static const machine::Descriptor system{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    return must(kvm::nested::Host<V>::probe(kvm::nested::SystemFd{system.get()}));
}
inline kvm::nested::Host<kvm::nested::Any> host() {
    static const auto host = host_of<kvm::nested::Any>();
    return host;
}
inline bool is_vmx() {
    return host().vendor() == kvm::nested::VendorId::vmx;
}

/// The phase of a vCPU whose L2 runs, and that of one that has never nested or was cleared.
inline kvm::nested::Phase l2_active() {
    return is_vmx() ? kvm::nested::Phase::vmx_l2_active : kvm::nested::Phase::svm_l2_active;
}
inline kvm::nested::Phase not_nested() {
    return is_vmx() ? kvm::nested::Phase::vmx_off : kvm::nested::Phase::svm_outside_l2_gif_set;
}

inline kvm::nested::Vcpu<kvm::nested::Any> nested(const machine::Machine& machine, unsigned vcpu = 0) {
    return {host(), kvm::nested::VcpuFd{machine.vcpu_fd(vcpu)}};
}

// --- machines

inline const machine::PortOut* on_port(const machine::Exit& exit, std::uint16_t port) {
    const auto* out = std::get_if<machine::PortOut>(&exit);
    return out != nullptr && out->port == port ? out : nullptr;
}

/// Runs a guest that shows its phases on port::phase until it says that it is in this one.
inline void run_to(const machine::Machine& machine, std::uint32_t phase) {
    for (;;) {
        const auto exit = must(machine.run());
        const auto* out = on_port(exit, guests::port::phase);
        if (out == nullptr)
            give_up(std::format("on the way to phase {}: {}", phase, machine::describe(exit)));
        if (out->value == phase)
            return;
    }
}
inline void run_to(const machine::Machine& machine, guests::Phase phase) {
    run_to(machine, std::to_underlying(phase));
}

/// Finishes the port write that the vCPU stopped at. Without it RIP is still in front of the OUT.
inline void complete_io(const machine::Machine& machine, unsigned vcpu = 0) {
    machine.run_page(vcpu).immediate_exit = 1;
    const auto exit = must(machine.run(machine::Machine::watchdog, vcpu));
    machine.run_page(vcpu).immediate_exit = 0;
    if (!std::holds_alternative<machine::Interrupted>(exit))
        give_up("completing I/O: " + machine::describe(exit));
}

inline kvm_sregs2 get_sregs(const machine::Machine& machine, unsigned vcpu = 0) {
    kvm_sregs2 sregs = {};
    must_ioctl(machine.vcpu_fd(vcpu), KVM_GET_SREGS2, &sregs, "KVM_GET_SREGS2");
    return sregs;
}

inline void set_sregs(const machine::Machine& machine, const kvm_sregs2& sregs) {
    must_ioctl(machine.vcpu_fd(), KVM_SET_SREGS2, &sregs, "KVM_SET_SREGS2");
}

/// Whether the vCPU is in SMM, without an SMI and without RSM.
inline void set_smm(const machine::Machine& machine, bool on) {
    kvm_vcpu_events events = {};
    must_ioctl(machine.vcpu_fd(), KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS");
    events.flags = KVM_VCPUEVENT_VALID_SMM;
    events.smi.smm = on;
    must_ioctl(machine.vcpu_fd(), KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
}

// --- the ioctls without the library

inline kvm::nested::IoctlResult raw_get(int fd, void* buffer) {
    return kvm::nested::system_call(fd, KVM_GET_NESTED_STATE, buffer);
}

/// SET only reads; the pointer may be any number.
inline kvm::nested::IoctlResult raw_set(int fd, const void* buffer) {
    return kvm::nested::system_call(fd, KVM_SET_NESTED_STATE, const_cast<void*>(buffer));
}

template <class T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.subspan(offset).first(sizeof value).data(), sizeof value);
    return value;
}

template <class T>
void store(std::span<std::byte> bytes, std::size_t offset, T value) {
    std::memcpy(bytes.subspan(offset).first(sizeof value).data(), &value, sizeof value);
}

// --- MSRs

/// An MSR of the vCPU; nothing where KVM refuses to read it (the VMX capabilities without VMX in CPUID).
inline std::optional<std::uint64_t> get_msr(const machine::Machine& machine, std::uint32_t index) {
    alignas(8) std::array<std::byte, sizeof(kvm_msrs) + sizeof(kvm_msr_entry)> storage{};
    store<std::uint32_t>(storage, 0, 1);
    store<std::uint32_t>(storage, sizeof(kvm_msrs), index);
    if (::ioctl(machine.vcpu_fd(), KVM_GET_MSRS, storage.data()) != 1)
        return std::nullopt;
    return load<std::uint64_t>(storage, sizeof(kvm_msrs) + offsetof(kvm_msr_entry, data));
}

/// Whether KVM took it.
inline bool set_msr(const machine::Machine& machine, std::uint32_t index, std::uint64_t value) {
    alignas(8) std::array<std::byte, sizeof(kvm_msrs) + sizeof(kvm_msr_entry)> storage{};
    store<std::uint32_t>(storage, 0, 1);
    store<std::uint32_t>(storage, sizeof(kvm_msrs), index);
    store<std::uint64_t>(storage, sizeof(kvm_msrs) + offsetof(kvm_msr_entry, data), value);
    return ::ioctl(machine.vcpu_fd(), KVM_SET_MSRS, storage.data()) == 1;
}

// Offsets in the header that both vendors share.
inline constexpr std::size_t flags_at = 0, format_at = 2, size_at = 4;
inline constexpr std::size_t header_size = 128;

/// What the vCPU holds, byte for byte as the kernel tells it.
inline Bytes read_back(int vcpu_fd) {
    Bytes bytes(kvm::nested::Any::capacity);
    store<std::uint32_t>(bytes, size_at, kvm::nested::Any::capacity);
    if (const auto got = raw_get(vcpu_fd, bytes.data()); got.value != 0)
        give_up(std::format("KVM_GET_NESTED_STATE: {}, errno {}", got.value, got.error_number));
    bytes.resize(load<std::uint32_t>(bytes, size_at));
    return bytes;
}

inline std::string errno_name(int number) {
    switch (number) {
    case 0:
        return "OK";
    case EINVAL:
        return "EINVAL";
    case EFAULT:
        return "EFAULT";
    case ENOTTY:
        return "ENOTTY";
    case EBADF:
        return "EBADF";
    case EIO:
        return "EIO";
    case E2BIG:
        return "E2BIG";
    default:
        return "errno " + std::to_string(number);
    }
}

} // namespace lab
