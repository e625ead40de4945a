// SPDX-License-Identifier: MIT
//
// read_libvirt_image(): libvirt's header is made here, around a migration stream made by hand.
#include "stream.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <doctest/doctest.h>
#include <tool/libvirt.hpp>
#include <tool/qemu.hpp>

import unit.support;

namespace {

using kvm::tool::is_libvirt_image;
using kvm::tool::read_libvirt_image;
using kvm::tool::Trouble;
using stream::Bytes;

constexpr std::string_view xml = "<domain type='kvm'><name>nested</name></domain>";
constexpr std::size_t padding = 65536; // so that the XML may grow

struct Image {
    std::string_view magic = "LibvirtQemudSave";
    std::uint32_t version = 2, data_size = xml.size() + 1 + padding, format = 0;
    bool other_byte_order = false;

    Bytes bytes() const {
        Bytes result;
        stream::append(result, magic);
        for (const std::uint32_t number : {version, data_size, 1u, format, 0u}) {
            const auto written = other_byte_order ? std::byteswap(number) : number;
            stream::append(result, std::as_bytes(std::span{&written, 1}));
        }
        stream::append(result, Bytes(56));
        stream::append(result, xml);
        stream::append(result, Bytes(1 + padding));
        stream::append(result, stream::of(state()).bytes());
        return result;
    }
    static Bytes state() { return unit::SvmBlob{.flags = 0x101, .vmcb12_pa = 0x58a2000, .size = 4224}; }
};

Trouble trouble_with(const Bytes& bytes) {
    const auto reading = read_libvirt_image(bytes);
    REQUIRE_FALSE(reading.has_value());
    CHECK_FALSE(reading.error().reason.empty());
    CHECK(reading.error().offset <= bytes.size());
    return reading.error();
}

TEST_CASE("an image is known by its beginning, complete or not") {
    for (const std::string_view magic : {"LibvirtQemudSave", "LibvirtQemudPart"}) {
        const auto bytes = std::as_bytes(std::span{magic});
        for (std::size_t length = 0; length <= magic.size(); ++length)
            CHECK(is_libvirt_image(bytes.first(length)) == (length == magic.size()));
    }
    CHECK_FALSE(is_libvirt_image(stream::of(Image::state()).bytes()));
}

TEST_CASE("the stream in an image is read, whatever the byte order of its header") {
    for (const std::uint32_t format : {0u, 6u})
        for (const bool other : {false, true}) {
            const auto reading =
                read_libvirt_image(Image{.format = format, .other_byte_order = other}.bytes());
            REQUIRE(reading.has_value());
            CHECK(reading->format
                  == "libvirt save image (" + std::string{format == 0 ? "raw" : "sparse"}
                         + "), QEMU migration stream (pc-q35-7.2)");
            REQUIRE(reading->states.size() == 2);
            CHECK(reading->states[1].bytes == Image::state());
        }
}

TEST_CASE("a version 1 has no format") {
    const auto reading = read_libvirt_image(Image{.version = 1, .format = 77}.bytes());
    REQUIRE(reading.has_value());
    CHECK(reading->states[1].bytes == Image::state());
}

TEST_CASE("a compressed image is refused with the command that reads it") {
    const auto gzip = trouble_with(Image{.format = 1}.bytes());
    CHECK(gzip.reason.contains("gzip"));
    CHECK(gzip.next_step == "tail -c +65677 IMAGE | gzip -dc | kvm-nested show -");
    CHECK(gzip.offset == 92 + xml.size() + 1 + padding);
    for (const std::uint32_t format : {2u, 3u, 4u, 5u})
        CHECK(trouble_with(Image{.format = format}.bytes()).next_step.contains(" | kvm-nested show -"));
}

TEST_CASE("an incomplete image, one of another version and one of another format are refused") {
    CHECK(trouble_with(Image{.magic = "LibvirtQemudPart"}.bytes()).reason.contains("did not finish"));
    for (const std::uint32_t version : {0u, 3u, 0x01000001u, 0xffffffffu})
        CHECK(trouble_with(Image{.version = version}.bytes()).offset == 16);
    for (const std::uint32_t format : {7u, 0xffffffffu})
        CHECK(trouble_with(Image{.format = format}.bytes()).offset == 28);
    CHECK(trouble_with(stream::of(Image::state()).bytes()).reason.contains("no save image"));
}

TEST_CASE("an image that is cut, or whose sizes are wrong, is refused with an offset in the image") {
    const auto bytes = Image{}.bytes();
    for (std::size_t length = 0; length < bytes.size();
         length += length < 200 || length > bytes.size() - 200 ? 1 : 97) {
        CAPTURE(length);
        trouble_with(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)));
    }
    for (const std::uint32_t size : {0xffffffffu, 0x7fffffffu, static_cast<std::uint32_t>(bytes.size() - 91)})
        CHECK(trouble_with(Image{.data_size = size}.bytes()).offset == 20);
    CHECK(trouble_with(Image{.data_size = 0}.bytes()).offset == 92); // the XML is no stream
}

TEST_CASE("an error in the stream has its offset in the image") {
    auto bytes = Image{}.bytes();
    bytes.back() = std::byte{0};
    CHECK(trouble_with(bytes).offset == bytes.size());
}

} // namespace
