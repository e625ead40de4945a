// SPDX-License-Identifier: MIT
//
// The program as a person or a script meets it: what it prints where, and how it ends.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <filesystem>
#include <format>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

import unit.support;
import kvm.vcpu;

namespace {

using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

struct Result {
    int status;
    std::string text; ///< standard output, then standard error
};

/// Runs a shell's command in which $K is the program.
Result shell(const std::string& command) {
    const char* program = std::getenv("KVM_NESTED_PROGRAM"); // ctest sets it
    REQUIRE(program != nullptr);
    ::setenv("K", program, 1);
    ::setenv("NO_COLOR", "1", 1);
    auto* pipe = ::popen(("{ " + command + "; } 2>&1").c_str(), "r");
    REQUIRE(pipe != nullptr);
    Result result{};
    char buffer[4096];
    for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
        result.text.append(buffer, got);
    const int status = ::pclose(pipe);
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
}

/// A folder that vanishes, and is the current one as long as it is there.
class Folder {
  public:
    Folder()
        : before_{std::filesystem::current_path()},
          path_{std::filesystem::temp_directory_path() / "unit-tool.XXXXXX"} {
        REQUIRE(::mkdtemp(path_.data()) != nullptr);
        std::filesystem::current_path(path_);
    }
    ~Folder() {
        std::filesystem::current_path(before_);
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

  private:
    std::filesystem::path before_;
    std::string path_;
};

void write(const std::string& path, const Bytes& bytes) {
    std::ofstream{path, std::ios::binary}.write(reinterpret_cast<const char*>(bytes.data()),
                                                static_cast<std::streamsize>(bytes.size()));
}

Bytes svm_l2(std::uint64_t rip = 0x1234) {
    auto bytes = SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224}.bytes();
    unit::put(bytes, 128 + 0x578, rip);
    return bytes;
}

TEST_CASE("show begins with what it is, whatever it is") {
    const Folder folder;
    write("a", svm_l2());
    write("b", VmxBlob{.vmxon_pa = 0x1000});
    const auto both = shell("$K show --brief a b -< a");
    CHECK(both.status == 0);
    CHECK(
        both.text.starts_with("a: vCPU 0, raw bytes of KVM_GET_NESTED_STATE\nSVM, L2 active, 4224 bytes\n"));
    CHECK(both.text.contains(
        "\n\nb: vCPU 0, raw bytes of KVM_GET_NESTED_STATE\nVMX, VMXON, no current VMCS, 128 bytes\n"));
    CHECK(both.text.contains("\n\nstandard input: vCPU 0, "));
    CHECK(shell("$K show a").text.contains("+0x578   rip                            0x1234\n"));
    CHECK(shell("$K show --field rip a").text.contains("value                0x1234\n"));
}

TEST_CASE("show goes on with the next file, and its status tells") {
    const Folder folder;
    write("a", svm_l2());
    const auto some = shell("$K show --brief nothing a");
    CHECK(some.status == 2);
    CHECK(some.text.contains("kvm-nested: nothing: No such file or directory\n"));
    CHECK(some.text.contains("SVM, L2 active"));
    CHECK(shell("$K show .").text.contains("Is a directory"));
    CHECK(shell("$K show --field no_such_field a").status == 2);
    CHECK(shell("$K show --vcpu 7 a").text
          == "kvm-nested: a: there is no vCPU 7 in it\n  next: it has these: 0\n");
}

TEST_CASE("a state that no vCPU can be in is shown, and is trouble") {
    const Folder folder;
    auto bytes = svm_l2();
    unit::put(bytes, 0, std::uint16_t{0x103f});
    write("a", bytes);
    const auto shown = shell("$K show a");
    CHECK(shown.status == 2);
    CHECK(shown.text.contains("no vCPU can be in this state"));
    CHECK(shown.text.contains("; flags (offset 0)\n"));
    CHECK(shown.text.contains("vmcb_pa"));
}

TEST_CASE("redacting leaves no address and no register") {
    const Folder folder;
    write("a", svm_l2(0x123456789abc));
    CHECK(shell("$K show --all a").text.contains("123456789abc"));
    CHECK(!shell("$K show --all --redact a").text.contains("123456789abc"));
    CHECK(!shell("$K show --all --json --redact a").text.contains("123456789abc"));
    write("b", svm_l2(0x1111222233));
    CHECK(!shell("$K diff --redact a b").text.contains("1111222233"));
}

TEST_CASE("diff ends as diff does") {
    const Folder folder;
    write("a", svm_l2(0x1000));
    write("b", svm_l2(0x2000));
    write("c", SvmBlob{});
    CHECK(shell("$K diff a a").status == 0);
    CHECK(shell("$K diff a a").text.empty());
    const auto different = shell("$K diff a b");
    CHECK(different.status == 1);
    CHECK(different.text == "VMCB rip: 0x1000 -> 0x2000  (L1's)\n");
    CHECK(shell("$K diff --quiet a b").text.empty());
    CHECK(shell("$K diff --quiet a b").status == 1);
    CHECK(shell("$K diff a c").status == 1);
    CHECK(shell("$K diff a nothing").status == 2);
    CHECK(shell("$K diff a").status == 2);
}

TEST_CASE("extract and make write a file that only its owner reads, or nothing") {
    const Folder folder;
    auto bytes = svm_l2();
    write("raw", bytes);
    bytes.resize(8320);
    write("slack", bytes);
    CHECK(shell("umask 0; $K extract -o cut slack && cmp cut raw").status == 0);
    struct stat status{};
    REQUIRE(::stat("cut", &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
    CHECK(shell("$K show --json raw > json && $K make -o made json && $K diff made raw").status == 0);
    CHECK(shell("$K show --json raw | $K make -o - - | $K diff - raw").status == 0);
    CHECK(shell("$K make -o other raw").status == 2);
    CHECK(shell("echo '{' | $K make -o other -").status == 2);
    CHECK(!std::filesystem::exists("other"));
    CHECK(shell("$K extract -o nowhere/other raw").text.contains("nothing was written"));
    CHECK(shell("mkfifo fifo; { $K extract -o fifo raw & }; cmp fifo raw && test -p fifo").status == 0);
    CHECK(shell("ln -s made link && $K extract -o link raw && test -L link && cmp made raw").status == 0);
    CHECK(shell("{ echo before; $K extract -o /dev/stdout raw; } | tail -c 4224 | cmp - raw").status == 0);
}

TEST_CASE("a state that no vCPU can be in is extracted only where somebody asks for it, and pages says so") {
    const Folder folder;
    auto bytes = svm_l2();
    unit::put(bytes, 0, std::uint16_t{0x103f});
    write("a", bytes);
    const auto extracted = shell("$K extract -o out a");
    CHECK(extracted.status == 2);
    CHECK(extracted.text.contains("no vCPU can be in this state"));
    CHECK(extracted.text.contains("--as-is"));
    CHECK(!std::filesystem::exists("out"));
    CHECK(shell("$K extract --as-is -o out a && cmp out a").status == 0);
    const auto listed = shell("$K pages a");
    CHECK(listed.status == 2);
    CHECK(listed.text.contains("no vCPU can be in this state"));
    CHECK(!listed.text.contains("no guest memory is referred to"));
}

TEST_CASE("the number of a vCPU is decimal") {
    const Folder folder;
    write("a", svm_l2());
    CHECK(shell("$K show --brief --vcpu 00 a").status == 0);
    CHECK(shell("$K show --vcpu 010 a").text.contains("there is no vCPU 10 in it"));
    CHECK(shell("$K show --vcpu 08 a").text.contains("there is no vCPU 8 in it"));
    for (const auto* wrong : {"0x1", "-1", "1x", "''", "99999999999"}) {
        const auto said = shell(std::format("$K show --vcpu {} a", wrong));
        CHECK(said.status == 2);
        CHECK(said.text.contains("is no number of a vCPU"));
    }
}

TEST_CASE("nobody has to listen to what is said on standard error") {
    const Folder folder;
    write("a", svm_l2());
    for (const auto* nobody : {"2>&-", "2>/dev/full"}) {
        CAPTURE(nobody);
        CHECK(shell(std::format("$K show nothing {}", nobody)).status == 2);
        CHECK(shell(std::format("$K extract -o out a {} && cmp out a && rm out", nobody)).status == 0);
    }
}

TEST_CASE("pages lists what the state refers to") {
    const Folder folder;
    write("a", svm_l2());
    write("b", SvmBlob{});
    const auto listed = shell("$K pages a b");
    CHECK(listed.status == 0);
    CHECK(listed.text.contains("0x0000000000003000    4096      1  written           vmcb12\n"));
    CHECK(listed.text.contains("no guest memory is referred to"));
}

TEST_CASE("no argument is wrong without a word on what is right") {
    CHECK(shell("$K --version").text.starts_with("kvm-nested "));
    CHECK(shell("$K --help").status == 0);
    for (const auto* command :
         {"show", "diff", "pages", "extract", "make", "check", "explain", "rules", "probe"}) {
        const auto help = shell(std::format("$K {} --help", command));
        CHECK(help.status == 0);
        CHECK(help.text.contains("Example:\n  kvm-nested "));
    }
    for (const auto* wrong : {"", "show", "show --nonsense x", "nonsense", "extract x"}) {
        const auto said = shell(std::format("$K {}", wrong));
        CHECK(said.status == 2);
        CHECK(said.text.contains("help"));
    }
}

TEST_CASE("colour is for terminals, and for who wants it there") {
    const Folder folder;
    write("a", svm_l2());
    const auto on_terminal = [](const char* settings) {
        return shell(std::format("{} script -qec '$K show --brief a' /dev/null", settings)).text;
    };
    CHECK(on_terminal("NO_COLOR= TERM=xterm").contains("\x1b[1mSVM, L2 active, 4224 bytes\x1b[0m"));
    CHECK(!on_terminal("NO_COLOR=1 TERM=xterm").contains("\x1b"));
    CHECK(!on_terminal("NO_COLOR= TERM=dumb").contains("\x1b"));
    CHECK(!shell("NO_COLOR= TERM=xterm $K show --brief a").text.contains("\x1b"));
}

TEST_CASE("a reader that goes away is no trouble, a full disk is") {
    const Folder folder;
    write("a", svm_l2());
    CHECK(shell("trap '' PIPE; { $K show --all a; echo status $? >&2; } | true").text == "status 0\n");
    CHECK(shell("$K show a > /dev/full").text.contains("No space left on device"));
    CHECK(shell("$K show a > /dev/full").status == 2);
}

/// The commands in the README's ```console blocks, each with what stands below it.
std::vector<std::pair<std::string, std::string>> screens_of(const std::string& path) {
    std::vector<std::pair<std::string, std::string>> screens;
    std::ifstream file{path};
    bool inside = false;
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("```"))
            inside = line == "```console";
        else if (inside && line.starts_with("$ kvm-nested "))
            screens.emplace_back("$K" + line.substr(12), "");
        else if (inside && !screens.empty())
            screens.back().second += line + "\n";
    }
    return screens;
}

TEST_CASE("the screens in the README are the program's") {
    const char* source = std::getenv("KVM_NESTED_SOURCE"); // ctest sets it
    REQUIRE(source != nullptr);
    const auto screens = screens_of(std::format("{}/README.md", source));
    CHECK(screens.size() >= 4);
    for (const auto& [command, screen] : screens) {
        CAPTURE(command);
        CHECK(shell(std::format("cd '{}' && {}", source, command)).text == screen);
    }
}

void write_text(const std::string& path, const std::string& text) {
    std::ofstream{path} << text;
}

/// A host that takes svm_l2(), and one that takes the states of vmx_states().
constexpr auto svm_host =
    R"({"kvm.nested.destination": 1, "vendor": "SVM", "kernel": "6.12.118", "nested": true})";

TEST_CASE("rules is the catalogue, and all about one of them") {
    const auto all = shell("$K rules");
    CHECK(all.status == 0);
    CHECK(all.text.starts_with("VMX, in the order in which KVM asks\n  X1 "));
    CHECK(all.text.contains("\nSVM, in the order in which KVM asks\n  S1 "));
    const auto one = shell("$K rules v6");
    CHECK(one.status == 0);
    CHECK(one.text.starts_with("V6 (VMX): "));
    for (const auto* row : {"EINVAL", "hdr.vmx.vmxon_pa", "the guest's MAXPHYADDR", "kernels", "manual"})
        CHECK(one.text.contains(row));
    const auto none = shell("$K rules V6 V999");
    CHECK(none.status == 2);
    CHECK(none.text.contains("V999: there is no such rule\n  next: "));
    CHECK(none.text.contains("V6 (VMX)"));
}

TEST_CASE("check names the rule, the field and what KVM will do") {
    const Folder folder;
    write_text("host", svm_host);
    write("vmx", VmxBlob{.vmxon_pa = 0x1001});
    write("svm", svm_l2());
    const auto other = shell("$K check --on host vmx");
    CHECK(other.status == 1);
    CHECK(other.text.contains("  fails     S1: "));
    CHECK(other.text.contains(
        "verdict   KVM refuses it at S1: EINVAL; the vCPU's nested state is unchanged\n"));
    CHECK(other.text.ends_with("1 state on host: 1 fail, 0 may fail, 0 taken\n"));
    const auto unaligned = shell("$K check --on host --quiet vmx");
    CHECK(unaligned.status == 1);
    CHECK(unaligned.text.empty());
    write_text("vmxhost", R"({"kvm.nested.destination": 1, "vendor": "VMX", "maxphyaddr": 40, "nested": true,
                              "kernel": "7.3.4", "guest": {"vmx": true}})");
    CHECK(shell("$K check --on vmxhost vmx").text.contains("hdr.vmx.vmxon_pa is 0x1001"));
    CHECK(shell("$K check --on host nothing").status == 2);
}

