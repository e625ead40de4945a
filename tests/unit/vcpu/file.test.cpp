// SPDX-License-Identifier: MIT
//
// The file form, against an independent writer of headers and checksums.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::VendorId;
using kvm::vcpu::Errc;
using kvm::vcpu::Operation;
using kvm::vcpu::ParsedFile;
using kvm::vcpu::Section;
using kvm::vcpu::Step;
using kvm::vcpu::VcpuState;
using unit::Bytes;
using unit::saved;

using kvm::vcpu::Detail;
using kvm::vcpu::file_offset;
using kvm::vcpu::group;

/// The group that has this type in the file.
std::optional<Step> step_of(std::uint32_t type) {
    for (const auto& ordered : kvm::vcpu::restore_order)
        if (kvm::vcpu::section_type(ordered.step) == type)
            return ordered.step;
    return std::nullopt;
}

constexpr std::size_t header_bytes = 64, section_bytes = 24;

/// CRC-32 bit by bit, so that the checksum in the file is the well-known one.
std::uint32_t crc(std::span<const std::byte> bytes) {
    std::uint32_t value = ~0u;
    for (const auto byte : bytes) {
        value ^= std::to_integer<std::uint32_t>(byte);
        for (int i = 0; i < 8; ++i)
            value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320u : 0u);
    }
    return ~value;
}

template <class T>
T get(const Bytes& bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}
template <class T>
void put(Bytes& bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}

Bytes encoded(const VcpuState& state, std::span<const Section> callers = {}) {
    Bytes bytes;
    const auto append = [&](std::span<const std::byte> piece) -> std::expected<void, kvm::vcpu::Error> {
        bytes.insert(bytes.end(), piece.begin(), piece.end());
        return {};
    };
    REQUIRE(kvm::vcpu::encode(state, append, callers).has_value());
    return bytes;
}

/// Makes length, count and checksum of the header fit.
void seal(Bytes& file, int more_sections = 0) {
    put(file, 16, std::uint64_t{file.size()});
    put(file, 24, get<std::uint32_t>(file, 24) + static_cast<std::uint32_t>(more_sections));
    put(file, 60, crc(std::span{file}.first(60)));
}

/// Offsets of the sections.
std::vector<std::size_t> sections_of(const Bytes& file) {
    std::vector<std::size_t> result;
    for (std::size_t at = header_bytes; at < file.size();
         at += section_bytes + (get<std::uint64_t>(file, at + 8) + 7) / 8 * 8)
        result.push_back(at);
    return result;
}

std::size_t find(const Bytes& file, std::uint32_t type) {
    for (const auto at : sections_of(file))
        if (get<std::uint32_t>(file, at) == type)
            return at;
    FAIL("no such section");
    return 0;
}
std::size_t find(const Bytes& file, Step group) {
    return find(file, section_type(group));
}

void seal_section(Bytes& file, std::size_t at) {
    const auto size = static_cast<std::size_t>(get<std::uint64_t>(file, at + 8));
    put(file, at + 16, crc(std::span{file}.subspan(at + section_bytes, size)));
    put(file, at + 20, crc(std::span{file}.subspan(at, 20)));
}

Bytes section(std::uint32_t type, std::uint32_t flags, std::size_t size) {
    Bytes result(section_bytes + (size + 7) / 8 * 8);
    put(result, 0, type);
    put(result, 4, flags);
    put(result, 8, std::uint64_t{size});
    for (std::size_t i = 0; i < size; ++i)
        result[section_bytes + i] = std::byte{0x77};
    seal_section(result, 0);
    return result;
}

Bytes with(const Bytes& file, const Bytes& more) {
    auto result = file;
    result.insert(result.end(), more.begin(), more.end());
    seal(result, 1);
    return result;
}

Bytes without(const Bytes& file, std::uint32_t type) {
    auto result = file;
    const auto at = find(file, type);
    const auto size = section_bytes + (get<std::uint64_t>(file, at + 8) + 7) / 8 * 8;
    result.erase(result.begin() + static_cast<std::ptrdiff_t>(at),
                 result.begin() + static_cast<std::ptrdiff_t>(at + size));
    seal(result, -1);
    return result;
}
Bytes without(const Bytes& file, Step group) {
    return without(file, section_type(group));
}

