// SPDX-License-Identifier: MIT
//
// A virtual machine monitor that fits on a few pages: just enough to give a guest hypervisor (L1) memory, a
// vCPU in 64-bit mode and a user space that hears its port writes. It knows nothing of saving and restoring a
// vCPU: that is what the programs standing on it are about.
//
//     auto vm = machine::Machine::create({.vcpus = 1});
//     if (!vm) return complain(vm.error());
//     auto exit = vm->load(0x8000, image)
//                     .and_then([&] { return vm->start_long_mode(0x8000, 0x11000); })
//                     .and_then([&] { return vm->run(); });
#pragma once

#include "linux_kvm.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace machine {

/// What could not be done, and the errno that came of it (0: no system call was involved).
struct Failure {
    const char* step = "";
    int error = 0;

    /// "KVM_CREATE_VM: Permission denied (13)"
    [[nodiscard]] std::string message() const;
};

/// A result of T, or the reason why there is none.
template <class T>
using Result = std::expected<T, Failure>;

/// The guest (L1 or L2) wrote to a port; `value` is what it wrote, zero-extended.
struct PortOut {
    std::uint16_t port;
    std::uint8_t size; ///< bytes: 1, 2 or 4
    std::uint32_t value;

    bool operator==(const PortOut&) const = default;
};

/// HLT, which comes to user space because there is no in-kernel interrupt controller.
struct Halted {
    bool operator==(const Halted&) const = default;
};

/// Triple fault. On AMD the kernel has by now put the vCPU through INIT: running it again would execute
/// zeroes at 0xfff0.
struct Shutdown {
    bool operator==(const Shutdown&) const = default;
};

/// The time limit of the run passed (or another signal came). The vCPU is intact and can be saved, or run
/// again.
struct Interrupted {
    bool operator==(const Interrupted&) const = default;
};

/// KVM_EXIT_INTERNAL_ERROR. This is, among others, how KVM_RUN reports that a nested state cannot be entered.
struct InternalError {
    std::uint32_t suberror;
    std::uint32_t ndata; ///< how many words of kvm_run.internal.data the kernel filled

    bool operator==(const InternalError&) const = default;
};

/// KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest, for the hardware's own reason.
struct EntryFailed {
    std::uint64_t reason;

    bool operator==(const EntryFailed&) const = default;
};

/// Any other KVM_EXIT_* number; no guest of ours should cause one.
struct OtherExit {
    std::uint32_t reason;

    bool operator==(const OtherExit&) const = default;
};

/// Why a run ended.
using Exit = std::variant<PortOut, Halted, Shutdown, Interrupted, InternalError, EntryFailed, OtherExit>;

/// One line for a log: "OUT 0x30, 0x00000005 (4 bytes)".
[[nodiscard]] std::string describe(const Exit& exit);