TEST_CASE("check names a control that the host lacks as QEMU does, and none where controls do not fit") {
    const Folder folder;
    Bytes lacking = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    auto unfit = lacking;
    const auto set = [](Bytes& state, std::string_view name, std::uint32_t value) {
        unit::put(state, 128 + kvm::nested::find_vmcs12_field(name)->offset, value);
    };
    set(lacking, "cpu_based_vm_exec_control", 0x8c00'6172); // monitor trap flag
    set(unfit, "pin_based_vm_exec_control", 0x16);
    set(unfit, "cpu_based_vm_exec_control", 0x8440'6172); // NMI-window exiting without virtual NMIs
    write("lacking", lacking);
    write("unfit", unfit);
    write_text("host", R"({"kvm.nested.destination": 1, "vendor": "VMX", "kernel": "7.3.4", "maxphyaddr": 40,
                           "vmx": {"0x48e": "0xf7f9fffe04006172"}})");
    const auto by_name = shell("$K check --on host lacking");
    CHECK(by_name.text.contains("  fails     C2: "));
    CHECK(by_name.text.contains("(QEMU: -cpu ...,-vmx-mtf)"));
    const auto by_rule = shell("$K check --on host unfit");
    CHECK(by_rule.text.contains("  fails     C12: "));
    CHECK(!by_rule.text.contains("(QEMU: -cpu"));
}

TEST_CASE("check without a host says once what is not known") {
    const Folder folder;
    write_text("nothing.json", R"({"kvm.nested.destination": 1})");
    write("svm", svm_l2());
    const auto said = shell("$K check --on nothing.json svm");
    CHECK(said.status == 1);
    CHECK(said.text.contains(" rules, because this is not known: "));
    CHECK(shell("$K check --all --on nothing.json svm").text.contains("it may fail, because "));
}

TEST_CASE("check walks folders, and goes on after trouble") {
    const Folder folder;
    write_text("host", svm_host);
    std::filesystem::create_directories("saved/deep");
    std::filesystem::create_directories("empty");
    for (int i = 0; i < 20; ++i)
        write(std::format("saved/deep/{}", i), SvmBlob{.flags = 0x100, .vmcb12_pa = 0, .size = 128});
    const auto all = shell("$K check --on host saved");
    CHECK(all.text.contains("20 states on host: "));
    write_text("saved/notes.txt", "hello");
    const auto some = shell("$K check --on host saved");
    CHECK(some.status == 2);
    CHECK(some.text.contains("saved/notes.txt"));
    CHECK(some.text.contains("20 states on host: "));
    CHECK(shell("$K check --on host empty").text.contains("there is no file in the folder"));
}

TEST_CASE("a record that cannot be used is told by its place, and nothing is checked") {
    const Folder folder;
    write("svm", svm_l2());
    const auto on = [](const std::string& record) {
        write_text("record", record);
        return shell("$K check --on record svm");
    };
    for (const auto& [record, says] : std::initializer_list<std::pair<std::string, std::string>>{
             {R"({"kvm.nested.destination": 2, "new": []})", "version 1 is: kvm.nested.destination"},
             {R"({"kvm.nested.destination": 1, "vendor": "Intel"})", "vendor"},
             {R"({"kvm.nested.destination": 1, "guest": {"x": true}})", "guest/x"},
             {R"({"vendor": "SVM"})", "this is missing: kvm.nested.destination"},
             {"nonsense", "offset 1: this is not JSON"},
             {"", "this is not JSON"}}) {
        CAPTURE(record);
        const auto said = on(record);
        CHECK(said.status == 2);
        CHECK(said.text.starts_with("kvm-nested: record: "));
        CHECK(said.text.contains(says));
        CHECK(said.text.contains("\n  next: "));
        CHECK(!said.text.contains("verdict"));
    }
    CHECK(shell("$K check --on nothing svm").text.contains("nothing: No such file or directory"));
    CHECK(shell("$K check --on /dev/zero svm").text.contains("too large"));
    CHECK(shell("$K check --on . svm").status == 2);
}

TEST_CASE("a whole vCPU brings its registers, CPUID and MSRs") {
    const char* source = std::getenv("KVM_NESTED_SOURCE");
    REQUIRE(source != nullptr);
    const Folder folder;
    write_text("host", svm_host);
    const auto vcpu = std::format("{}/tests/corpus/vcpus/svm-l2-7.vcpu", source);
    const auto checked = shell(std::format("$K check --on host {}", vcpu));
    CHECK(checked.status < 2);
    CHECK(!checked.text.contains("the vCPU's control registers"));
    CHECK(!checked.text.contains("the guest's CPUID"));
}

/// A vCPU of VMX with L2 active: its controls are those of the corpus, and with "enable VM functions" in what
/// it was told that it may use.
kvm::vcpu::VcpuState vmx_vcpu(std::uint64_t secondary_controls) {
    const char* source = std::getenv("KVM_NESTED_SOURCE");
    REQUIRE(source != nullptr);
    std::ifstream file{std::format("{}/tests/corpus/states/vmx-l2-7.state", source), std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const auto nested = kvm::nested::NestedStateBuffer::parse(std::as_bytes(std::span{text}));
    REQUIRE(nested.has_value());
    kvm::vcpu::VcpuState vcpu;
    vcpu.vendor = kvm::nested::VendorId::vmx;
    vcpu.nested = *nested;
    vcpu.xsave.resize(4096);
    vcpu.cpuid.emplace_back();
    vcpu.cpuid.back().function = 1;
    vcpu.cpuid.back().ecx = 1U << 5;
    vcpu.sregs.cr0 = 0x80000031;
    vcpu.sregs.cr4 = 0x2620;
    vcpu.sregs.efer = 0x500;
    vcpu.feature_msrs.push_back({.index = 0x48b, .reserved = 0, .value = secondary_controls});
    return vcpu;
}
constexpr auto vmx_host = R"({"kvm.nested.destination": 1, "vendor": "VMX", "kernel": "7.3.4", "nested": true,
    "vmx": {"0x48b": "0x300000000", "0x48f": "0x7fffff00036dfb"}})";

