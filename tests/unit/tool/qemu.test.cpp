// SPDX-License-Identifier: MIT
//
// read_qemu_stream(): from streams made by hand. tests/lab/qemu reads those of a real QEMU.
#include "stream.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <tool/qemu.hpp>

import unit.support;

namespace {

using kvm::tool::Contents;
using kvm::tool::read_qemu_stream;
using kvm::tool::Trouble;
using stream::Bytes;
using stream::Part;
using stream::Stream;

Contents contents_of(const Bytes& bytes) {
    auto reading = read_qemu_stream(bytes);
    if (!reading)
        FAIL(reading.error().reason << " at " << reading.error().offset);
    return *reading;
}
Trouble trouble_with(const Bytes& bytes) {
    const auto reading = read_qemu_stream(bytes);
    REQUIRE_FALSE(reading.has_value());
    CHECK_FALSE(reading.error().reason.empty());
    CHECK(reading.error().offset <= bytes.size());
    return reading.error();
}
bool says(const Trouble& trouble, std::string_view what) {
    INFO(trouble.reason);
    return trouble.reason.contains(what);
}

/// `text` with the first `from` behind `after` made `to`.
std::string replaced(std::string text, std::string_view after, std::string_view from, std::string_view to) {
    const auto at = text.find(from, text.find(after));
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

const Bytes& svm_l2() {
    static const Bytes state = unit::SvmBlob{.flags = 0x101, .vmcb12_pa = 0x58a2000, .size = 4224};
    return state;
}

TEST_CASE("a stream is known by its first word, whatever its version") {
    constexpr std::string_view beginning{"QEVM\0\0\0\3", 8};
    const auto bytes = std::as_bytes(std::span{beginning});
    for (std::size_t length = 0; length <= beginning.size(); ++length)
        CHECK(kvm::tool::is_qemu_stream(bytes.first(length)) == (length >= 4));
    auto stream = stream::of(svm_l2()).bytes();
    stream[7] = std::byte{2};
    CHECK(says(trouble_with(stream), "another version"));
    CHECK(trouble_with(stream).offset == 7);
    CHECK(says(trouble_with(Bytes(64)), "no migration stream"));
}

TEST_CASE("every nested state that KVM gives comes out of a stream as it went in") {
    for (const auto& sample : unit::samples()) {
        const auto has_subsection = sample.vendor == kvm::nested::VendorId::vmx
                                        ? unit::take<std::uint64_t>(sample.bytes, 8) != unit::none
                                        : sample.bytes.size() > 128;
        if (!has_subsection) // QEMU writes none for it
            continue;
        CAPTURE(sample.name);
        const auto contents = contents_of(stream::of(sample.bytes).bytes());
        REQUIRE(contents.states.size() == 2);
        CHECK(contents.format == "QEMU migration stream (pc-q35-7.2)");
        CHECK(contents.states[0].vcpu == 0);
        CHECK(contents.states[0].bytes.empty());
        CHECK(contents.states[1].vcpu == 1);
        auto expected = sample.bytes;
        if (sample.vendor == kvm::nested::VendorId::vmx) // what QEMU drops
            std::fill_n(expected.begin() + 28, 12, std::byte{0});
        else
            std::fill_n(expected.begin() + 16, 8, std::byte{0});
        CHECK(contents.states[1].bytes == expected);
    }
}

TEST_CASE("what QEMU drops is said where L2 misses it, and only there") {
    const auto notes_on = [](const Bytes& state) {
        return contents_of(stream::of(state).bytes()).states[1].notes;
    };
    auto vmx = unit::VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}.bytes();
    constexpr std::size_t pin_based = 128 + 744, misc_ctl = 128 + 0x90;
    for (const bool timer : {false, true}) {
        unit::put(vmx, pin_based, std::uint32_t{timer ? 0x56u : 0x16u});
        const auto notes = notes_on(vmx);
        CHECK(notes.size() == (timer ? 1 : 0));
        CHECK((!timer || notes[0].contains("preemption timer")));
    }
    unit::put(vmx, 0, std::uint16_t{0}); // L1 runs
    CHECK(notes_on(vmx).empty());
    auto svm = svm_l2();
    for (const bool nested_paging : {false, true}) {
        unit::put(svm, misc_ctl, std::uint64_t{nested_paging ? 1u : 0u});
        const auto notes = notes_on(svm);
        CHECK(notes.size() == (nested_paging ? 1 : 0));
        CHECK((!nested_paging || notes[0].contains("gpat")));
    }
}

TEST_CASE("of an L1 with SVM whose L2 is not active a stream tells only GIF") {
    const auto notes_on = [](std::uint64_t efer, std::uint32_t hflags2) {
        const Stream stream{.devices = {{.name = "cpu", .part = stream::cpu(efer, hflags2)}}};
        const auto contents = contents_of(stream.bytes());
        CHECK(contents.states[0].bytes.empty());
        return contents.states[0].notes;
    };
    CHECK(notes_on(0x500, 1).empty());
    CHECK(notes_on(0x1500, 1).at(0).contains("GIF alone, which is set"));
    CHECK(notes_on(0x1500, 0).at(0).contains("GIF alone, which is clear"));
}

TEST_CASE("a state that no vCPU can be in is handed over with a note that says why") {
    auto state = svm_l2();
    unit::put(state, 0, std::uint16_t{0x102}); // RUN_PENDING outside L2
    const auto contents = contents_of(stream::of(state).bytes());
    CHECK(contents.states[1].bytes == state);
    REQUIRE(contents.states[1].notes.size() == 1);
    CHECK(contents.states[1].notes[0].contains("RUN_PENDING"));
}

TEST_CASE("guest memory is not looked at, whatever is in it") {
    auto small = stream::of(svm_l2()), large = small;
    large.memory = std::size_t{64} << 20;
    CHECK(contents_of(large.bytes()).states[1].bytes == contents_of(small.bytes()).states[1].bytes);
}

TEST_CASE("devices that are described first and lie elsewhere, as those before guest memory, are left out") {
    const auto stream = stream::of(svm_l2());
    const auto text =
        replaced(stream.description(), "", "\"devices\": [",
                 "\"devices\": [{\"name\": \"virtio-mem-device-early\", \"instance_id\": 0, \"fields\": "
                 "[{\"name\": \"a\", \"size\": 100000}]}, ");
    CHECK(contents_of(stream.with_description(text)).states[1].bytes == svm_l2());
}

TEST_CASE("a stream that is cut anywhere is refused") {
    auto small = stream::of(svm_l2());
    small.memory = 0;
    const auto bytes = small.bytes();
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        CAPTURE(length);
        trouble_with(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)));
    }
}

