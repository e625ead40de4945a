// SPDX-License-Identifier: MIT
//
// Puts a Linux kernel into guest memory as a boot loader would, by the 32-bit boot protocol (Linux,
// Documentation/arch/x86/boot.rst): tests/lab/setup takes the decompressor away, and with it the 64-bit
// entry.
#pragma once

#include <machine/machine.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace linux_l1 {

/// Where the vCPU starts, and what it must be given.
struct BootEntry {
    std::uint64_t rip;
    std::uint64_t boot_parameters; ///< goes into RSI
    std::uint64_t gdt;             ///< has flat segments, 0x10 for code and 0x18 for data
    std::uint16_t gdt_limit;
};

/// Fails with error 0 if the image is no bzImage, or if something does not fit.
[[nodiscard]] machine::Result<BootEntry> place_linux(std::span<std::byte> memory,
                                                     std::span<const std::byte> bzimage,
                                                     std::span<const std::byte> initrd,
                                                     std::string_view command_line);

} // namespace linux_l1
