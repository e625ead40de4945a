// SPDX-License-Identifier: MIT
//
// A running nested guest moves from one virtual machine to another.
//
//     L0  this program and KVM
//     L1  a small hypervisor (guests/svm_migrate.S or vmx_migrate.S); it runs
//     L2  its guest, which counts and reports each step to us
//
// A first process runs L1 until L2 has counted half way, saves the vCPU in the middle of L2 and the guest's
// memory into a file, and ends. A second process has that file and nothing else. It makes a new virtual
// machine, restores, and runs on. L2 must continue with the next number, return to L1, and L1 must find every
// register of its own and of L2 as it was: it reports one bit for each, and all of them must be there.
//
//   migrate                    both, with a file that is removed afterwards
//   migrate source FILE        only the first half
//   migrate destination FILE   only the second half
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <expected>
#include <print>
#include <span>
#include <string>
#include <string_view>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>
#include <variant>
#include <vector>

#include "guests/guests.hpp"
#include "machine/machine.hpp"

import kvm.vcpu;

namespace {

/// Where the guest's memory is in the file. Sections of this range belong to the VMM that writes the file.
constexpr std::uint32_t memory_section = kvm::vcpu::callers_section | 1;

constexpr std::uint32_t rounds = 8;     ///< how far L2 counts
constexpr std::uint32_t save_after = 4; ///< where it is interrupted

/// Ends the program's half with what went wrong. One type for all the layers that can fail.
struct Failure {
    std::string text;
};
template <class T>
using Result = std::expected<T, Failure>;

Failure failure(const kvm::vcpu::Error& error) { // kvm.nested's are kvm.vcpu's, too
    return {std::string{error.message().view()}};
}
Failure failure(const machine::Failure& error) {
    return {error.message()};
}
Failure failure(const Failure& error) {
    return error;
}
std::unexpected<Failure> fail(std::string text) {
    return std::unexpected(Failure{std::move(text)});
}

/// The value, or out of the enclosing function with the failure.
#define TRY(NAME, EXPRESSION)                                                                                \
    auto NAME##_result = (EXPRESSION);                                                                       \
    if (!NAME##_result)                                                                                      \
        return std::unexpected(failure(NAME##_result.error()));                                              \
    auto& NAME = *NAME##_result
#define TRY_VOID(EXPRESSION)                                                                                 \
    if (auto result = (EXPRESSION); !result)                                                                 \
    return std::unexpected(failure(result.error()))

template <class... Arguments>
void say(std::format_string<Arguments...> text, Arguments&&... arguments) {
    std::println("  {}", std::format(text, std::forward<Arguments>(arguments)...));
    std::fflush(stdout);
}

/// Tells in words what a nested state holds; each phase has its own view, with what means something there.
void tell(const kvm::nested::NestedStateBuffer& nested) {
    say("nested state: {}", nested);
    nested.visit(kvm::nested::overloaded{
        [](const kvm::nested::svm::L2Active& l2) {
            say("  L2 is running; L1 gave VMRUN the vmcb12 at guest physical address {:#x}", l2.vmcb12_pa());
            say("  GIF is {}, VM entry is {}", l2.gif() ? "set" : "clear",
                l2.run_pending() ? "accepted and still to be completed" : "completed");
            say("  in it: L2's controls ({} bytes) and L1's registers, to which the next #VMEXIT returns ({} "
                "bytes)",
                l2.control_area().size(), l2.l1_save_area().size());
        },
        [](const kvm::nested::vmx::L2Active& l2) {
            say("  L2 is running; L1 gave VMXON {:#x} and VMPTRLD {:#x}", l2.vmxon_pa(),
                l2.vmcs12_pa().value_or(0));
            say("  VM entry is {}", l2.run_pending() ? "accepted and still to be completed" : "completed");
            say("  in it: the VMCS as KVM keeps it, with L2's registers and the L1 registers to which the "
                "next "
                "VM exit returns");
        },
        [](const auto&) { say("  L2 is not running"); },
    });
}

/// What all of this needs of KVM, in either half.
struct Kvm {
    kvm::nested::Host<kvm::nested::Any> host;
    kvm::vcpu::Prepared prepared;
};

Result<Kvm> prepare(const machine::Machine& vm, const kvm::vcpu::Requirements& requirements) {
    TRY(host, kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{vm.system_fd()}));
    TRY(prepared, kvm::vcpu::prepare(kvm::nested::SystemFd{vm.system_fd()}, kvm::nested::VmFd{vm.vm_fd()},
                                     requirements));
    utsname system{};
    uname(&system);
    say("host: Linux {}, {}, nested states of up to {} bytes", std::string_view{system.release},
        kvm::nested::name(host.vendor()), kvm::nested::capacity(host.vendor()));
    return Kvm{host, prepared};
}

kvm::vcpu::WholeVcpu whole_vcpu(const machine::Machine& vm, const Kvm& kvm) {
    return {kvm.host,
            kvm.prepared,
            kvm::nested::SystemFd{vm.system_fd()},
            kvm::nested::VmFd{vm.vm_fd()},
            kvm::nested::VcpuFd{vm.vcpu_fd()},
            &vm.run_page()};
}

/// The guests for this host.
guests::Vendor guest_vendor(const Kvm& kvm) {
    return kvm.host.vendor() == kvm::nested::VendorId::vmx ? guests::Vendor::vmx : guests::Vendor::svm;
}

const machine::PortOut* on_port(const machine::Exit& exit, std::uint16_t port) {
    const auto* out = std::get_if<machine::PortOut>(&exit);
    return out != nullptr && out->port == port ? out : nullptr;
}

/// Tells L2's progress from `exit` on, until L2 has reported `last` or stops reporting. Answers the exit that
/// it stopped at.
Result<machine::Exit> follow_l2(const machine::Machine& vm, machine::Exit exit, std::uint32_t last) {
    std::string counted;
    while (const auto* progress = on_port(exit, guests::port::progress)) {
        counted += std::format(" {}", progress->value);
        if (progress->value == last)
            break;
        TRY(next, vm.run());
        exit = next;
    }
    say("L2 counts:{}", counted.empty() ? " nothing" : counted);
    return exit;
}

Result<void> source(const char* path) {
    std::println("Source (process {})", getpid());
    TRY(vm, machine::Machine::create());
    TRY(kvm, prepare(vm, {}));
    const auto vendor = guest_vendor(kvm);
    TRY_VOID(guests::start(vm, guests::migrate(vendor), {.flags = guests::nested_paging, .rounds = rounds}));

    say("L1 starts: it {}", vendor == guests::Vendor::svm
                                ? "enables SVM, builds a vmcb12 with nested paging and executes VMRUN"
                                : "executes VMXON, writes a vmcs12 with EPT and executes VMLAUNCH");
    TRY(first, vm.run());
    TRY(exit, follow_l2(vm, first, save_after));
    if (on_port(exit, guests::port::progress) == nullptr)
        return fail(std::format("L2 did not count to {}: {}", save_after, machine::describe(exit)));

    say("saving the vCPU in the middle of L2");
    TRY(state, whole_vcpu(vm, kvm).save());
    tell(state.nested);
    say("around it: {} CPUID entries, {} feature MSRs, {} MSRs, {} bytes XSAVE, RIP {:#x} (L2's), CR3 {:#x} "
        "(L2's)",
        state.cpuid.size(), state.feature_msrs.size(), state.msrs.size(), state.xsave.size(), state.regs.rip,
        state.sregs.cr3);

    const kvm::vcpu::Section memory{memory_section, vm.memory()};
    TRY_VOID(kvm::vcpu::write_file(path, state, {&memory, 1}));
    say("written to {}, with {} KiB of guest memory", path, vm.memory().size() / 1024);
    return {};
}

Result<void> destination(const char* path) {
    std::println("Destination (process {})", getpid());
    TRY(file, kvm::vcpu::read_file(path));
    TRY(parsed, kvm::vcpu::parse_vcpu(file));
    const auto memory = std::ranges::find(parsed.sections, memory_section, &kvm::vcpu::Section::type);
    if (memory == parsed.sections.end())
        return fail("the file has no guest memory in it");
    say("read {}: {} bytes, a vCPU of {}", path, file.size(), kvm::nested::name(parsed.state.vendor));

    TRY(vm, machine::Machine::create({.memory_size = memory->bytes.size(), .supported_cpuid = false}));
    TRY(kvm, prepare(vm, parsed.state.requirements));
    std::memcpy(vm.memory().data(), memory->bytes.data(), memory->bytes.size());
    const auto vcpu = whole_vcpu(vm, kvm);

    say("restoring, in the order that works on every kernel:");
    std::string steps;
    for (const auto& step : kvm::vcpu::restore_order)
        steps += std::format(" {}", kvm::vcpu::name(step.step));
    say(" {}", steps);
    TRY(report, vcpu.restore(parsed.state));
    for (const auto& msr : report.refused_msrs)
        say("  KVM does not take MSR {:#x} back; it {}", msr.index,
            msr.harmless() ? "has the same value anyway"
                           : "keeps another value, which this guest does not use");
    TRY_VOID(vcpu.nested().verify_nested_state(parsed.state.nested));
    say("read back: the new vCPU holds an equivalent nested state");

    TRY(verdict, vcpu.first_run());
    if (verdict != kvm::vcpu::FirstRun::ran)
        return fail(std::format("the first KVM_RUN did not enter L2: {}", kvm::vcpu::name(verdict)));
    say("first KVM_RUN: entered");

    const auto first = vm.last_exit();
    const auto* continued = on_port(first, guests::port::progress);
    if (continued == nullptr || continued->value != save_after + 1)
        return fail(std::format("L2 did not continue with {}: {}", save_after + 1, machine::describe(first)));
    TRY(exit, follow_l2(vm, first, rounds + 1));
    const auto* counted = on_port(exit, guests::port::rounds);
    if (counted == nullptr || counted->value != rounds)
        return fail(std::format("L1 did not report {} rounds: {}", rounds, machine::describe(exit)));
    say("L2 has returned to L1, and L1 says that L2 counted to {}", counted->value);

    TRY(last, vm.run());
    const auto* checks = on_port(last, guests::port::checks);
    if (checks == nullptr)
        return fail(std::format("L1 did not report its checks: {}", machine::describe(last)));
    if (checks->value != guests::all_checks)
        return fail(std::format("L1 and L2 miss: {}", guests::missing_checks(checks->value)));
    say("L1 and L2 found all of these as they were ({:#x}):", checks->value);
    std::string names;
    for (const auto& check : guests::named_checks)
        names += std::format(" {}", check.name);
    say(" {}", names);
    return {};
}

/// One half, in this process.
int half(Result<void> result) {
    if (result)
        return 0;
    std::println(stderr, "migrate: {}", result.error().text);
    return 1;
}

/// One half, in a process of its own. Answers its exit status.
int in_own_process(const char* which, const char* path) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "migrate", which, path, nullptr);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
        return 1;
    return WEXITSTATUS(status);
}

int both() {
    std::println("A nested guest moves from one virtual machine to another while it runs.");
    const auto path = std::format("/tmp/migrate.{}.vcpu", getpid());
    int status = in_own_process("source", path.c_str());
    if (status == 0) {
        say("this process has ended, and with it its virtual machine");
        status = in_own_process("destination", path.c_str());
    }
    unlink(path.c_str());
    std::println("{}", status == 0 ? "Moved: the nested guest went on as if nothing had happened."
                                   : "Not moved: see above.");
    return status;
}

int usage() {
    std::println(stderr, "usage: migrate [source FILE | destination FILE]");
    return 2;
}

} // namespace

int main(int argc, char** argv) {
    const std::string_view which = argc > 1 ? argv[1] : "";
    if (argc == 1)
        return both();
    if (argc == 3 && which == "source")
        return half(source(argv[2]));
    if (argc == 3 && which == "destination")
        return half(destination(argv[2]));
    return usage();
}
