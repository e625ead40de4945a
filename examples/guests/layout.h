// SPDX-License-Identifier: MIT
//
// What the guest programs and the program that runs them must agree on: where things lie in guest physical
// memory, which port means what, and which bit of the final report stands for which check.
//
// This is the one place where these numbers are written. It is read by the assembler (after the C
// preprocessor) and by C++, so it holds #defines of plain numbers and nothing else. C++ code uses the typed
// names in guests.hpp instead.
#ifndef GUESTS_LAYOUT_H
#define GUESTS_LAYOUT_H

// Guest physical memory, below 128 KiB. The program running the guest writes L1's page tables (0x1000 to
// 0x3fff, see machine.hpp), the parameters and the image; everything else starts as zero and is written by
// the guest.

#define GUEST_L1_PML4 0x1000     // L1's page tables: machine.hpp names and writes them
#define GUEST_NESTED_PML4 0x4000 // how L1 maps L2's physical addresses, if nested paging is on: N_CR3 or EPT
#define GUEST_NESTED_PDPT 0x5000
#define GUEST_NESTED_PD 0x6000
#define GUEST_PARAMETERS 0x7000 // written by the program that runs the guest
#define GUEST_IMAGE 0x8000      // the code of L1 and L2 with its tables; L1 starts at the first byte
#define GUEST_IMAGE_SIZE 0x2000
#define GUEST_TSS 0xb000       // never used: no guest changes privilege level
#define GUEST_VMCB12 0xc000    // SVM: the VMCB that L1 makes for L2
#define GUEST_HSAVE 0xd000     // SVM, VM_HSAVE_PA: where VMRUN may keep L1's state
#define GUEST_HOST_VMCB 0xe000 // SVM: VMSAVE area for the part of L1's state that VMRUN does not keep
#define GUEST_VMCS12 0xc000    // VMX: the VMCS that L1 makes for L2
#define GUEST_VMXON 0xd000     // VMX: the VMXON region
#define GUEST_L2_MSRS 0xe000   // VMX: MSRs that VM entry loads and VM exit stores
#define GUEST_L1_MSRS 0xe800   // VMX: MSRs that VM exit loads
#define GUEST_L1_STACK 0x11000 // top; grows down
#define GUEST_L2_STACK 0x13000 // top; grows down
#define GUEST_DATA 0x13000     // counters and notes, DATA_* below
#define GUEST_IOPM 0x14000     // I/O permission map, 3 pages; VMX: the I/O bitmaps. A set bit: exit to L1
#define GUEST_MSRPM 0x18000    // MSR permission map, 2 pages; VMX: the MSR bitmap
#define GUEST_L2_PML4 0x1a000  // L2's own page tables
#define GUEST_L2_PDPT 0x1b000
#define GUEST_L2_PD 0x1c000

// L2 sees all of this at its own address, and once more here: its page tables (and, with nested paging, the
// nested tables) map the second 2 MiB onto guest physical 0. L1's do not, so an access here works in L2 only.
#define GUEST_L2_ALIAS 0x200000

// Parameters, relative to GUEST_PARAMETERS, 8 bytes each.
#define PARAMETER_FLAGS 0x00
// Rounds: how often L2 goes round its loop. At least 1.
#define PARAMETER_ROUNDS 0x08

#define PARAMETER_FLAG_NESTED_PAGING 0x1
#define PARAMETER_FLAG_APIC 0x2 // *_migrate: the local APIC is in the kernel: use it, too

