// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include <zlib.h>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

using namespace detail;

static_assert(std::endian::native == std::endian::little,
              "the kernel's layouts go into the file as they are");

constexpr std::array<std::uint8_t, 8> magic{0x8f, 'K', 'V', 'C', 'P', 'U', '\r', '\n'};

struct FileHeader {
    std::array<std::uint8_t, 8> magic;
    std::uint16_t version;
    std::uint16_t header_bytes;
    std::uint32_t vendor;
    std::uint64_t file_bytes;
    std::uint32_t sections;
    std::uint32_t requirements;
    std::uint64_t disabled_quirks;
    std::uint32_t x2apic_api;
    std::uint32_t apic_bus_cycle_ns;
    std::array<std::uint32_t, 3> reserved;
    std::uint32_t checksum;
};
static_assert(sizeof(FileHeader) == 64 && offsetof(FileHeader, version) == 8
              && offsetof(FileHeader, vendor) == 12 && offsetof(FileHeader, file_bytes) == 16
              && offsetof(FileHeader, sections) == 24 && offsetof(FileHeader, requirements) == 28
              && offsetof(FileHeader, disabled_quirks) == 32 && offsetof(FileHeader, x2apic_api) == 40
              && offsetof(FileHeader, apic_bus_cycle_ns) == 44 && offsetof(FileHeader, reserved) == 48
              && offsetof(FileHeader, checksum) == 60);

struct SectionHeader {
    std::uint32_t type;
    std::uint32_t flags;
    std::uint64_t payload_bytes;
    std::uint32_t payload_checksum;
    std::uint32_t checksum;
};
static_assert(sizeof(SectionHeader) == 24 && offsetof(SectionHeader, payload_bytes) == 8
              && offsetof(SectionHeader, payload_checksum) == 16 && offsetof(SectionHeader, checksum) == 20);

constexpr std::uint32_t mandatory = 1;
constexpr std::size_t alignment = 8;

constexpr std::uint32_t requires_exception_payload = 1;
constexpr std::uint32_t requires_triple_fault_event = 2;
constexpr std::uint32_t requires_enlightened_vmcs = 4;
constexpr std::uint32_t requires_synic = 8;
constexpr std::uint32_t requires_synic2 = 16;
constexpr std::uint32_t known_requirements = 31;

