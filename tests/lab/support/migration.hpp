// SPDX-License-Identifier: MIT
//
// What the tests of whole vCPUs share: a virtual machine whose vCPU can be saved, its file, and what a guest
// tells from there to its end.
//
// Include it last, after svm.hpp or vmx.hpp: it ends the includes and imports kvm.vcpu.
#pragma once

#include <chrono>
#include <initializer_list>

#include "lab.hpp"
#include "leave_out.hpp"

import kvm.vcpu;

namespace lab {

using namespace std::chrono_literals;

template <class T>
T must(std::expected<T, kvm::vcpu::Error> result) {
    if (!result)
        give_up(std::string{result.error().message().view()});
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

// --- virtual machines

/// A machine and the proof that its vCPUs can be saved whole.
struct Vm {
    machine::Machine machine;
    kvm::vcpu::Prepared prepared;

    [[nodiscard]] kvm::vcpu::WholeVcpu whole(unsigned vcpu = 0,
                                             kvm::nested::IoctlRef ioctl = kvm::nested::system_call) const {
        return {host(),
                prepared,
                kvm::nested::SystemFd{machine.system_fd()},
                kvm::nested::VmFd{machine.vm_fd()},
                kvm::nested::VcpuFd{machine.vcpu_fd(vcpu)},
                &machine.run_page(vcpu),
                ioctl};
    }
    [[nodiscard]] kvm::vcpu::WholeVm whole_vm() const {
        return {prepared, kvm::nested::SystemFd{machine.system_fd()}, kvm::nested::VmFd{machine.vm_fd()}};
    }
};

inline Vm prepared_vm(const machine::Options& options, const kvm::vcpu::Requirements& requirements = {}) {
    auto machine = must(machine::Machine::create(options));
    const auto prepared = must(kvm::vcpu::prepare(kvm::nested::SystemFd{machine.system_fd()},
                                                  kvm::nested::VmFd{machine.vm_fd()}, requirements));
    return {std::move(machine), prepared};
}

/// Where a vCPU is restored to: nothing has been done to it, and it has no CPUID.
inline Vm bare_vm(machine::Options options = {}, const kvm::vcpu::Requirements& requirements = {}) {
    options.supported_cpuid = false;
    return prepared_vm(options, requirements);
}

// --- the guests that both vendors have

inline guests::Vendor guest_vendor() {
    return is_vmx() ? guests::Vendor::vmx : guests::Vendor::svm;
}
inline guests::Image migrate_guest() {
    return guests::migrate(guest_vendor());
}
inline guests::Image phases_guest() {
    return guests::phases(guest_vendor());
}
inline guests::Image stress_guest() {
    return guests::stress(guest_vendor());
}

/// A guest before its first instruction.
inline Vm started(guests::Image image, const guests::Parameters& parameters) {
    auto vm = prepared_vm({});
    must(guests::start(vm.machine, image, parameters));
    return vm;
}

inline constexpr std::array paging_modes{guests::nested_paging, std::uint64_t{0}};

// --- files

/// Where guest memory is in a file.
inline constexpr std::uint32_t memory_section = kvm::vcpu::callers_section | 1;

/// No guest touches more than this (layout.h). The rest is zero before and after.
inline constexpr std::size_t used_memory = 0x40000;

inline Bytes to_file(const kvm::vcpu::VcpuState& state, std::span<const std::byte> memory) {
    Bytes file;
    const auto append = [&](std::span<const std::byte> bytes) -> std::expected<void, kvm::vcpu::Error> {
        file.insert(file.end(), bytes.begin(), bytes.end());
        return {};
    };
    const kvm::vcpu::Section section{memory_section, memory.first(used_memory)};
    must(kvm::vcpu::encode(state, append, {&section, 1}));
    return file;
}

/// A file that has been read back. Owns its bytes, since `memory` points into them.
struct Saved {
    Bytes file;
    kvm::vcpu::VcpuState state;
    std::span<const std::byte> memory;

    explicit Saved(Bytes bytes) : file{std::move(bytes)} {
        auto parsed = must(kvm::vcpu::parse_vcpu(file));
        if (parsed.sections.size() != 1 || parsed.sections.front().type != memory_section)
            give_up("the file has no guest memory");
        state = std::move(parsed.state);
        memory = parsed.sections.front().bytes;
    }
    Saved(Saved&&) = default;
    Saved(const Saved&) = delete;
    Saved& operator=(Saved&&) = default;
    Saved& operator=(const Saved&) = delete;

    [[nodiscard]] kvm::nested::Phase phase() const { return state.nested.phase(); }
};

/// Saves a vCPU with its VM's memory into a file, and reads that.
inline Saved save(const Vm& vm, unsigned vcpu = 0) {
    const auto state = must(vm.whole(vcpu).save()); // completes the pending I/O, so memory comes after it
    return Saved{to_file(state, vm.machine.memory())};
}

inline void put_memory(const Vm& vm, std::span<const std::byte> memory) {
    std::ranges::copy(memory, vm.machine.memory().begin());
}

/// Whether the vCPU has everything of the state, but for the one MSR that needs an APIC in the kernel.
inline void check_report(const kvm::vcpu::RestoreReport& report) {
    constexpr std::uint32_t async_page_fault_interrupt = 0x4b564d06;
    for (const auto& refused : report.refused_msrs) {
        CAPTURE(refused.index);
        CHECK(refused.index == async_page_fault_interrupt);
    }
    CHECK(report.derived_msrs.empty());
    CHECK_FALSE(report.tsc_khz_refused);
    CHECK_FALSE(report.tsc_offset_refused);
}

/// Restores without some of the steps, to see what a guest makes of that.
inline std::expected<kvm::vcpu::RestoreReport, kvm::vcpu::Error>
restore_without(StepSet left_out, const Vm& vm, const kvm::vcpu::VcpuState& state, unsigned vcpu = 0) {
    LeavingOut seam{left_out, state};
    return vm.whole(vcpu, seam).restore(state);
}

/// At which step of a restore, and why: "sregs is refused".
inline std::string refusal(const kvm::vcpu::Error& error) {
    return std::format("{} is {}",
                       error.step ? kvm::vcpu::name(*error.step) : kvm::vcpu::name(error.operation),
                       kvm::vcpu::name(error.cause));
}

/// Restores into any vCPU, fresh or not.
inline void restore(const Vm& vm, const Saved& saved, unsigned vcpu = 0) {
    const auto whole = vm.whole(vcpu);
    must(whole.abandon());
    put_memory(vm, saved.memory);
    const auto report = must(whole.restore(saved.state));
    check_report(report);
    if (report.preemption_timer_was_over) // then the deadline is another one
        return;
    const auto verified = whole.nested().verify_nested_state(saved.state.nested);
    INFO((verified ? "" : std::string{verified.error().message().view()}));
    CHECK(verified.has_value());
}

// --- what a guest tells

/// What the migrate or the stress guest told until it reported its last number, or did something else.
struct Story {
    std::vector<std::uint32_t> progress;                    ///< the rounds that L2 reported
    std::optional<std::uint32_t> rounds, l1_rounds, checks; ///< from L1 at the end
    machine::Exit last;
    std::string failure; ///< of KVM_RUN itself
};

/// Far more than any of the guests takes between two exits, even where the emulator gets a twentieth of a
/// processor (3 s were too little once), and little enough to wait for one that spins.
inline constexpr std::chrono::microseconds patience = 10s;

/// Follows the guest from its next exit on.
inline Story follow(const machine::Machine& machine, unsigned vcpu = 0,
                    std::chrono::microseconds limit = patience) {
    constexpr std::size_t too_many = 1000;
    Story story;
    while (story.progress.size() < too_many) {
        const auto exit = machine.run(limit, vcpu);
        if (!exit) {
            story.failure = exit.error().message();
            break;
        }
        story.last = *exit;
        if (const auto* progress = on_port(story.last, guests::port::progress))
            story.progress.push_back(progress->value);
        else if (const auto* l1_rounds = on_port(story.last, guests::port::l1_rounds))
            story.l1_rounds = l1_rounds->value;
        else if (const auto* rounds = on_port(story.last, guests::port::rounds)) {
            story.rounds = rounds->value;
            if (story.l1_rounds) // the stress guest ends here
                break;
        } else if (const auto* checks = on_port(story.last, guests::port::checks)) {
            story.checks = checks->value;
            break;
        } else
            break;
    }
    return story;
}

/// Why this is not how the migrate guest goes on to its end, if its next report has to be `next`; "" if it
/// is.
inline std::string what_is_wrong(const Story& story, std::uint32_t next, std::uint32_t rounds) {
    if (!story.failure.empty())
        return story.failure;
    if (on_port(story.last, guests::port::intercepted) != nullptr)
        return "L2's intercepted OUT comes to user space";
    if (const auto* unexpected = on_port(story.last, guests::port::unexpected))
        return std::format("L2 exits to L1 with code {:#x}", unexpected->value);
    if (!story.rounds || !story.checks)
        return machine::describe(story.last);
    if (*story.checks != guests::all_checks)
        return guests::missing_checks(*story.checks);
    for (const auto reported : story.progress)
        if (reported != next++)
            return std::format("L2 reports {} instead of {}", reported, next - 1);
    if (next != rounds + 1 || *story.rounds != rounds)
        return std::format("L1 reports {} rounds instead of {}, L2's last report was {}", *story.rounds,
                           rounds, next - 1);
    return "";
}

inline constexpr std::uint32_t migrate_rounds = 8;

/// The migrate guest right after L2's report of round `round`, its OUT not completed.
inline Vm migrate_guest_at(std::uint32_t round, std::uint64_t flags) {
    auto vm = started(migrate_guest(), {.flags = flags, .rounds = migrate_rounds});
    for (std::uint32_t reported = 0; reported < round;) {
        const auto exit = must(vm.machine.run());
        const auto* progress = on_port(exit, guests::port::progress);
        if (progress == nullptr || progress->value != ++reported)
            give_up(std::format("on the way to round {}: {}", round, machine::describe(exit)));
    }
    return vm;
}

/// The guest has to go on with the report of round `next` and come to its end with everything right.
inline void check_goes_on(const Vm& vm, std::uint32_t next) {
    const auto story = follow(vm.machine);
    CHECK(what_is_wrong(story, next, migrate_rounds) == "");
}

} // namespace lab
