// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <expected>
#include <filesystem>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

import unit.vcpu.support;

/// Instead of the library's, for this program: more than this is not to be had anywhere.
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
    return size > std::size_t{1} << 40 ? nullptr : ::operator new[](size);
}

/// Whether syncing a folder is to fail.
static bool folders_cannot_be_synced = false;

/// Instead of the library's, for this program.
extern "C" int fsync(int fd) {
    struct stat status{};
    if (folders_cannot_be_synced && ::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = EIO;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_fsync, fd));
}

namespace {

using kvm::vcpu::Errc;
using kvm::vcpu::Operation;
using unit::Bytes;
using unit::saved;

// parse_vcpu(*read_file(path)) would leave the caller's sections in memory that is gone.
using Span = std::span<const std::byte>;
static_assert(std::is_convertible_v<const kvm::vcpu::FileBytes&, Span>);
static_assert(!std::is_convertible_v<kvm::vcpu::FileBytes, Span>
              && !std::is_convertible_v<const kvm::vcpu::FileBytes, Span>);

/// A folder that vanishes.
class Folder {
  public:
    Folder() : path_{(std::filesystem::temp_directory_path() / "unit-vcpu.XXXXXX").string()} {
        REQUIRE(::mkdtemp(path_.data()) != nullptr);
    }
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }
    std::size_t entries() const {
        std::error_code error;
        return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator{path_, error}, {}));
    }

  private:
    std::string path_;
};

void write_text(const std::string& path, const std::string& text) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    REQUIRE(fd >= 0);
    REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    ::close(fd);
}

std::string text_of(const std::string& path) {
    const auto bytes = kvm::vcpu::read_file(path);
    REQUIRE(bytes.has_value());
    return {reinterpret_cast<const char*>(bytes->bytes().data()), bytes->size()};
}

mode_t mode_of(const std::string& path) {
    struct stat status{};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return status.st_mode & 07777;
}

