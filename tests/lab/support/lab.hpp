// SPDX-License-Identifier: MIT
//
// What the lab's tests share: guests brought to a place of interest, the two ioctls without the library, and
// memory with a fence behind it.
//
// Include it last: it ends the includes and imports kvm.nested.
#pragma once

#include <guests/guests.hpp>
#include <machine/linux_kvm.hpp>
#include <machine/machine.hpp>

#include <doctest/doctest.h>

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
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

import kvm.nested;

namespace lab {

using Bytes = std::vector<std::byte>;
using Svm = kvm::NestedState<kvm::Svm>;

// --- preparing

/// For what is not under test: a failure ends the test.
[[noreturn]] inline void give_up(const std::string& reason) {
    FAIL(reason);
    std::exit(1); // without exceptions FAIL returns
}

template <class T>
T must(machine::Result<T> result) {
    if (!result)
        give_up(result.error().message());
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class T>
T must(std::expected<T, kvm::Error> result) {
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

/// The proof that this host nests SVM.
inline kvm::Host<kvm::Svm> host() {
    static const machine::Descriptor system{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    return must(kvm::Host<kvm::Svm>::probe(kvm::SystemFd{system.get()}));
}

inline kvm::Vcpu<kvm::Svm> nested(const machine::Machine& machine) {
    return {host(), kvm::VcpuFd{machine.vcpu_fd()}};
}

// --- machines

/// Runs svm_phases until it says that it is in `phase`.
inline void run_to(const machine::Machine& machine, guests::Phase phase) {
    const machine::Exit wanted =
        machine::PortOut{.port = guests::port::phase, .size = 4, .value = std::to_underlying(phase)};
    for (machine::Exit exit = must(machine.run()); exit != wanted; exit = must(machine.run()))
        if (const auto* out = std::get_if<machine::PortOut>(&exit);
            out == nullptr || out->port != guests::port::phase)
            give_up("on the way to phase " + std::to_string(std::to_underlying(phase)) + ": "
                    + machine::describe(exit));
}

/// Finishes the port write that the vCPU stopped at. Without it RIP is still in front of the OUT.
inline void complete_io(const machine::Machine& machine) {
    machine.run_page().immediate_exit = 1;
    const auto exit = must(machine.run());
    machine.run_page().immediate_exit = 0;
    if (!std::holds_alternative<machine::Interrupted>(exit))
        give_up("completing I/O: " + machine::describe(exit));
}

/// A new machine in which svm_phases has come to `phase`.
inline machine::Machine machine_at(guests::Phase phase, std::uint64_t flags = guests::nested_paging) {
    auto machine = must(machine::Machine::create());
    must(guests::start(machine, guests::svm_phases(), {.flags = flags}));
    run_to(machine, phase);
    return machine;
}

/// A machine whose L2 runs. One for all tests that only look, or put back what they found: a new one takes
/// some 50 ms in the emulated machine.
inline const machine::Machine& shared_l2() {
    static const machine::Machine machine = machine_at(guests::Phase::l2);
    return machine;
}

inline kvm_sregs2 get_sregs(const machine::Machine& machine, unsigned vcpu = 0) {
    kvm_sregs2 sregs = {};
    must_ioctl(machine.vcpu_fd(vcpu), KVM_GET_SREGS2, &sregs, "KVM_GET_SREGS2");
    return sregs;
}

inline void set_sregs(const machine::Machine& machine, const kvm_sregs2& sregs) {
    must_ioctl(machine.vcpu_fd(), KVM_SET_SREGS2, &sregs, "KVM_SET_SREGS2");
}

// --- the ioctls without the library

inline kvm::IoctlResult raw_get(int fd, void* buffer) {
    return kvm::system_call(fd, KVM_GET_NESTED_STATE, buffer);
}

/// SET only reads; the pointer may be any number.
inline kvm::IoctlResult raw_set(int fd, const void* buffer) {
    return kvm::system_call(fd, KVM_SET_NESTED_STATE, const_cast<void*>(buffer));
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

// Offsets in the header.
inline constexpr std::size_t flags_at = 0, format_at = 2, size_at = 4, vmcb12_at = 8, gpat_at = 16;
inline constexpr std::size_t header_size = 128, svm_size = 4224;

/// What the vCPU holds, byte for byte as the kernel tells it.
inline Bytes read_back(int vcpu_fd) {
    Bytes bytes(svm_size);
    store<std::uint32_t>(bytes, size_at, svm_size);
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

// --- fences

/// Memory of `size` bytes directly in front of a page that nobody can touch: one byte too far is EFAULT for
/// the kernel and a signal for us.
class Fenced {
  public:
    explicit Fenced(std::size_t size) : size_{size}, usable_{(size + page - 1) / page * page} {
        void* const address =
            ::mmap(nullptr, usable_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (address == MAP_FAILED)
            give_up("mmap");
        mapping_ = static_cast<std::byte*>(address);
        if (::mprotect(mapping_ + usable_, page, PROT_NONE) != 0)
            give_up("mprotect");
    }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;
    ~Fenced() { ::munmap(mapping_, usable_ + page); }

    [[nodiscard]] std::byte* data() const { return mapping_ + usable_ - size_; }
    [[nodiscard]] std::span<std::byte> bytes() const { return {data(), size_}; }
    void make_read_only() const {
        if (::mprotect(mapping_, usable_, PROT_READ) != 0)
            give_up("mprotect");
    }

  private:
    static constexpr std::size_t page = 4096;
    std::size_t size_;
    std::size_t usable_;
    std::byte* mapping_;
};

/// An object of type T whose last byte is the last one before the fence.
template <class T>
class EndingAtFence {
  public:
    /// `make` returns the T, which is constructed in place.
    template <class Make>
    explicit EndingAtFence(Make&& make) : memory_{sizeof(T)} {
        static_assert(sizeof(T) % alignof(T) == 0);
        object_ = new (static_cast<void*>(memory_.data())) T(std::forward<Make>(make)());
    }
    ~EndingAtFence() { object_->~T(); }

    T& operator*() const { return *object_; }
    T* operator->() const { return object_; }

  private:
    Fenced memory_;
    T* object_;
};

} // namespace lab
