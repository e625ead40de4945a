// SPDX-License-Identifier: MIT
module;
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <expected>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

using Result = std::expected<void, Error>;

std::unexpected<Error> failed(int error_number, Errc cause = Errc::file_system) {
    Error error{cause, Operation::file};
    error.raw_result = -1;
    error.error_number = error_number;
    return std::unexpected{error};
}

/// A descriptor that closes itself.
class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_{fd} {}
    Descriptor(Descriptor&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor() {
        if (fd_ >= 0)
            ::close(fd_);
    }
    explicit operator bool() const { return fd_ >= 0; }
    int get() const { return fd_; }

  private:
    int fd_;
};

Result write_all(int fd, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const auto written = ::write(fd, bytes.data(), bytes.size());
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return failed(errno);
        bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return {};
}

std::string folder_of(std::string_view path) {
    const auto slash = path.rfind('/');
    if (slash == std::string_view::npos)
        return ".";
    return std::string{path.substr(0, slash == 0 ? 1 : slash)};
}

// --- where the bytes go

/// Where `path` leads to.
struct Target {
    std::string path;       ///< no symbolic link
    bool is_regular_or_new; ///< else the bytes are written into what is there
};

/// Links in a row that are followed; the kernel's own limit.
constexpr int most_links = 40;

/// What a link of /proc/PID/fd leads to can have no name, or one that is another file's by now. It is opened
/// through the link.
bool is_link_of_proc(const std::string& path) {
    char real[PATH_MAX];
    return ::realpath(folder_of(path).c_str(), real) != nullptr
           && std::string_view{real}.starts_with("/proc/");
}

std::expected<Target, Error> target_of(std::string path) {
    for (int links = 0; links <= most_links; ++links) {
        struct stat status{};
        if (::lstat(path.c_str(), &status) != 0)
            return errno == ENOENT ? std::expected<Target, Error>{Target{path, true}} : failed(errno);
        if (S_ISDIR(status.st_mode))
            return failed(EISDIR);
        if (!S_ISLNK(status.st_mode))
            return Target{path, S_ISREG(status.st_mode)};
        if (is_link_of_proc(path))
            return Target{path, false};
        char link[PATH_MAX];
        const auto length = ::readlink(path.c_str(), link, sizeof link);
        if (length < 0)
            return failed(errno);
        if (static_cast<std::size_t>(length) == sizeof link)
            return failed(ENAMETOOLONG);
        const std::string_view to{link, static_cast<std::size_t>(length)};
        path = to.starts_with('/') ? std::string{to} : folder_of(path).append("/").append(to);
    }
    return failed(ELOOP);
}

/// No signal ends this thread as long as it lives.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        ::sigfillset(&all);
        ::pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

/// A new file in the folder of `path`, which has no name until it takes the place of `path`: a process that
/// is killed meanwhile leaves nothing behind. A file system that knows no such files gives it one from the
/// beginning, and it is removed again.
class NewFile {
  public:
    explicit NewFile(const std::string& path)
        : path_{path}, name_{folder_of(path) + "/.kvm-nested.XXXXXX"}, fd_{open_unnamed(path)} {
        if (fd_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT || errno == EINVAL)) {
            fd_ = ::mkostemp(name_.data(), O_CLOEXEC); // O_EXCL is its own
            named_ = fd_ >= 0;
        }
        // The umask can have taken the owner's rights away.
        if (fd_ < 0 || ::fchmod(fd_, S_IRUSR | S_IWUSR) != 0)
            error_ = errno;
    }
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile() {
        if (named_)
            ::unlink(name_.c_str());
        if (fd_ >= 0)
            ::close(fd_);
    }

    Result opened() const { return error_ != 0 ? Result{failed(error_)} : Result{}; }
    Result write(std::span<const std::byte> bytes) const { return write_all(fd_, bytes); }
    Result sync() const { return ::fsync(fd_) == 0 ? Result{} : Result{failed(errno)}; }

    /// Takes the place of `path`, from one moment to the next.
    Result put_in_place() {
        const SignalsBlocked blocked; // a name that is given is taken away again
        if (!named_)
            if (const auto done = give_name(); !done)
                return done;
        if (::rename(name_.c_str(), path_.c_str()) != 0)
            return failed(errno);
        named_ = false;
        return {};
    }

    /// So that the name is on the disk, too. A folder that may not be read cannot be synced by itself: then
    /// its whole file system is.
    Result sync_folder() const {
        const Descriptor folder{::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
        const int synced = folder ? ::fsync(folder.get()) : ::syncfs(fd_);
        if (synced == 0 || errno == EINVAL) // EINVAL: a file system that cannot, and does not need it
            return {};
        return failed(errno, Errc::file_not_synced);
    }

  private:
    static int open_unnamed(const std::string& path) {
        return ::open(folder_of(path).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, S_IRUSR | S_IWUSR);
    }

    /// A name that is not taken. What an earlier process of this number has left behind is not touched.
    Result give_name() {
        const auto self = "/proc/self/fd/" + std::to_string(fd_);
        for (unsigned attempt = 0;; ++attempt) {
            name_ = folder_of(path_) + "/.kvm-nested." + std::to_string(::getpid()) + "."
                    + std::to_string(attempt);
            if (::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name_.c_str(), AT_SYMLINK_FOLLOW) == 0) {
                named_ = true;
                return {};
            }
            if (errno != EEXIST)
                return failed(errno);
        }
    }

    std::string path_;
    std::string name_; ///< short, so that any name that `path` can have is one
    int fd_;
    int error_ = 0;
    bool named_ = false;
};

