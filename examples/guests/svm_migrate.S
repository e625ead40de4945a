// SPDX-License-Identifier: MIT
//
// svm_migrate: an L1 and an L2 that notice if anything of the vCPU got lost on the way. migrate.inc has what they do;
// here is what only SVM has.

#include "svm.inc"

#define CALL_L1 vmmcall
#define CPUID_DIGEST_LEAVES 0x00000000, 0x00000007, 0x80000001, 0x80000008, 0x8000000a
#define L1_EFER (EFER_SVME | EFER_LME | EFER_LMA)
#define L1_RFLAGS_AFTER_EXIT RFLAGS_ID
#define L1_GDT_LIMIT_AFTER_EXIT GDT_LIMIT
#define L1_IDT_LIMIT_AFTER_EXIT L1_IDT_LIMIT
#define L2_CR0_SEEN (CR0_PE_ET_NE_PG | CR0_WP) // L1 has no WP
#define L2_CR4_FLIPPED 0

// Applies a macro to each MSR that VMLOAD and VMSAVE switch, with its offset in the VMCB and a number.
.macro for_each_known_msr action
    \action MSR_STAR, VMCB_STAR, 1
    \action MSR_LSTAR, VMCB_LSTAR, 2
    \action MSR_CSTAR, VMCB_CSTAR, 3
    \action MSR_SFMASK, VMCB_SFMASK, 4
    \action MSR_KERNEL_GS_BASE, VMCB_KERNEL_GS_BASE, 5
    \action MSR_SYSENTER_CS, VMCB_SYSENTER_CS, 6
    \action MSR_SYSENTER_ESP, VMCB_SYSENTER_ESP, 7
    \action MSR_SYSENTER_EIP, VMCB_SYSENTER_EIP, 8
.endm

#include "migrate.inc"

.macro vmcb_l2_msr msr, offset, number
    vmcb_u64 \offset, (L2_MSR_PATTERN + \number)
.endm

    image_begin svm_migrate

// ======================================================================================================= L1

    migrate_l1_values

// VMCB12. L2 has L1's CR4, since whether that has OSXSAVE depends on the CPU.
    svm_on
    svm_make_l2 vmcb_rows
    movq %cr4, %rax
    movq %rax, GUEST_VMCB12 + VMCB_CR4
    movq %rax, GUEST_DATA + DATA_L1_CR4

// L2 runs, and comes back once in each round for its intercepted OUT. All registers but %rax are L2's in this loop.
run_l2:
    svm_run_l2
    cmpl $VMEXIT_IOIO, VMCB_EXITCODE(%rax)
    jne not_ioio
    cmpw $PORT_INTERCEPTED, VMCB_EXITINFO1 + 2(%rax)
    jne unexpected
    incq GUEST_DATA + DATA_L1_IOIO_EXITS
    pushq %rcx
    movq VMCB_EXITINFO2(%rax), %rcx // the address after OUT
    movq %rcx, VMCB_RIP(%rax)
    popq %rcx
    jmp run_l2

not_ioio:
    cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected

    migrate_l1_checks
    read_msr MSR_VM_HSAVE_PA
    cmpq $GUEST_HSAVE, %rax
    held_if_equal CHECK_L1_NESTING
    orl $CHECK_L1_CAPABILITIES, %r15d // there are none on SVM
    migrate_l1_end

unexpected:
    unexpected_exit

// ======================================================================================================= L2

    migrate_l2

// =================================================================================================== tables

    migrate_tables

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_TSC_OFFSET, (1 << TSC_OFFSET_BIT)
    vmcb_segment VMCB_FS, SELECTOR_DATA, ATTRIB_DATA, 0xffffffff, GUEST_DATA
    vmcb_segment VMCB_GDTR, 0, 0, GDT_LIMIT, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, (l2_idt_end - l2_idt - 1), GPA(l2_idt)
    vmcb_u64 VMCB_CR0, L2_CR0_SEEN
    vmcb_u64 VMCB_RFLAGS, (RFLAGS_FIXED | RFLAGS_AC)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    for_each_known_msr vmcb_l2_msr
    vmcb_rows_end

    image_end svm_migrate
