// SPDX-License-Identifier: MIT
#include <span>
#include <string_view>

#include <doctest/doctest.h>
#include <tool/libvirt.hpp>

namespace {

kvm::tool::Bytes bytes(std::string_view text) {
    return std::as_bytes(std::span{text});
}

TEST_CASE("an image is known by its beginning") {
    constexpr std::string_view beginning{"LibvirtQemudSave", 16};
    CHECK(kvm::tool::is_libvirt_image(bytes(beginning)));
    for (std::size_t length = 0; length < beginning.size(); ++length)
        CHECK_FALSE(kvm::tool::is_libvirt_image(bytes(beginning.substr(0, length))));
}

} // namespace
