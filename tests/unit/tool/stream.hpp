// SPDX-License-Identifier: MIT
//
// Migration streams of QEMU, made by hand: what the tests of the readers share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stream {

using Bytes = std::vector<std::byte>;

inline void append(Bytes& to, std::span<const std::byte> bytes) {
    to.insert(to.end(), bytes.begin(), bytes.end());
}
inline void append(Bytes& to, std::string_view text) {
    append(to, std::as_bytes(std::span{text}));
}
/// Big-endian.
inline void append(Bytes& to, std::uint64_t value, std::size_t size) {
    while (size-- > 0)
        to.push_back(static_cast<std::byte>(value >> 8 * size));
}
/// As the stream writes them: the length in one byte, and the text.
inline void append_name(Bytes& to, std::string_view name) {
    append(to, name.size(), 1);
    append(to, name);
}

/// A device or subsection while it is being made: the bytes, and their description.
struct Part {
    Bytes bytes;
    std::string fields, subsections;

    Part& field(std::string_view name, std::uint64_t value, std::size_t size) {
        append(bytes, value, size);
        return describe(name, "\"size\": " + std::to_string(size));
    }
    /// An array of bytes.
    Part& array(std::string_view name, std::span<const std::byte> content) {
        append(bytes, content);
        return describe(name, "\"array_len\": " + std::to_string(content.size()) + ", \"size\": 1");
    }
    Part& structure(std::string_view name, std::string_view type, const Part& part) {
        append(bytes, part.bytes);
        return describe(name, "\"struct\": {\"vmsd_name\": \"" + std::string{type} + "\", "
                                  + part.description() + "}, \"size\": " + std::to_string(part.bytes.size()));
    }
    Part& subsection(std::string_view name, const Part& part) {
        append(bytes, 5, 1);
        append_name(bytes, name);
        append(bytes, 1, 4);
        append(bytes, part.bytes);
        subsections += subsections.empty() ? "" : ", ";
        subsections +=
            "{\"vmsd_name\": \"" + std::string{name} + "\", \"version\": 1, " + part.description() + "}";
        return *this;
    }
    std::string description() const {
        return "\"fields\": [" + fields + "]"
               + (subsections.empty() ? "" : ", \"subsections\": [" + subsections + "]");
    }

  private:
    Part& describe(std::string_view name, const std::string& rest) {
        fields += fields.empty() ? "" : ", ";
        fields += "{\"name\": \"" + std::string{name} + "\", " + rest + "}";
        return *this;
    }
};

/// A vCPU's subsection of a state as KVM_GET_NESTED_STATE gives it, as QEMU writes it.
Part nested_state(std::span<const std::byte> state);

/// A vCPU of a few registers.
Part cpu(std::uint64_t efer = 0, std::uint32_t hflags2 = 0);
Part cpu_with(std::span<const std::byte> state);

struct Device {
    std::string name;
    std::uint32_t instance = 0;
    Part part;
};

/// With `memory` bytes in front of the devices that nobody shall read.
struct Stream {
    std::vector<Device> devices;
    std::size_t memory = 100;
    std::string machine = "pc-q35-7.2";

    Bytes before_description() const;
    std::string description() const;
    Bytes bytes() const { return with_description(description()); }
    Bytes with_description(std::string_view text) const;
};

/// One vCPU of each kind and other devices around them.
Stream of(std::span<const std::byte> state);

} // namespace stream
