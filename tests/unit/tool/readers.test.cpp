// SPDX-License-Identifier: MIT
//
// The formats that are simple, and how one is told from another.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <format>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "tool/input.hpp"

import unit.support;
import kvm.vcpu;
import kvm.nested.json;

namespace {

using kvm::tool::read_any;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

Bytes of(std::string_view text) {
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}
Bytes vmx_l2() {
    return VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
}
Bytes svm_l2() {
    return SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224};
}

/// The reason why there is nothing to be read.
std::string trouble(const Bytes& input) {
    const auto read = read_any(input);
    REQUIRE(!read);
    CHECK(!read.error().next_step.empty());
    return (read.error().offset ? std::format("{}: ", *read.error().offset) : "") + read.error().reason;
}

TEST_CASE("raw bytes are taken as they are, for both vendors") {
    for (const auto& blob : {vmx_l2(), svm_l2(), VmxBlob{}.bytes(), SvmBlob{}.bytes()}) {
        const auto read = read_any(blob);
        REQUIRE(read);
        CHECK(read->format == "raw bytes of KVM_GET_NESTED_STATE");
        REQUIRE(read->states.size() == 1);
        CHECK(read->states[0].bytes == blob);
        CHECK(read->states[0].notes.empty());
        CHECK(!read->states[0].refused());
    }
}

TEST_CASE("bytes behind a state are told and left out") {
    auto blob = svm_l2();
    blob.resize(8320);
    auto read = read_any(blob);
    REQUIRE(read);
    CHECK(read->states[0].bytes == svm_l2());
    CHECK(read->states[0].notes
          == std::vector<std::string>{"4096 bytes lie behind the state and are no part of it; all are zero"});
    blob.back() = std::byte{1};
    read = read_any(blob);
    REQUIRE(read);
    CHECK(read->states[0].notes
          == std::vector<std::string>{
              "4096 bytes lie behind the state and are no part of it; not all are zero"});
}

TEST_CASE("a state that no vCPU can be in is shown, and said to be one") {
    auto blob = vmx_l2();
    unit::put(blob, 128, std::uint32_t{7}); // the revision
    const auto read = read_any(blob);
    REQUIRE(read);
    const auto refused = read->states[0].refused();
    REQUIRE(refused);
    CHECK(refused->code == kvm::nested::Errc::bad_vmcs12_revision);
    CHECK(refused->detail == 128);
}

TEST_CASE("what is no state says at which byte it stops being one") {
    CHECK(trouble(Bytes{}) == "0: there are no bytes in it");
    CHECK(
        trouble(Bytes(100)).starts_with("100: no nested state is recognised here; as raw bytes: 100 bytes"));
    CHECK(trouble(Bytes(64u << 20))
              .starts_with("4: no nested state is recognised here; as raw bytes: the size is said to be 0"));
    auto blob = vmx_l2();
    blob.pop_back();
    CHECK(trouble(blob).starts_with("4223: "));
    blob = vmx_l2();
    unit::put(blob, 2, std::uint16_t{2});
    CHECK(trouble(blob).contains("the format is 2, neither 0 (VMX) nor 1 (SVM)"));
}

