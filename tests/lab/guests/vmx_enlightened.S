// SPDX-License-Identifier: MIT
//
// vmx_enlightened: an L1 that uses Hyper-V's enlightened VMCS: a page of L1's memory in place of VMREAD and VMWRITE.
// The vCPU must have the CPUID of Hyper-V, with the enlightened VMCS in it.
//   PORT_PHASE 1           from L2
//   PORT_EXIT_REASON 0x12  from L1: L2 has called it
//   PORT_PHASE 2           from L1
//   PORT_PHASE 3           from L2, which L1 has resumed
//   PORT_EXIT_REASON 0x12  from L1. Then HLT.
//
// Names and numbers are those of Microsoft's Hypervisor Top-Level Functional Specification: HV_VP_ASSIST_PAGE and
// HV_VMX_ENLIGHTENED_VMCS.

#include "vmx_lab.inc"

#define MSR_HV_VP_ASSIST_PAGE 0x40000073
#define HV_ENABLED 0x1

#define ASSIST_PAGE LAB_PAGE_1
#define ASSIST_ENLIGHTEN_VM_ENTRY 40
#define ASSIST_CURRENT_NESTED_VMCS 48

#define ENLIGHTENED_VMCS LAB_PAGE_2
#define EVMCS_REVISION 0x000
#define EVMCS_HOST_SELECTORS 0x008       // ES, CS, SS, DS, FS, GS, TR: 16 bits each
#define EVMCS_HOST_PAT 0x018
#define EVMCS_HOST_EFER 0x020
#define EVMCS_HOST_CR0 0x028
#define EVMCS_HOST_CR3 0x030
#define EVMCS_HOST_CR4 0x038
#define EVMCS_HOST_RIP 0x050
#define EVMCS_PIN_BASED_CONTROLS 0x05c
#define EVMCS_EXIT_CONTROLS 0x060
#define EVMCS_SECONDARY_CONTROLS 0x064
#define EVMCS_IO_BITMAP_A 0x068
#define EVMCS_IO_BITMAP_B 0x070
#define EVMCS_MSR_BITMAP 0x078
#define EVMCS_GUEST_SELECTORS 0x080      // ES, CS, SS, DS, FS, GS, LDTR, TR: 16 bits each
#define EVMCS_GUEST_LIMITS 0x090         // the same, 32 bits each
#define EVMCS_GUEST_ACCESS_RIGHTS 0x0b8  // the same
#define EVMCS_GUEST_TR_BASE 0x110
#define EVMCS_LINK_POINTER 0x1a0
#define EVMCS_GUEST_PAT 0x1b0
#define EVMCS_GUEST_EFER 0x1b8
#define EVMCS_GUEST_CR0 0x220
#define EVMCS_GUEST_CR3 0x228
#define EVMCS_GUEST_CR4 0x230
#define EVMCS_GUEST_DR7 0x238
#define EVMCS_HOST_TR_BASE 0x250
#define EVMCS_HOST_RSP 0x268
#define EVMCS_EPT_POINTER 0x270
#define EVMCS_EXIT_REASON 0x2b4
#define EVMCS_EXIT_INSTRUCTION_LENGTH 0x2c8
#define EVMCS_GUEST_RSP 0x300
#define EVMCS_GUEST_RFLAGS 0x308
#define EVMCS_PRIMARY_CONTROLS 0x314
#define EVMCS_ENTRY_CONTROLS 0x31c
#define EVMCS_GUEST_RIP 0x330
#define EVMCS_CLEAN_FIELDS 0x338

#define EVMCS_VERSION 1
#define L1_CR4 (CR4_PAE_OSFXSR_OSXMMEXCPT | CR4_VMXE)

.macro evmcs_u32 offset, value
    .short \offset, 4
    .long 0
    .quad \value
.endm
.macro evmcs_u64 offset, value
    .short \offset, 8
    .long 0
    .quad \value
