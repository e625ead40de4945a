// SPDX-License-Identifier: MIT
//
// The program that runs in the stock Linux (L1): a small virtual machine monitor on L1's own /dev/kvm. It
// runs L2 (checksum.S), passes on what L2 reports, and looks at L2's memory from outside now and then, so
// that L1 has work of its own between L2's.
//
//   linux-l1-guest ROUNDS        exit status 0 if L2 came to its end
#include "checksum.hpp"

#include <machine/machine.hpp>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <format>
#include <print>
#include <string>
#include <variant>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

extern "C" {
extern const std::byte linux_l1_checksum_begin[];
extern const std::byte linux_l1_checksum_end[];
}

namespace {

using machine::Failure;
using machine::Result;

Result<void> failed(const char* step, int error) {
    return std::unexpected{Failure{.step = step, .error = error}};
}

/// REPORT_PAGE, from where all reports go to the test in L0.
volatile std::byte* report_page = nullptr;

Result<void> map_report_page() {
    const int memory = ::open("/dev/mem", O_RDWR | O_CLOEXEC);
    if (memory < 0)
        return failed("open /dev/mem", errno);
    void* const page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, REPORT_PAGE);
    if (page == MAP_FAILED)
        return failed("mmap of /dev/mem", errno);
    report_page = static_cast<std::byte*>(page);
    return {};
}

/// With a VM exit (CPUID) right before: otherwise L0 may take the write for one in the middle of an exception
/// that L1 had since its last VM exit (tests/lab/README.md).
void report(std::uint16_t what, std::uint32_t value) {
    auto& place = *reinterpret_cast<volatile std::uint32_t*>(report_page + what);
    std::uint32_t leaf = 0;
    asm volatile("cpuid\n\tmovl %[value], %[place]"
                 : "+a"(leaf), [place] "=m"(place)
                 : [value] "r"(value)
                 : "ebx", "ecx", "edx");
}

/// Lets L2 have the page, too, so that it can report by itself.
Result<void> share_report_page(const machine::Machine& vm) {
    const kvm_userspace_memory_region region{
        .slot = 1,
        .flags = 0,
        .guest_phys_addr = L2_REPORT_PAGE,
        .memory_size = 4096,
        .userspace_addr = reinterpret_cast<std::uintptr_t>(report_page),
    };
    if (::ioctl(vm.vm_fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return failed("KVM_SET_USER_MEMORY_REGION", errno);
    return {};
}

std::span<const std::uint64_t> windows(const machine::Machine& vm) {
    return {reinterpret_cast<const std::uint64_t*>(vm.memory().data() + L2_WINDOWS),
            std::size_t{L2_WINDOW_COUNT} * L2_WINDOW_WORDS};
}

Result<void> follow(const machine::Machine& vm) {
    std::uint64_t round = 0;
    for (;;) {
        const auto exit = vm.run();
        if (!exit)
            return std::unexpected{exit.error()};
        if (std::holds_alternative<machine::Halted>(*exit))
            return {};
        const auto* const out = std::get_if<machine::PortOut>(&*exit);
        if (out == nullptr || (out->port != REPORT_ROUND && out->port != REPORT_RESULT)) {
            std::println("L2: {}", machine::describe(*exit));
            return failed("L2 did something else than it should", 0);
        }
        report(out->port, out->value);
        if (out->port == REPORT_ROUND && ++round % L1_LOOK_ROUNDS == 0) {
            const auto window =
                windows(vm).subspan((round - 1) % L2_WINDOW_COUNT * L2_WINDOW_WORDS, L2_WINDOW_WORDS);
            report(REPORT_LOOK, linux_l1::folded(linux_l1::checksum_of(window)));
        }
    }
}

Result<void> run_l2(std::uint64_t rounds) {
    if (const auto mapped = map_report_page(); !mapped)
        return mapped;
    report(REPORT_BEGIN, static_cast<std::uint32_t>(rounds));
    const auto vm = machine::Machine::create({.memory_size = L2_MEMORY});
    if (!vm)
        return std::unexpected{vm.error()};
    const auto ended =
        vm->load(L2_IMAGE, {linux_l1_checksum_begin, linux_l1_checksum_end})
            .and_then([&] { return vm->load(L2_PARAMETERS, std::as_bytes(std::span{&rounds, 1})); })
            .and_then([&] { return share_report_page(*vm); })
            .and_then([&] { return vm->start_long_mode(L2_IMAGE, L2_STACK); })
            .and_then([&] { return follow(*vm); });
    if (ended) {
        report(REPORT_MEMORY, linux_l1::folded(linux_l1::checksum_of(windows(*vm))));
        report(REPORT_END, 0);
    }
    return ended;
}

} // namespace

int main(int argc, char** argv) {
    const auto rounds = argc == 2 ? std::strtoull(argv[1], nullptr, 10) : 0;
    if (rounds == 0) {
        std::println("usage: {} ROUNDS", argv[0]);
        return 2;
    }
    const auto ended = run_l2(rounds);
    if (!ended)
        std::println("{}", ended.error().message());
    return ended ? 0 : 1;
}
