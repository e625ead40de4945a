// SPDX-License-Identifier: MIT
//
// A virtual machine monitor that boots a Linux and nothing else: one vCPU, memory, interrupt controllers and
// timer in the kernel (PIC, IOAPIC, local APIC, PIT), a serial console. No PCI, no disk,
// and of ACPI only what tells of the interrupt controllers.
#pragma once

#include "boot.hpp"
#include "checksum.hpp"
#include "serial.hpp"

#include <machine/machine.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace linux_l1 {

using machine::Result;

/// Guest memory. Shared, so that a migration on one host can hand it on instead of copying it.
using Memory = std::shared_ptr<machine::Mapping>;

[[nodiscard]] Result<Memory> make_memory(std::size_t size);

/// The time limit passed, or a signal came.
struct Interrupted {};
/// The guest cannot go on.
struct Ended {
    std::string why;
};
/// Why a run came back to its caller: Report is one of layout.h.
using Event = std::variant<Report, Interrupted, Ended>;

class LinuxVm {
  public:
    [[nodiscard]] static Result<LinuxVm> create(Memory memory);

    /// Puts the kernel into memory and the vCPU in front of its first instruction.
    [[nodiscard]] Result<void> boot(std::span<const std::byte> bzimage, std::span<const std::byte> initrd,
                                    std::string_view command_line);

    /// Runs the guest until it reports, cannot go on, or `limit` has passed. The console's output is
    /// collected.
    [[nodiscard]] Result<Event> run(std::chrono::microseconds limit);

    /// The same, where the first KVM_RUN is the caller's: `enter` issues it and answers whether the guest
    /// ran, so that the run page holds the exit. This is for WholeVcpu::first_run(), whose verdict a
    /// migration is worth nothing without.
    template <class Enter>
    [[nodiscard]] Result<Event> run(std::chrono::microseconds limit, Enter&& enter) {
        const Timer timer{run_page(), limit};
        if (!enter())
            return Interrupted{};
        if (auto event = handle_exit())
            return *std::move(event);
        return keep_running();
    }

    /// The one device that is the VMM's own.
    [[nodiscard]] const Serial& serial() const { return serial_; }
    void set_serial(const Serial& serial) { serial_ = serial; }

    [[nodiscard]] const Memory& memory() const { return memory_; }
    [[nodiscard]] int system_fd() const { return system_.get(); }
    [[nodiscard]] int vm_fd() const { return vm_.get(); }
    [[nodiscard]] int vcpu_fd() const { return vcpu_.get(); }
    [[nodiscard]] kvm_run& run_page() const { return *reinterpret_cast<kvm_run*>(run_page_.data()); }

    /// What the guest wrote to its console since the last call.
    [[nodiscard]] std::string take_console() { return std::exchange(console_, {}); }

  private:
    LinuxVm() = default;
    [[nodiscard]] Result<void> add_devices() const;
    [[nodiscard]] Result<void> add_memory() const;
    [[nodiscard]] Result<void> add_vcpu();
    [[nodiscard]] Result<std::uint64_t> set_cpuid() const;
    [[nodiscard]] Result<void> set_registers(const BootEntry& entry) const;

    /// Makes KVM_RUN come back after a time, until destroyed.
    class Timer {
      public:
        Timer(kvm_run& run_page, std::chrono::microseconds limit);
        Timer(const Timer&) = delete;
        Timer& operator=(const Timer&) = delete;
        ~Timer();
    };

    [[nodiscard]] Result<Event> keep_running();
    /// Nothing if the guest can go on.
    [[nodiscard]] std::optional<Event> handle_exit();
    void handle_port();
    [[nodiscard]] std::optional<Report> handle_memory() const;

    // Destroyed from the bottom up.
    machine::Descriptor system_;
    machine::Descriptor vm_;
    Memory memory_;
    machine::Descriptor vcpu_;
    machine::Mapping run_page_;
    Serial serial_;
    std::string console_;
};

} // namespace linux_l1
