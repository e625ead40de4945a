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

static_assert(std::endian::native == std::endian::little,
              "the kernel's layouts go into the file as they are");

using Bytes = std::span<const std::byte>;
using Result = std::expected<void, Error>;

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

constexpr auto last_type = static_cast<std::uint32_t>(SectionType::nested_state);

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

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
    static_assert(std::has_unique_object_representations_v<T>);
    return std::as_bytes(std::span{values});
}

std::unexpected<Error> refuse(Errc code, std::uint64_t detail) {
    return std::unexpected{Error{.code = code, .operation = Operation::file, .detail = detail}};
}

// --- writing

struct Piece {
    std::uint32_t type;
    std::uint32_t flags;
    Bytes payload;
};

std::vector<Piece> pieces_of(const VcpuState& state, std::span<const Section> callers) {
    std::vector<Piece> pieces;
    const auto add = [&](SectionType type, Bytes payload) {
        pieces.push_back({static_cast<std::uint32_t>(type), mandatory, payload});
    };
    add(SectionType::cpuid, bytes_of(state.cpuid));
    add(SectionType::feature_msrs, bytes_of(state.feature_msrs));
    add(SectionType::msrs, bytes_of(state.msrs));
    add(SectionType::tsc_khz, bytes_of(state.tsc_khz));
    add(SectionType::sregs2, bytes_of(state.sregs));
    add(SectionType::regs, bytes_of(state.regs));
    add(SectionType::xsave, state.xsave);
    add(SectionType::xcrs, bytes_of(state.xcrs));
    add(SectionType::debugregs, bytes_of(state.debugregs));
    add(SectionType::vcpu_events, bytes_of(state.events));
    add(SectionType::mp_state, bytes_of(state.mp_state));
    if (state.lapic)
        add(SectionType::lapic, state.lapic->registers);
    add(SectionType::nested_state, state.nested.bytes());
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
        return refuse(Errc::not_our_file, 0);
    if (bytes.size() < sizeof(FileHeader))
        return refuse(Errc::too_short, bytes.size());
    const auto header = read_as<FileHeader>(bytes);
    if (header.version != file_version) // before the checksum, which may be elsewhere then
        return refuse(Errc::unknown_file_version, offsetof(FileHeader, version));
    if (header.checksum != checksum_of(header))
        return refuse(Errc::damaged_file, offsetof(FileHeader, checksum));
    if (header.header_bytes != sizeof(FileHeader))
        return refuse(Errc::malformed_section, offsetof(FileHeader, header_bytes));
    if (header.vendor > 1)
        return refuse(Errc::malformed_section, offsetof(FileHeader, vendor));
    if ((header.requirements & ~known_requirements) != 0
        || (header.requirements & requires_synic & (header.requirements >> 1)) != 0)
        return refuse(Errc::malformed_section, offsetof(FileHeader, requirements));
    if (header.reserved != decltype(header.reserved){})
        return refuse(Errc::malformed_section, offsetof(FileHeader, reserved));
    if (header.file_bytes > bytes.size())
        return refuse(Errc::too_short, bytes.size());
    if (header.file_bytes < bytes.size())
        return refuse(Errc::too_long, header.file_bytes);
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
        return refuse(Errc::malformed_section, offset);
    const auto header = read_as<SectionHeader>(rest);
    if (header.checksum != checksum_of(header))
        return refuse(Errc::damaged_file, offset + offsetof(SectionHeader, checksum));
    if ((header.flags & ~mandatory) != 0)
        return refuse(Errc::malformed_section, offset + offsetof(SectionHeader, flags));
    const auto body = rest.subspan(sizeof header);
    if (header.payload_bytes > body.size() || padded(header.payload_bytes) > body.size())
        return refuse(Errc::malformed_section, offset + offsetof(SectionHeader, payload_bytes));
    const auto size = static_cast<std::size_t>(header.payload_bytes);
    const auto end = static_cast<std::size_t>(padded(size));
    if (crc(body.first(size)) != header.payload_checksum)
        return refuse(Errc::damaged_file, offset + offsetof(SectionHeader, payload_checksum));
    const auto payload_offset = offset + sizeof header;
    for (auto i = size; i < end; ++i)
        if (body[i] != std::byte{0})
            return refuse(Errc::damaged_file, payload_offset + i);
    return Found{.type = header.type,
                 .flags = header.flags,
                 .payload = body.first(size),
                 .offset = offset,
                 .payload_offset = payload_offset,
                 .end = payload_offset + end};
}

