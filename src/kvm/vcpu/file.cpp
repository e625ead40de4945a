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
#include <utility>
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

// Flags of a section.
constexpr std::uint32_t mandatory = 1;
constexpr int vcpu_shift = 16;
constexpr std::size_t vcpu_limit = 0x10000;

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

// --- what a VM has

/// A group of a VmState.
struct VmGroup {
    std::uint32_t section;
    bool (*present)(const VmState&);
    Bytes (*bytes)(const VmState&);
    bool (*parse)(Bytes, VmState&);
};

template <auto Member>
constexpr VmGroup vm_group(std::uint32_t section) {
    using T = std::remove_cvref_t<decltype(std::declval<VmState>().*Member)>;
    if constexpr (is_optional<T>)
        return {
            section, [](const VmState& vm) { return (vm.*Member).has_value(); },
            [](const VmState& vm) { return bytes_of(*(vm.*Member)); },
            [](Bytes bytes, VmState& vm) { return parse_into((vm.*Member).emplace(), bytes).has_value(); }};
    else
        return {section, [](const VmState&) { return true; },
                [](const VmState& vm) { return bytes_of(vm.*Member); },
                [](Bytes bytes, VmState& vm) { return parse_into(vm.*Member, bytes).has_value(); }};
}

/// The first is in every file of a VM.
constexpr std::array vm_groups{vm_group<&VmState::clock>(64), vm_group<&VmState::irqchips>(65),
                               vm_group<&VmState::pit>(66)};

// --- writing

struct Piece {
    std::uint32_t type;
    std::uint32_t flags;
    Bytes payload;
};