/// A descriptor that closes itself.
class Descriptor {
  public:
    Descriptor() = default;
    explicit Descriptor(int fd) : fd_{fd} {}
    Descriptor(Descriptor&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
    Descriptor& operator=(Descriptor&& other) noexcept;
    ~Descriptor();

    [[nodiscard]] int get() const { return fd_; }

  private:
    int fd_ = -1;
};

/// Shared memory that unmaps itself.
class Mapping {
  public:
    Mapping() = default;
    Mapping(void* address, std::size_t size) : address_{address}, size_{size} {}
    Mapping(Mapping&& other) noexcept
        : address_{std::exchange(other.address_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
    Mapping& operator=(Mapping&& other) noexcept;
    ~Mapping();

    [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(address_); }
    [[nodiscard]] std::size_t size() const { return size_; }

  private:
    void* address_ = nullptr;
    std::size_t size_ = 0;
};

/// Guest physical addresses of the page tables that start_long_mode() writes: they map the first 1 GiB of
/// linear addresses, as far as there is memory, one to one with 2 MiB pages.
inline constexpr std::uint64_t pml4_address = 0x1000;
inline constexpr std::uint64_t pdpt_address = 0x2000;
inline constexpr std::uint64_t page_directory_address = 0x3000;

/// What kind of machine to make.
struct Options {
    /// Bytes of guest memory, from guest physical address 0 on; a multiple of 2 MiB, at most 1 GiB.
    std::size_t memory_size = std::size_t{2} << 20;
    /// How many vCPUs, numbered from 0.
    unsigned vcpus = 1;
    /// Give each vCPU all that KVM_GET_SUPPORTED_CPUID offers. Without it the vCPU has no CPUID at all, as
    /// the destination of a migration wants it: its CPUID comes with the state of the source.
    bool supported_cpuid = true;
    /// Local APICs in the kernel. There is no IOAPIC and no PIC. A vCPU that executes HLT then waits in
    /// KVM_RUN, and all vCPUs but the first wait for a SIPI until they are set runnable.
    bool kernel_apic = false;
    /// PICs, IOAPIC and PIT in the kernel as well. What is said of kernel_apic is true then, too.
    bool kernel_devices = false;
    /// The same memory for system-management mode. Without it there is none there, and a vCPU that takes an
    /// SMI (KVM_SMI) makes KVM_RUN fail.
    bool smm = false;
};

/// A virtual machine: /dev/kvm, the VM, its memory, its vCPUs. Owns them all, and can be moved but not
/// copied.
class Machine {
  public:
    /// Fails where KVM is absent or not permitted, or a step of the construction is refused.
    [[nodiscard]] static Result<Machine> create(const Options& options = {});

    [[nodiscard]] int system_fd() const { return system_.get(); }
    [[nodiscard]] int vm_fd() const { return vm_.get(); }
    /// `vcpu` must be below vcpu_count(), here and below.
    [[nodiscard]] int vcpu_fd(unsigned vcpu = 0) const { return vcpus_[vcpu].fd.get(); }
    [[nodiscard]] unsigned vcpu_count() const { return static_cast<unsigned>(vcpus_.size()); }
    /// The page that the kernel shares with us for this vCPU (exit reason, immediate_exit and so on).
    [[nodiscard]] kvm_run& run_page(unsigned vcpu = 0) const;
    /// Guest physical memory; the index is the guest physical address.
    [[nodiscard]] std::span<std::byte> memory() const { return {memory_.data(), memory_.size()}; }

    /// Copies `bytes` to a guest physical address. Fails with error 0 if they do not fit into memory.
    [[nodiscard]] Result<void> load(std::uint64_t address, std::span<const std::byte> bytes) const;

    /// Writes the page tables (addresses above) and puts the vCPU into 64-bit mode at CPL 0: paging on, flat
    /// segments (CS 08, data 10, TR 18), interrupts off, RIP = `entry`, RSP = `stack`. There is no GDT or
    /// IDT: whoever wants to reload a segment or take an exception brings them. An exception before that is a
    /// Shutdown.
    [[nodiscard]] Result<void> start_long_mode(std::uint64_t entry, std::uint64_t stack,
                                               unsigned vcpu = 0) const;

    /// Time after which a run is given up if the caller names none: far more than any of our guests takes
    /// between two exits, even in an emulated machine.
    static constexpr std::chrono::microseconds watchdog = std::chrono::seconds{20};

    /// KVM_RUN until the guest needs user space, or until `limit` has passed: then Interrupted, so that a
    /// guest that spins costs time but never hangs. A short limit stops the guest at a random point, for
    /// tests that want just that. The timer counts real time and signals the calling thread with SIGALRM, for
    /// which create() installs a handler that does nothing. Fails with errno where KVM_RUN itself fails.
    [[nodiscard]] Result<Exit> run(std::chrono::microseconds limit = watchdog, unsigned vcpu = 0) const;

    /// Why the last run of this vCPU ended, whoever issued the KVM_RUN.
    [[nodiscard]] Exit last_exit(unsigned vcpu = 0) const;

  private:
    struct Vcpu {
        Descriptor fd;
        Mapping run_page;
    };

    Machine() = default;
    [[nodiscard]] Result<void>
    place_pages_of_kvm() const; // kvm-intel wants them for real mode; kvm-amd ignores them
    [[nodiscard]] Result<void> add_memory(std::size_t size, bool smm);
    [[nodiscard]] Result<void> enable_kernel_apic() const;
    [[nodiscard]] Result<void> add_kernel_devices() const;
    [[nodiscard]] Result<void> add_vcpu(unsigned id, std::size_t run_page_size);
    [[nodiscard]] Result<void> set_supported_cpuid(unsigned vcpu) const;

    // Destroyed from the bottom up: vCPUs, memory, VM, /dev/kvm.
    Descriptor system_;
    Descriptor vm_;
    Mapping memory_;
    std::vector<Vcpu> vcpus_;
};

} // namespace machine
