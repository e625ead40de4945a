// SPDX-License-Identifier: MIT
#include <span>
#include <string_view>

#include <doctest/doctest.h>
#include <tool/qemu.hpp>

namespace {

kvm::tool::Bytes bytes(std::string_view text) {
    return std::as_bytes(std::span{text});
}

TEST_CASE("a stream is known by its beginning") {
    constexpr std::string_view beginning{"QEVM\0\0\0\3", 8};
    CHECK(kvm::tool::is_qemu_stream(bytes(beginning)));
    for (std::size_t length = 0; length < beginning.size(); ++length)
        CHECK_FALSE(kvm::tool::is_qemu_stream(bytes(beginning.substr(0, length))));
}

} // namespace