/// One of ours into its place. What is taken is never more than there are bytes.
template <class T>
bool take(Bytes payload, T& into) {
    if (payload.size() != sizeof into)
        return false;
    into = read_as<T>(payload);
    return true;
}

template <class T>
bool take(Bytes payload, std::vector<T>& into, std::size_t limit) {
    if (payload.size() % sizeof(T) != 0 || payload.size() / sizeof(T) > limit)
        return false;
    into.resize(payload.size() / sizeof(T));
    if (!payload.empty())
        std::memcpy(into.data(), payload.data(), payload.size());
    return true;
}

Result take_nested(const Found& section, NestedStateBuffer& into) {
    const auto parsed = NestedStateBuffer::parse(section.payload);
    if (!parsed) {
        auto error = parsed.error();
        error.detail += section.payload_offset;
        return std::unexpected(error);
    }
    into = *parsed;
    return {};
}

Result take_section(const Found& section, VcpuState& state) {
    const auto payload = section.payload;
    const auto taken = [&] {
        switch (static_cast<SectionType>(section.type)) {
        case SectionType::cpuid:
            return take(payload, state.cpuid, uapi::cpuid_limit);
        case SectionType::feature_msrs:
            return take(payload, state.feature_msrs, uapi::msr_limit);
        case SectionType::msrs:
            return take(payload, state.msrs, uapi::msr_limit);
        case SectionType::tsc_khz:
            return take(payload, state.tsc_khz);
        case SectionType::sregs2:
            return take(payload, state.sregs);
        case SectionType::regs:
            return take(payload, state.regs);
        case SectionType::xsave:
            return take(payload, state.xsave, uapi::xsave_limit);
        case SectionType::xcrs:
            return take(payload, state.xcrs);
        case SectionType::debugregs:
            return take(payload, state.debugregs);
        case SectionType::vcpu_events:
            return take(payload, state.events);
        case SectionType::mp_state:
            return take(payload, state.mp_state);
        case SectionType::lapic:
            return take(payload, state.lapic.emplace());
        case SectionType::nested_state:
            break;
        }
        return true;
    }();
    if (!taken)
        return refuse(Errc::malformed_section, section.offset);
    if (section.type == static_cast<std::uint32_t>(SectionType::nested_state))
        return take_nested(section, state.nested);
    return {};
}

constexpr bool is_ours(std::uint32_t type) {
    return type >= 1 && type <= last_type;
}

/// Where each section of ours was, for the errors that come after all have been read.
using Offsets = std::array<std::optional<std::size_t>, last_type + 1>;

Result check_whole(const VcpuState& state, const Offsets& offsets) {
    for (std::uint32_t type = 1; type <= last_type; ++type)
        if (!offsets[type] && type != static_cast<std::uint32_t>(SectionType::lapic))
            return refuse(Errc::missing_section, type);
    if (const auto group = malformed_group(state))
        return refuse(Errc::malformed_section, *offsets[static_cast<std::uint32_t>(*group)]);
    if (state.nested.vendor() != state.vendor)
        return refuse(Errc::wrong_vendor, *offsets[last_type]);
    return {};
}

} // namespace

std::expected<void, Error> encode(const VcpuState& state, ByteSink sink, std::span<const Section> callers) {
    if (state.nested.is_empty())
        return refuse(Errc::no_state, 0);
    if (state.nested.vendor() != state.vendor)
        return refuse(Errc::wrong_vendor, 0);
    if (const auto group = malformed_group(state))
        return refuse(Errc::malformed_section, static_cast<std::uint32_t>(*group));
    for (const auto& section : callers)
        if ((section.type & callers_section) == 0)
            return refuse(Errc::malformed_section, section.type);

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
        } else if (is_ours(section->type)) {
            if (offsets[section->type])
                return refuse(Errc::repeated_section, section->offset);
            offsets[section->type] = section->offset;
            if (const auto taken = take_section(*section, file.state); !taken)
                return std::unexpected(taken.error());
        } else if ((section->flags & mandatory) != 0) {
            return refuse(Errc::unknown_mandatory_section, section->offset);
        }
    }
    if (offset != bytes.size())
        return refuse(Errc::malformed_section, offset);
    if (const auto whole = check_whole(file.state, offsets); !whole)
        return std::unexpected(whole.error());
    return file;
}

} // namespace kvm::vcpu
