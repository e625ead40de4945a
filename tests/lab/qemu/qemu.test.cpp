// SPDX-License-Identifier: MIT
//
// What the program reads out of the migration stream of a stock QEMU, against what KVM gave that QEMU,
// against QEMU's own word on the registers, and against L1's memory.
//
//     L0  this program, KVM, and QEMU with a virtual machine of one or two vCPUs
//     L1  Linux with kvm-amd or kvm-intel, as in tests/lab/linux_l1; on its last vCPU
//     L2  runs checksum.S
//
//   lab-qemu QEMU MACHINE KERNEL INITRD OVERHEAR VCPUS [DOCTEST-OPTION...]    OVERHEAR: lab-qemu-overhear.so
//
// Leaves in the working directory: the streams "plain" (before L1 begins), "nested" (L2 active) and "memory"
// (the same with guest memory), "state0" and so on (KVM's answers), "registers".
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "../support/verdict.hpp"
#include "stock_qemu.hpp"

#include <tool/libvirt.hpp>
#include <tool/qemu.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <format>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <print>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

import kvm.nested;

namespace {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;
using kvm::tool::Contents;

constexpr std::uint64_t memory_size = std::uint64_t{160} << 20;

/// From the command line.
struct Inputs {
    std::string qemu, machine, kernel, initrd, overhear;
    unsigned vcpus = 0;
} inputs;

/// A file for as long as the program runs. A stream has all of L1's memory in it: it is not copied.
std::span<const std::byte> map(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const auto size = ::lseek(file, 0, SEEK_END);
    if (size <= 0)
        lab::give_up("there is nothing in the file " + path);
    void* const bytes = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED)
        lab::give_up("the file " + path + " cannot be mapped");
    ::close(file);
    return {static_cast<const std::byte*>(bytes), static_cast<std::size_t>(size)};
}

Bytes bytes_of(const std::string& path) {
    const auto bytes = map(path);
    return {bytes.begin(), bytes.end()};
}