TEST_CASE("every length of a state is an answer") {
    const auto whole = svm_l2();
    for (std::size_t size = 0; size < whole.size(); ++size) {
        const auto read = read_any(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
        REQUIRE(!read);
        CHECK(read.error().offset == size);
    }
}

TEST_CASE("random bytes are an answer") {
    std::mt19937_64 random{4}; // the same each time
    for (int i = 0; i < 20'000; ++i) {
        Bytes bytes(random() % 300);
        for (auto& byte : bytes)
            byte = static_cast<std::byte>(random());
        if (const auto read = read_any(bytes); read)
            CHECK(read->states[0].bytes.size() >= 128);
        else
            CHECK(!read.error().reason.empty());
    }
}

kvm::vcpu::VcpuState vcpu_at(std::uint64_t rip) {
    kvm::vcpu::VcpuState vcpu;
    vcpu.vendor = kvm::nested::VendorId::svm;
    vcpu.nested = *kvm::nested::NestedStateBuffer::parse(svm_l2());
    vcpu.xsave.resize(4096);
    vcpu.regs.rip = rip;
    vcpu.sregs.cr3 = 0x5000;
    return vcpu;
}

/// What encode() makes of these arguments, the sink put between.
template <class State, class... More>
Bytes encoded(const State& state, const More&... more) {
    Bytes file;
    const auto sink = [&](std::span<const std::byte> piece) -> std::expected<void, kvm::vcpu::Error> {
        file.insert(file.end(), piece.begin(), piece.end());
        return {};
    };
    if constexpr (std::is_same_v<State, kvm::vcpu::VcpuState>)
        REQUIRE(kvm::vcpu::encode(state, sink, more...).has_value());
    else
        [&](const auto& vcpus, const auto&... sections) {
            REQUIRE(kvm::vcpu::encode(state, vcpus, sink, sections...).has_value());
        }(more...);
    return file;
}

TEST_CASE("a kvm.vcpu file gives its nested state, and the registers beside it") {
    const auto vcpu = vcpu_at(0x1234);
    auto file = encoded(vcpu);
    const auto read = read_any(file);
    REQUIRE(read);
    CHECK(read->format == "kvm.vcpu file");
    const auto nested = vcpu.nested.bytes();
    CHECK(read->states[0].bytes == Bytes(nested.begin(), nested.end()));
    REQUIRE(read->states[0].registers);
    CHECK(read->states[0].registers->rip == 0x1234);
    CHECK(read->states[0].registers->cr3 == 0x5000);

    file[100] ^= std::byte{1};
    CHECK(trouble(file).contains("checksum"));
}

TEST_CASE("a kvm.vcpu file of a virtual machine gives all its vCPUs, and names what else is in it") {
    const std::vector vcpus{vcpu_at(1), vcpu_at(2), vcpu_at(3)};
    const Bytes memory(500);
    const std::vector sections{kvm::vcpu::Section{kvm::vcpu::callers_section | 1, memory}};
    const auto read = read_any(encoded(kvm::vcpu::VmState{}, vcpus, sections));
    REQUIRE(read);
    CHECK(read->format == "kvm.vcpu file of a virtual machine");
    REQUIRE(read->states.size() == 3);
    for (unsigned i = 0; i < 3; ++i) {
        CHECK(read->states[i].vcpu == i);
        CHECK(read->states[i].registers->rip == i + 1);
    }
    REQUIRE(read->states[0].notes.size() == 1);
    CHECK(read->states[0].notes[0].contains("section 0x80000001, 500 bytes"));
}

TEST_CASE(
    "a vCPU that is a whole file in a section of another one's is shown as well, unless it is damaged") {
    auto inner = encoded(vcpu_at(2));
    for (const bool damaged : {false, true}) {
        if (damaged)
            inner[200] ^= std::byte{1};
        const std::vector sections{kvm::vcpu::Section{kvm::vcpu::callers_section | 2, inner}};
        const auto read = read_any(encoded(vcpu_at(1), sections));
        REQUIRE(read);
        REQUIRE(read->states.size() == (damaged ? 1 : 2));
        CHECK(read->states[0].registers->rip == 1);
        CHECK(read->states[0].notes.size() == (damaged ? 2 : 1));
        if (!damaged) {
            CHECK(read->states[1].vcpu == 1);
            CHECK(read->states[1].registers->rip == 2);
        }
    }
}

TEST_CASE("JSON of this library is a state, other JSON is not") {
    const auto json = kvm::nested::to_json(vmx_l2());
    const auto read = read_any(of("\n " + json));
    REQUIRE(read);
    CHECK(read->format == "JSON of kvm-nested");
    CHECK(read_any(of(kvm::nested::to_json(read->states[0].bytes)))->states[0].bytes
          == read->states[0].bytes);
    CHECK(trouble(of("{\"vendor\": ")) == "11: this is not JSON");
    CHECK(!trouble(of("{}")).empty());
}

// --- Cloud Hypervisor
// --------------------------------------------------------------------------------------------

std::string numbers(const Bytes& bytes) {
    std::string text;
    for (const auto byte : bytes)
        text += std::format("{}{}", text.empty() ? "[" : ",", std::to_integer<unsigned>(byte));
    return text + "]";
}
/// A string in which JSON is quoted once more.
std::string quoted(std::string_view text) {
    std::string result = "\"";
    for (const char letter : text)
        result += letter == '"' ? "\\\"" : std::string(1, letter);
    return result + "\"";
}
std::string vcpu_snapshot(std::string_view nested) {
    Bytes regs(144), sregs(312);
    unit::put(regs, 128, std::uint64_t{0x4242});  // RIP
    unit::put(sregs, 240, std::uint64_t{0x7000}); // CR3
    const auto state = std::format(R"({{"Kvm":{{"regs":{},"sregs":{},"nested_state":{}}}}})", numbers(regs),
                                   numbers(sregs), nested);
    return std::format(R"({{"snapshots":{{}},"snapshot_data":{{"state":{}}}}})", quoted(state));
}
Bytes snapshot(std::string_view vcpus) {
    return of(std::format(
        R"({{"snapshots":{{"cpu-manager":{{"snapshots":{{{}}},"snapshot_data":null}},"memory-manager":{{"snapshots":{{}}}}}}}})",
        vcpus));
}

TEST_CASE("a Cloud Hypervisor snapshot gives the states of its vCPUs in their order") {
    auto with_slack = svm_l2();
    with_slack.resize(8320);
    const auto read =
        read_any(snapshot(std::format(R"("0":{},"10":{},"2":{})", vcpu_snapshot("null"),
                                      vcpu_snapshot(numbers(with_slack)), vcpu_snapshot(numbers(svm_l2())))));
    REQUIRE(read);
    CHECK(read->format == "Cloud Hypervisor snapshot");
    REQUIRE(read->states.size() == 3);
    CHECK(read->states[0].bytes.empty());
    CHECK(read->states[0].notes.size() == 1);
    CHECK(read->states[1].vcpu == 2);
    CHECK(read->states[1].bytes == svm_l2());
    CHECK(read->states[2].vcpu == 10);
    CHECK(read->states[2].bytes == svm_l2());
    REQUIRE(read->states[2].registers);
    CHECK(read->states[2].registers->rip == 0x4242);
    CHECK(read->states[2].registers->cr3 == 0x7000);
}

TEST_CASE("what is wrong in a Cloud Hypervisor snapshot is said") {
    CHECK(trouble(snapshot(R"("a":{})")).contains("\"a\", which is no number"));
    CHECK(trouble(snapshot(R"("0":{})")).contains("vCPU 0 has no state"));
    CHECK(trouble(snapshot(R"("0":{"snapshot_data":{"state":"{"}})"))
              .contains("the state of vCPU 0 is not JSON"));
    CHECK(trouble(snapshot(R"("0":{"snapshot_data":{"state":"{\"Mshv\":{}}"}})")).contains("no KVM state"));
    CHECK(trouble(snapshot(std::format(R"("0":{})", vcpu_snapshot("[1,2,256]")))).contains("byte 2"));
    CHECK(trouble(snapshot(std::format(R"("0":{})", vcpu_snapshot("[1,2,3]"))))
              .contains("vCPU 0: no nested state"));
    CHECK(trouble(of(R"({"snapshots":{"cpu-manager":7}})")).contains("no vCPUs"));
    auto cut = snapshot(std::format(R"("0":{})", vcpu_snapshot("null")));
    cut.resize(cut.size() - 3);
    CHECK(trouble(cut).contains("is not JSON"));
}

} // namespace