TEST_CASE("a stream without a description is told from one that is cut") {
    const auto complete = stream::of(svm_l2()).before_description();
    CHECK(says(trouble_with(complete), "without the description"));
    CHECK(trouble_with(complete).next_step.contains("suppress-vmdesc"));
    auto cut = complete;
    cut.pop_back();
    CHECK(says(trouble_with(cut), "cut off"));
}

TEST_CASE("a section that is not where the description puts it is refused") {
    const auto stream = stream::of(svm_l2());
    const auto refuses = [&](std::string_view after, std::string_view from, std::string_view to,
                             std::string_view reason) {
        CAPTURE(after);
        CAPTURE(to);
        CHECK(says(trouble_with(stream.with_description(replaced(stream.description(), after, from, to))),
                   reason));
    };
    refuses("apicbase", "\"size\": 4", "\"size\": 5", "the section of apic 0 does not begin");
    refuses("hflags2", "\"size\": 4", "\"size\": 3", "does not begin");
    refuses("env.regs", "\"array_len\": 128", "\"array_len\": 127", "does not begin");
    refuses("", "\"name\": \"apic\"", "\"name\": \"cipa\"", "the section of cipa 0 does not begin");
    refuses("apic", "\"instance_id\": 0", "\"instance_id\": 1", "the section of apic 1 does not begin");
    refuses("apic", "\"version\": 12", "\"version\": 11", "does not begin");
    refuses("cpu/nested_state", "vmsd_name\": \"cpu/kvm_nested_state\"", "x\": \"cpu/kvm_nested_state\"",
            "does not hold what it should");
    refuses("vmcb_pa", "\"size\": 8", "\"size\": 9", "have");
    refuses("", "cpu/tsc_khz", "cpu/tsc_kHz", "the subsection cpu/tsc_kHz does not begin");
    refuses("", "page_size\": 4096, \"devices\": [", "page_size\": 4096, \"none\": [", "no devices");
    refuses("", "{\"name\": \"apic\"", "1, {\"name\": \"apic\"", "is none");
}