template <class T>
T number_at(std::span<const std::byte> bytes, std::size_t offset) {
    T value;
    if (bytes.size() < offset + sizeof value)
        lab::give_up(std::format("{} bytes are too few", bytes.size()));
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

// Of a state, from the kernel's header and not from our library.
constexpr std::size_t flags_at = 0, format_at = 2, gpat_at = 16, timer_flags_at = 28, deadline_end = 40;
constexpr unsigned guest_mode = 0x001, gif_set = 0x100;

bool is_svm(std::span<const std::byte> state) {
    return number_at<std::uint16_t>(state, format_at) == 1;
}
unsigned flags_of(std::span<const std::byte> state) {
    return number_at<std::uint16_t>(state, flags_at);
}
/// vmcb12_pa or vmcs12_pa.
std::uint64_t address_of_l2(std::span<const std::byte> state) {
    return number_at<std::uint64_t>(state, is_svm(state) ? 8 : 16);
}

// --- the one virtual machine of all tests

/// What there was when QEMU migrated, but for the stream.
struct Moment {
    std::span<const std::byte> stream;
    std::vector<Bytes> states; ///< KVM's answers, by vCPU
    std::string registers;     ///< QEMU's word on those of L2's vCPU
    Bytes page;                ///< of L1's memory, at vmcb12_pa or vmcs12_pa
};

struct Captured {
    Moment plain, nested, memory;
};

unsigned l2_vcpu() {
    return inputs.vcpus - 1;
}

Moment moment(lab::StockQemu& qemu, const std::string& name) {
    Moment result;
    qemu.monitor(std::format("cpu {}", l2_vcpu()));
    result.registers = qemu.monitor("info registers");
    qemu.migrate(name);
    result.stream = map(name);
    for (unsigned vcpu = 0; vcpu < inputs.vcpus; ++vcpu)
        result.states.push_back(bytes_of(std::format("state{}", vcpu)));
    return result;
}

Bytes page_of_l1(lab::StockQemu& qemu, std::uint64_t address) {
    const auto said = qemu.monitor(std::format("pmemsave {:#x} 4096 page", address));
    if (!said.empty())
        lab::give_up(said);
    return bytes_of("page");
}

// Of shared memory that is a file: QEMU 10 carries any other.
void leave_out_memory(lab::StockQemu& qemu, bool on) {
    qemu.execute(
        "migrate-set-capabilities",
        {{"capabilities", nlohmann::json::array({{{"capability", "x-ignore-shared"}, {"state", on}}})}});
}

std::string end_of(const std::string& path) {
    std::ifstream file{path, std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    return text.substr(text.size() - std::min<std::size_t>(text.size(), 2000));
}

/// The vCPU of L2 stands where L2 says that it is active, as long as there is a file "hold".
void run_until_l2_is_active(lab::StockQemu& qemu) {
    std::ofstream{"hold"};
    qemu.execute("cont");
    const auto deadline = std::chrono::steady_clock::now() + lab::patience;
    while (::access("held", F_OK) != 0) {
        const auto status = qemu.status();
        if (status != "running" || std::chrono::steady_clock::now() > deadline)
            lab::lost_in_boot(std::format(
                "L2 did not begin. QEMU's machine is {}. Its registers:\n{}\nL1's console ends:\n{}", status,
                qemu.monitor("info registers -a"), end_of("console")));
        std::this_thread::sleep_for(100ms);
    }
    qemu.execute("stop");
}

// Without XSAVE: QEMU 7.2 (TCG), on which L0 runs for SVM, does not tell KVM of L1's XSETBV. L1 then finds
// sizes in CPUID that contradict XCR0, at which Linux 6.1 complains and Linux 7 dies.
Captured capture() {
    const auto memory = std::format("{}M", memory_size >> 20);
    lab::StockQemu qemu{
        inputs.qemu,
        {"-no-user-config",
         "-nodefaults",
         "-display",
         "none",
         "-no-reboot",
         "-no-shutdown", // it stands instead, and can be asked
         "-S",
         "-accel",
         "kvm",
         "-cpu",
         "host,-xsave",
         "-machine",
         inputs.machine + ",memory-backend=ram",
         "-object",
         "memory-backend-file,mem-path=ram,share=on,id=ram,size=" + memory,
         "-m",
         memory,
         "-smp",
         std::to_string(inputs.vcpus),
         "-serial",
         "file:console",
         "-kernel",
         inputs.kernel,
         "-initrd",
         inputs.initrd,
         "-append",
         "console=ttyS0 loglevel=5 panic=-1 rdinit=/init mitigations=off nokaslr no_timer_check tsc=reliable "
         "cryptomgr.notests random.trust_cpu=on audit=0 initcall_blacklist=init_kprobe_trace,trace_eval_init,"
         "load_system_certificate_list,jent_mod_init,init_evm"},
        {"LD_PRELOAD=" + inputs.overhear, "PATH=/bin"}};
    Captured captured;
    leave_out_memory(qemu, true);
    captured.plain = moment(qemu, "plain");
    run_until_l2_is_active(qemu);
    captured.nested = moment(qemu, "nested");
    captured.nested.page = page_of_l1(qemu, address_of_l2(captured.nested.states[l2_vcpu()]));
    std::ofstream{"registers"} << captured.nested.registers;
    leave_out_memory(qemu, false);
    qemu.execute("cont"); // a machine that has migrated does so again only after that
    qemu.execute("stop");
    captured.memory = moment(qemu, "memory");
    return captured;
}

const Captured& captured() {
    static std::optional<Captured> once;
    static bool tried = false;
    if (std::exchange(tried, true) && !once)
        lab::give_up("there is nothing to read: see the first test");
    if (!once)
        once = capture();
    return *once;
}

// --- the tests

Contents read(std::span<const std::byte> stream) {
    auto reading = kvm::tool::read_qemu_stream(stream);
    if (!reading)
        lab::give_up(std::format("{} at {}", reading.error().reason, reading.error().offset.value_or(0)));
    return *std::move(reading);
}

/// KVM's answer without what QEMU drops.
Bytes as_qemu_carries(Bytes state) {
    if (is_svm(state))
        std::fill_n(state.begin() + gpat_at, 8, std::byte{0});
    else
        std::fill(state.begin() + timer_flags_at, state.begin() + deadline_end, std::byte{0});
    return state;
}

/// QEMU writes nothing of a vCPU that is not in VMX operation, or with SVM not in L2.
bool is_carried(const Bytes& state) {
    return is_svm(state) ? (flags_of(state) & guest_mode) != 0
                         : number_at<std::uint64_t>(state, 8) != ~std::uint64_t{0};
}

void says_what_is_lost(const kvm::tool::FoundState& found, const Bytes& answer) {
    const auto says = [&](std::string_view what) {
        return std::ranges::any_of(found.notes, [&](const std::string& note) { return note.contains(what); });
    };
    if (is_svm(answer)) {
        CHECK((says("gpat") || number_at<std::uint64_t>(answer, gpat_at) == 0));
        CHECK((!says("GIF") || says((flags_of(answer) & gif_set) != 0 ? "is set" : "is clear")));
    } else {
        CHECK(says("preemption timer") == ((number_at<std::uint32_t>(answer, timer_flags_at) & 1) != 0));
    }
}

void holds_what_kvm_gave(const Contents& contents, const Moment& moment) {
    REQUIRE(contents.states.size() == inputs.vcpus);
    for (unsigned vcpu = 0; vcpu < inputs.vcpus; ++vcpu) {
        CAPTURE(vcpu);
        const auto& found = contents.states[vcpu];
        const auto& answer = moment.states[vcpu];
        CHECK(found.vcpu == vcpu);
        CHECK(found.bytes == (is_carried(answer) ? as_qemu_carries(answer) : Bytes{}));
        says_what_is_lost(found, answer);
    }
}

std::span<const std::byte, 4096> page_of(const kvm::tool::FoundState& found) {
    if (found.bytes.size() < 128 + 4096)
        lab::give_up(std::format("the state has {} bytes", found.bytes.size()));
    return std::span{found.bytes}.subspan<128, 4096>();
}

/// What `info registers` has behind "NAME=": the `word`th number, hexadecimal.
std::uint64_t register_of(const Moment& moment, std::string_view name, unsigned word = 0) {
    std::string_view text = moment.registers;
    const auto at = text.find(std::format("{}=", name));
    if (at == std::string_view::npos)
        lab::give_up(std::format("QEMU does not tell {}", name));
    text.remove_prefix(at + name.size() + 1);
    for (;; --word) {
        text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
        std::uint64_t value = 0;
        text.remove_prefix(static_cast<std::size_t>(
            std::from_chars(text.data(), text.data() + text.size(), value, 16).ptr - text.data()));
        if (word == 0)
            return value;
    }
}

TEST_SUITE_BEGIN("linux");

TEST_CASE("QEMU: before L1 begins there is no nested state in the stream") {
    const auto contents = read(captured().plain.stream);
    CHECK(contents.format.starts_with("QEMU migration stream ("));
    holds_what_kvm_gave(contents, captured().plain);
    for (const auto& found : contents.states) {
        CHECK(found.bytes.empty());
        CHECK(found.notes.empty());
    }
}

TEST_CASE("QEMU: what is read out of a stream is byte for byte what KVM gave QEMU") {
    holds_what_kvm_gave(read(captured().nested.stream), captured().nested);
    CHECK(captured().memory.stream.size() > captured().nested.stream.size());
    holds_what_kvm_gave(read(captured().memory.stream), captured().memory); // and guest memory is in it
    std::println("note: streams of {} and {} bytes, without guest memory and with it",
                 captured().nested.stream.size(), captured().memory.stream.size());
}

TEST_CASE("QEMU: L2 is active in what is read, and its page is in L1's memory") {
    const auto contents = read(captured().nested.stream);
    const auto state = kvm::nested::NestedStateBuffer::parse(contents.states.at(l2_vcpu()).bytes);
    REQUIRE(state.has_value());
    CHECK((state->phase() == kvm::nested::Phase::svm_l2_active
           || state->phase() == kvm::nested::Phase::vmx_l2_active));
    const auto address = address_of_l2(state->bytes());
    CHECK(address != 0);
    CHECK(address < memory_size);
    CHECK(address % 4096 == 0);
    std::println("note: {}", kvm::nested::summary(*state).view());
    for (const auto& found : contents.states)
        for (const auto& note : found.notes)
            std::println("note: vCPU {}: {}", found.vcpu, note);
}

TEST_SUITE_END();

TEST_SUITE("svm") {
    TEST_CASE("QEMU: the controls that are read are those that L1 has in its memory") {
        const auto contents = read(captured().nested.stream);
        const auto& found = contents.states.at(l2_vcpu());
        const kvm::nested::Vmcb12Fields is{page_of(found)};
        const kvm::nested::Vmcb12Fields has{std::span{captured().nested.page}.first<4096>()};
        for (const std::string_view name :
             {"intercepts[0]", "intercepts[1]", "intercepts[2]", "intercepts[3]", "iopm_base_pa",
              "msrpm_base_pa", "tsc_offset", "asid", "misc_ctl", "nested_cr3"}) {
            CAPTURE(name);
            const auto* const field = kvm::nested::find_vmcb12_field(name);
            REQUIRE(field != nullptr);
            CHECK(is[*field] == has[*field]);
        }
        // Linux 7 drops those of instructions that the vCPU does not have by its CPUID: XSETBV here.
        CHECK((is["intercepts[4]"] & ~has["intercepts[4]"]) == 0);
        CHECK(is["nested_cr3"] != 0);
        CHECK(is["rax"] == address_of_l2(found.bytes)); // L1's, with which it executed VMRUN
    }
}

TEST_SUITE("vmx") {
    TEST_CASE("QEMU: the L2 that is read has the registers that QEMU tells") {
        const auto contents = read(captured().nested.stream);
        const kvm::nested::Vmcs12Fields is{page_of(contents.states.at(l2_vcpu()))};
        const auto& moment = captured().nested;
        CHECK(is["guest_rip"] == register_of(moment, "RIP"));
        CHECK(is["guest_rsp"] == register_of(moment, "RSP"));
        CHECK(is["guest_rflags"] == register_of(moment, "RFL"));
        CHECK(is["guest_cr3"] == register_of(moment, "CR3"));
        CHECK(is["guest_ia32_efer"] == register_of(moment, "EFER"));
        CHECK(is["guest_gdtr_base"] == register_of(moment, "GDT"));
        CHECK(is["guest_gdtr_limit"] == register_of(moment, "GDT", 1));
        CHECK(is["guest_tr_selector"] == register_of(moment, "TR "));
        CHECK(is["guest_tr_base"] == register_of(moment, "TR ", 1));
        CHECK(is["guest_cs_selector"] == register_of(moment, "CS "));
        CHECK(number_at<std::uint32_t>(moment.page, 0) == 0x11e57ed0); // L1's memory has a vmcs12 there
    }
}

TEST_SUITE_BEGIN("linux");

TEST_CASE("QEMU: it names neither a preemption timer's deadline nor a gpat among the fields of its stream") {
    const auto stream = captured().nested.stream;
    const std::string_view text{reinterpret_cast<const char*>(stream.data()), stream.size()};
    const bool svm = is_svm(captured().nested.states[l2_vcpu()]);
    CHECK(text.contains(svm ? "hdr.svm.vmcb_pa" : "hdr.vmx.vmxon_pa"));
    CHECK_FALSE(text.contains("preemption"));
    CHECK_FALSE(text.contains("gpat"));
}

// libvirt is not here: its header is made as libvirt makes it, around the stream of the QEMU that is.
TEST_CASE("QEMU: the same is read out of the stream in an image of libvirt") {
    const std::string_view magic = "LibvirtQemudSave", xml = "<domain type='kvm'/>";
    const auto stream = captured().nested.stream;
    std::vector<std::byte> image(92 + 65536 + xml.size() + 1);
    const std::array<std::uint32_t, 3> numbers{2, static_cast<std::uint32_t>(image.size() - 92), 1};
    std::memcpy(image.data(), magic.data(), magic.size());
    std::memcpy(image.data() + magic.size(), numbers.data(), sizeof numbers);
    std::memcpy(image.data() + 92, xml.data(), xml.size());
    image.insert(image.end(), stream.begin(), stream.end());
    const auto reading = kvm::tool::read_libvirt_image(image);
    REQUIRE(reading.has_value());
    CHECK(reading->format == "libvirt save image (raw), " + read(stream).format);
    holds_what_kvm_gave(*reading, captured().nested);
}

TEST_SUITE_END();

} // namespace

int main(int argc, char** argv) {
    if (argc >= 7)
        inputs = {.qemu = argv[1],
                  .machine = argv[2],
                  .kernel = argv[3],
                  .initrd = argv[4],
                  .overhear = argv[5],
                  .vcpus = static_cast<unsigned>(std::atoi(argv[6]))};
    if (inputs.vcpus < 1 || inputs.vcpus > 8) {
        std::println(stderr, "usage: {} QEMU MACHINE KERNEL INITRD OVERHEAR VCPUS [DOCTEST-OPTION...]",
                     argv[0]);
        return 2;
    }
    doctest::Context context{argc - 6, argv + 6};
    const bool vmx = ::access("/sys/module/kvm_intel", F_OK) == 0;
    context.addFilter("test-suite-exclude", vmx ? "svm" : "vmx");
    return context.run();
}