.endm
.macro evmcs_selectors offset, first, second, third, fourth
    .short \offset, 8
    .long 0
    .short \first, \second, \third, \fourth
.endm
.macro evmcs_u32_pair offset, first, second
    .short \offset, 8
    .long 0
    .long \first, \second
.endm
// With the bits that the capability MSR wants, and without those that it does not allow.
.macro evmcs_controls offset, capabilities, value
    .short \offset, 4
    .long \capabilities
    .quad \value
.endm
.macro evmcs_rows_end
    .quad 0, 0
.endm

    image_begin vmx_enlightened

    vmx_on
    write_msr MSR_HV_VP_ASSIST_PAGE, (ASSIST_PAGE | HV_ENABLED)
    write_page_tables GUEST_L2_PML4, GUEST_L2_PDPT, GUEST_L2_PD, GUEST_L2_ALIAS
    write_page_tables GUEST_NESTED_PML4, GUEST_NESTED_PDPT, GUEST_NESTED_PD, 0, EPT_LARGE_PAGE

    leaq evmcs_rows(%rip), %rsi
next_row:
    movzwl 2(%rsi), %ebp        // bytes; 0 ends the rows
    testl %ebp, %ebp
    jz evmcs_written
    movzwl (%rsi), %edi
    movl 4(%rsi), %ecx
    movq 8(%rsi), %rbx
    jrcxz 1f
    rdmsr
    orl %eax, %ebx
    andl %edx, %ebx
1:  movl %ebx, ENLIGHTENED_VMCS(%rdi)
    cmpl $8, %ebp
    jne 1f
    movq %rbx, ENLIGHTENED_VMCS(%rdi)
1:  addq $16, %rsi
    jmp next_row
evmcs_written:
    movb $1, ASSIST_PAGE + ASSIST_ENLIGHTEN_VM_ENTRY
    movq $ENLIGHTENED_VMCS, ASSIST_PAGE + ASSIST_CURRENT_NESTED_VMCS
    vmlaunch
    jmp vm_failed

l1_exit:
    report PORT_EXIT_REASON, ENLIGHTENED_VMCS + EVMCS_EXIT_REASON
    cmpl $REASON_VMCALL, %eax
    jne finished
    decl %r12d                  // of L2: how often it will come back
    jz finished
    report PORT_PHASE, $2
    movl ENLIGHTENED_VMCS + EVMCS_EXIT_INSTRUCTION_LENGTH, %eax
    addq %rax, ENLIGHTENED_VMCS + EVMCS_GUEST_RIP
    movl $0, ENLIGHTENED_VMCS + EVMCS_CLEAN_FIELDS
    vmresume
    jmp vm_failed
finished:
    halt
vm_failed:
    unexpected_vm_fail

l2_entry:
    movl $2, %r12d
    report PORT_PHASE, $1
    vmcall
    incl GUEST_L2_ALIAS + GUEST_DATA
    movl GUEST_DATA, %eax
    addl $2, %eax               // 3, if both addresses are the same memory
    outl %eax, $PORT_PHASE
    vmcall

    .balign 16