TEST_CASE("a capability MSR that a host refuses is told by name, and whether the state uses it") {
    const Folder folder;
    write_text("host", vmx_host);
    std::ofstream out{"saved.vcpu", std::ios::binary};
    const auto written =
        kvm::vcpu::encode(vmx_vcpu(0x200300000000),
                          [&](std::span<const std::byte> bytes) -> std::expected<void, kvm::vcpu::Error> {
                              out.write(reinterpret_cast<const char*>(bytes.data()),
                                        static_cast<std::streamsize>(bytes.size()));
                              return {};
                          });
    REQUIRE(written.has_value());
    out.close();
    const auto said = shell("$K check --on host saved.vcpu");
    CHECK(said.status == 1);
    CHECK(
        said.text.contains("  fails     MSR 0x48b IA32_VMX_PROCBASED_CTLS2: the vCPU had 0x200300000000, and "
                           "KVM_SET_MSRS refuses it where 0x300000000 is offered\n"));
    CHECK(said.text.contains("enable VM functions may be 1 (vmx-vmfunc): this state does not use it\n"));
    CHECK(said.text.contains("QEMU: -cpu ...,-vmx-vmfunc"));
    CHECK(said.text.contains("verdict   KVM refuses a capability MSR before the nested state is set\n"));
    // The host may have more than the vCPU was told.
    write_text("more", R"({"kvm.nested.destination": 1, "vmx": {"0x48b": "0x600300000000"}})");
    CHECK(!shell("$K check --on more saved.vcpu").text.contains("refuses it where"));
}

