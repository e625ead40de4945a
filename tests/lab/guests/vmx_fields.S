// SPDX-License-Identifier: MIT
//
// vmx_fields: an L1 that writes and reads any field of its VMCS, by the encoding that the program running it names. It
// goes through a list in memory (FIELD_LIST, below), which the program makes anew wherever the guest reports a phase.
//   PORT_PHASE 1  from L1: its VMCS is current, and it has written nothing into it
//                 VMWRITE of all in the list
//   PORT_PHASE 2  from L1
//                 VMREAD of all in the list
//   PORT_PHASE 3  from L1
//                 a VMCS for an L2, and over it VMWRITE of all in the list
//   PORT_PHASE 4  from L1
//                 VMREAD of all in the list
//   PORT_PHASE 5  from L1: the next is VMLAUNCH
//   PORT_PHASE 6  from L2, which has another stack and other descriptor tables by now, and then calls L1
//   PORT_PHASE 7  from L1, L2 having exited
//                 VMREAD of all in the list
//   PORT_PHASE 8  from L1. Then HLT.

#include "vmx_lab.inc"

// The list: how many rows there are, and from its 16th byte on the rows: an encoding, what became of it, a value.
#define FIELD_LIST 0x20000
#define FIELD_LIST_ROWS (FIELD_LIST + 16)
#define ROW_ENCODING 0
#define ROW_OUTCOME 4           // OUTCOME_*, or VMfailValid's number of the error
#define ROW_VALUE 8
#define ROW_SIZE 16

#define OUTCOME_SUCCEEDED 0
#define OUTCOME_FAIL_INVALID 0x80000000 // there is no current VMCS

// Where none of them is looked for: L2 uses neither stack nor descriptors.
#define L2_STACK 0x5a01000102030405
#define L2_GDT_LIMIT 0x5a02
#define L2_GDT_BASE 0x00005a0300010203
#define L2_IDT_LIMIT 0x5a04
#define L2_IDT_BASE 0x00005a0500010203

// Applies `step` to each row, with the encoding in %rdi and the row's address in %rsi. `step` ends with the VMX
// instruction. Clobbers %rax, %rcx, %rsi, %rdi.
.macro for_each_field step
    movl FIELD_LIST, %ecx
    movl $FIELD_LIST_ROWS, %esi
    jrcxz 3f
1:  movl ROW_ENCODING(%rsi), %edi
    \step
    movl $OUTCOME_SUCCEEDED, %eax // leaves the flags alone
    ja 2f
    movl $OUTCOME_FAIL_INVALID, %eax
    jc 2f
    vmcs_read VMCS_VM_INSTRUCTION_ERROR
2:  movl %eax, ROW_OUTCOME(%rsi)
    addq $ROW_SIZE, %rsi
    decl %ecx
    jnz 1b
3:
.endm

.macro write_field
    movq ROW_VALUE(%rsi), %rax
    vmwrite %rax, %rdi
.endm

.macro read_field
    vmread %rdi, %rax
    movq %rax, ROW_VALUE(%rsi)  // leaves the flags alone
.endm

    image_begin vmx_fields

    vmx_on
    vmx_load_vmcs
    report PORT_PHASE, $1
    for_each_field write_field
    report PORT_PHASE, $2
    for_each_field read_field
    report PORT_PHASE, $3
    vmx_make_l2 vmcs_rows
    for_each_field write_field
    report PORT_PHASE, $4
    for_each_field read_field
    report PORT_PHASE, $5
    vmlaunch
    jmp vm_failed

l1_exit:
    report PORT_PHASE, $7
    for_each_field read_field
    report PORT_PHASE, $8
    halt
    vmx_failures

l2_entry:
    movq $L2_STACK, %rsp
    lgdt l2_gdt(%rip)
    lidt l2_idt(%rip)
    report PORT_PHASE, $6
    vmcall

    .balign 8
l2_gdt:
    .short L2_GDT_LIMIT
    .quad L2_GDT_BASE
l2_idt:
    .short L2_IDT_LIMIT
    .quad L2_IDT_BASE

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_fields
