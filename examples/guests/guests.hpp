// SPDX-License-Identifier: MIT
//
// The guest program of the examples, and what it says.
//
// It is an L1 hypervisor with an L2 of its own, written in assembler (svm_migrate.S and vmx_migrate.S),
// assembled for one guest physical address, and linked into the program that runs it. The numbers are those
// of layout.h, which the assembler reads as well. The lab has more guests of the same make
// (tests/lab/guests).
#pragma once

#include "../machine/machine.hpp"
#include "layout.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace guests {

/// The bytes of a guest: what lies at `image_address` before its first instruction.
using Image = std::span<const std::byte>;

/// Whose virtualization a guest uses. All guests come in pairs that take the same parameters, write the same
/// numbers to the same ports and end alike.
enum class Vendor : std::uint8_t { svm, vmx };

/// Notices what a restore of a vCPU forgot. L2 exits to user space with port::progress once per round,
/// numbered from 1; at the end L1 writes port::rounds (the number of rounds) and port::checks (all_checks if
/// nothing got lost), and halts.
[[nodiscard]] Image migrate(Vendor vendor);

/// How the guest is to behave; lies at `parameters_address`.
struct Parameters {
    std::uint64_t flags = 0;  ///< nested_paging or 0
    std::uint64_t rounds = 8; ///< at least 1
};
static_assert(offsetof(Parameters, flags) == PARAMETER_FLAGS
              && offsetof(Parameters, rounds) == PARAMETER_ROUNDS);

/// L1 gives L2 nested page tables. Without it L2's own page tables lead straight to guest physical addresses.
inline constexpr std::uint64_t nested_paging = PARAMETER_FLAG_NESTED_PAGING;
/// migrate() uses its local APIC, too. It must be in the kernel: machine::Options::kernel_apic.
inline constexpr std::uint64_t use_apic = PARAMETER_FLAG_APIC;

/// Guest physical addresses. layout.h has the whole map; these are what a program outside the guest has a use
/// for.
inline constexpr std::uint64_t parameters_address = GUEST_PARAMETERS;
inline constexpr std::uint64_t image_address = GUEST_IMAGE;
inline constexpr std::uint64_t vmcb12_address = GUEST_VMCB12; ///< what KVM reports as vmcb_pa while L2 runs
inline constexpr std::uint64_t hsave_address = GUEST_HSAVE;   ///< L1's VM_HSAVE_PA
inline constexpr std::uint64_t vmcs12_address = GUEST_VMCS12; ///< what KVM reports as vmcs12_pa
inline constexpr std::uint64_t vmxon_address = GUEST_VMXON;   ///< what KVM reports as vmxon_pa
inline constexpr std::uint64_t l1_stack = GUEST_L1_STACK;
inline constexpr std::uint64_t nested_cr3 = GUEST_NESTED_PML4; ///< L1's N_CR3 or EPT root, with nested_paging
inline constexpr std::uint64_t l1_cr3 = GUEST_L1_PML4;
inline constexpr std::uint64_t l2_cr3 = GUEST_L2_PML4;
static_assert(l1_cr3 == machine::pml4_address);

/// Ports the guests write to, always 4 bytes.
namespace port {
inline constexpr std::uint16_t rounds = PORT_ROUNDS; ///< from L1 at the end: what L2 counted
inline constexpr std::uint16_t checks = PORT_CHECKS; ///< from L1 at the end: a mask of Check
inline constexpr std::uint16_t unexpected =
    PORT_UNEXPECTED; ///< from L1: how L2 exited, or failed to start, against expectation; L1 halts then
inline constexpr std::uint16_t progress = PORT_PROGRESS;       ///< from L2: the number of the round
inline constexpr std::uint16_t intercepted = PORT_INTERCEPTED; ///< must not be seen: it is an exit to L1
} // namespace port