TEST_CASE("the MSRs of a Cloud Hypervisor snapshot take part; a refused one is silent there") {
    const Folder folder;
    write_text("host", vmx_host);
    const auto numbers = [](std::span<const std::byte> bytes) {
        std::string text = "[";
        for (const auto byte : bytes)
            text += std::format("{}{}", text.size() > 1 ? "," : "", std::to_integer<unsigned>(byte));
        return text + "]";
    };
    const auto vcpu = vmx_vcpu(0);
    const auto snapshot = [&](std::string_view entries, std::string_view msrs) {
        const auto state = std::format(
            R"({{\"Kvm\":{{\"cpuid\":{},\"msrs\":{},\"regs\":{},\"sregs\":{},\"vcpu_events\":{},\"nested_state\":{}}}}})",
            entries, msrs, numbers(Bytes(144)), numbers(std::as_bytes(std::span{&vcpu.sregs, 1}).first(312)),
            numbers(Bytes(64)), numbers(vcpu.nested.bytes()));
        write_text("state.json",
                   R"({"snapshots":{"cpu-manager":{"snapshots":{"0":{"snapshot_data":{"state":")" + state
                       + R"("}}}}}})");
        return shell("$K check --on host state.json");
    };
    constexpr auto named =
        R"([{\"function\":1,\"index\":0,\"flags\":0,\"eax\":0,\"ebx\":0,\"ecx\":32,\"edx\":0}])";
    constexpr auto bytes =
        "[[1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,32,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]]";
    for (const auto& [entries, msrs] : std::initializer_list<std::pair<const char*, const char*>>{
             {named, R"([{\"index\":1163,\"data\":35197256990720}])"},
             {bytes, "[[139,4,0,0,0,0,0,0,0,0,0,0,3,32,0,0]]"}}) {
        const auto said = snapshot(entries, msrs);
        CAPTURE(said.text);
        CHECK(said.text.contains(
            "  silent    MSR 0x48b IA32_VMX_PROCBASED_CTLS2: the vCPU had 0x200300000000"));
        CHECK(said.text.contains("the restore goes on, and L1 finds other capabilities"));
        CHECK(!said.text.contains("the guest's CPUID,"));
        CHECK(!said.text.contains("V5"));
    }
    // What is not as it should be is as if it were not there.
    for (const auto* msrs : {"7", "[7]", "[{}]", R"([{\"index\":1163}])", "[[1,2]]"})
        CHECK(snapshot(named, msrs).status == 1);
}

