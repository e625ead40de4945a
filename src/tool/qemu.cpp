// SPDX-License-Identifier: MIT
#include "qemu.hpp"

#include <algorithm>
#include <array>

namespace kvm::tool {

namespace {

/// QEMU_VM_FILE_MAGIC, and version 3, the only one since 2008; both big-endian, as all of the stream is.
constexpr std::array<unsigned char, 8> beginning{'Q', 'E', 'V', 'M', 0, 0, 0, 3};

} // namespace

bool is_qemu_stream(Bytes input) {
    return input.size() >= beginning.size()
           && std::ranges::equal(input.first(beginning.size()), std::as_bytes(std::span{beginning}));
}

Reading read_qemu_stream(Bytes) {
    return std::unexpected{Trouble{.reason = "QEMU's streams are not read yet", .offset = 0}};
}

} // namespace kvm::tool
