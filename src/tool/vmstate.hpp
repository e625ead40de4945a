// SPDX-License-Identifier: MIT
//
// The end of a migration stream of QEMU: a description in JSON of all that the devices' sections hold, and in
// front of it these sections. From the sizes in it each field's place is computed, backwards from the end, so
// that guest memory in front of them is never read. What is found at these places must fit.
//
//     ... 04 id name instance version | fields | 05 name version | fields | 7e id   a device and a subsection
//     ... 00                                                                        the end of the sections
//     06 length { "page_size": 4096, "devices": [ ... ] }                           the description
//
// All numbers are big-endian. Names have their length in front, one byte. Seen to hold in QEMU 7.2 and 10.0,
// with types of machines back to 2.4, with postcopy allowed, background snapshots, compression, mapped-ram
// and multifd.
#pragma once
#include "reader.hpp"

#include <expected>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvm::tool {

/// Where something is in the stream.
struct Place {
    std::size_t offset;
    std::size_t size;
};

/// The section of one device.
struct DeviceSection {
    std::uint64_t instance;
    /// By the name of the structure or subsection and its own: "cpu/nested_state:env.nested_state". Of arrays
    /// of structures the whole array.
    std::map<std::string, Place, std::less<>> fields;
};

/// The sections of all devices of that name, in the stream's order.
[[nodiscard]] std::expected<std::vector<DeviceSection>, Trouble> device_sections(Bytes stream,
                                                                                 std::string_view name);

/// A number in the stream, of at most 8 bytes.
[[nodiscard]] std::uint64_t big_endian(Bytes bytes);

/// `text` of the stream for a message: not too long, and nothing in it that a terminal would obey.
[[nodiscard]] std::string printable(std::string_view text);

} // namespace kvm::tool