TEST_CASE("explain finds the rule of an errno") {
    const Folder folder;
    write_text("host", svm_host);
    write("vmx", VmxBlob{.vmxon_pa = 0x1000});
    write("svm", svm_l2());
    const auto known = shell("$K explain --errno EINVAL --on host vmx");
    CHECK(known.status == 0);
    CHECK(known.text.contains("KVM stopped at S1: "));
    CHECK(known.text.contains("verdict   S1 is the reason\n"));
    CHECK(shell("$K explain --errno 22 --on host vmx").text.contains("S1 is the reason"));
    const auto unknown = shell("$K explain --errno EIO --on host vmx");
    CHECK(unknown.status == 1);
    CHECK(unknown.text.contains("no rule that is known explains it"));
    CHECK(shell("$K explain --result 2 --on host svm").status == 1);
    CHECK(shell("$K explain --errno ENONSENSE svm").status == 2);
    CHECK(shell("$K explain --errno EINVAL").status == 2);
    CHECK(shell("$K explain --errno EINVAL nothing").status == 2);
}

TEST_CASE("explain decodes an MSR, and says what a host refuses of it") {
    const auto known = shell("$K explain 0x48f 0xffffff00036dfb");
    CHECK(known.status == 0);
    CHECK(known.text.starts_with("0x48f IA32_VMX_TRUE_EXIT_CTLS 0x00ffffff00036dfb "));
    CHECK(known.text.contains("vmx-exit-load-efer"));
    CHECK(shell("$K explain 1167").text.contains("IA32_VMX_TRUE_EXIT_CTLS"));
    CHECK(shell("$K explain 0x10 0").status == 0);
    CHECK(shell("$K explain 0xdead0000").status == 1);
    CHECK(shell("$K explain 0xdeadbeefdead").status == 1);
    CHECK(shell("$K explain 0x48f x").status == 2);
    CHECK(shell("$K explain 0x481 0x7f00000016").text.contains("nobody can set it"));

    const Folder folder;
    write_text("host", R"({"kvm.nested.destination": 1, "vendor": "VMX", "vmx": {"0x48b": "0x200000000"}})");
    const auto refused = shell("$K explain --on host 0x48b 0x300000000");
    CHECK(refused.text.contains("its KVM refuses this value"));
    CHECK(refused.text.contains("QEMU: -cpu ...,-vmx-apicv-xapic"));
    CHECK(refused.text.contains("vmx-apicv-xapic"));
    CHECK(!refused.text.contains("refused   enable EPT"));
    CHECK(shell("$K explain --on host 0x48b 0x200000000").text.contains("takes this value"));
}

