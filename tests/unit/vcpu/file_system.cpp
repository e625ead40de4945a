// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <expected>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

import unit.vcpu.support;

namespace {

using kvm::nested::Errc;
using kvm::nested::Operation;
using unit::Bytes;
using unit::saved;

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
    const auto bytes = kvm::vcpu::read_file(path.c_str());
    REQUIRE(bytes.has_value());
    return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
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
        REQUIRE(kvm::vcpu::write_file(path.c_str(), state, callers).has_value());
        ::umask(mask);
        CHECK(mode_of(path) == 0600);
        CHECK(folder.entries() == 1);
        const auto bytes = kvm::vcpu::read_file(path.c_str());
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
    const auto written = kvm::vcpu::write_file(path.c_str(), saved());
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().code == Errc::file_system);
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
    CHECK(kvm::vcpu::write_file(path.c_str(), state).error().code == Errc::no_state);
    CHECK(text_of(path) == "the old one");
    CHECK(folder.entries() == 1);
}

TEST_CASE("a place where no file can be is refused with its errno") {
    const Folder folder;
    const auto errno_of = [&](const std::string& name) {
        const auto written = kvm::vcpu::write_file((folder / name).c_str(), saved());
        REQUIRE_FALSE(written.has_value());
        CHECK(written.error().code == Errc::file_system);
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
    CHECK(written.error().code == Errc::file_system);
}

TEST_CASE("reading tells what is not a file, not there, or too large") {
    const Folder folder;
    const auto errno_of = [&](const std::string& name, std::size_t limit = 1000) {
        const auto read = kvm::vcpu::read_file((folder / name).c_str(), limit);
        REQUIRE_FALSE(read.has_value());
        CHECK(read.error().code == Errc::file_system);
        CHECK(read.error().operation == Operation::file);
        return read.error().error_number;
    };
    CHECK(errno_of("nothing") == ENOENT);
    CHECK(errno_of("") == EINVAL);
    REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
    CHECK(errno_of("pipe") == EINVAL);
    write_text(folder / "file", std::string(1001, 'x'));
    CHECK(errno_of("file") == EFBIG);
    CHECK(kvm::vcpu::read_file((folder / "file").c_str(), 1001)->size() == 1001);
    write_text(folder / "empty", "");
    CHECK(kvm::vcpu::read_file((folder / "empty").c_str(), 0)->empty());
}

} // namespace