evmcs_rows:
    evmcs_u32 EVMCS_REVISION, EVMCS_VERSION
    evmcs_controls EVMCS_PIN_BASED_CONTROLS, MSR_VMX_TRUE_PINBASED_CTLS, 0
    evmcs_controls EVMCS_PRIMARY_CONTROLS, MSR_VMX_TRUE_PROCBASED_CTLS, L2_PRIMARY_CONTROLS
    evmcs_controls EVMCS_SECONDARY_CONTROLS, MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT
    evmcs_controls EVMCS_EXIT_CONTROLS, MSR_VMX_TRUE_EXIT_CTLS, (EXIT_TO_64_BIT | EXIT_LOAD_PAT | EXIT_LOAD_EFER)
    evmcs_controls EVMCS_ENTRY_CONTROLS, MSR_VMX_TRUE_ENTRY_CTLS, (ENTRY_TO_64_BIT | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER)
    evmcs_u64 EVMCS_IO_BITMAP_A, GUEST_IOPM
    evmcs_u64 EVMCS_IO_BITMAP_B, (GUEST_IOPM + 0x1000)
    evmcs_u64 EVMCS_MSR_BITMAP, GUEST_MSRPM
    evmcs_u64 EVMCS_EPT_POINTER, (GUEST_NESTED_PML4 | EPT_POINTER_WB_4_LEVELS)
    evmcs_u64 EVMCS_LINK_POINTER, NO_LINK_POINTER

    evmcs_selectors EVMCS_HOST_SELECTORS, SELECTOR_DATA, SELECTOR_CODE, SELECTOR_DATA, SELECTOR_DATA
    evmcs_selectors (EVMCS_HOST_SELECTORS + 8), SELECTOR_DATA, SELECTOR_DATA, SELECTOR_TSS, 0
    evmcs_u64 EVMCS_HOST_TR_BASE, GUEST_TSS
    evmcs_u64 EVMCS_HOST_CR0, CR0_PE_ET_NE_PG
    evmcs_u64 EVMCS_HOST_CR3, GUEST_L1_PML4
    evmcs_u64 EVMCS_HOST_CR4, L1_CR4
    evmcs_u64 EVMCS_HOST_EFER, (EFER_LME | EFER_LMA)
    evmcs_u64 EVMCS_HOST_PAT, PAT_RESET
    evmcs_u64 EVMCS_HOST_RSP, GUEST_L1_STACK
    evmcs_u64 EVMCS_HOST_RIP, GPA(l1_exit)

    evmcs_selectors EVMCS_GUEST_SELECTORS, SELECTOR_DATA, SELECTOR_CODE, SELECTOR_DATA, SELECTOR_DATA
    evmcs_selectors (EVMCS_GUEST_SELECTORS + 8), SELECTOR_DATA, SELECTOR_DATA, 0, SELECTOR_TSS
    evmcs_u32_pair EVMCS_GUEST_LIMITS, 0xffffffff, 0xffffffff
    evmcs_u32_pair (EVMCS_GUEST_LIMITS + 8), 0xffffffff, 0xffffffff
    evmcs_u32_pair (EVMCS_GUEST_LIMITS + 16), 0xffffffff, 0xffffffff
    evmcs_u32_pair (EVMCS_GUEST_LIMITS + 24), 0, 0x67
    evmcs_u32_pair EVMCS_GUEST_ACCESS_RIGHTS, RIGHTS_DATA, RIGHTS_CODE64
    evmcs_u32_pair (EVMCS_GUEST_ACCESS_RIGHTS + 8), RIGHTS_DATA, RIGHTS_DATA
    evmcs_u32_pair (EVMCS_GUEST_ACCESS_RIGHTS + 16), RIGHTS_DATA, RIGHTS_DATA
    evmcs_u32_pair (EVMCS_GUEST_ACCESS_RIGHTS + 24), RIGHTS_UNUSABLE, RIGHTS_TSS
    evmcs_u64 EVMCS_GUEST_TR_BASE, GUEST_TSS
    evmcs_u64 EVMCS_GUEST_CR0, CR0_PE_ET_NE_PG
    evmcs_u64 EVMCS_GUEST_CR3, GUEST_L2_PML4
    evmcs_u64 EVMCS_GUEST_CR4, L1_CR4
    evmcs_u64 EVMCS_GUEST_EFER, (EFER_LME | EFER_LMA)
    evmcs_u64 EVMCS_GUEST_PAT, PAT_RESET
    evmcs_u64 EVMCS_GUEST_DR7, DR7_RESET
    evmcs_u64 EVMCS_GUEST_RSP, GUEST_L2_STACK
    evmcs_u64 EVMCS_GUEST_RFLAGS, RFLAGS_FIXED
    evmcs_u64 EVMCS_GUEST_RIP, GPA(l2_entry)
    evmcs_rows_end

    image_end vmx_enlightened
