// SPDX-License-Identifier: MIT
#include "acpi.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

namespace linux_l1 {
namespace {

// Where a BIOS has its tables, and where the RSDP is looked for.
constexpr std::uint64_t rsdp_address = 0xe0000, xsdt_address = 0xe0040, madt_address = 0xe0080;
constexpr std::uint32_t local_apic_address = 0xfee00000, io_apic_address = 0xfec00000;

class Table {
  public:
    template <class T>
        requires std::is_integral_v<T>
    Table& put(T value) {
        for (std::size_t i = 0; i < sizeof value; ++i)
            bytes_.push_back(static_cast<std::uint8_t>(value >> 8 * i));
        return *this;
    }
    Table& put(std::string_view text) {
        bytes_.insert(bytes_.end(), text.begin(), text.end());
        return *this;
    }
    /// Makes the sum of the first `size` bytes zero, by the one at `at`.
    Table& checksum(std::size_t at, std::size_t size) {
        std::uint8_t sum = 0;
        for (const auto byte : std::span{bytes_}.first(size))
            sum = static_cast<std::uint8_t>(sum + byte);
        bytes_[at] = static_cast<std::uint8_t>(bytes_[at] - sum);
        return *this;
    }
    void place(std::span<std::byte> memory, std::uint64_t address) const {
        std::ranges::copy(std::as_bytes(std::span{bytes_}), memory.subspan(address).begin());
    }

  protected:
    std::vector<std::uint8_t> bytes_;
};

/// A table with the header that all have but the RSDP.
class SystemTable : public Table {
  public:
    SystemTable(std::string_view signature, std::uint8_t revision) {
        put(signature).put(std::uint32_t{0}).put(revision).put(std::uint8_t{0});
        put("KVMNSTLINUX_L1").put(std::uint32_t{1}).put("NSTD").put(std::uint32_t{1});
        bytes_.resize(header_size);
    }
    void finish_and_place(std::span<std::byte> memory, std::uint64_t address) {
        bytes_[4] = static_cast<std::uint8_t>(bytes_.size()); // all of ours are small
        checksum(9, bytes_.size()).place(memory, address);
    }

  private:
    static constexpr std::size_t header_size = 36;
};

} // namespace

void place_acpi(std::span<std::byte> memory) {
    constexpr std::uint8_t zero = 0, enabled = 1;

    SystemTable madt{"APIC", 4};
    madt.put(local_apic_address).put(std::uint32_t{1}); // there are PICs, too
    madt.put(std::uint8_t{0}).put(std::uint8_t{8});     // local APIC: processor 0 has APIC 0
    madt.put(zero).put(zero).put(std::uint32_t{enabled});
    madt.put(std::uint8_t{1}).put(std::uint8_t{12}); // IOAPIC 1, from interrupt 0 on
    madt.put(std::uint8_t{1}).put(zero).put(io_apic_address).put(std::uint32_t{0});
    madt.put(std::uint8_t{2}).put(std::uint8_t{10}); // the PIT's ISA interrupt 0 is number 2 there
    madt.put(zero).put(zero).put(std::uint32_t{2}).put(std::uint16_t{0});
    madt.finish_and_place(memory, madt_address);

    SystemTable xsdt{"XSDT", 1};
    xsdt.put(madt_address);
    xsdt.finish_and_place(memory, xsdt_address);

    constexpr std::uint8_t revision = 2, length = 36, length_of_revision_0 = 20;
    Table rsdp;
    rsdp.put("RSD PTR ").put(zero).put("KVMNST").put(revision).put(std::uint32_t{0});
    rsdp.put(std::uint32_t{length}).put(xsdt_address).put(std::uint32_t{0});
    rsdp.checksum(8, length_of_revision_0).checksum(32, length).place(memory, rsdp_address);
}

} // namespace linux_l1