TEST_CASE("a file that is written can be read, by its owner alone, and nothing lies beside it") {
    const Folder folder;
    const auto path = folder / "vcpu";
    const auto state = saved();
    const Bytes memory(100'000, std::byte{3});
    const std::array callers{kvm::vcpu::Section{0x8000'0001, memory}};
    for (const bool over_another : {false, true}) {
        if (over_another) {
            write_text(path, "another");
            REQUIRE(mode_of(path) != 0600);
        }
        const auto mask = ::umask(0);
        REQUIRE(kvm::vcpu::write_file(path, state, callers).has_value());
        ::umask(mask);
        CHECK(mode_of(path) == 0600);
        CHECK(folder.entries() == 1);
        const auto bytes = kvm::vcpu::read_file(path);
        REQUIRE(bytes.has_value());
        const auto parsed = kvm::vcpu::parse_vcpu(*bytes);
        REQUIRE(parsed.has_value());
        CHECK(parsed->state == state);
        REQUIRE(parsed->sections.size() == 1);
        CHECK(std::ranges::equal(parsed->sections[0].bytes, memory));
        REQUIRE(::unlink(path.c_str()) == 0);
    }
}

TEST_CASE("a file in the working folder needs no path") {
    const Folder folder;
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(folder / "");
    const auto written = kvm::vcpu::write_file("vcpu", saved());
    std::filesystem::current_path(before);
    CHECK(written.has_value());
    CHECK(mode_of(folder / "vcpu") == 0600);
}

TEST_CASE("a file that cannot be written whole leaves the old one as it was and nothing beside it") {
    const Folder folder;
    const auto path = folder / "vcpu";
    write_text(path, "the old one");
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    const rlimit small{.rlim_cur = 6000, .rlim_max = before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    const auto written = kvm::vcpu::write_file(path, saved());
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().cause == Errc::file_system);
    CHECK(written.error().operation == Operation::file);
    CHECK(written.error().error_number == EFBIG);
    CHECK(text_of(path) == "the old one");
    CHECK(mode_of(path) == 0644);
    CHECK(folder.entries() == 1);
}

TEST_CASE("a state that has no file form leaves the old file as it was") {
    const Folder folder;
    const auto path = folder / "vcpu";
    write_text(path, "the old one");
    auto state = saved();
    state.nested.clear();
    CHECK(kvm::vcpu::write_file(path, state).error().cause == kvm::nested::Errc::no_state);
    CHECK(text_of(path) == "the old one");
    CHECK(folder.entries() == 1);
}

TEST_CASE("a place where no file can be is refused with its errno") {
    const Folder folder;
    const auto errno_of = [&](const std::string& name) {
        const auto written = kvm::vcpu::write_file(folder / name, saved());
        REQUIRE_FALSE(written.has_value());
        CHECK(written.error().cause == Errc::file_system);
        return written.error().error_number;
    };
    CHECK(errno_of("no/such/folder") == ENOENT);
    CHECK(errno_of(std::string(300, 'x')) == ENAMETOOLONG);
    write_text(folder / "file", "");
    CHECK(errno_of("file/vcpu") == ENOTDIR);
    std::filesystem::create_directory(folder / "folder");
    CHECK(errno_of("folder") == EISDIR);
    CHECK(folder.entries() == 2);
}

TEST_CASE("a folder that is not ours to write to is refused with its errno") {
    if (::geteuid() == 0 && ::access("/sys/kernel", F_OK) != 0)
        return;
    const auto written = kvm::vcpu::write_file("/sys/kernel/vcpu", saved()); // not even root's
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().cause == Errc::file_system);
}

const std::string content = "what is written";

/// Writes `content`.
auto write_to(const std::string& path) {
    return kvm::vcpu::write_file(path, std::as_bytes(std::span{content}));
}

/// Everything that comes out of a descriptor, up to its end or up to as much as was written.
std::string read_from(int fd) {
    std::string text(content.size() + 1, '\0');
    std::size_t done = 0;
    while (done < content.size()) {
        const auto got = ::read(fd, text.data() + done, text.size() - done);
        if (got <= 0)
            break;
        done += static_cast<std::size_t>(got);
    }
    text.resize(done);
    return text;
}

TEST_CASE("a FIFO stays one, and its reader gets the bytes") {
    const Folder folder;
    const auto path = folder / "pipe";
    REQUIRE(::mkfifo(path.c_str(), 0640) == 0);
    std::string text;
    std::thread reader{[&] {
        const int fd = ::open(path.c_str(), O_RDONLY);
        text = read_from(fd);
        ::close(fd);
    }};
    CHECK(write_to(path).has_value());
    reader.join();
    CHECK(text == content);
    struct stat status{};
    REQUIRE(::lstat(path.c_str(), &status) == 0);
    CHECK(S_ISFIFO(status.st_mode));
    CHECK((status.st_mode & 07777) == 0640);
    CHECK(folder.entries() == 1);
}

TEST_CASE("a device node stays one, and the device gets the bytes") {
    const int terminal =
        ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC); // a node of our own, without being root
    REQUIRE(terminal >= 0);
    REQUIRE(::grantpt(terminal) == 0);
    REQUIRE(::unlockpt(terminal) == 0);
    const std::string node = ::ptsname(terminal);
    struct stat before{}, after{};
    REQUIRE(::lstat(node.c_str(), &before) == 0);
    REQUIRE(S_ISCHR(before.st_mode));
    SUBCASE("by its name") {
        CHECK(write_to(node).has_value());
    }
    SUBCASE("through a link") {
        const Folder folder;
        REQUIRE(::symlink(node.c_str(), (folder / "link").c_str()) == 0);
        CHECK(write_to(folder / "link").has_value());
        CHECK(std::filesystem::is_symlink(folder / "link"));
    }
    CHECK(read_from(terminal) == content);
    REQUIRE(::lstat(node.c_str(), &after) == 0);
    CHECK(after.st_rdev == before.st_rdev);
    CHECK(S_ISCHR(after.st_mode));
    ::close(terminal);
}

TEST_CASE("a symbolic link stays one, and what it leads to is replaced or made") {
    const Folder folder;
    std::filesystem::create_directory(folder / "there");
    write_text(folder / "there/old", "old");
    std::filesystem::create_symlink("there/old", folder / "relative");
    std::filesystem::create_symlink(folder / "there/old", folder / "absolute");
    std::filesystem::create_symlink("there/new", folder / "dangling");
    std::filesystem::create_symlink("dangling", folder / "twice");
    for (const auto* link : {"relative", "absolute", "dangling", "twice"}) {
        CAPTURE(link);
        CHECK(write_to(folder / link).has_value());
        CHECK(std::filesystem::is_symlink(folder / link));
        CHECK(text_of(folder / link) == content);
        CHECK(mode_of(folder / link) == 0600);
    }
    CHECK(!std::filesystem::is_symlink(folder / "there/new"));
    CHECK(folder.entries() == 5);
    std::filesystem::create_symlink("circle", folder / "circle");
    CHECK(write_to(folder / "circle").error().error_number == ELOOP);
    std::filesystem::create_symlink("no/such/folder", folder / "nowhere");
    CHECK(write_to(folder / "nowhere").error().error_number == ENOENT);
    std::filesystem::create_symlink(".", folder / "folder");
    CHECK(write_to(folder / "folder").error().error_number == EISDIR);
}

TEST_CASE("what is open already is written through its link in /proc, and keeps what it holds") {
    const Folder folder;
    write_text(folder / "log", "before ");
    const int fd = ::open((folder / "log").c_str(), O_WRONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    CHECK(write_to("/proc/self/fd/" + std::to_string(fd)).has_value());
    ::close(fd);
    CHECK(text_of(folder / "log") == "before " + content);
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    CHECK(write_to("/dev/fd/" + std::to_string(ends[1])).has_value());
    CHECK(read_from(ends[0]) == content);
    ::close(ends[0]);
    ::close(ends[1]);
}

TEST_CASE("a name may be as long as the file system allows, and the umask takes nothing from the owner") {
    const Folder folder;
    const auto path = folder / std::string(255, 'x');
    const auto mask = ::umask(0777);
    const auto written = write_to(path);
    ::umask(mask);
    CHECK(written.has_value());
    CHECK(mode_of(path) == 0600);
    CHECK(text_of(path) == content);
    CHECK(write_to(folder / std::string("a\0b", 3)).error().error_number == EINVAL);
    CHECK(folder.entries() == 1);
}

TEST_CASE("a folder that may be written to and not be read is a place for a file") {
    const Folder folder;
    std::filesystem::create_directory(folder / "dark");
    REQUIRE(::chmod((folder / "").c_str(), 0755) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) { // root reads everything
        constexpr uid_t nobody = 65534;
        const bool root = ::geteuid() == 0;
        const bool ready = (!root || ::chown((folder / "dark").c_str(), nobody, nobody) == 0)
                           && ::chmod((folder / "dark").c_str(), 0300) == 0
                           && (!root || ::setresuid(nobody, nobody, nobody) == 0);
        ::_exit(!ready ? 2 : write_to(folder / "dark/file").has_value() ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    REQUIRE(::chmod((folder / "dark").c_str(), 0700) == 0);
    CHECK(text_of(folder / "dark/file") == content);
}

TEST_CASE("where the folder cannot be synced the error says that the new file is there") {
    const Folder folder;
    write_text(folder / "file", "old");
    folders_cannot_be_synced = true;
    const auto written = write_to(folder / "file");
    folders_cannot_be_synced = false;
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().cause == Errc::file_not_synced);
    CHECK(written.error().error_number == EIO);
    CHECK(text_of(folder / "file") == content);
}

TEST_CASE(
    "a process that is killed while it writes leaves the old file or the new one, and nothing beside it") {
    const Folder folder;
    const Bytes large(4 << 20, std::byte{7});
    const auto handler_of_doctest = ::signal(SIGTERM, SIG_DFL);
    for (unsigned round = 0; round < 10; ++round) {
        write_text(folder / "file", "old");
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            for (;;)
                static_cast<void>(kvm::vcpu::write_file(folder / "file", large));
        }
        std::this_thread::sleep_for(std::chrono::microseconds{1500 * round});
        ::kill(child, SIGTERM);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        const auto text = text_of(folder / "file");
        CHECK((text == "old" || text.size() == large.size()));
        CHECK(folder.entries() == 1);
    }
    ::signal(SIGTERM, handler_of_doctest);
}

TEST_CASE("a file that does not fit into memory is an error") {
    const Folder folder;
    write_text(folder / "sparse", "");
    REQUIRE(::truncate((folder / "sparse").c_str(), off_t{1} << 41) == 0);
    const auto read = kvm::vcpu::read_file(folder / "sparse");
    REQUIRE_FALSE(read.has_value());
    CHECK(read.error().error_number == ENOMEM);
}

TEST_CASE("reading tells what is not a file, not there, or too large") {
    const Folder folder;
    const auto errno_of = [&](const std::string& name, std::size_t limit = 1000) {
        const auto read = kvm::vcpu::read_file(folder / name, limit);
        REQUIRE_FALSE(read.has_value());
        CHECK(read.error().cause == Errc::file_system);
        CHECK(read.error().operation == Operation::file);
        return read.error().error_number;
    };
    CHECK(errno_of("nothing") == ENOENT);
    CHECK(errno_of("") == EINVAL);
    REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
    CHECK(errno_of("pipe") == EINVAL);
    write_text(folder / "file", std::string(1001, 'x'));
    CHECK(errno_of("file") == EFBIG);
    CHECK(kvm::vcpu::read_file(folder / "file", 1001)->size() == 1001);
    write_text(folder / "empty", "");
    CHECK(kvm::vcpu::read_file(folder / "empty", 0)->empty());
}

} // namespace
