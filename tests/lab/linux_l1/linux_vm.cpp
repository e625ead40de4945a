// SPDX-License-Identifier: MIT
#include "linux_vm.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <format>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

namespace linux_l1 {
namespace {

constexpr std::uint32_t cpuid_limit = 256;
/// Behind all memory, for what KVM on Intel keeps in the guest's address space; three pages.
constexpr unsigned long task_state_address = 0xfffbd000;

[[nodiscard]] std::unexpected<machine::Failure> failed(const char* step) {
    return std::unexpected{machine::Failure{.step = step, .error = errno}};
}

/// The run page of the vCPU that a timer is to stop. A signal alone would be lost if it came outside KVM_RUN.
std::atomic<volatile std::uint8_t*> immediate_exit = nullptr;
static_assert(std::atomic<volatile std::uint8_t*>::is_always_lock_free);

void stop_vcpu(int) {
    if (auto* const flag = immediate_exit.load())
        *flag = 1;
}

[[nodiscard]] kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type) {
    kvm_segment segment = {};
    segment.limit = 0xffffffff;
    segment.selector = selector;
    segment.type = type;
    segment.present = segment.s = segment.g = segment.db = 1;
    return segment;
}

/// kvm_cpuid2 with its entries.
struct Cpuid {
    std::uint32_t count = cpuid_limit, padding = 0;
    std::array<kvm_cpuid_entry2, cpuid_limit> entries;
};

} // namespace

// In large pages if the host has some: the new machine of each migration takes a fault for each page that it
// touches.
Result<Memory> make_memory(std::size_t size) {
    constexpr std::uintptr_t large_page = std::uintptr_t{2} << 20;
    const auto reserved = size + large_page;
    void* const address =
        ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        return failed("mmap of guest memory");
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    const auto aligned = (begin + large_page - 1) / large_page * large_page;
    auto* const memory = static_cast<std::byte*>(address) + (aligned - begin);
    if (aligned != begin)
        ::munmap(address, aligned - begin);
    ::munmap(memory + size, begin + reserved - (aligned + size));
    ::madvise(memory, size, MADV_HUGEPAGE);
    return std::make_shared<machine::Mapping>(memory, size);
}

