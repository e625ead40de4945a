// SPDX-License-Identifier: MIT
//
// Inputs of the program, of all formats: raw, kvm.vcpu files, QEMU, libvirt, JSON, Cloud Hypervisor.
#include "fuzz.hpp"

#include "tool/input.hpp"

#include <algorithm>
#include <cstring>
#include <zlib.h>

import kvm.nested;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto read = kvm::tool::read_any(fuzz::bytes(data, size));
    if (!read) {
        fuzz::require(!read.error().reason.empty() && !read.error().next_step.empty(),
                      "trouble is explained");
        fuzz::require(!read.error().offset || *read.error().offset <= size, "an offset is in the input");
        return 0;
    }
    for (const auto& state : read->states) {
        kvm::nested::describe(state.bytes, [](std::string_view) noexcept {},
                              {.fields = kvm::nested::FieldsShown::none});
        static_cast<void>(state.refused());
    }
    return 0;
}

// --- the file form of kvm.vcpu: behind its checksums a mutation would never be seen
// ---------------------------------

namespace {

constexpr std::uint8_t magic[] = {0x8f, 0x4b, 0x56, 0x43, 0x50, 0x55, 0x0d, 0x0a};

template <class T>
T number(const std::uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}
void put_checksum(std::uint8_t* at, const std::uint8_t* begin, std::size_t size) {
    const auto sum = static_cast<std::uint32_t>(::crc32(0, begin, static_cast<uInt>(size)));
    std::memcpy(at, &sum, sizeof sum);
}

/// Makes the checksums right, and sometimes the length.
void seal(std::uint8_t* data, std::size_t size, unsigned seed) {
    if (size < 64 || std::memcmp(data, magic, sizeof magic) != 0)
        return;
    if (seed % 4 != 0) {
        const std::uint64_t length = size;
        std::memcpy(data + 16, &length, sizeof length);
    }
    put_checksum(data + 60, data, 60);
    for (std::size_t at = 64; size - at >= 24;) {
        const auto payload = number<std::uint64_t>(data + at + 8);
        if (payload > size - at - 24)
            return;
        put_checksum(data + at + 16, data + at + 24, payload);
        put_checksum(data + at + 20, data + at, 20);
        const auto step = 24 + (payload + 7) / 8 * 8;
        if (step > size - at)
            return;
        at += step;
    }
}

} // namespace

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
    const auto now = LLVMFuzzerMutate(data, size, most);
    seal(data, now, seed);
    return now;
}
