// SPDX-License-Identifier: MIT
//
// States that travel between kernels, as files of kvm.vcpu. Two suites, for two machines:
//
//     lab-carry -ts=save        writes carried/RELEASE.WHAT.vcpu
//     lab-carry -ts=restore     goes on with every file in carried/, whichever kernel wrote it
//
// What a kernel does not take back is told in the matrix; the guest decides whether it matters.
#include <filesystem>

#include "support/lab.hpp"

#include "support/migration.hpp"

#include <sys/utsname.h>

namespace {

using lab::must;
using lab::Vm;
namespace files = std::filesystem;

constexpr const char* folder = "carried";
constexpr std::uint32_t saved_round = 3;

/// 6.1.0-56-cloud-amd64: what `uname -r` says.
std::string release() {
    utsname system{};
    ::uname(&system);
    return system.release;
}

/// One vCPU worth carrying, and how it has to go on.
struct Cargo {
    const char* name;
    kvm::vcpu::Requirements requirements;
    std::uint64_t flags;
};

/// KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT off: L2 has a PAT of its own, which only Linux 7.x can carry.
constexpr kvm::vcpu::Requirements separate_pat{.disabled_quirks =
                                                   kvm::nested::uapi::quirk_nested_svm_shared_pat};

constexpr std::array cargoes = std::to_array<Cargo>({
    {"l2-nested-paging", {}, guests::nested_paging},
    {"l2-shadow-paging", {}, 0},
    {"l2-separate-pat", separate_pat, guests::nested_paging},
});

std::optional<Vm> vm_for(const Cargo& cargo, bool bare) {
    auto machine = must(machine::Machine::create({.supported_cpuid = !bare}));
    auto prepared = kvm::vcpu::prepare(kvm::nested::SystemFd{machine.system_fd()},
                                       kvm::nested::VmFd{machine.vm_fd()}, cargo.requirements);
    if (!prepared) {
        CHECK(prepared.error().cause == kvm::vcpu::Errc::requirement_not_offered);
        return std::nullopt;
    }
    return Vm{std::move(machine), *prepared};
}

void write(const Cargo& cargo, const Vm& vm) {
    must(guests::start(vm.machine, lab::migrate_guest(),
                       {.flags = cargo.flags, .rounds = lab::migrate_rounds}));
    for (std::uint32_t round = 1; round <= saved_round; ++round)
        REQUIRE(must(vm.machine.run()) == machine::Exit{machine::PortOut{guests::port::progress, 4, round}});
    const auto state = must(vm.whole().save());
    const kvm::vcpu::Section memory{lab::memory_section, vm.machine.memory().first(lab::used_memory)};
    must(kvm::vcpu::write_file(std::format("{}/{}.{}.vcpu", folder, release(), cargo.name), state,
                               {&memory, 1}));
}

/// The file's cargo; its name is RELEASE.WHAT.vcpu.
const Cargo& cargo_of(const files::path& path) {
    const auto what = path.stem().extension().string().substr(1);
    const auto found = std::ranges::find_if(cargoes, [&](const Cargo& cargo) { return what == cargo.name; });
    if (found == cargoes.end())
        lab::give_up("nobody knows how " + path.string() + " has to go on");
    return *found;
}

/// The MSRs that were refused and have another value now: "0x48b 0x48c".
std::string refused(const kvm::vcpu::RestoreReport& report) {
    std::string list;
    for (const auto* msrs : {&report.refused_msrs, &report.derived_msrs})
        for (const auto& msr : *msrs)
            if (!msr.harmless())
                list += std::format("{}{:#x}", list.empty() ? "" : " ", msr.index);
    return list;
}

/// Whether the vCPU has other VMX capabilities than L1 has seen (Intel SDM Vol. 3, Appendix A).
bool capabilities_refused(const kvm::vcpu::RestoreReport& report) {
    return std::ranges::any_of(report.refused_msrs, [](const kvm::vcpu::RefusedMsr& msr) {
        return !msr.harmless() && msr.index >= 0x480 && msr.index <= 0x491;
    });
}

/// A row of the matrix for one file.
void row(const char* verdict, const files::path& path, const std::string& reason) {
    const auto name = path.stem();
    std::println("matrix: {} | 0 | {} | carried from {}: {} | {}", verdict, lab::is_vmx() ? "vmx" : "svm",
                 name.stem().string(), name.extension().string().substr(1), reason);
}

void go_on(const files::path& path) {
    const auto& cargo = cargo_of(path);
    const auto file = must(kvm::vcpu::read_file(path));
    const lab::Saved saved{lab::Bytes{file.bytes().begin(), file.bytes().end()}};
    CHECK(saved.state.requirements == cargo.requirements);
    CHECK(saved.state.nested.phase()
          == (lab::is_vmx() ? kvm::nested::Phase::vmx_l2_active : kvm::nested::Phase::svm_l2_active));

    const auto vm = vm_for(cargo, true);
    if (!vm) {
        row("refused", path, "prepare(): this kernel does not offer what the state requires");
        return;
    }
    lab::put_memory(*vm, saved.memory);
    const auto report = must(vm->whole().restore(saved.state));
    CHECK(vm->whole().nested().verify_nested_state(saved.state.nested));
    // Linux 7.x offers VMX capabilities that older kernels do not take: an L1 that looks at them notices.
    const std::string expected = capabilities_refused(report) ? "l1_capabilities" : "";
    CHECK(lab::what_is_wrong(lab::follow(vm->machine), saved_round + 1, lab::migrate_rounds) == expected);
    const auto list = refused(report);
    row(expected.empty() ? "passed" : "refused", path,
        (list.empty() ? "" : "MSRs not taken back: " + list)
            + (expected.empty() ? "" : "; L2 goes on, and L1 notices: " + expected));
}

} // namespace

TEST_SUITE_BEGIN("save");

TEST_CASE("vCPUs in the middle of L2 are written to files for the other kernels") {
    files::create_directory(folder);
    for (const auto& cargo : cargoes) {
        CAPTURE(cargo.name);
        if (const auto vm = vm_for(cargo, false))
            write(cargo, *vm);
        else
            std::println("note: {} cannot be saved here: this kernel does not offer it", cargo.name);
    }
}

TEST_SUITE_END();

TEST_SUITE_BEGIN("restore");

TEST_CASE("vCPUs that any kernel has saved go on here") {
    unsigned count = 0;
    for (const auto& entry : files::directory_iterator{folder}) {
        INFO("file: " << entry.path().string());
        go_on(entry.path());
        ++count;
    }
    std::println("count: {} files went on", count);
    CHECK(count >= 2);
}

TEST_SUITE_END();
