// SPDX-License-Identifier: MIT
module;
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

using Result = std::expected<void, Error>;

std::unexpected<Error> failed(int error_number) {
    return std::unexpected{Error{.code = Errc::file_system,
                                 .operation = Operation::file,
                                 .raw_result = -1,
                                 .error_number = error_number}};
}

/// A descriptor that closes itself.
class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_{fd} {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (fd_ >= 0)
            ::close(fd_);
    }
    explicit operator bool() const { return fd_ >= 0; }
    int get() const { return fd_; }

  private:
    int fd_;
};

std::string folder_of(std::string_view path) {
    const auto slash = path.rfind('/');
    if (slash == std::string_view::npos)
        return ".";
    return std::string{path.substr(0, slash == 0 ? 1 : slash)};
}

/// A new file beside `path` that is removed again unless it is renamed to `path`.
class Temporary {
  public:
    explicit Temporary(const char* path) : name_{std::string{path} + ".XXXXXX"} {
        fd_ = ::mkostemp(name_.data(), O_CLOEXEC); // O_EXCL and 0600 are its own
        if (fd_ < 0)
            error_ = errno;
    }
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;
    ~Temporary() {
        if (fd_ >= 0)
            ::close(fd_);
        if (fd_ >= 0 && !renamed_)
            ::unlink(name_.c_str());
    }

    Result opened() const { return fd_ < 0 ? Result{failed(error_)} : Result{}; }

    Result write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const auto written = ::write(fd_, bytes.data(), bytes.size());
            if (written < 0 && errno == EINTR)
                continue;
            if (written < 0)
                return failed(errno);
            bytes = bytes.subspan(static_cast<std::size_t>(written));
        }
        return {};
    }

    Result sync() const { return ::fsync(fd_) == 0 ? Result{} : Result{failed(errno)}; }

    Result rename_to(const char* path) {
        if (::rename(name_.c_str(), path) != 0)
            return failed(errno);
        renamed_ = true;
        return {};
    }

  private:
    std::string name_;
    int fd_;
    int error_ = 0;
    bool renamed_ = false;
};

/// EINVAL: a file system that cannot sync a folder, and does not need it.
Result sync_folder(const Descriptor& folder) {
    if (::fsync(folder.get()) == 0 || errno == EINVAL)
        return {};
    return failed(errno);
}

/// A file whole or not at all; `write` puts the bytes into the temporary one.
template <class Write>
Result replace_file(const char* path, Write write) {
    // Before anything is written: a folder that cannot be synced later is no place for it.
    const Descriptor folder{::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!folder)
        return failed(errno);
    Temporary temporary{path};
    return temporary.opened()
        .and_then([&] { return write(temporary); })
        .and_then([&] { return temporary.sync(); })
        .and_then([&] { return temporary.rename_to(path); })
        .and_then([&] { return sync_folder(folder); });
}

} // namespace

std::expected<void, Error> write_file(const char* path, const VcpuState& state,
                                      std::span<const Section> callers) {
    return replace_file(path, [&](Temporary& file) {
        return encode(state, [&](std::span<const std::byte> bytes) { return file.write(bytes); }, callers);
    });
}

std::expected<void, Error> write_file(const char* path, std::span<const std::byte> bytes) {
    return replace_file(path, [&](Temporary& file) { return file.write(bytes); });
}

std::expected<std::vector<std::byte>, Error> read_file(const char* path, std::size_t limit) {
    // O_NONBLOCK: else opening a pipe waits for its writer.
    const Descriptor file{::open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    if (!file)
        return failed(errno);
    struct stat status;
    if (::fstat(file.get(), &status) != 0)
        return failed(errno);
    if (!S_ISREG(status.st_mode))
        return failed(EINVAL);
    if (static_cast<std::uint64_t>(status.st_size) > limit)
        return failed(EFBIG);

    std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
    std::size_t done = 0;
    while (done < bytes.size()) {
        const auto got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return failed(errno);
        if (got == 0) // became shorter meanwhile
            break;
        done += static_cast<std::size_t>(got);
    }
    bytes.resize(done);
    return bytes;
}

} // namespace kvm::vcpu
