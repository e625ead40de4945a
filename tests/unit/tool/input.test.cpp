// SPDX-License-Identifier: MIT
//
// Inputs that change while they are read.
#include "tool/input.hpp"

#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <doctest/doctest.h>

/// A file that is cut to that length as soon as somebody has asked for the size of a regular one; -1: none.
static int file_to_cut = -1;
static off_t cut_to = 0;

/// Instead of the library's, for this program.
extern "C" int fstat(int fd, struct stat* status) noexcept {
    const auto result = ::syscall(SYS_newfstatat, fd, "", status, AT_EMPTY_PATH);
    if (result == 0 && file_to_cut >= 0 && S_ISREG(status->st_mode) && ::ftruncate(file_to_cut, cut_to) != 0)
        std::abort();
    return static_cast<int>(result);
}

namespace {

TEST_CASE("a file that becomes shorter while it is read is an error, not the end of the program") {
    auto path = (std::filesystem::temp_directory_path() / "unit-tool.XXXXXX").string();
    const int fd = ::mkstemp(path.data());
    REQUIRE(fd >= 0);
    for (const off_t length : {0, 4096, 100'000}) {
        CAPTURE(length);
        REQUIRE(::ftruncate(fd, 0) == 0);
        REQUIRE(::ftruncate(fd, 300'000) == 0);
        REQUIRE(::pwrite(fd, "{", 1, 0) == 1); // read to its end: JSON
        file_to_cut = fd;
        cut_to = length;
        const auto reading = kvm::tool::read_input(path);
        file_to_cut = -1;
        REQUIRE_FALSE(reading.has_value());
        CHECK(reading.error().reason.contains("became shorter"));
    }
    ::close(fd);
    std::filesystem::remove(path);
}

} // namespace
