// SPDX-License-Identifier: MIT
#include "machine.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <format>
#include <memory>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(sigev_notify_thread_id) // older glibc documents the member but does not name it
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace machine {
namespace {

// Control bits, AMD APM Vol. 2, 3.1 and 5.4.
constexpr std::uint64_t cr0_pe_et_ne_pg = 0x80000031;
constexpr std::uint64_t cr4_pae_osfxsr_osxmmexcpt = 0x620;
constexpr std::uint64_t efer_lme_lma = 0x500;
constexpr std::uint64_t page_present_writable = 0x3;
constexpr std::uint64_t page_present_writable_user_large = 0x87;
constexpr std::uint64_t large_page_size = 0x200000;
constexpr std::size_t page_table_entries = 512;

constexpr std::uint32_t cpuid_entries = 256; // KVM_MAX_CPUID_ENTRIES of the kernel

[[nodiscard]] std::unexpected<Failure> failed(const char* step, int error) {
    return std::unexpected{Failure{.step = step, .error = error}};
}

[[nodiscard]] std::unexpected<Failure> failed(const char* step) {
    return failed(step, errno);
}

[[nodiscard]] Result<Mapping> map(std::size_t size, int flags, int fd) {
    void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
    if (address == MAP_FAILED)
        return failed("mmap");
    return Mapping{address, size};
}

/// KVM_CREATE_VM can be interrupted by a signal (seen on Linux 7.3), such as the alarm of a run that has just
/// ended.
[[nodiscard]] int create_vm(int system_fd) {
    for (;;) {
        const int fd = ::ioctl(system_fd, KVM_CREATE_VM, 0);
        if (fd >= 0 || errno != EINTR)
            return fd;
    }
}

[[nodiscard]] Result<void> ignore_alarm() {
    struct sigaction action = {}; // no SA_RESTART: the signal is to end KVM_RUN with EINTR
    action.sa_handler = [](int) {};
    if (::sigaction(SIGALRM, &action, nullptr) != 0)
        return failed("sigaction");
    return {};
}

/// Signals this thread with SIGALRM after `limit`, and from then on again and again until destroyed. The
/// repetition is for the signal that comes between arming the timer and entering the guest and is lost there.
class Alarm {
  public:
    Alarm() = default;
    Alarm(const Alarm&) = delete;
    Alarm& operator=(const Alarm&) = delete;
    ~Alarm() {
        if (armed_)
            ::timer_delete(timer_);
    }

    [[nodiscard]] Result<void> arm(std::chrono::microseconds limit) {
        sigevent event = {};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGALRM;
        event.sigev_notify_thread_id = ::gettid();
        if (::timer_create(CLOCK_MONOTONIC, &event, &timer_) != 0)
            return failed("timer_create");
        armed_ = true;

        const itimerspec when{
            .it_interval = to_timespec(std::chrono::milliseconds{10}),
            .it_value = to_timespec(std::max(limit, std::chrono::microseconds{1})),
        };
        if (::timer_settime(timer_, 0, &when, nullptr) != 0)
            return failed("timer_settime");
        return {};
    }

  private:
    static timespec to_timespec(std::chrono::microseconds time) {
        const auto seconds = std::chrono::floor<std::chrono::seconds>(time);
        return {.tv_sec = seconds.count(), .tv_nsec = std::chrono::nanoseconds{time - seconds}.count()};
    }

    timer_t timer_ = {};
    bool armed_ = false;
};

/// A flat segment: present, base 0. `code_or_data` is descriptor bit S, clear for system segments.
[[nodiscard]] kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type, bool code_or_data) {
    kvm_segment segment = {};
    segment.selector = selector;
    segment.type = type;
    segment.s = code_or_data;
    segment.present = 1;
    return segment;
}

[[nodiscard]] kvm_segment code_segment() { // execute, read, accessed; 64-bit
    kvm_segment segment = flat_segment(0x08, 0xb, true);
    segment.limit = 0xffffffff;
    segment.g = 1;
    segment.l = 1;
    return segment;
}

[[nodiscard]] kvm_segment data_segment() { // read, write, accessed
    kvm_segment segment = flat_segment(0x10, 0x3, true);
    segment.limit = 0xffffffff;
    segment.g = 1;
    segment.db = 1;
    return segment;
}

[[nodiscard]] kvm_segment task_segment() { // a busy 64-bit TSS, which nobody reads
    kvm_segment segment = flat_segment(0x18, 0xb, false);
    segment.limit = 0x67;
    return segment;
}

[[nodiscard]] PortOut port_out(const kvm_run& run) {
    PortOut out{.port = run.io.port, .size = run.io.size, .value = 0};
    const auto* const data = reinterpret_cast<const std::byte*>(&run) + run.io.data_offset;
    std::memcpy(&out.value, data, std::min<std::size_t>(out.size, sizeof out.value));
    return out;
}

[[nodiscard]] Exit decode(const kvm_run& run) {
    switch (run.exit_reason) {
    case KVM_EXIT_IO:
        if (run.io.direction == KVM_EXIT_IO_OUT)
            return port_out(run);
        return OtherExit{run.exit_reason};
    case KVM_EXIT_HLT:
        return Halted{};
    case KVM_EXIT_SHUTDOWN:
        return Shutdown{};
    case KVM_EXIT_INTR:
        return Interrupted{};
    case KVM_EXIT_INTERNAL_ERROR:
        return InternalError{.suberror = run.internal.suberror, .ndata = run.internal.ndata};
    case KVM_EXIT_FAIL_ENTRY:
        return EntryFailed{run.fail_entry.hardware_entry_failure_reason};
    default:
        return OtherExit{run.exit_reason};
    }
}

template <class... Functions>
struct Overloaded : Functions... {
    using Functions::operator()...;
};

} // namespace