TEST_CASE("explain knows a message with anything around it") {
    const Folder folder;
    const auto of = [](const std::string& text) {
        write_text("log", text);
        return shell("$K explain < log");
    };
    const auto msr =
        of("2026-01-01 12:00:00+0000: starting up\r\nqemu-kvm: error: failed to set MSR 0x48e to "
           "0xfff9fffe04006172\r\nqemu: load of migration failed: Invalid argument\r\n");
    CHECK(msr.status == 0);
    CHECK(msr.text.contains("IA32_VMX_TRUE_PROCBASED_CTLS"));
    CHECK(msr.text.contains("load of migration failed: Invalid argument (QEMU)"));
    CHECK(msr.text.ends_with("2 messages are known here\n"));
    CHECK(msr.text.contains("  next      "));
    const auto feature =
        of("warning: host doesn't support requested feature: MSR(48BH).vmx-rdseed-exit [bit 16]\n");
    CHECK(feature.text.contains("vmx-rdseed-exit: RDSEED exiting of IA32_VMX_PROCBASED_CTLS2 (0x48b)"));
    CHECK(of("host doesn't support requested feature: MSR(48BH).vmx-rdseed-exit [bit 17]")
              .text.contains("another place"));
    CHECK(of("host doesn't support requested feature: CPUID[eax=8000000Ah].EDX.npt [bit 0]")
              .text.contains("npt: "));
    CHECK(of("Host CPU does not provide required features: svm")
              .text.contains("svm: CPUID.80000001H:ECX[bit 2]"));
    CHECK(of("Host CPU does not provide required features: warp")
              .text.contains("warp: no feature of nested virtualization"));
    CHECK(shell("$K explain 'error: failed to set MSR 0x10 to 0x0'").text.contains("not one of nested"));
    CHECK(shell("$K explain failed to set MSR 0x48f to 0xffffff00036dfb").status == 0);
    CHECK(shell("$K explain log").status == 0);
    for (const auto* text :
         {"kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.",
          "qemu: Failed to put registers after init: Invalid argument",
          "error while loading state for instance 0x0 of device 'cpu'",
          "Failed to set nested state: Invalid argument",
          "guest CPU doesn't match specification: missing features: vmx-ept-execonly,vmx-vmfunc",
          "VmRestore(Could not set the vCPU state SetSpecialRegs(Invalid argument (os error 22)))",
          "WARN:hypervisor/src/kvm/mod.rs:2074 -- Detected faulty MSR 0x48b while setting MSRs",
          "Failed to set all KVM MSRs for this vCPU. Only a partial write was done.",
          "Error: Invalid argument (os error 22)"}) {
        CAPTURE(text);
        CHECK(of(text).status == 0);
        CHECK(of(text).text.ends_with("1 message is known here\n"));
    }
}

