// SPDX-License-Identifier: MIT
#include "input.hpp"

#include "cloud_hypervisor.hpp"
#include "json_state.hpp"
#include "libvirt.hpp"
#include "qemu.hpp"
#include "raw.hpp"
#include "vcpu_file.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace kvm::tool {
namespace {

constexpr std::size_t most_from_pipe = std::size_t{1} << 30, most_text = 1 << 20; // bytes

std::unexpected<Trouble> system_trouble(int error_number) {
    return std::unexpected{
        Trouble{std::strerror(error_number), std::nullopt, "check the name, and who may read it"}};
}

class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_{fd} {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (fd_ > STDERR_FILENO)
            ::close(fd_);
    }
    int get() const { return fd_; }

  private:
    int fd_;
};

/// A file in memory. One that becomes shorter meanwhile, or that its device cannot read, would end the
/// program with SIGBUS; here there are zeros instead, and lost() tells. One at a time, by one thread.
class Mapping {
  public:
    Mapping(int fd, std::size_t size)
        : address_{size == 0 ? nullptr : ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0)}, size_{size} {
        lost_ = 0;
        mapped_ = good() ? bytes() : Bytes{};
        struct sigaction action{};
        action.sa_sigaction = put_zeros;
        action.sa_flags = SA_SIGINFO;
        ::sigaction(SIGBUS, &action, &before_);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() {
        ::sigaction(SIGBUS, &before_, nullptr);
        if (good() && size_ != 0)
            ::munmap(address_, size_);
    }
    bool good() const { return address_ != MAP_FAILED; }
    Bytes bytes() const { return {static_cast<const std::byte*>(address_), size_}; }
    bool lost() const { return lost_ != 0; }

  private:
    static void put_zeros(int, siginfo_t* info, void*) {
        const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
        const auto begin = reinterpret_cast<std::uintptr_t>(mapped_.data());
        const auto page =
            at / static_cast<std::uintptr_t>(::getpagesize()) * static_cast<std::uintptr_t>(::getpagesize());
        // From there to the end: page by page there would be more mappings than a process may have.
        if (at < begin || at - begin >= mapped_.size()
            || ::mmap(reinterpret_cast<void*>(page), begin + mapped_.size() - page, PROT_READ,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
                   == MAP_FAILED)
            ::signal(SIGBUS, SIG_DFL); // it comes again, and ends us
        lost_ = 1;
    }

    static inline volatile std::sig_atomic_t lost_ = 0;
    static inline Bytes mapped_;

    void* address_;
    std::size_t size_;
    struct sigaction before_{};
};

Reading read_pipe(int fd) {
    std::vector<std::byte> all;
    for (std::size_t done = 0;;) {
        all.resize(done + (std::size_t{1} << 16));
        const auto got = ::read(fd, all.data() + done, all.size() - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return system_trouble(errno);
        done += static_cast<std::size_t>(got);
        if (done > most_from_pipe)
            return std::unexpected{
                Trouble{"more than 1 GiB comes through the pipe", done,
                        "write it to a file and pass that: a file is not read as a whole"}};
        if (got == 0) {
            all.resize(done);
            return read_any(all);
        }
    }
}

} // namespace

Reading read_any(Bytes input) {
    if (input.empty())
        return std::unexpected{
            Trouble{"there are no bytes in it", 0, "see whether what wrote it has failed"}};
    if (is_vcpu_file(input))
        return read_vcpu_file(input);
    if (is_qemu_stream(input))
        return read_qemu_stream(input);
    if (is_libvirt_image(input))
        return read_libvirt_image(input);
    if (is_json(input))
        return is_cloud_hypervisor_state(input) ? read_cloud_hypervisor_state(input) : read_json_state(input);
    return read_raw(input);
}

Reading read_input(const std::string& path) {
    const Descriptor file{path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
    struct stat status;
    if (file.get() < 0 || ::fstat(file.get(), &status) != 0)
        return system_trouble(errno);
    if (S_ISDIR(status.st_mode))
        return system_trouble(EISDIR);
    if (!S_ISREG(status.st_mode)
        || ::lseek(file.get(), 0, SEEK_CUR) != 0) // somebody may have read the beginning
        return read_pipe(file.get());
    const Mapping mapping{file.get(), static_cast<std::size_t>(status.st_size)};
    if (!mapping.good())
        return system_trouble(errno);
    auto reading = read_any(mapping.bytes());
    if (mapping.lost())
        return std::unexpected{Trouble{"the file became shorter while it was read, or its device failed",
                                       std::nullopt, "pass a copy that nobody writes to"}};
    return reading;
}

std::expected<std::string, Trouble> read_text(const std::string& path, const Trouble& too_much) {
    const Descriptor file{path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
    if (file.get() < 0)
        return system_trouble(errno);
    std::string text;
    for (char buffer[4096];;) {
        const auto got = ::read(file.get(), buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return system_trouble(errno);
        if (got == 0)
            return text;
        text.append(buffer, static_cast<std::size_t>(got));
        if (text.size() > most_text)
            return std::unexpected{too_much};
    }
}

} // namespace kvm::tool