/// Puts another payload into a section.
Bytes resized(const Bytes& file, Step type, std::size_t size) {
    auto result = file;
    const auto at = find(file, type);
    const auto old = (get<std::uint64_t>(file, at + 8) + 7) / 8 * 8;
    result.erase(result.begin() + static_cast<std::ptrdiff_t>(at),
                 result.begin() + static_cast<std::ptrdiff_t>(at + section_bytes + old));
    const auto more = section(section_type(type), 1, size);
    result.insert(result.begin() + static_cast<std::ptrdiff_t>(at), more.begin(), more.end());
    seal(result);
    return result;
}

kvm::vcpu::Error refused(const Bytes& file) {
    const auto parsed = kvm::vcpu::parse_vcpu(file);
    REQUIRE_FALSE(parsed.has_value());
    return parsed.error();
}

TEST_CASE("what is written is what is read") {
    using Change = void (*)(VcpuState&);
    const Change changes[] = {
        [](VcpuState&) {},
        [](VcpuState& state) { state.lapic.reset(); },
        [](VcpuState& state) {
            state.requirements = {.exception_payload = false,
                                  .triple_fault_event = false,
                                  .disabled_quirks = 0xfedcba9876543210,
                                  .enlightened_vmcs = true,
                                  .x2apic_api = 3,
                                  .apic_bus_cycle_ns = 40,
                                  .hyperv_synic = kvm::vcpu::HypervSynic::synic2};
        },
        [](VcpuState& state) { state.requirements.hyperv_synic = kvm::vcpu::HypervSynic::synic; },
        [](VcpuState& state) {
            state.cpuid.clear();
            state.feature_msrs.clear();
            state.msrs.clear();
        },
        [](VcpuState& state) { state.xsave.resize(4099); },
        [](VcpuState& state) {
            state.nested = kvm::nested::NestedStateBuffer::not_in_nested_operation(state.vendor);
        },
    };
    for (const auto vendor : {VendorId::vmx, VendorId::svm})
        for (const auto change : changes) {
            auto state = saved(vendor);
            change(state);
            const auto file = encoded(state);
            CHECK(get<std::uint64_t>(file, 16) == file.size());
            const auto parsed = kvm::vcpu::parse_vcpu(file);
            REQUIRE(parsed.has_value());
            CHECK(parsed->state == state);
            CHECK(parsed->sections.empty());
            CHECK(encoded(parsed->state) == file);
        }
}

TEST_CASE("the file is laid out as documented") {
    auto state = saved(VendorId::svm);
    state.requirements = {.disabled_quirks = 0x800, .enlightened_vmcs = true};
    const auto file = encoded(state);
    CHECK(std::memcmp(file.data(), "\x8fKVCPU\r\n", 8) == 0);
    CHECK(get<std::uint16_t>(file, 8) == 1);
    CHECK(get<std::uint16_t>(file, 10) == 64);
    CHECK(get<std::uint32_t>(file, 12) == 1);
    CHECK(get<std::uint32_t>(file, 24) == 14);
    CHECK(get<std::uint32_t>(file, 28) == 7);
    CHECK(get<std::uint64_t>(file, 32) == 0x800);
    CHECK(get<std::uint32_t>(file, 60) == crc(std::span{file}.first(60)));
    const auto sections = sections_of(file);
    REQUIRE(sections.size() == 14);
    for (std::uint32_t i = 0; i < 14; ++i) {
        const auto at = sections[i];
        CHECK(get<std::uint32_t>(file, at) == i + 1);
        CHECK(get<std::uint32_t>(file, at + 4) == 1);
        const auto size = static_cast<std::size_t>(get<std::uint64_t>(file, at + 8));
        CHECK(get<std::uint32_t>(file, at + 16) == crc(std::span{file}.subspan(at + 24, size)));
        CHECK(get<std::uint32_t>(file, at + 20) == crc(std::span{file}.subspan(at, 20)));
    }
    const auto regs = find(file, Step::regs);
    CHECK(get<std::uint64_t>(file, regs + 8) == 144);
    CHECK(get<std::uint64_t>(file, regs + 24 + 128) == state.regs.rip);
    const auto tsc = find(file, Step::tsc);
    CHECK(get<std::uint64_t>(file, tsc + 8) == 4);
    CHECK(get<std::uint32_t>(file, tsc + 24) == state.tsc_khz);
}

