// SPDX-License-Identifier: MIT
//
// vmx_migrate: an L1 and an L2 that notice if anything of the vCPU got lost on the way. migrate.inc has what they do;
// here is what only VMX has.

#include "vmx.inc"

#define CALL_L1 vmcall
#define CPUID_DIGEST_LEAVES 0x00000000, 0x00000007, 0x80000001, 0x80000008
#define L1_EFER (EFER_LME | EFER_LMA)
#define L1_RFLAGS_AFTER_EXIT 0           // a VM exit clears all flags
#define L1_GDT_LIMIT_AFTER_EXIT 0xffff   // and knows of no other limit
#define L1_IDT_LIMIT_AFTER_EXIT 0xffff

// L1 keeps WP and AM, VMXE and TSD to itself, and shows L2 the opposite of what they are.
#define L2_CR0 (CR0_PE_ET_NE_PG | CR0_WP)
#define L2_CR0_KEPT (CR0_WP | CR0_AM)
#define L2_CR0_SEEN (CR0_PE_ET_NE_PG | CR0_AM)
#define L2_CR4_KEPT (CR4_VMXE | CR4_TSD)
#define L2_CR4_SHOWN CR4_TSD
#define L2_CR4_FLIPPED (CR4_VMXE | CR4_TSD)

#define L2_PAT 0x0704050600070406        // unlike L1's and the one after reset, in entries that nothing here uses

// Applies a macro to each MSR that VM entry loads from, and VM exit stores to, an area in memory, with its place there
// and a number.
.macro for_each_listed_msr action
    \action MSR_STAR, 0x00, 1
    \action MSR_LSTAR, 0x10, 2
    \action MSR_CSTAR, 0x20, 3
    \action MSR_SFMASK, 0x30, 4
    \action MSR_KERNEL_GS_BASE, 0x40, 5
.endm
#define LISTED_MSRS 5

// The same, and those that have fields of their own in the VMCS.
.macro for_each_known_msr action
    for_each_listed_msr \action
    \action MSR_SYSENTER_CS, VMCS_GUEST_SYSENTER_CS, 6
    \action MSR_SYSENTER_ESP, VMCS_GUEST_SYSENTER_ESP, 7
    \action MSR_SYSENTER_EIP, VMCS_GUEST_SYSENTER_EIP, 8
.endm

#include "migrate.inc"

.macro list_msr msr, place, number
    movl $\msr, GUEST_L2_MSRS + \place
    movl $(L2_MSR_PATTERN + \number), GUEST_L2_MSRS + \place + 8
    movl $\msr, GUEST_L1_MSRS + \place
    movl $(L1_MSR_PATTERN + \number), GUEST_L1_MSRS + \place + 8
.endm

// A number made of IA32_FEATURE_CONTROL and the VMX capability MSRs, in %r14. Clobbers %rax, %rcx, %rdx.
.macro capabilities_digest
    read_msr MSR_FEATURE_CONTROL
    movq %rax, %r14
    movl $MSR_VMX_BASIC, %ecx
.Lnext_\@:
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    rolq $7, %r14
    xorq %rax, %r14
    incl %ecx
    cmpl $MSR_VMX_VMFUNC, %ecx
    jb .Lnext_\@
    read_msr MSR_VMX_PROCBASED_CTLS2
    btq $(32 + SECONDARY_VM_FUNCTIONS_BIT), %rax
    jnc .Ldone_\@
    read_msr MSR_VMX_VMFUNC
    xorq %rax, %r14
.Ldone_\@:
.endm

// A number made of the fields of the VMCS that are not L2's own state, in %r14.
// Clobbers %rax, %rcx, %rdx, %rbx, %rsi, %rdi.
.macro vmcs_digest
    xorl %r14d, %r14d
    vmcs_for_each_row vmcs_rows, add_to_digest
.endm
.macro add_to_digest
    movl %edi, %eax
    andl $VMCS_TYPE, %eax
    cmpl $VMCS_TYPE_GUEST_STATE, %eax
    je 4f
    vmread %rdi, %rax
    rolq $7, %r14
    xorq %rax, %r14
4:
.endm

    image_begin vmx_migrate

// ======================================================================================================= L1

    migrate_l1_values
    vmx_on
    movq %cr4, %rax
    movq %rax, GUEST_DATA + DATA_L1_CR4
    capabilities_digest
    movq %r14, GUEST_DATA + DATA_CAPABILITIES

    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    for_each_listed_msr list_msr
    vmcs_digest
    movq %r14, GUEST_DATA + DATA_VMCS

// L2 runs, and comes back once in each round for its intercepted OUT, and for its CPUIDs, which VMX always intercepts.
// All registers but %rsp and %rip are L2's until L1 has pushed them.
    vmlaunch
    jmp vm_failed