// The data page, relative to GUEST_DATA, 8 bytes each. What is free here the lab's guests use.
#define DATA_L2_ROUNDS 0x00     // what L2 counted
#define DATA_L2_STEPS 0x08      // single-step exceptions that L2 took
#define DATA_L1_IOIO_EXITS 0x10 // L2's port accesses that came to L1
#define DATA_FEATURES 0x18      // FEATURE_*
#define DATA_CPUID_DIGEST 0x20  // of CPUID as L1 saw it at the start
#define DATA_L2_CHECKS 0x28     // CHECK_L2_* that held
#define DATA_L2_FS_WORD 0x30    // L2's FS base points at GUEST_DATA; it reads this through FS
#define DATA_L1_CR4 0x40        // what L1 had before it ran L2 first
#define DATA_L2_DR7 0x48        // in how many rounds L2 found its DR7 unchanged
#define DATA_PATCH_LEVEL 0x50   // the MSR, as L1 saw it at the start
#define DATA_CAPABILITIES 0x58  // VMX: a digest of IA32_FEATURE_CONTROL and the capability MSRs
#define DATA_VMCS 0x60          // VMX: a digest of the VMCS's fields that are not L2's own state
#define DATA_SCRATCH 0x100

#define FEATURE_XSAVE 0x1
#define FEATURE_AVX 0x2
#define FEATURE_TSC_AUX 0x4

// XCR0, if the CPU has XSAVE: x87 and SSE, and AVX if the CPU has it.
#define XCR0_X87 0x1
#define XCR0_SSE 0x2
#define XCR0_AVX 0x4

// Ports, all written with OUT of 4 bytes (which is why an intercepted one must not lie less than 4 above
// another: the permission map has a bit for each byte). None exists as a device: each write is an exit to the
// program running the guest, except the one that L1 intercepts. The lab's guests use others, too
// (tests/lab/guests/lab_layout.h).
#define PORT_ROUNDS 0x20      // L1 at the end: how many rounds L2 made
#define PORT_CHECKS 0x21      // L1 at the end: which checks held, CHECK_*
#define PORT_UNEXPECTED 0x2f  // L1: L2 exited for another reason than it should, or did not start; below
#define PORT_PROGRESS 0x30    // L2 in each round: the number of the round; not intercepted by L1
#define PORT_INTERCEPTED 0x40 // L2 in each round: intercepted by L1, so user space must never see it

// The value on PORT_UNEXPECTED is EXITCODE (SVM) or the exit reason (VMX). A VMX instruction that failed is
// told apart by a bit that no exit reason has; beside it is the VM-instruction error, or 0 where there is no
// current VMCS.
#define UNEXPECTED_VM_FAIL 0x40000000

// *_migrate: the bits on PORT_CHECKS. What each of them proves about a restore is told in guests.hpp.
#define CHECK_L2_RFLAGS 0x1
#define CHECK_L2_GPRS 0x2
#define CHECK_L2_ROUNDS 0x4
#define CHECK_L2_STACK 0x8
#define CHECK_L2_CR2 0x10
#define CHECK_L2_CR3 0x20
#define CHECK_L2_FS 0x40
#define CHECK_L2_XCR0 0x80
#define CHECK_L2_XMM 0x100
#define CHECK_L2_YMM 0x200
#define CHECK_L2_X87 0x400
#define CHECK_L2_DR0_3 0x800
#define CHECK_L2_DR7 0x1000
#define CHECK_L2_STEPS 0x2000
#define CHECK_L2_MSRS 0x4000
#define CHECK_L2_TSC_AUX 0x8000
#define CHECK_L2_TSC_OFFSET 0x10000
#define CHECK_L2_TSC 0x20000
#define CHECK_L2_CPUID 0x40000
#define CHECK_L2_PATCH_LEVEL 0x80000
#define CHECK_L1_STACK 0x100000
#define CHECK_L1_RFLAGS 0x200000
#define CHECK_L1_CONTROL 0x400000
#define CHECK_L1_TABLES 0x800000
#define CHECK_L1_PAT 0x1000000
#define CHECK_L1_NESTING 0x2000000
#define CHECK_L1_MSRS 0x4000000
#define CHECK_L1_TSC 0x8000000
#define CHECK_L1_IOIO 0x10000000
#define CHECK_L2_APIC 0x20000000
#define CHECK_L2_CONTROL 0x40000000
#define CHECK_L1_CAPABILITIES 0x80000000
#define CHECK_ALL 0xffffffff

#endif
