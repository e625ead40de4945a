// SPDX-License-Identifier: MIT
#include "libvirt.hpp"

#include "qemu.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <format>
#include <string_view>

namespace kvm::tool {

namespace {

// Magic words and header as libvirt 11 has them; version 1, without compression, was up to 0.8. The numbers
// are in the byte order of the host that wrote them.
//
//     16 magic   4 version   4 bytes of XML, cookie and padding   4 running   4 format   4 cookie   56 unused
constexpr std::string_view complete = "LibvirtQemudSave", partial = "LibvirtQemudPart";
constexpr std::size_t version_at = 16, data_size_at = 20, format_at = 28, header_size = 92;
constexpr std::uint32_t newest_version = 2;

/// By the number in the header. The command is empty where there is nothing to decompress.
struct Format {
    std::string_view name, decompress;
};
constexpr std::array formats = std::to_array<Format>({
    {"raw", ""},
    {"gzip", "gzip -dc"},
    {"bzip2", "bzip2 -dc"},
    {"xz", "xz -dc"},
    {"lzop", "lzop -dc --ignore-warn"},
    {"zstd", "zstd -dc"},
    {"sparse", ""}, // QEMU's mapped-ram: guest memory at fixed places, in front of the devices as ever
});

bool begins_with(Bytes input, std::string_view magic) {
    return input.size() >= magic.size()
           && std::ranges::equal(input.first(magic.size()), std::as_bytes(std::span{magic}));
}

constexpr auto take_another_copy = "take another copy of the image; if a newer libvirt wrote it, report this";

std::unexpected<Trouble> trouble(std::size_t offset, std::string reason,
                                 std::string next_step = take_another_copy) {
    return std::unexpected{
        Trouble{.reason = std::move(reason), .offset = offset, .next_step = std::move(next_step)}};
}

struct Header {
    std::uint32_t version, data_size, format;
};

std::expected<Header, Trouble> header_of(Bytes input) {
    if (!is_libvirt_image(input))
        return trouble(0, "this is no save image of libvirt");
    if (begins_with(input, partial))
        return trouble(
            0, "libvirt did not finish this image: it still has the mark of an incomplete one",
            "save again, and see whether there is space; or read the QEMU migration stream in it by itself");
    if (input.size() < header_size)
        return trouble(input.size(), "the image is cut off in its header");
    const auto number = [&](std::size_t offset) {
        std::uint32_t value;
        std::memcpy(&value, input.data() + offset, sizeof value);
        return value;
    };
    Header header{
        .version = number(version_at), .data_size = number(data_size_at), .format = number(format_at)};
    if (header.version > newest_version) // written by a host of the other byte order
        header = {.version = std::byteswap(header.version),
                  .data_size = std::byteswap(header.data_size),
                  .format = std::byteswap(header.format)};
    if (header.version == 0 || header.version > newest_version)
        return trouble(version_at, std::format("the image has version {}, and libvirt's last known one is {}",
                                               number(version_at), newest_version));
    if (header.version < 2)
        header.format = 0;
    if (header.format >= formats.size())
        return trouble(format_at, std::format("the image has the unknown format {}", header.format));
    if (header.data_size > input.size() - header_size)
        return trouble(data_size_at, std::format("the image is cut off: its XML alone should have {} bytes",
                                                 header.data_size));
    return header;
}

} // namespace

bool is_libvirt_image(Bytes input) {
    return begins_with(input, complete) || begins_with(input, partial);
}

Reading read_libvirt_image(Bytes input) {
    const auto header = header_of(input);
    if (!header)
        return std::unexpected{header.error()};
    const auto begin = header_size + header->data_size;
    const auto& format = formats[header->format];
    if (!format.decompress.empty())
        return trouble(
            begin, std::format("the migration stream in this image is compressed with {}", format.name),
            std::format("tail -c +{} IMAGE | {} | kvm-nested show -", begin + 1, format.decompress));
    auto reading = read_qemu_stream(input.subspan(begin));
    if (reading)
        reading->format = std::format("libvirt save image ({}), {}", format.name, reading->format);
    else
        reading.error().offset = reading.error().offset.value_or(0) + begin;
    return reading;
}

} // namespace kvm::tool