l1_exit:
    pushq %rax
    pushq %rcx
    pushq %rdx
    vmcs_read VMCS_EXIT_REASON
    cmpl $REASON_IO_INSTRUCTION, %eax
    jne not_io
    vmcs_read VMCS_EXIT_QUALIFICATION
    shrl $16, %eax
    cmpl $PORT_INTERCEPTED, %eax
    jne unexpected
    incq GUEST_DATA + DATA_L1_IOIO_EXITS
resume_behind_instruction:
    vmx_skip_instruction
    popq %rdx
    popq %rcx
    popq %rax
    vmresume
    jmp vm_failed

not_io:
    cmpl $REASON_CPUID, %eax
    jne not_cpuid
    movl 16(%rsp), %eax
    movl 8(%rsp), %ecx
    cpuid                       // %rbx is L2's already
    movq %rax, 16(%rsp)
    movq %rcx, 8(%rsp)
    movq %rdx, (%rsp)
    jmp resume_behind_instruction

not_cpuid:
    cmpl $REASON_VMCALL, %eax
    jne unexpected
    leaq 24(%rsp), %rsp

    migrate_l1_checks
    str %eax
    cmpl $SELECTOR_TSS, %eax
    jne 1f
    vmcs_digest
    cmpq %r14, GUEST_DATA + DATA_VMCS
    held_if_equal CHECK_L1_NESTING
1:
    capabilities_digest
    cmpq %r14, GUEST_DATA + DATA_CAPABILITIES
    held_if_equal CHECK_L1_CAPABILITIES
    migrate_l1_end

unexpected:
    unexpected_exit
vm_failed:
    unexpected_vm_fail

// ======================================================================================================= L2

    migrate_l2

// =================================================================================================== tables

    migrate_tables

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_TSC_OFFSET, (1 << TSC_OFFSET_BIT)
    vmcs_field VMCS_EXIT_MSR_STORE_COUNT, LISTED_MSRS
    vmcs_field VMCS_EXIT_MSR_STORE_ADDRESS, GUEST_L2_MSRS
    vmcs_field VMCS_ENTRY_MSR_LOAD_COUNT, LISTED_MSRS
    vmcs_field VMCS_ENTRY_MSR_LOAD_ADDRESS, GUEST_L2_MSRS
    vmcs_field VMCS_EXIT_MSR_LOAD_COUNT, LISTED_MSRS
    vmcs_field VMCS_EXIT_MSR_LOAD_ADDRESS, GUEST_L1_MSRS
    vmcs_field VMCS_CR0_GUEST_HOST_MASK, L2_CR0_KEPT
    vmcs_field VMCS_CR0_READ_SHADOW, L2_CR0_SEEN
    vmcs_field VMCS_CR4_GUEST_HOST_MASK, L2_CR4_KEPT
    vmcs_field VMCS_CR4_READ_SHADOW, L2_CR4_SHOWN
    vmcs_field VMCS_HOST_FS_BASE, L1_FS_BASE
    vmcs_field VMCS_HOST_GDTR_BASE, GPA(gdt)
    vmcs_field VMCS_HOST_IDTR_BASE, GUEST_TSS
    vmcs_field VMCS_HOST_PAT, L1_PAT
    vmcs_field VMCS_HOST_SYSENTER_CS, (L1_MSR_PATTERN + 6)
    vmcs_field VMCS_HOST_SYSENTER_ESP, (L1_MSR_PATTERN + 7)
    vmcs_field VMCS_HOST_SYSENTER_EIP, (L1_MSR_PATTERN + 8)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_guest_segment VMCS_FS, SELECTOR_DATA, RIGHTS_DATA, 0xffffffff, GUEST_DATA
    vmcs_field VMCS_GUEST_GDTR_BASE, GPA(gdt)
    vmcs_field VMCS_GUEST_GDTR_LIMIT, GDT_LIMIT
    vmcs_field VMCS_GUEST_IDTR_BASE, GPA(l2_idt)
    vmcs_field VMCS_GUEST_IDTR_LIMIT, (l2_idt_end - l2_idt - 1)
    vmcs_field VMCS_GUEST_CR0, L2_CR0
    vmcs_field VMCS_GUEST_PAT, L2_PAT
    vmcs_field VMCS_GUEST_SYSENTER_CS, (L2_MSR_PATTERN + 6)
    vmcs_field VMCS_GUEST_SYSENTER_ESP, (L2_MSR_PATTERN + 7)
    vmcs_field VMCS_GUEST_SYSENTER_EIP, (L2_MSR_PATTERN + 8)
    vmcs_field VMCS_GUEST_RFLAGS, (RFLAGS_FIXED | RFLAGS_AC)
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_rows_end

    image_end vmx_migrate