Result<LinuxVm> LinuxVm::create(Memory memory) {
    struct sigaction action = {};
    action.sa_handler = stop_vcpu;
    if (::sigaction(SIGALRM, &action, nullptr) != 0)
        return failed("sigaction");

    LinuxVm vm;
    vm.memory_ = std::move(memory);
    vm.system_ = machine::Descriptor{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    if (vm.system_fd() < 0)
        return failed("open /dev/kvm");
    vm.vm_ = machine::Descriptor{::ioctl(vm.system_fd(), KVM_CREATE_VM, 0)};
    if (vm.vm_fd() < 0)
        return failed("KVM_CREATE_VM");
    const auto done =
        vm.add_memory().and_then([&] { return vm.add_devices(); }).and_then([&] { return vm.add_vcpu(); });
    if (!done)
        return std::unexpected{done.error()};
    return vm;
}

Result<void> LinuxVm::add_memory() const {
    const kvm_userspace_memory_region region{
        .slot = 0,
        .flags = 0,
        .guest_phys_addr = 0,
        .memory_size = memory_->size(),
        .userspace_addr = reinterpret_cast<std::uintptr_t>(memory_->data()),
    };
    if (::ioctl(vm_fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return failed("KVM_SET_USER_MEMORY_REGION");
    return {};
}

Result<void> LinuxVm::add_devices() const {
    if (::ioctl(vm_fd(), KVM_SET_TSS_ADDR, task_state_address) != 0)
        return failed("KVM_SET_TSS_ADDR");
    if (::ioctl(vm_fd(), KVM_CREATE_IRQCHIP, 0) != 0)
        return failed("KVM_CREATE_IRQCHIP");
    kvm_pit_config pit = {};
    pit.flags = KVM_PIT_SPEAKER_DUMMY; // with port 0x61, which Linux reads the PIT's output from
    if (::ioctl(vm_fd(), KVM_CREATE_PIT2, &pit) != 0)
        return failed("KVM_CREATE_PIT2");
    return {};
}

Result<void> LinuxVm::add_vcpu() {
    vcpu_ = machine::Descriptor{::ioctl(vm_fd(), KVM_CREATE_VCPU, 0)};
    if (vcpu_fd() < 0)
        return failed("KVM_CREATE_VCPU");
    const int size = ::ioctl(system_fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0)
        return failed("KVM_GET_VCPU_MMAP_SIZE");
    void* const page =
        ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd(), 0);
    if (page == MAP_FAILED)
        return failed("mmap of the run page");
    run_page_ = machine::Mapping{page, static_cast<std::size_t>(size)};
    return {};
}

/// All that KVM offers, and the two bits that KVM leaves to user space. Answers the XCR0 that a guest can
/// choose.
Result<std::uint64_t> LinuxVm::set_cpuid() const {
    const auto cpuid = std::make_unique<Cpuid>();
    if (::ioctl(system_fd(), KVM_GET_SUPPORTED_CPUID, cpuid.get()) != 0)
        return failed("KVM_GET_SUPPORTED_CPUID");
    constexpr std::uint32_t tsc_deadline_timer = 1u << 24, hypervisor = 1u << 31; // of leaf 1's ECX
    std::uint64_t xcr0 = 0;
    for (auto& entry : std::span{cpuid->entries}.first(cpuid->count)) {
        if (entry.function == 1)
            entry.ecx |= tsc_deadline_timer | hypervisor;
        if (entry.function == 0xd && entry.index == 0)
            xcr0 = std::uint64_t{entry.edx} << 32 | entry.eax;
    }
    if (::ioctl(vcpu_fd(), KVM_SET_CPUID2, cpuid.get()) != 0)
        return failed("KVM_SET_CPUID2");
    return xcr0;
}

Result<void> LinuxVm::set_registers(const BootEntry& entry) const {
    kvm_sregs sregs;
    if (::ioctl(vcpu_fd(), KVM_GET_SREGS, &sregs) != 0)
        return failed("KVM_GET_SREGS");
    sregs.cs = flat_segment(0x10, 0xb);
    sregs.ds = sregs.es = sregs.ss = flat_segment(0x18, 0x3);
    sregs.gdt.base = entry.gdt;
    sregs.gdt.limit = entry.gdt_limit;
    sregs.cr0 = 0x11; // ET, PE
    if (::ioctl(vcpu_fd(), KVM_SET_SREGS, &sregs) != 0)
        return failed("KVM_SET_SREGS");

    kvm_regs regs = {};
    regs.rip = entry.rip;
    regs.rsi = entry.boot_parameters;
    regs.rflags = 0x2;
    if (::ioctl(vcpu_fd(), KVM_SET_REGS, &regs) != 0)
        return failed("KVM_SET_REGS");
    return {};
}

Result<void> LinuxVm::boot(std::span<const std::byte> bzimage, std::span<const std::byte> initrd,
                           std::string_view command_line) {
    const auto entry = place_linux({memory_->data(), memory_->size()}, bzimage, initrd, command_line);
    if (!entry)
        return std::unexpected{entry.error()};
    const auto xcr0 = set_cpuid();
    if (!xcr0)
        return std::unexpected{xcr0.error()};
    // The XCR0 that Linux will choose. Its own XSETBV is enough on a real processor; the emulated one of the
    // lab (QEMU 7.2, TCG) executes it without telling KVM, which then goes on loading the XCR0 it knows of.
    if (*xcr0 != 0) {
        kvm_xcrs xcrs = {};
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].value = *xcr0;
        if (::ioctl(vcpu_fd(), KVM_SET_XCRS, &xcrs) != 0)
            return failed("KVM_SET_XCRS");
    }
    return set_registers(*entry);
}

LinuxVm::Timer::Timer(kvm_run& run_page, std::chrono::microseconds limit) {
    run_page.immediate_exit = 0;
    immediate_exit = &run_page.immediate_exit;
    const auto time = std::max<long>(limit.count(), 1); // 0 would be never
    const itimerval once{.it_interval = {},
                         .it_value = {.tv_sec = time / 1'000'000, .tv_usec = time % 1'000'000}};
    ::setitimer(ITIMER_REAL, &once, nullptr);
}

LinuxVm::Timer::~Timer() {
    const itimerval never = {};
    ::setitimer(ITIMER_REAL, &never, nullptr);
    immediate_exit = nullptr; // the run page may be gone before the next one
}

Result<Event> LinuxVm::run(std::chrono::microseconds limit) {
    const Timer timer{run_page(), limit};
    return keep_running();
}

Result<Event> LinuxVm::keep_running() {
    for (;;) {
        if (::ioctl(vcpu_fd(), KVM_RUN, 0) != 0) {
            if (errno == EINTR)
                return Interrupted{};
            return failed("KVM_RUN");
        }
        if (auto event = handle_exit())
            return *std::move(event);
    }
}

std::optional<Event> LinuxVm::handle_exit() {
    const auto& run = run_page();
    switch (run.exit_reason) {
    case KVM_EXIT_IO:
        handle_port();
        return std::nullopt;
    case KVM_EXIT_MMIO:
        if (const auto report = handle_memory())
            return *report;
        return std::nullopt;
    case KVM_EXIT_INTR:
        return Interrupted{};
    case KVM_EXIT_SHUTDOWN:
        return Ended{"shutdown (triple fault)"};
    case KVM_EXIT_INTERNAL_ERROR:
        // L0 takes an MMIO for one in the middle of an exception that is over (tests/lab/README.md). Nothing
        // has happened yet, and the next VM exit at the same instruction tells no more of that exception.
        if (run.internal.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV)
            return std::nullopt;
        return Ended{std::format("KVM internal error, suberror {}", run.internal.suberror)};
    case KVM_EXIT_FAIL_ENTRY:
        return Ended{std::format("entry failed, reason {:#x}", run.fail_entry.hardware_entry_failure_reason)};
    default:
        return Ended{std::format("KVM exit reason {}", run.exit_reason)};
    }
}

void LinuxVm::handle_port() {
    const auto& io = run_page().io;
    const std::span data{reinterpret_cast<std::uint8_t*>(&run_page()) + io.data_offset,
                         std::size_t{io.size} * io.count};
    const bool out = io.direction == KVM_EXIT_IO_OUT;
    if (io.port >= Serial::base && io.port < Serial::base + Serial::ports && io.size == 1) {
        for (auto& byte : data)
            if (out)
                serial_.write(io.port - Serial::base, byte, console_);
            else
                byte = serial_.read(io.port - Serial::base);
    } else if (!out) {
        // Nobody there: all ones. But for the clock chip, whose "update in progress" would be waited for.
        constexpr std::uint16_t clock_chip = 0x71;
        std::ranges::fill(data, io.port == clock_chip ? 0 : 0xff);
    }
}

std::optional<Report> LinuxVm::handle_memory() const {
    auto& mmio = run_page().mmio;
    if (mmio.is_write == 0) {
        std::ranges::fill(mmio.data, 0xff); // nobody there
        return std::nullopt;
    }
    const auto offset = mmio.phys_addr - REPORT_PAGE;
    if (offset < REPORT_ROUND || offset > REPORT_L2 || mmio.len != 4)
        return std::nullopt;
    Report report{.what = static_cast<std::uint16_t>(offset), .value = 0};
    std::memcpy(&report.value, mmio.data, sizeof report.value);
    return report;
}

} // namespace linux_l1
