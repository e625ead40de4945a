// SPDX-License-Identifier: MIT
//
// Loaded into QEMU (LD_PRELOAD) in front of the C library. It passes every ioctl() on, and does two things
// that QEMU itself cannot be told to do:
//
// - It leaves what KVM_GET_NESTED_STATE answered in a file, for each vCPU the last one. This is what the
// stream
//   is compared with: KVM's own answer, byte for byte, which QEMU has not touched yet.
// - While there is a file "hold", it holds a vCPU at the moment in which L2 says that it is active, by a
// write
//   that L1 does not get to see (layout.h): KVM_RUN comes back at once, as after a signal, and the file
//   "held" tells so. Without this L2 is found active by luck: in Bochs the timer that would interrupt it
//   there never does so without waking L1, too.
//
// OVERHEAR is what the names of these files begin with. There is no C++ library where this runs.
#include "../linux_l1/layout.h"

#include <machine/linux_kvm.hpp>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

/// What is known of a vCPU's descriptor. QEMU creates its vCPUs one after the other.
struct Vcpu {
    kvm_run* run = nullptr; ///< none: another descriptor
    unsigned long number = 0;
    bool held = false;
};
constexpr int most_descriptors = 1024;
Vcpu vcpus[most_descriptors];

struct Path {
    char text[256] = "";
    Path(const char* name, unsigned long number) { name_it("%s%s%lu", name, number); }
    explicit Path(const char* name) { name_it("%s%s", name, 0); }

  private:
    void name_it(const char* format, const char* name, unsigned long number) {
        const char* prefix = std::getenv("OVERHEAR");
        std::snprintf(text, sizeof text, format, prefix == nullptr ? "" : prefix, name, number);
    }
};

void write_file(const Path& path, const void* bytes, std::size_t size) {
    const int file = ::open(path.text, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file >= 0 && ::write(file, bytes, size) != static_cast<ssize_t>(size))
        ::unlink(path.text);
    ::close(file);
}

int pass_on(int fd, unsigned long request, void* argument) {
    return static_cast<int>(::syscall(SYS_ioctl, fd, request, argument));
}

void remember(int fd, unsigned long number) {
    void* const page = ::mmap(nullptr, sizeof(kvm_run), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < most_descriptors && page != MAP_FAILED)
        vcpus[fd] = {.run = static_cast<kvm_run*>(page), .number = number, .held = false};
}

bool l2_says_that_it_is_active(const kvm_run& run) {
    return run.exit_reason == KVM_EXIT_MMIO && run.mmio.is_write != 0
           && run.mmio.phys_addr == REPORT_PAGE + REPORT_L2;
}

/// KVM_RUN, which does not enter the guest while the vCPU is held.
int run(Vcpu& vcpu, int fd, void* argument) {
    vcpu.held = vcpu.held && ::access(Path{"hold"}.text, F_OK) == 0;
    if (!vcpu.held) {
        const int result = pass_on(fd, KVM_RUN, argument);
        if (result == 0 && l2_says_that_it_is_active(*vcpu.run))
            vcpu.held = ::access(Path{"hold"}.text, F_OK) == 0;
        return result;
    }
    const auto before = vcpu.run->immediate_exit;
    vcpu.run->immediate_exit = 1; // what the last exit has begun is brought to its end, as QEMU relies on
    const int result = pass_on(fd, KVM_RUN, argument);
    vcpu.run->immediate_exit = before;
    const int error = errno;
    write_file(Path{"held"}, &vcpu.number, sizeof vcpu.number);
    ::usleep(1000);
    errno = error;
    return result;
}

} // namespace

extern "C" __attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...) noexcept {
    std::va_list arguments;
    va_start(arguments, request);
    void* const argument = va_arg(arguments, void*);
    va_end(arguments);
    request &= 0xffffffff; // QEMU hands it over as an int, whose sign is extended
    Vcpu* const vcpu = fd >= 0 && fd < most_descriptors && vcpus[fd].run != nullptr ? &vcpus[fd] : nullptr;
    if (vcpu != nullptr && request == KVM_RUN)
        return run(*vcpu, fd, argument);
    const int result = pass_on(fd, request, argument);
    if (request == KVM_CREATE_VCPU && result >= 0)
        remember(result, reinterpret_cast<unsigned long>(argument));
    if (vcpu != nullptr && request == KVM_GET_NESTED_STATE && result == 0)
        write_file(Path{"state", vcpu->number}, argument,
                   static_cast<const kvm_nested_state*>(argument)->size);
    return result;
}
