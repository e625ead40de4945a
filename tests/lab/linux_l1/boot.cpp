// SPDX-License-Identifier: MIT
#include "boot.hpp"

#include "acpi.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace linux_l1 {
namespace {

// Guest physical addresses, all below the first 640 KiB and none of them used by the kernel before it has
// read them.
constexpr std::uint64_t gdt_address = 0x6000, boot_parameters_address = 0x7000,
                        command_line_address = 0x20000;
constexpr std::size_t command_line_limit = 0x800;

constexpr std::uint64_t low_memory_end = 0x9f000, high_memory = 0x100000, page_size = 0x1000;

/// Offsets in the image and, all but the first, in the boot parameters alike.
namespace offset {
constexpr std::size_t setup_sectors = 0x1f1, boot_flag = 0x1fe, jump_length = 0x201, magic = 0x202,
                      version = 0x206, loader = 0x210, entry = 0x214, ramdisk_address = 0x218,
                      ramdisk_size = 0x21c, command_line = 0x228, preferred_address = 0x258,
                      memory_for_start = 0x260;
// Only in the boot parameters.
constexpr std::size_t memory_map_entries = 0x1e8, memory_map = 0x2d0;
} // namespace offset

constexpr std::uint32_t header_magic = 0x53726448; // "HdrS"
constexpr std::uint16_t version_with_size = 0x20a; // the first that tells how much memory the kernel needs
constexpr std::uint8_t unknown_loader = 0xff;
constexpr std::uint32_t usable_memory = 1;

using Memory = std::span<std::byte>;
using Bytes = std::span<const std::byte>;

[[nodiscard]] std::unexpected<machine::Failure> failed(const char* why) {
    return std::unexpected{machine::Failure{.step = why, .error = 0}};
}

template <class T>
[[nodiscard]] T load(Bytes bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.subspan(offset, sizeof value).data(), sizeof value);
    return value;
}

template <class T>
void store(Memory bytes, std::size_t offset, T value) {
    std::memcpy(bytes.subspan(offset, sizeof value).data(), &value, sizeof value);
}

/// The protocol wants 0x10 for code and 0x18 for data.
constexpr std::array<std::uint64_t, 4> gdt{0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff};

void place_memory_map(Memory memory) {
    const auto parameters = memory.subspan(boot_parameters_address, page_size);
    const struct {
        std::uint64_t begin, end;
    } usable[]{{0, low_memory_end}, {high_memory, memory.size()}};
    auto entry = offset::memory_map;
    for (const auto& [begin, end] : usable) {
        store(parameters, entry, begin);
        store(parameters, entry + 8, end - begin);
        store(parameters, entry + 16, usable_memory);
        entry += 20;
    }
    store(parameters, offset::memory_map_entries, static_cast<std::uint8_t>(std::size(usable)));
}

[[nodiscard]] const char* why_not_bootable(Bytes image) {
    if (image.size() < page_size || load<std::uint16_t>(image, offset::boot_flag) != 0xaa55
        || load<std::uint32_t>(image, offset::magic) != header_magic)
        return "the kernel is no bzImage";
    if (load<std::uint16_t>(image, offset::version) < version_with_size)
        return "the kernel is older than Linux 2.6.31";
    return nullptr;
}

} // namespace

machine::Result<BootEntry> place_linux(Memory memory, Bytes bzimage, Bytes initrd,
                                       std::string_view command_line) {
    if (const auto* const reason = why_not_bootable(bzimage))
        return failed(reason);
    if (command_line.size() >= command_line_limit)
        return failed("the command line is too long");

    const auto sectors = load<std::uint8_t>(bzimage, offset::setup_sectors);
    const auto setup_size =
        std::min<std::size_t>((sectors == 0 ? 4u : sectors) * 512u + 512u, bzimage.size());
    const auto kernel = bzimage.subspan(setup_size);
    const auto kernel_address = load<std::uint32_t>(bzimage, offset::entry);
    const auto kernel_end = std::max(kernel_address + kernel.size(),
                                     load<std::uint64_t>(bzimage, offset::preferred_address)
                                         + load<std::uint32_t>(bzimage, offset::memory_for_start));
    if (memory.size() < kernel_end + initrd.size() + page_size)
        return failed("the kernel and its initrd do not fit into the guest's memory");
    const auto initrd_address = (memory.size() - initrd.size()) / page_size * page_size;

    std::ranges::copy(kernel, memory.subspan(kernel_address).begin());
    std::ranges::copy(initrd, memory.subspan(initrd_address).begin());
    std::ranges::copy(std::as_bytes(std::span{command_line}), memory.subspan(command_line_address).begin());
    std::ranges::copy(std::as_bytes(std::span{gdt}), memory.subspan(gdt_address).begin());
    place_acpi(memory);

    const auto parameters = memory.subspan(boot_parameters_address, page_size);
    const auto header_end = offset::magic + load<std::uint8_t>(bzimage, offset::jump_length);
    std::ranges::copy(bzimage.subspan(offset::setup_sectors, header_end - offset::setup_sectors),
                      parameters.subspan(offset::setup_sectors).begin());
    store(parameters, offset::loader, unknown_loader);
    store(parameters, offset::ramdisk_address, static_cast<std::uint32_t>(initrd_address));
    store(parameters, offset::ramdisk_size, static_cast<std::uint32_t>(initrd.size()));
    store(parameters, offset::command_line, static_cast<std::uint32_t>(command_line_address));
    place_memory_map(memory);

    return BootEntry{.rip = kernel_address,
                     .boot_parameters = boot_parameters_address,
                     .gdt = gdt_address,
                     .gdt_limit = sizeof gdt - 1};
}

} // namespace linux_l1