TEST_CASE("a file that is cut anywhere is refused, and so is one with something behind it") {
    const auto file = encoded(saved());
    for (std::size_t size = 0; size < file.size(); ++size) {
        const auto parsed = kvm::vcpu::parse_vcpu(std::span{file}.first(size));
        if (parsed || parsed.error().cause != kvm::nested::Errc::too_short
            || parsed.error().detail != file_offset(size))
            FAIL("cut at ", size);
    }
    auto longer = file;
    longer.push_back(std::byte{0});
    CHECK(refused(longer).cause == kvm::nested::Errc::too_long);
    CHECK(refused(longer).detail == file_offset(file.size()));
}

TEST_CASE("a cut file is refused even if its header has been mended") {
    const auto file = encoded(saved());
    for (std::size_t size = header_bytes; size < file.size(); ++size) {
        Bytes cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size));
        seal(cut);
        if (kvm::vcpu::parse_vcpu(cut))
            FAIL("cut at ", size);
    }
}

TEST_CASE("no flipped bit goes unseen") {
    const std::array<std::byte, 5> memory{std::byte{1}, std::byte{2}};
    const std::array callers{Section{0x8000'0001, memory}};
    auto file = encoded(saved(), callers);
    for (std::size_t bit = 0; bit < file.size() * 8; ++bit) {
        const auto mask = std::byte{1} << static_cast<int>(bit % 8);
        file[bit / 8] ^= mask;
        if (kvm::vcpu::parse_vcpu(file))
            FAIL("bit ", bit % 8, " of byte ", bit / 8);
        file[bit / 8] ^= mask;
    }
    CHECK(kvm::vcpu::parse_vcpu(file).has_value());
}

TEST_CASE("a damaged section is located") {
    auto file = encoded(saved());
    const auto at = find(file, Step::sregs);
    file[at + section_bytes + 17] ^= std::byte{0x10};
    CHECK(refused(file).cause == Errc::damaged_file);
    CHECK(refused(file).operation == Operation::file);
    CHECK(refused(file).detail == file_offset(at + 16));
}

TEST_CASE("something else is not taken for a file of ours") {
    CHECK(refused(Bytes(100)).cause == Errc::not_our_file);
    CHECK(refused({}).cause == kvm::nested::Errc::too_short);
    auto file = encoded(saved());
    file.erase(file.begin() + 6); // as a transfer in text mode does
    CHECK(refused(file).cause == Errc::not_our_file);
}

TEST_CASE("another version is named as such") {
    for (const auto version : std::to_array<std::uint16_t>({0, 2, 0xffff})) {
        auto file = encoded(saved());
        put(file, 8, version);
        CHECK(refused(file).cause == Errc::unknown_file_version);
        seal(file);
        CHECK(refused(file).cause == Errc::unknown_file_version);
        CHECK(refused(file).detail == file_offset(8));
    }
}

TEST_CASE("a header that no writer makes is refused") {
    const auto spoilt = [](std::size_t offset, auto value) {
        auto file = encoded(saved());
        put(file, offset, value);
        put(file, 60, crc(std::span{file}.first(60)));
        return refused(file);
    };
    CHECK(spoilt(10, std::uint16_t{72}).detail == file_offset(10));
    CHECK(spoilt(12, std::uint32_t{2}).detail == file_offset(12));
    CHECK(spoilt(28, std::uint32_t{32}).detail == file_offset(28));
    CHECK(spoilt(28, std::uint32_t{24}).detail == file_offset(28));
    CHECK(spoilt(48, std::uint32_t{1}).detail == file_offset(48));
    CHECK(spoilt(56, std::uint32_t{1}).detail == file_offset(48));
    CHECK(spoilt(12, std::uint32_t{2}).cause == Errc::malformed_section);
    CHECK(spoilt(16, ~std::uint64_t{0}).cause == kvm::nested::Errc::too_short);
    CHECK(spoilt(16, std::uint64_t{0}).cause == kvm::nested::Errc::too_long);
    CHECK(spoilt(24, std::uint32_t{15}).cause == Errc::malformed_section);
    CHECK(spoilt(24, ~std::uint32_t{0}).cause == Errc::malformed_section);
    CHECK(spoilt(24, std::uint32_t{12}).cause == Errc::malformed_section);
}

TEST_CASE("an unknown section is skipped if it is optional, and refused if it is not") {
    const auto state = saved();
    const auto file = encoded(state);
    for (const std::uint32_t type : {0u, 63u, 0x7fffffffu}) {
        const auto optional = kvm::vcpu::parse_vcpu(with(file, section(type, 0, 5)));
        REQUIRE(optional.has_value());
        CHECK(optional->state == state);
        CHECK(optional->sections.empty());
        const auto error = refused(with(file, section(type, 1, 5)));
        CHECK(error.cause == Errc::unknown_mandatory_section);
        CHECK(error.detail == file_offset(file.size()));
    }
    CHECK(refused(with(file, section(63, 2, 5))).cause == Errc::malformed_section);
}

TEST_CASE("a section that is there twice is refused") {
    const auto file = encoded(saved());
    for (const auto at : sections_of(file)) {
        Bytes again(file.begin() + static_cast<std::ptrdiff_t>(at), file.end());
        again.resize(section_bytes + (get<std::uint64_t>(file, at + 8) + 7) / 8 * 8);
        const auto error = refused(with(file, again));
        CHECK(error.cause == Errc::repeated_section);
        CHECK(error.detail == file_offset(file.size()));
    }
}

TEST_CASE("a section that is missing is named, and only the APIC and the TSC's offset may be") {
    const auto state = saved();
    const auto file = encoded(state);
    for (std::uint32_t type = 1; type <= 14; ++type) {
        const auto shorter = without(file, *step_of(type));
        if (step_of(type) == Step::lapic || step_of(type) == Step::tsc_offset) {
            auto expected = state;
            if (step_of(type) == Step::lapic)
                expected.lapic.reset();
            else
                expected.tsc_offset.reset();
            const auto parsed = kvm::vcpu::parse_vcpu(shorter);
            REQUIRE(parsed.has_value());
            CHECK(parsed->state == expected);
        } else {
            CHECK(refused(shorter).cause == Errc::missing_section);
            CHECK(refused(shorter).detail == group(*step_of(type)));
        }
    }
}

TEST_CASE("a section of the wrong size is refused at its offset") {
    const auto file = encoded(saved());
    const std::pair<Step, std::vector<std::size_t>> rows[] = {
        {Step::cpuid, {1, 39, 41, 257 * 40}}, {Step::feature_msrs, {1, 15, 17, 4097 * 16}},
        {Step::msrs, {1, 15, 17, 4097 * 16}}, {Step::tsc, {0, 3, 5, 8}},
        {Step::sregs, {0, 319, 321}},         {Step::regs, {0, 143, 145}},
        {Step::xsave, {0, 4095, 65537}},      {Step::xcrs, {0, 391, 393}},
        {Step::debugregs, {0, 127, 129}},     {Step::events, {0, 63, 65}},
        {Step::mp_state, {0, 3, 5}},          {Step::lapic, {0, 1023, 1025}},
    };
    for (const auto& [type, sizes] : rows)
        for (const auto size : sizes) {
            CAPTURE(name(type));
            CAPTURE(size);
            const auto error = refused(resized(file, type, size));
            CHECK(error.cause == Errc::malformed_section);
            CHECK(error.detail == file_offset(find(file, type)));
        }
}

TEST_CASE("a length that reaches beyond the file is refused before anything is read there") {
    for (const std::uint64_t size :
         {std::uint64_t{1} << 20, std::uint64_t{1} << 40, ~std::uint64_t{0}, ~std::uint64_t{0} - 6}) {
        auto file = encoded(saved());
        const auto at = find(file, Step::nested_state);
        put(file, at + 8, size);
        put(file, at + 20, crc(std::span{file}.subspan(at, 20)));
        CHECK(refused(file).cause == Errc::malformed_section);
        CHECK(refused(file).detail == file_offset(at + 8));
    }
}

TEST_CASE("values that no vCPU has are refused") {
    auto file = encoded(saved());
    auto at = find(file, Step::xcrs);
    put(file, at + 24, std::uint32_t{17});
    seal_section(file, at);
    CHECK(refused(file).cause == Errc::malformed_section);
    CHECK(refused(file).detail == file_offset(at));

    file = encoded(saved());
    at = find(file, Step::msrs);
    put(file, at + 24 + 4, std::uint32_t{1});
    seal_section(file, at);
    CHECK(refused(file).cause == Errc::malformed_section);
    CHECK(refused(file).detail == file_offset(at));
}

TEST_CASE("a nested state that is none is refused by its own cause, with the offset in the file") {
    auto file = encoded(saved());
    const auto at = find(file, Step::nested_state);
    put(file, at + 24, std::uint16_t{0x1101});
    seal_section(file, at);
    CHECK(refused(file).cause == kvm::nested::Errc::unknown_flags);
    CHECK(refused(file).detail == file_offset(at + 24));
    CHECK(refused(resized(encoded(saved()), Step::nested_state, 100)).cause == kvm::nested::Errc::too_short);
}

TEST_CASE("a nested state of another vendor than the header says is refused") {
    auto file = encoded(saved(VendorId::svm));
    put(file, 12, std::uint32_t{0});
    seal(file);
    CHECK(refused(file).cause == kvm::nested::Errc::wrong_vendor);
    CHECK(refused(file).detail == file_offset(find(file, Step::nested_state)));
}

TEST_CASE("callers' sections come back in their order, repeated or empty as they are") {
    const Bytes memory(5000, std::byte{0x42}), disk(3, std::byte{7});
    const std::array callers{Section{0x8000'0001, memory}, Section{0x8000'0002, {}},
                             Section{0x8000'0001, disk}, Section{0xffff'ffff, disk}};
    const auto file = encoded(saved(), callers);
    const auto parsed = kvm::vcpu::parse_vcpu(file);
    REQUIRE(parsed.has_value());
    REQUIRE(parsed->sections.size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(parsed->sections[i].type == callers[i].type);
        CHECK(std::ranges::equal(parsed->sections[i].bytes, callers[i].bytes));
        CHECK(parsed->sections[i].bytes.data() >= file.data());
        CHECK(parsed->sections[i].bytes.data() <= file.data() + file.size());
    }
}

TEST_CASE("what cannot be read again is not written") {
    std::size_t written = 0;
    const auto count = [&](std::span<const std::byte> piece) -> std::expected<void, kvm::vcpu::Error> {
        written += piece.size();
        return {};
    };
    auto state = saved();
    const std::array bad{Section{0x7fff'ffff, {}}};
    CHECK(kvm::vcpu::encode(state, count, bad).error().cause == Errc::malformed_section);
    CHECK(kvm::vcpu::encode(state, count, bad).error().detail == Detail{Detail::Kind::section, 0x7fff'ffff});
    state.xsave.resize(100);
    CHECK(kvm::vcpu::encode(state, count).error().cause == Errc::malformed_section);
    state = saved();
    state.vendor = VendorId::vmx;
    CHECK(kvm::vcpu::encode(state, count).error().cause == kvm::nested::Errc::wrong_vendor);
    state.nested.clear();
    CHECK(kvm::vcpu::encode(state, count).error().cause == kvm::nested::Errc::no_state);
    CHECK(written == 0);
}

TEST_CASE("a sink that fails anywhere ends the writing with its own error") {
    const auto state = saved();
    const auto size = encoded(state).size();
    int pieces = 0;
    for (int fail_at = 0;; ++fail_at) {
        int calls = 0;
        std::size_t written = 0;
        const auto sink = [&](std::span<const std::byte> piece) -> std::expected<void, kvm::vcpu::Error> {
            if (calls++ == fail_at)
                return std::unexpected(kvm::vcpu::Error{Errc::file_system, Operation::file, file_offset(42)});
            written += piece.size();
            return {};
        };
        const auto done = kvm::vcpu::encode(state, sink);
        if (done) {
            CHECK(written == size);
            break;
        }
        CHECK(done.error().detail == file_offset(42));
        CHECK(calls == fail_at + 1);
        ++pieces;
    }
    CHECK(pieces > 26);
}

TEST_CASE("thousands of spoilt files with fitting checksums are read or refused, and nothing else happens") {
    const auto file = encoded(saved());
    const auto sections = sections_of(file);
    std::uint64_t random = 0x9e3779b97f4a7c15;
    const auto next = [&](std::size_t below) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        return static_cast<std::size_t>((random >> 33) % below);
    };
    for (int round = 0; round < 3000; ++round) {
        auto spoilt = file;
        const auto at = sections[next(sections.size())];
        const auto size = static_cast<std::size_t>(get<std::uint64_t>(file, at + 8));
        const auto where = next(8) == 0 ? next(16) : section_bytes + next(std::min<std::size_t>(size, 160));
        spoilt[at + where] = static_cast<std::byte>(next(256));
        if (get<std::uint64_t>(spoilt, at + 8) <= spoilt.size() - at - section_bytes)
            seal_section(spoilt, at);
        else
            put(spoilt, at + 20, crc(std::span{spoilt}.subspan(at, 20)));
        if (const auto parsed = kvm::vcpu::parse_vcpu(spoilt)) {
            const auto again = kvm::vcpu::parse_vcpu(encoded(parsed->state));
            REQUIRE(again.has_value());
            CHECK(again->state == parsed->state);
        }
    }
}

// --- a VM

kvm::vcpu::VmState saved_vm_state(bool with_devices) {
    auto fake = unit::busy(VendorId::svm, 3);
    fake.time_passes = true;
    if (with_devices)
        fake.add_devices(5);
    const kvm::vcpu::WholeVm vm{kvm::vcpu::already_prepared({}), kvm::nested::SystemFd{unit::FakeKvm::system},
                                kvm::nested::VmFd{unit::FakeKvm::vm}, fake};
    return *vm.save(kvm::nested::VcpuFd{unit::FakeKvm::vcpu});
}

Bytes encoded(const kvm::vcpu::VmState& vm, std::span<const VcpuState> vcpus,
              std::span<const Section> callers = {}) {
    Bytes bytes;
    const auto append = [&](std::span<const std::byte> piece) -> std::expected<void, kvm::vcpu::Error> {
        bytes.insert(bytes.end(), piece.begin(), piece.end());
        return {};
    };
    REQUIRE(kvm::vcpu::encode(vm, vcpus, append, callers).has_value());
    return bytes;
}

std::vector<VcpuState> three_vcpus() {
    std::vector<VcpuState> vcpus{saved(VendorId::svm, 1), saved(VendorId::svm, 2), saved(VendorId::svm, 3)};
    vcpus[1].lapic.reset();
    return vcpus;
}

kvm::vcpu::Error error_of(const Bytes& file) {
    const auto parsed = kvm::vcpu::parse_vm(file);
    REQUIRE_FALSE(parsed.has_value());
    return parsed.error();
}

TEST_CASE("a VM of several vCPUs: what is written is what is read") {
    const auto vcpus = three_vcpus();
    const Bytes memory(1000, std::byte{7});
    const Section section{kvm::vcpu::callers_section | 9, memory};
    for (const bool with_devices : {true, false}) {
        const auto vm = saved_vm_state(with_devices);
        const auto file = encoded(vm, vcpus, {&section, 1});
        const auto parsed = kvm::vcpu::parse_vm(file);
        REQUIRE(parsed.has_value());
        REQUIRE(parsed->vm.has_value());
        CHECK(*parsed->vm == vm);
        CHECK(parsed->vcpus == vcpus);
        REQUIRE(parsed->sections.size() == 1);
        CHECK(parsed->sections[0].type == section.type);
        CHECK(std::ranges::equal(parsed->sections[0].bytes, memory));
        CHECK(encoded(*parsed->vm, parsed->vcpus, parsed->sections) == file);
    }
}

TEST_CASE("the sections of a VM's file say whose they are") {
    const auto file = encoded(saved_vm_state(true), three_vcpus());
    const auto sections = sections_of(file);
    REQUIRE(sections.size() == 3 + 14 + 13 + 14);
    for (std::size_t i = 0; i < sections.size(); ++i) {
        const auto type = get<std::uint32_t>(file, sections[i]),
                   flags = get<std::uint32_t>(file, sections[i] + 4);
        CHECK(flags == (1 | (i < 17 ? 0u : i < 30 ? 1u : 2u) << 16));
        CHECK((type >= 64) == (i < 3));
    }
}

TEST_CASE("a file of a single vCPU is read as one of a VM, and one of a VM is not taken for a single vCPU") {
    const auto state = saved();
    const auto single = kvm::vcpu::parse_vm(encoded(state));
    REQUIRE(single.has_value());
    CHECK_FALSE(single->vm.has_value());
    REQUIRE(single->vcpus.size() == 1);
    CHECK(single->vcpus[0] == state);
    for (const std::size_t count : {1u, 3u}) {
        const auto vcpus = three_vcpus();
        const auto parsed =
            kvm::vcpu::parse_vcpu(encoded(saved_vm_state(false), std::span{vcpus}.first(count)));
        REQUIRE_FALSE(parsed.has_value());
        CHECK(parsed.error().cause == Errc::unknown_mandatory_section);
    }
}

TEST_CASE("a VM's file that no writer makes is refused") {
    const auto vcpus = three_vcpus();
    const auto good = encoded(saved_vm_state(true), vcpus);
    const auto sections = sections_of(good);
    const auto with_flags = [&](std::size_t index, std::uint32_t flags) {
        auto file = good;
        put(file, sections[index] + 4, flags);
        seal_section(file, sections[index]);
        return error_of(file);
    };
    // The second vCPU's first section: of the third one, of the first again, with unknown flags.
    CHECK(with_flags(17, 0x20001).cause == Errc::malformed_section);
    CHECK(with_flags(17, 0x20001).detail == kvm::vcpu::file_offset(sections[17] + 4));
    CHECK(with_flags(17, 1).cause == Errc::repeated_section);
    CHECK(with_flags(17, 0x10003).cause == Errc::malformed_section);
    // A section of the VM with a vCPU's number.
    CHECK(with_flags(0, 0x10001).detail == kvm::vcpu::file_offset(sections[0] + 4));
    // The second vCPU begins before the first one is whole.
    CHECK(with_flags(15, 0x10001).cause == Errc::missing_section);
    CHECK(error_of(without(good, 64u)).cause == Errc::missing_section);
    CHECK(error_of(with(good, section(66, 1, 112))).cause == Errc::repeated_section);
    CHECK(error_of(with(without(good, 66u), section(66, 1, 111))).cause == Errc::malformed_section);
    CHECK(error_of(with(good, section(67, 1, 8))).cause == Errc::unknown_mandatory_section);
    CHECK(kvm::vcpu::parse_vm(with(good, section(67, 0, 8))).has_value());
}

TEST_CASE("a VM that contradicts itself has no file") {
    const auto cause_of = [](const kvm::vcpu::VmState& vm, std::span<const VcpuState> vcpus) {
        const auto sink = [](std::span<const std::byte>) -> std::expected<void, kvm::vcpu::Error> {
            FAIL("something was written");
            return {};
        };
        const auto done = kvm::vcpu::encode(vm, vcpus, sink);
        REQUIRE_FALSE(done.has_value());
        return done.error().cause;
    };
    auto vm = saved_vm_state(false);
    auto vcpus = three_vcpus();
    CHECK(cause_of(vm, {}) == kvm::nested::Errc::no_state);
    vcpus[2].requirements.disabled_quirks = 4;
    CHECK(cause_of(vm, vcpus) == Errc::requirement_differs);
    vcpus[2] = saved(VendorId::vmx);
    CHECK(cause_of(vm, vcpus) == kvm::nested::Errc::wrong_vendor);
    vcpus[2].nested = {};
    CHECK(cause_of(vm, vcpus) == kvm::nested::Errc::no_state);

    // What each vCPU tells by itself holds for all.
    vcpus = three_vcpus();
    vcpus[1].requirements.enlightened_vmcs = true;
    const auto parsed = kvm::vcpu::parse_vm(encoded(vm, vcpus));
    REQUIRE(parsed.has_value());
    CHECK(parsed->vcpus[0].requirements.enlightened_vmcs);
}

TEST_CASE("the size is known before anything is written, and from the first bytes that arrive") {
    const auto vcpus = three_vcpus();
    const auto vm = saved_vm_state(true);
    const Bytes memory(1001);
    const Section section{kvm::vcpu::callers_section, memory};
    CHECK(kvm::vcpu::encoded_size(vcpus[0], {&section, 1})
          == encoded(vcpus[0], std::span{&section, 1}).size());
    const auto file = encoded(vm, vcpus, {&section, 1});
    CHECK(kvm::vcpu::encoded_size(vm, vcpus, {&section, 1}) == file.size());

    const auto beginning = std::span{file}.first(kvm::vcpu::file_header_size);
    CHECK(kvm::vcpu::file_size(beginning) == file.size());
    CHECK(kvm::vcpu::file_size(file) == file.size());
    CHECK(kvm::vcpu::file_size(beginning.first(63)).error().cause == kvm::nested::Errc::too_short);
    auto damaged = file;
    damaged[17] ^= std::byte{1};
    CHECK(kvm::vcpu::file_size(damaged).error().cause == Errc::damaged_file);
    damaged[0] = {};
    CHECK(kvm::vcpu::file_size(damaged).error().cause == Errc::not_our_file);
}

} // namespace