TEST_CASE("a section without its footer is refused where the footer should be") {
    const auto stream = stream::of(svm_l2());
    const auto footer = stream.before_description().size() - 1 - 5;
    for (std::size_t at = footer; at < footer + 5; ++at) {
        auto bytes = stream.bytes();
        bytes[at] ^= std::byte{0x10};
        CHECK(says(trouble_with(bytes), "the section of serial 0 does not end"));
        CHECK(trouble_with(bytes).offset == footer);
    }
    auto bytes = stream.bytes();
    bytes[footer + 5] = std::byte{1}; // the end of the sections
    CHECK(says(trouble_with(bytes), "does not follow the end"));
}

TEST_CASE("sizes that no stream can have are refused") {
    const auto stream = stream::of(svm_l2());
    for (const std::string_view size :
         {"18446744073709551615", "9223372036854775808", "4294967296", "-1", "1.5", "\"4\"", "[]"})
        for (const std::string_view name : {"apicbase", "env.tsc_khz", "flags", "env.eip"}) {
            CAPTURE(size);
            CAPTURE(name);
            const auto member = "\"size\": "
                                + std::string{name == "apicbase" ? "4"
                                              : name == "flags"  ? "2"
                                                                 : "8"};
            trouble_with(
                stream.with_description(replaced(stream.description(), "\"" + std::string{name} + "\"",
                                                 member, "\"size\": " + std::string{size})));
            trouble_with(
                stream.with_description(replaced(stream.description(), "\"" + std::string{name} + "\"",
                                                 member, member + ", \"array_len\": " + std::string{size})));
        }
}

TEST_CASE("a description of another shape is refused") {
    const auto stream = stream::of(svm_l2());
    const auto nested = std::string(100, '[') + std::string(100, ']');
    for (const std::string& text :
         {std::string{"{}"}, std::string{"{\"devices\": {}}"}, std::string{"{\"devices\": []}"},
          std::string{"{\"devices\": [{}]}"}, std::string{"{\"devices\": [{\"name\": \"cpu\"}]}"},
          std::string{"{\"devices\": [}"}, std::string{"[}"}, "{\"devices\": " + nested + "}",
          "{\"a\": \"\\\\\", \"devices\": " + nested + "}"}) {
        CAPTURE(text);
        trouble_with(stream.with_description(text));
    }
    CHECK(says(trouble_with(stream.with_description("{\"devices\": " + nested + "}")), "levels"));
    CHECK(says(trouble_with(stream.with_description("{\"a\": \"\\\\\", \"devices\": " + nested + "}")),
               "levels"));
}

TEST_CASE("a description is found whatever its length looks like") {
    // The bytes of a length may look like the text behind it, or like the tag in front.
    for (const std::size_t length : {0x2020u, 0x0606u, 0x7b06u, 0x202020u, 0x060606u, 0x067b7bu}) {
        CAPTURE(length);
        const auto stream = stream::of(svm_l2());
        auto text = stream.description();
        text.insert(1, length - text.size(), ' ');
        CHECK(contents_of(stream.with_description(text)).states[1].bytes == svm_l2());
    }
    const auto stream = stream::of(svm_l2());
    auto text = stream.description();
    text.insert(1, std::size_t{1} << 24, ' ');
    CHECK(says(trouble_with(stream.with_description(text)), "longer than"));
}

TEST_CASE("a byte changed anywhere gives the same state or a reason, and never another size") {
    auto small = stream::of(svm_l2());
    small.memory = 0;
    const auto bytes = small.bytes();
    for (std::size_t at = 0; at < bytes.size(); ++at) {
        auto changed = bytes;
        changed[at] ^= std::byte{0x01};
        const auto reading = read_qemu_stream(changed);
        CAPTURE(at);
        if (reading)
            for (const auto& state : reading->states)
                CHECK((state.bytes.empty() || state.bytes.size() == 128 || state.bytes.size() == 4224));
        else
            CHECK(reading.error().offset <= changed.size());
    }
}

} // namespace