TEST_CASE("what only resembles a message is not taken for it") {
    const Folder folder;
    for (const auto* text : {"",
                             "\n\n",
                             "failed to set MSR",
                             "failed to set MSR 0x48f",
                             "failed to set MSR 0x48f to",
                             "failed to set MSRs",
                             "failed to set MSR 0x48g to 0x0",
                             "failed to set MSR 0x48f to 0x0g",
                             "xfailed to set MSR 0x48f to 0x0",
                             "failed to set\nMSR 0x48f to 0x0",
                             "failed to set MSR 0xfffffffffffffffff to 0x0",
                             "load of migration failed: Input/output error",
                             "load of migration failed",
                             "error while loading state for instance 0x0 of device 'cpuX'",
                             "error while loading state for instance 0x0 of device '0000:00:02.0/virtio-net'",
                             "host doesn't support requested feature:",
                             "Failed to put registers after init: No such file or directory",
                             "Failed to set nested stateful",
                             "something else entirely",
                             "EINVAL"}) {
        CAPTURE(text);
        write_text("log", text);
        const auto said = shell("$K explain - < log");
        CHECK(said.status == 1);
        CHECK(said.text.contains("nothing is guessed"));
    }
    CHECK(shell("$K explain < /dev/zero").status == 2);
    const auto evil = shell("printf 'failed to set MSR 0x48f to 0x0 \\033[31m\\007' | $K explain");
    CHECK(evil.status == 0);
    CHECK(!evil.text.contains('\x1b'));
    CHECK(!evil.text.contains('\x07'));
}

TEST_CASE("probe says why there is nothing") {
    const auto nothing = shell("$K probe --device /nothing");
    CHECK(nothing.status == 2);
    CHECK(nothing.text.contains("/nothing: No such file or directory\n  next: load kvm_intel or kvm_amd"));
    CHECK(shell("$K probe --device /dev/null").status == 2);
    for (const auto* how : {"--json", "--against /dev/null"}) {
        CHECK(shell(std::format("$K probe --device /nothing {}", how)).status == 2);
        CHECK(shell(std::format("$K probe --device /dev/null {}", how)).status == 2);
    }
    CHECK(shell("$K probe --json --against x").status == 2);
    // Where there is a KVM, of whatever kind.
    const Folder folder;
    write("svm", svm_l2());
    if (shell("$K probe --json > host").status != 2) {
        CHECK(shell("$K check --on host svm").text.contains("1 state on host: "));
        CHECK(shell("$K probe --against host").text.ends_with("this host has all that is known of there\n"));
    }
}

} // namespace