/// A file whole or not at all; `write` gets where to put the bytes.
template <class Write>
Result replace_file(const std::string& path, Write write) {
    NewFile file{path};
    return file.opened()
        .and_then([&] { return write([&](std::span<const std::byte> bytes) { return file.write(bytes); }); })
        .and_then([&] { return file.sync(); })
        .and_then([&] { return file.put_in_place(); })
        .and_then([&] { return file.sync_folder(); });
}

template <class Write>
Result write_into(const std::string& path, Write write) {
    // O_APPEND: what a shell's >> has in it already stays.
    const Descriptor file{::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY)};
    if (!file)
        return failed(errno);
    const auto written =
        write([&](std::span<const std::byte> bytes) { return write_all(file.get(), bytes); });
    if (!written)
        return written;
    // Of a pipe or a character device nothing can be synced.
    return ::fsync(file.get()) == 0 || errno == EINVAL || errno == EROFS ? Result{} : Result{failed(errno)};
}

template <class Write>
Result write_to(const std::string& path, Write write) {
    if (path.find('\0') != std::string::npos)
        return failed(EINVAL);
    const auto target = target_of(path);
    if (!target)
        return std::unexpected(target.error());
    return target->is_regular_or_new ? replace_file(target->path, write) : write_into(target->path, write);
}

} // namespace

std::expected<void, Error> write_file(const std::string& path, const VcpuState& state,
                                      std::span<const Section> callers) {
    return write_to(path, [&](auto&& sink) { return encode(state, sink, callers); });
}

std::expected<void, Error> write_file(const std::string& path, const VmState& vm,
                                      std::span<const VcpuState> vcpus, std::span<const Section> callers) {
    return write_to(path, [&](auto&& sink) { return encode(vm, vcpus, sink, callers); });
}

std::expected<void, Error> write_file(const std::string& path, std::span<const std::byte> bytes) {
    return write_to(path, [&](auto&& sink) { return sink(bytes); });
}

std::expected<FileBytes, Error> read_file(const std::string& path, std::size_t limit) {
    // O_NONBLOCK: else opening a pipe waits for its writer.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    if (!file)
        return failed(errno);
    struct stat status{};
    if (::fstat(file.get(), &status) != 0)
        return failed(errno);
    if (!S_ISREG(status.st_mode))
        return failed(EINVAL);
    if (static_cast<std::uint64_t>(status.st_size) > limit)
        return failed(EFBIG);

    const auto size = static_cast<std::size_t>(status.st_size);
    std::unique_ptr<std::byte[]> bytes{new (std::nothrow) std::byte[size]};
    if (!bytes)
        return failed(ENOMEM);
    std::size_t done = 0;
    while (done < size) {
        const auto got = ::read(file.get(), bytes.get() + done, size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return failed(errno);
        if (got == 0) // became shorter meanwhile
            break;
        done += static_cast<std::size_t>(got);
    }
    return FileBytes{std::move(bytes), done};
}

} // namespace kvm::vcpu
