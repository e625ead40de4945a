// SPDX-License-Identifier: MIT
#include "libvirt.hpp"

#include <algorithm>
#include <string_view>

namespace kvm::tool {

namespace {

constexpr std::string_view complete = "LibvirtQemudSave", partial = "LibvirtQemudPart";

bool begins_with(Bytes input, std::string_view magic) {
    return input.size() >= magic.size()
           && std::ranges::equal(input.first(magic.size()), std::as_bytes(std::span{magic}));
}

} // namespace

bool is_libvirt_image(Bytes input) {
    return begins_with(input, complete) || begins_with(input, partial);
}

Reading read_libvirt_image(Bytes) {
    return std::unexpected{Trouble{.reason = "libvirt's images are not read yet", .offset = 0}};
}

} // namespace kvm::tool