std::string Failure::message() const {
    if (error == 0)
        return step;
    return std::format("{}: {} ({})", step, std::strerror(error), error);
}

std::string describe(const Exit& exit) {
    return std::visit(
        Overloaded{
            [](const PortOut& out) {
                return std::format("OUT {:#x}, {:#010x} ({} bytes)", out.port, out.value, out.size);
            },
            [](const Halted&) { return std::string{"HLT"}; },
            [](const Shutdown&) { return std::string{"shutdown (triple fault)"}; },
            [](const Interrupted&) { return std::string{"interrupted (time limit)"}; },
            [](const InternalError& error) {
                return std::format("KVM internal error, suberror {}, {} data words", error.suberror,
                                   error.ndata);
            },
            [](const EntryFailed& failure) {
                return std::format("entry failed, reason {:#x}", failure.reason);
            },
            [](const OtherExit& other) { return std::format("KVM exit reason {}", other.reason); },
        },
        exit);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}

Descriptor::~Descriptor() {
    if (fd_ >= 0)
        ::close(fd_);
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(size_, other.size_);
    return *this;
}

Mapping::~Mapping() {
    if (address_ != nullptr)
        ::munmap(address_, size_);
}

Result<Machine> Machine::create(const Options& options) {
    if (const auto installed = ignore_alarm(); !installed)
        return std::unexpected{installed.error()};

    Machine machine;
    machine.system_ = Descriptor{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    if (machine.system_fd() < 0)
        return failed("open /dev/kvm");
    machine.vm_ = Descriptor{create_vm(machine.system_fd())};
    if (machine.vm_fd() < 0)
        return failed("KVM_CREATE_VM");
    const int run_page_size = ::ioctl(machine.system_fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_page_size < 0)
        return failed("KVM_GET_VCPU_MMAP_SIZE");

    auto done = machine.place_pages_of_kvm().and_then(
        [&] { return machine.add_memory(options.memory_size, options.smm); });
    if (done && options.kernel_devices)
        done = machine.add_kernel_devices();
    else if (done && options.kernel_apic)
        done = machine.enable_kernel_apic();
    for (unsigned id = 0; done && id < options.vcpus; ++id) {
        done = machine.add_vcpu(id, static_cast<std::size_t>(run_page_size));
        if (done && options.supported_cpuid)
            done = machine.set_supported_cpuid(id);
    }
    if (!done)
        return std::unexpected{done.error()};
    return machine;
}

Result<void> Machine::place_pages_of_kvm() const {
    constexpr unsigned long task_state_segments = 0xfffbd000; // three pages
    std::uint64_t identity_page_table = task_state_segments - 0x1000;
    if (::ioctl(vm_fd(), KVM_SET_IDENTITY_MAP_ADDR, &identity_page_table) != 0)
        return failed("KVM_SET_IDENTITY_MAP_ADDR");
    if (::ioctl(vm_fd(), KVM_SET_TSS_ADDR, task_state_segments) != 0)
        return failed("KVM_SET_TSS_ADDR");
    return {};
}

Result<void> Machine::add_memory(std::size_t size, bool smm) {
    if (size == 0 || size % large_page_size != 0 || size / large_page_size > page_table_entries) {
        return failed("memory size is not a multiple of 2 MiB up to 1 GiB", 0);
    }
    auto mapping = map(size, MAP_ANONYMOUS, -1);
    if (!mapping)
        return std::unexpected{mapping.error()};
    memory_ = *std::move(mapping);

    kvm_userspace_memory_region region{
        .slot = 0,
        .flags = 0,
        .guest_phys_addr = 0,
        .memory_size = size,
        .userspace_addr = reinterpret_cast<std::uintptr_t>(memory_.data()),
    };
    if (::ioctl(vm_fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return failed("KVM_SET_USER_MEMORY_REGION");
    constexpr std::uint32_t address_space_of_smm = 1;
    region.slot |= address_space_of_smm << 16;
    if (smm && ::ioctl(vm_fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return failed("KVM_SET_USER_MEMORY_REGION for SMM");
    return {};
}

Result<void> Machine::enable_kernel_apic() const {
    kvm_enable_cap enable = {};
    enable.cap = KVM_CAP_SPLIT_IRQCHIP;
    enable.args[0] = 24; // pins of the IOAPIC that is not there
    if (::ioctl(vm_fd(), KVM_ENABLE_CAP, &enable) != 0)
        return failed("KVM_CAP_SPLIT_IRQCHIP");
    return {};
}

Result<void> Machine::add_kernel_devices() const {
    if (::ioctl(vm_fd(), KVM_CREATE_IRQCHIP, 0) != 0)
        return failed("KVM_CREATE_IRQCHIP");
    kvm_pit_config pit = {};
    if (::ioctl(vm_fd(), KVM_CREATE_PIT2, &pit) != 0)
        return failed("KVM_CREATE_PIT2");
    return {};
}

Result<void> Machine::add_vcpu(unsigned id, std::size_t run_page_size) {
    Vcpu vcpu;
    vcpu.fd = Descriptor{::ioctl(vm_fd(), KVM_CREATE_VCPU, id)};
    if (vcpu.fd.get() < 0)
        return failed("KVM_CREATE_VCPU");
    auto mapping = map(run_page_size, 0, vcpu.fd.get());
    if (!mapping)
        return std::unexpected{mapping.error()};
    vcpu.run_page = *std::move(mapping);
    vcpus_.push_back(std::move(vcpu));
    return {};
}

Result<void> Machine::set_supported_cpuid(unsigned vcpu) const {
    // kvm_cpuid2 is a header with the entries behind it: storage for both, aligned for either.
    static_assert(sizeof(kvm_cpuid2) % alignof(kvm_cpuid_entry2) == 0);
    constexpr std::size_t words =
        (sizeof(kvm_cpuid2) + cpuid_entries * sizeof(kvm_cpuid_entry2)) / sizeof(std::uint64_t);
    const auto storage = std::make_unique<std::uint64_t[]>(words);
    auto* const cpuid = reinterpret_cast<kvm_cpuid2*>(storage.get());
    cpuid->nent = cpuid_entries;
    if (::ioctl(system_fd(), KVM_GET_SUPPORTED_CPUID, cpuid) != 0)
        return failed("KVM_GET_SUPPORTED_CPUID");
    if (::ioctl(vcpu_fd(vcpu), KVM_SET_CPUID2, cpuid) != 0)
        return failed("KVM_SET_CPUID2");
    return {};
}

kvm_run& Machine::run_page(unsigned vcpu) const {
    return *reinterpret_cast<kvm_run*>(vcpus_[vcpu].run_page.data());
}

Exit Machine::last_exit(unsigned vcpu) const {
    return decode(run_page(vcpu));
}

Result<void> Machine::load(std::uint64_t address, std::span<const std::byte> bytes) const {
    if (address > memory_.size() || bytes.size() > memory_.size() - address) {
        return failed("image does not fit into guest memory", 0);
    }
    std::ranges::copy(bytes, memory().subspan(address).begin());
    return {};
}

Result<void> Machine::start_long_mode(std::uint64_t entry, std::uint64_t stack, unsigned vcpu) const {
    const std::array pml4{pdpt_address | page_present_writable};
    const std::array pdpt{page_directory_address | page_present_writable};
    std::array<std::uint64_t, page_table_entries> page_directory = {};
    for (std::uint64_t page = 0; page < memory_.size() / large_page_size; ++page) {
        page_directory[page] = page * large_page_size | page_present_writable_user_large;
    }
    const auto tables =
        load(pml4_address, std::as_bytes(std::span{pml4}))
            .and_then([&] { return load(pdpt_address, std::as_bytes(std::span{pdpt})); })
            .and_then([&] { return load(page_directory_address, std::as_bytes(std::span{page_directory})); });
    if (!tables)
        return tables;

    kvm_sregs sregs; // read first: it holds more than we mean to choose (the APIC base, for one)
    if (::ioctl(vcpu_fd(vcpu), KVM_GET_SREGS, &sregs) != 0)
        return failed("KVM_GET_SREGS");
    sregs.cs = code_segment();
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data_segment();
    sregs.tr = task_segment();
    sregs.gdt = sregs.idt = {};
    sregs.cr0 = cr0_pe_et_ne_pg;
    sregs.cr3 = pml4_address;
    sregs.cr4 = cr4_pae_osfxsr_osxmmexcpt;
    sregs.efer = efer_lme_lma;
    if (::ioctl(vcpu_fd(vcpu), KVM_SET_SREGS, &sregs) != 0)
        return failed("KVM_SET_SREGS");

    kvm_regs regs = {};
    regs.rip = entry;
    regs.rsp = stack;
    regs.rflags = 0x2; // bit 1 is always set
    if (::ioctl(vcpu_fd(vcpu), KVM_SET_REGS, &regs) != 0)
        return failed("KVM_SET_REGS");
    return {};
}

Result<Exit> Machine::run(std::chrono::microseconds limit, unsigned vcpu) const {
    Alarm alarm;
    if (const auto armed = alarm.arm(limit); !armed)
        return std::unexpected{armed.error()};
    if (::ioctl(vcpu_fd(vcpu), KVM_RUN, 0) == 0)
        return last_exit(vcpu);
    if (errno == EINTR)
        return Interrupted{};
    return failed("KVM_RUN");
}

} // namespace machine