/// Bytes that a payload takes in the file.
constexpr std::uint64_t padded(std::uint64_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

std::uint32_t crc(Bytes bytes) {
    return static_cast<std::uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// Of a header: of all but its last word, which is the checksum itself.
template <class Header>
std::uint32_t checksum_of(const Header& header) {
    return crc(std::as_bytes(std::span{&header, 1}).first(sizeof header - sizeof header.checksum));
}

template <class T>
Bytes bytes_of(const T& value) {
    static_assert(std::has_unique_object_representations_v<T>, "no byte of it may be left to chance");
    return std::as_bytes(std::span{&value, 1});
}

std::unexpected<Error> refuse(Cause cause, Detail detail) {
    return std::unexpected{Error{cause, Operation::file, detail}};
}

std::unexpected<Error> refuse_at(Cause cause, std::uint64_t offset) {
    return refuse(cause, file_offset(offset));
}

// --- writing

struct Piece {
    std::uint32_t type;
    std::uint32_t flags;
    Bytes payload;
};

std::vector<Piece> pieces_of(const VcpuState& state, std::span<const Section> callers) {
    std::vector<Piece> pieces;
    for (const auto& row : rows)
        if (row.is_group() && row.group.present(state))
            pieces.push_back({row.group.section, mandatory, row.group.bytes(state)});
    std::ranges::sort(pieces, {}, &Piece::type);
    for (const auto& section : callers)
        pieces.push_back({section.type, 0, section.bytes});
    return pieces;
}

void write_requirements(const Requirements& requirements, FileHeader& header) {
    header.requirements = (requirements.exception_payload ? requires_exception_payload : 0)
                          | (requirements.triple_fault_event ? requires_triple_fault_event : 0)
                          | (requirements.enlightened_vmcs ? requires_enlightened_vmcs : 0)
                          | (requirements.hyperv_synic == HypervSynic::synic ? requires_synic : 0)
                          | (requirements.hyperv_synic == HypervSynic::synic2 ? requires_synic2 : 0);
    header.disabled_quirks = requirements.disabled_quirks;
    header.x2apic_api = requirements.x2apic_api;
    header.apic_bus_cycle_ns = requirements.apic_bus_cycle_ns;
}

Requirements read_requirements(const FileHeader& header) {
    const auto has = [&](std::uint32_t flag) { return (header.requirements & flag) != 0; };
    return {.exception_payload = has(requires_exception_payload),
            .triple_fault_event = has(requires_triple_fault_event),
            .disabled_quirks = header.disabled_quirks,
            .enlightened_vmcs = has(requires_enlightened_vmcs),
            .x2apic_api = header.x2apic_api,
            .apic_bus_cycle_ns = header.apic_bus_cycle_ns,
            .hyperv_synic = has(requires_synic2)  ? HypervSynic::synic2
                            : has(requires_synic) ? HypervSynic::synic
                                                  : HypervSynic::off};
}

FileHeader header_of(const VcpuState& state, std::span<const Piece> pieces) {
    FileHeader header{};
    header.magic = magic;
    header.version = file_version;
    header.header_bytes = sizeof header;
    header.vendor = state.vendor == VendorId::vmx ? 0 : 1;
    header.file_bytes = sizeof header;
    for (const auto& piece : pieces)
        header.file_bytes += sizeof(SectionHeader) + padded(piece.payload.size());
    header.sections = static_cast<std::uint32_t>(pieces.size());
    write_requirements(state.requirements, header);
    header.checksum = checksum_of(header);
    return header;
}

Result write_piece(const Piece& piece, const ByteSink& sink) {
    constexpr std::array<std::byte, alignment> zeroes{};
    SectionHeader header{.type = piece.type,
                         .flags = piece.flags,
                         .payload_bytes = piece.payload.size(),
                         .payload_checksum = crc(piece.payload),
                         .checksum = 0};
    header.checksum = checksum_of(header);
    const auto padding = static_cast<std::size_t>(padded(piece.payload.size())) - piece.payload.size();
    return sink(bytes_of(header))
        .and_then([&] { return piece.payload.empty() ? Result{} : sink(piece.payload); })
        .and_then([&] { return padding == 0 ? Result{} : sink(Bytes{zeroes}.first(padding)); });
}

// --- reading

template <class T>
T read_as(Bytes bytes) {
    std::remove_const_t<T> value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
}

std::expected<FileHeader, Error> parse_header(Bytes bytes) {
    const auto prefix = std::min(bytes.size(), magic.size());
    if (!std::ranges::equal(bytes.first(prefix), std::as_bytes(std::span{magic}).first(prefix)))
        return refuse_at(Errc::not_our_file, 0);
    if (bytes.size() < sizeof(FileHeader))
        return refuse_at(nested::Errc::too_short, bytes.size());
    const auto header = read_as<FileHeader>(bytes);
    if (header.version != file_version) // before the checksum, which may be elsewhere then
        return refuse_at(Errc::unknown_file_version, offsetof(FileHeader, version));
    if (header.checksum != checksum_of(header))
        return refuse_at(Errc::damaged_file, offsetof(FileHeader, checksum));
    if (header.header_bytes != sizeof(FileHeader))
        return refuse_at(Errc::malformed_section, offsetof(FileHeader, header_bytes));
    if (header.vendor > 1)
        return refuse_at(Errc::malformed_section, offsetof(FileHeader, vendor));
    if ((header.requirements & ~known_requirements) != 0
        || (header.requirements & requires_synic & (header.requirements >> 1)) != 0)
        return refuse_at(Errc::malformed_section, offsetof(FileHeader, requirements));
    if (header.reserved != decltype(header.reserved){})
        return refuse_at(Errc::malformed_section, offsetof(FileHeader, reserved));
    if (header.file_bytes > bytes.size())
        return refuse_at(nested::Errc::too_short, bytes.size());
    if (header.file_bytes < bytes.size())
        return refuse_at(nested::Errc::too_long, header.file_bytes);
    return header;
}

/// A section whose checksums fit, and where its payload is.
struct Found {
    std::uint32_t type;
    std::uint32_t flags;
    Bytes payload;
    std::size_t offset; ///< of the section
    std::size_t payload_offset;
    std::size_t end;
};

std::expected<Found, Error> section_at(Bytes file, std::size_t offset) {
    const auto rest = file.subspan(offset);
    if (rest.size() < sizeof(SectionHeader))
        return refuse_at(Errc::malformed_section, offset);
    const auto header = read_as<SectionHeader>(rest);
    if (header.checksum != checksum_of(header))
        return refuse_at(Errc::damaged_file, offset + offsetof(SectionHeader, checksum));
    if ((header.flags & ~mandatory) != 0)
        return refuse_at(Errc::malformed_section, offset + offsetof(SectionHeader, flags));
    const auto body = rest.subspan(sizeof header);
    if (header.payload_bytes > body.size() || padded(header.payload_bytes) > body.size())
        return refuse_at(Errc::malformed_section, offset + offsetof(SectionHeader, payload_bytes));
    const auto size = static_cast<std::size_t>(header.payload_bytes);
    const auto end = static_cast<std::size_t>(padded(size));
    if (crc(body.first(size)) != header.payload_checksum)
        return refuse_at(Errc::damaged_file, offset + offsetof(SectionHeader, payload_checksum));
    const auto payload_offset = offset + sizeof header;
    for (auto i = size; i < end; ++i)
        if (body[i] != std::byte{0})
            return refuse_at(Errc::damaged_file, payload_offset + i);
    return Found{.type = header.type,
                 .flags = header.flags,
                 .payload = body.first(size),
                 .offset = offset,
                 .payload_offset = payload_offset,
                 .end = payload_offset + end};
}

/// Which section a group was in, by its row; 0: none.
using Offsets = std::array<std::size_t, rows.size()>;

std::size_t& offset_of(Offsets& offsets, Step step) {
    return offsets[static_cast<std::size_t>(step)];
}

Result take(const Found& section, const Group& group, VcpuState& state) {
    const auto parsed = group.parse(section.payload, state);
    if (!parsed) {
        auto error = parsed.error();
        // The lower floor counts from the state's first byte.
        error.detail =
            file_offset(error.cause.lower() ? section.payload_offset + error.detail.value : section.offset);
        error.operation = Operation::file;
        return std::unexpected(error);
    }
    if (!well_formed(group, state))
        return refuse_at(Errc::malformed_section, section.offset);
    return {};
}

Result check_whole(const VcpuState& state, Offsets& offsets) {
    for (const auto& row : rows)
        if (row.is_group() && !row.group.optional && offset_of(offsets, row.step) == 0)
            return refuse(Errc::missing_section, group(row.step));
    if (state.nested.vendor() != state.vendor)
        return refuse_at(nested::Errc::wrong_vendor, offset_of(offsets, Step::nested_state));
    return {};
}

} // namespace

std::expected<void, Error> encode(const VcpuState& state, ByteSink sink, std::span<const Section> callers) {
    if (state.nested.is_empty())
        return refuse(nested::Errc::no_state, {});
    if (state.nested.vendor() != state.vendor)
        return refuse(nested::Errc::wrong_vendor, {});
    if (const auto malformed = malformed_group(state))
        return refuse(Errc::malformed_section, group(*malformed));
    for (const auto& section : callers)
        if ((section.type & callers_section) == 0)
            return refuse(Errc::malformed_section, {Detail::Kind::section, section.type});

    const auto pieces = pieces_of(state, callers);
    const auto header = header_of(state, pieces);
    auto done = sink(bytes_of(header));
    for (const auto& piece : pieces) {
        if (!done)
            break;
        done = write_piece(piece, sink);
    }
    return done;
}

std::expected<ParsedFile, Error> parse_vcpu(std::span<const std::byte> bytes) {
    const auto header = parse_header(bytes);
    if (!header)
        return std::unexpected(header.error());

    ParsedFile file;
    file.state.vendor = header->vendor == 0 ? VendorId::vmx : VendorId::svm;
    file.state.requirements = read_requirements(*header);

    Offsets offsets{};
    std::size_t offset = sizeof(FileHeader);
    for (std::uint32_t i = 0; i < header->sections; ++i) {
        const auto section = section_at(bytes, offset);
        if (!section)
            return std::unexpected(section.error());
        offset = section->end;
        if ((section->type & callers_section) != 0) {
            file.sections.push_back({.type = section->type, .bytes = section->payload});
        } else if (const auto* row = find_section(section->type)) {
            auto& seen = offset_of(offsets, row->step);
            if (seen != 0)
                return refuse_at(Errc::repeated_section, section->offset);
            seen = section->offset;
            if (const auto taken = take(*section, row->group, file.state); !taken)
                return std::unexpected(taken.error());
        } else if ((section->flags & mandatory) != 0) {
            return refuse_at(Errc::unknown_mandatory_section, section->offset);
        }
    }
    if (offset != bytes.size())
        return refuse_at(Errc::malformed_section, offset);
    if (const auto whole = check_whole(file.state, offsets); !whole)
        return std::unexpected(whole.error());
    return file;
}

} // namespace kvm::vcpu