/// `vm` may be nullptr.
std::vector<Piece> pieces_of(const VmState* vm, std::span<const VcpuState> vcpus,
                             std::span<const Section> callers) {
    std::vector<Piece> pieces;
    if (vm != nullptr)
        for (const auto& group : vm_groups)
            if (group.present(*vm))
                pieces.push_back({group.section, mandatory, group.bytes(*vm)});
    for (std::size_t i = 0; i < vcpus.size(); ++i) {
        const auto first = static_cast<std::ptrdiff_t>(pieces.size());
        const auto flags = mandatory | static_cast<std::uint32_t>(i) << vcpu_shift;
        for (const auto& row : rows)
            if (row.is_group() && row.group.present(vcpus[i]))
                pieces.push_back({row.group.section, flags, row.group.bytes(vcpus[i])});
        std::ranges::sort(pieces.begin() + first, pieces.end(), {}, &Piece::type);
    }
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

std::uint64_t size_of(std::span<const Piece> pieces) {
    std::uint64_t size = sizeof(FileHeader);
    for (const auto& piece : pieces)
        size += sizeof(SectionHeader) + padded(piece.payload.size());
    return size;
}

FileHeader header_of(VendorId vendor, const Requirements& requirements, std::span<const Piece> pieces) {
    FileHeader header{};
    header.magic = magic;
    header.version = file_version;
    header.header_bytes = sizeof header;
    header.vendor = vendor == VendorId::vmx ? 0 : 1;
    header.file_bytes = size_of(pieces);
    header.sections = static_cast<std::uint32_t>(pieces.size());
    write_requirements(requirements, header);
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

/// What holds for the VM and all its vCPUs. Some of it KVM tells of each vCPU by itself, promised or not.
std::expected<Requirements, Error> common_requirements(const VmState& vm, std::span<const VcpuState> vcpus) {
    auto all = vm.requirements;
    for (const auto& vcpu : vcpus) {
        all.exception_payload |= vcpu.requirements.exception_payload;
        all.triple_fault_event |= vcpu.requirements.triple_fault_event;
        all.enlightened_vmcs |= vcpu.requirements.enlightened_vmcs;
    }
    for (const auto& vcpu : vcpus)
        if (const auto fits = compatible(Operation::file, all, vcpu.requirements); !fits)
            return std::unexpected(fits.error());
    return all;
}

Result check(const VcpuState& state) {
    if (state.nested.is_empty())
        return refuse(nested::Errc::no_state, {});
    if (state.nested.vendor() != state.vendor)
        return refuse(nested::Errc::wrong_vendor, {});
    if (const auto malformed = malformed_group(state))
        return refuse(Errc::malformed_section, group(*malformed));
    return {};
}

Result write(VendorId vendor, const Requirements& requirements, std::span<const Piece> pieces,
             std::span<const Section> callers, const ByteSink& sink) {
    for (const auto& section : callers)
        if ((section.type & callers_section) == 0)
            return refuse(Errc::malformed_section, {Detail::Kind::section, section.type});
    const auto header = header_of(vendor, requirements, pieces);
    auto done = sink(bytes_of(header));
    for (const auto& piece : pieces) {
        if (!done)
            break;
        done = write_piece(piece, sink);
    }
    return done;
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
    return header;
}

/// A section whose checksums fit, and where its payload is.
struct Found {
    std::uint32_t type;
    bool is_mandatory;
    std::size_t vcpu;
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
    if ((header.flags & ~mandatory & ((1u << vcpu_shift) - 1)) != 0)
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
                 .is_mandatory = (header.flags & mandatory) != 0,
                 .vcpu = header.flags >> vcpu_shift,
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

/// Reads the sections one after the other.
class Parser {
  public:
    Parser(const FileHeader& header, bool one_vcpu) : header_{header}, one_vcpu_{one_vcpu} { next_vcpu(); }

    std::expected<ParsedVm, Error> parse(Bytes file) && {
        std::size_t offset = sizeof(FileHeader);
        for (std::uint32_t i = 0; i < header_.sections; ++i) {
            const auto section = section_at(file, offset);
            if (!section)
                return std::unexpected(section.error());
            offset = section->end;
            if (const auto taken = take_any(*section); !taken)
                return std::unexpected(taken.error());
        }
        if (offset != file.size())
            return refuse_at(Errc::malformed_section, offset);
        if (const auto whole = check_whole(result_.vcpus.back(), offsets_); !whole)
            return std::unexpected(whole.error());
        if (result_.vm && vm_offsets_[0] == 0)
            return refuse(Errc::missing_section, {Detail::Kind::section, vm_groups[0].section});
        return std::move(result_);
    }

  private:
    /// All of a vCPU's sections come before those of the next, so that no file makes us allocate more vCPUs
    /// than it has bytes for.
    void next_vcpu() {
        auto& state = result_.vcpus.emplace_back();
        state.vendor = header_.vendor == 0 ? VendorId::vmx : VendorId::svm;
        state.requirements = read_requirements(header_);
        offsets_ = {};
    }

    Result take_any(const Found& section) {
        const bool callers = (section.type & callers_section) != 0;
        const auto* row = find_section(section.type);
        const auto group = std::ranges::find(vm_groups, section.type, &VmGroup::section);
        if (row != nullptr)
            return take_of_vcpu(section, *row);
        if (section.vcpu != 0 && (callers || group != vm_groups.end()))
            return refuse_at(Errc::malformed_section, section.offset + offsetof(SectionHeader, flags));
        if (callers)
            result_.sections.push_back({.type = section.type, .bytes = section.payload});
        else if (group != vm_groups.end() && !one_vcpu_)
            return take_of_vm(section, static_cast<std::size_t>(group - vm_groups.begin()));
        else if (section.is_mandatory)
            return refuse_at(Errc::unknown_mandatory_section, section.offset);
        return {};
    }

    Result take_of_vcpu(const Found& section, const Row& row) {
        if (section.vcpu == result_.vcpus.size()) {
            if (one_vcpu_)
                return refuse_at(Errc::unknown_mandatory_section, section.offset);
            if (const auto whole = check_whole(result_.vcpus.back(), offsets_); !whole)
                return whole;
            next_vcpu();
        }
        if (section.vcpu + 1 != result_.vcpus.size())
            return refuse_at(Errc::malformed_section, section.offset + offsetof(SectionHeader, flags));
        auto& seen = offset_of(offsets_, row.step);
        if (seen != 0)
            return refuse_at(Errc::repeated_section, section.offset);
        seen = section.offset;
        return take(section, row.group, result_.vcpus.back());
    }

    Result take_of_vm(const Found& section, std::size_t index) {
        if (vm_offsets_[index] != 0)
            return refuse_at(Errc::repeated_section, section.offset);
        vm_offsets_[index] = section.offset;
        if (!result_.vm)
            result_.vm.emplace().requirements = read_requirements(header_);
        if (!vm_groups[index].parse(section.payload, *result_.vm))
            return refuse_at(Errc::malformed_section, section.offset);
        return {};
    }

    const FileHeader& header_;
    bool one_vcpu_;
    ParsedVm result_;
    Offsets offsets_{}; ///< of the vCPU that is being read
    std::array<std::size_t, vm_groups.size()> vm_offsets_{};
};

std::expected<ParsedVm, Error> parse(Bytes bytes, bool one_vcpu) {
    const auto header = parse_header(bytes);
    if (!header)
        return std::unexpected(header.error());
    if (header->file_bytes > bytes.size())
        return refuse_at(nested::Errc::too_short, bytes.size());
    if (header->file_bytes < bytes.size())
        return refuse_at(nested::Errc::too_long, header->file_bytes);
    return Parser{*header, one_vcpu}.parse(bytes);
}

} // namespace

std::expected<void, Error> encode(const VcpuState& state, ByteSink sink, std::span<const Section> callers) {
    if (const auto checked = check(state); !checked)
        return checked;
    return write(state.vendor, state.requirements, pieces_of(nullptr, {&state, 1}, callers), callers, sink);
}

std::expected<void, Error> encode(const VmState& vm, std::span<const VcpuState> vcpus, ByteSink sink,
                                  std::span<const Section> callers) {
    if (vcpus.empty())
        return refuse(nested::Errc::no_state, {});
    if (vcpus.size() > vcpu_limit)
        return refuse(Errc::malformed_section, {});
    for (const auto& vcpu : vcpus) {
        if (const auto checked = check(vcpu); !checked)
            return checked;
        if (vcpu.vendor != vcpus.front().vendor)
            return refuse(nested::Errc::wrong_vendor, {});
    }
    const auto requirements = common_requirements(vm, vcpus);
    if (!requirements)
        return std::unexpected(requirements.error());
    return write(vcpus.front().vendor, *requirements, pieces_of(&vm, vcpus, callers), callers, sink);
}

std::uint64_t encoded_size(const VcpuState& state, std::span<const Section> callers) {
    return size_of(pieces_of(nullptr, {&state, 1}, callers));
}

std::uint64_t encoded_size(const VmState& vm, std::span<const VcpuState> vcpus,
                           std::span<const Section> callers) {
    return size_of(pieces_of(&vm, vcpus, callers));
}

std::expected<std::uint64_t, Error> file_size(std::span<const std::byte> beginning) {
    return parse_header(beginning).transform([](const FileHeader& header) { return header.file_bytes; });
}

std::expected<ParsedFile, Error> parse_vcpu(std::span<const std::byte> bytes) {
    auto parsed = parse(bytes, true);
    if (!parsed)
        return std::unexpected(parsed.error());
    return ParsedFile{std::move(parsed->vcpus.front()), std::move(parsed->sections)};
}

std::expected<ParsedVm, Error> parse_vm(std::span<const std::byte> bytes) {
    return parse(bytes, false);
}

} // namespace kvm::vcpu