/// What migrate() checks at the end, one bit each. L2 finds out its own and L1 the rest, after L2 has
/// called it.
///
/// What shows when one group is left out of a restore, in the middle of L2, into a new VM. Seen alike on
/// Linux 6.1, 6.12 and 7 with SVM (QEMU's emulated processor), with and without nested paging:
///
///     left out       seen as
///     nested state   no report: L2 runs on as if it were L1, so its intercepted OUT comes to user space
///     CPUID          no report: XCRS and the nested state are refused, from 6.12 on SREGS2 as well
///     SREGS2         no report: the nested state is refused, EFER.SVME being clear
///     REGS           no report: L2 dies, L1 tells so on port::unexpected
///     MSRs, all      no report: L1 dies at its next VMRUN, VM_HSAVE_PA being 0
///     VM_HSAVE_PA    the same
///     PAT            l1_pat
///     TSC_AUX        l2_tsc_aux
///     STAR to SFMASK, KERNEL_GS_BASE, SYSENTER_CS, _ESP, _EIP: each of them l2_msrs
///     TSC            l2_tsc l1_tsc
///     XCRS           l2_xcr0 l2_ymm
///     XSAVE          l2_xmm l2_ymm l2_x87
///     VCPU_EVENTS    l2_steps
///     DEBUGREGS      l2_dr0_3 l2_dr7, and l2_steps without KVM_CAP_EXCEPTION_PAYLOAD
///     feature MSRs   l2_patch_level
///     LAPIC          l2_apic, with use_apic
///     MP_STATE       no report with use_apic on another vCPU than the first: it waits for a SIPI
///
/// With VMX (Bochs's emulated processor) the same, but for these. The vmcs12 has L2's control registers,
/// segments and PAT, and L1's whole state:
///
///     SREGS2         l2_cr2
///     REGS           l2_gprs l2_rounds l2_dr7 l2_steps l1_ioio
///     MSRs, all      l2_msrs l2_tsc_aux l2_tsc l1_tsc l1_capabilities
///
/// Not noticed: MP_STATE without use_apic (always runnable), the frequency of the TSC, KVM's own MSRs (no
/// guest uses them), DEBUGCTL, CR8, and of the events all but
/// a pending exception. What the processor does not have cannot get lost: its bits hold.
///
/// L2 single-steps the OUT of each progress report, so that completing the OUT (KVM_RUN with immediate_exit)
/// leaves a #DB pending. There are two more ways to lose that one, and l2_steps shows them:
///
/// KVM_SET_REGS drops a pending exception. With KVM_CAP_EXCEPTION_PAYLOAD enabled, REGS must therefore be
/// restored before VCPU_EVENTS; without it the exception is saved as injected, too, and survives as that.
/// Seen on 6.1, 6.12 and 7.
///
/// Without that capability KVM_GET_VCPU_EVENTS moves the payload of the exception into DR6, so DEBUGREGS must
/// be read after it, or DR6.BS is lost. On 6.12 and 7 KVM_GET_DEBUGREGS moves it by itself; 6.1 does not.
enum class Check : std::uint32_t {
    l2_rflags = CHECK_L2_RFLAGS,   ///< RFLAGS.AC, which L1 has not, and not RFLAGS.ID, which L1 has
    l2_gprs = CHECK_L2_GPRS,       ///< RBX, RSI, RDI, R8 to R15
    l2_rounds = CHECK_L2_ROUNDS,   ///< the counts in RBP and in memory and the number of rounds are equal
    l2_stack = CHECK_L2_STACK,     ///< RSP, and what is on the stack
    l2_cr2 = CHECK_L2_CR2,         ///< CR2
    l2_cr3 = CHECK_L2_CR3,         ///< CR3
    l2_fs = CHECK_L2_FS,           ///< the base of FS, by reading through it
    l2_xcr0 = CHECK_L2_XCR0,       ///< XCR0, which L1 has set; holds where there is no XSAVE
    l2_xmm = CHECK_L2_XMM,         ///< XMM3
    l2_ymm = CHECK_L2_YMM,         ///< the upper half of YMM4; holds where there is no AVX
    l2_x87 = CHECK_L2_X87,         ///< ST0 and MXCSR
    l2_dr0_3 = CHECK_L2_DR0_3,     ///< DR0 to DR3
    l2_dr7 = CHECK_L2_DR7,         ///< DR7, at each progress report (migrate.inc says why no longer)
    l2_steps = CHECK_L2_STEPS,     ///< one #DB with DR6.BS for each progress report: see below
    l2_msrs = CHECK_L2_MSRS,       ///< STAR to SFMASK, KERNEL_GS_BASE, SYSENTER_*; on VMX also PAT
    l2_tsc_aux = CHECK_L2_TSC_AUX, ///< TSC_AUX; holds where there is no RDTSCP
    l2_tsc_offset = CHECK_L2_TSC_OFFSET,     ///< L2's TSC is ahead of L1's by the TSC offset that L1 gave it
    l2_tsc = CHECK_L2_TSC,                   ///< and L1's is what L1 had set, or later
    l2_cpuid = CHECK_L2_CPUID,               ///< CPUID says what it said to L1 at the start
    l2_patch_level = CHECK_L2_PATCH_LEVEL,   ///< MSR 8B, which start() sets: a feature MSR for KVM
    l2_apic = CHECK_L2_APIC,                 ///< the APIC's spurious vector; holds without use_apic
    l1_stack = CHECK_L1_STACK,               ///< RSP, and what is on the stack
    l2_control = CHECK_L2_CONTROL,           ///< CR0 and CR4; on VMX through L1's read shadows
    l1_rflags = CHECK_L1_RFLAGS,             ///< RFLAGS.ID, and not L2's RFLAGS.AC; on VMX neither
    l1_control = CHECK_L1_CONTROL,           ///< CR0, CR3, CR4, EFER; CR0 and CR3 unlike L2's
    l1_tables = CHECK_L1_TABLES,             ///< GDTR, IDTR, FS base, TR; IDTR and FS unlike L2's
    l1_pat = CHECK_L1_PAT,                   ///< PAT
    l1_nesting = CHECK_L1_NESTING,           ///< SVM: VM_HSAVE_PA; VMX: each field of the VMCS that L1 chose
    l1_capabilities = CHECK_L1_CAPABILITIES, ///< VMX: IA32_FEATURE_CONTROL and the capability MSRs
    l1_msrs = CHECK_L1_MSRS,                 ///< the same MSRs, which are L1's own again
    l1_tsc = CHECK_L1_TSC,                   ///< the TSC is L1's own again, without L2's offset
    l1_ioio = CHECK_L1_IOIO,                 ///< L1 has seen one intercepted OUT in each round
};

/// The value on port::checks if nothing got lost.
inline constexpr std::uint32_t all_checks = CHECK_ALL;

/// Each check with the name of its enumerator, lowest bit first.
struct NamedCheck {
    Check check;
    const char* name;
};
inline constexpr std::array named_checks{
    NamedCheck{Check::l2_rflags, "l2_rflags"},
    NamedCheck{Check::l2_gprs, "l2_gprs"},
    NamedCheck{Check::l2_rounds, "l2_rounds"},
    NamedCheck{Check::l2_stack, "l2_stack"},
    NamedCheck{Check::l2_cr2, "l2_cr2"},
    NamedCheck{Check::l2_cr3, "l2_cr3"},
    NamedCheck{Check::l2_fs, "l2_fs"},
    NamedCheck{Check::l2_xcr0, "l2_xcr0"},
    NamedCheck{Check::l2_xmm, "l2_xmm"},
    NamedCheck{Check::l2_ymm, "l2_ymm"},
    NamedCheck{Check::l2_x87, "l2_x87"},
    NamedCheck{Check::l2_dr0_3, "l2_dr0_3"},
    NamedCheck{Check::l2_dr7, "l2_dr7"},
    NamedCheck{Check::l2_steps, "l2_steps"},
    NamedCheck{Check::l2_msrs, "l2_msrs"},
    NamedCheck{Check::l2_tsc_aux, "l2_tsc_aux"},
    NamedCheck{Check::l2_tsc_offset, "l2_tsc_offset"},
    NamedCheck{Check::l2_tsc, "l2_tsc"},
    NamedCheck{Check::l2_cpuid, "l2_cpuid"},
    NamedCheck{Check::l2_patch_level, "l2_patch_level"},
    NamedCheck{Check::l1_stack, "l1_stack"},
    NamedCheck{Check::l1_rflags, "l1_rflags"},
    NamedCheck{Check::l1_control, "l1_control"},
    NamedCheck{Check::l1_tables, "l1_tables"},
    NamedCheck{Check::l1_pat, "l1_pat"},
    NamedCheck{Check::l1_nesting, "l1_nesting"},
    NamedCheck{Check::l1_msrs, "l1_msrs"},
    NamedCheck{Check::l1_tsc, "l1_tsc"},
    NamedCheck{Check::l1_ioio, "l1_ioio"},
    NamedCheck{Check::l2_apic, "l2_apic"},
    NamedCheck{Check::l2_control, "l2_control"},
    NamedCheck{Check::l1_capabilities, "l1_capabilities"},
};
static_assert(named_checks.size() == std::popcount(all_checks));

/// The names of the checks that are missing from a value of port::checks: "l2_xmm l2_dr7", or "" if none is.
[[nodiscard]] std::string missing_checks(std::uint32_t checks);

/// Puts a guest into a fresh machine: image, parameters, and the vCPU in 64-bit mode at the image's first
/// byte.
[[nodiscard]] machine::Result<void> start(const machine::Machine& machine, Image image,
                                          const Parameters& parameters = {}, unsigned vcpu = 0);

} // namespace guests
