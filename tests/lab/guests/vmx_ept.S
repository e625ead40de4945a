// SPDX-License-Identifier: MIT
//
// vmx_ept: L1 gives L2 a VPID and, by its EPT, one page after the other at the same address. Needs
// PARAMETER_FLAG_NESTED_PAGING.
//   PORT_VALUE 0x11a0      from L2: what is in the page
//   PORT_EXIT_REASON 0x12  from L1: L2 has called it
//   PORT_PHASE 1           from L1, which has changed the entry and executed INVEPT and INVVPID
//   PORT_VALUE 0x11b0      from L2: what is in the page now
//   PORT_EXIT_REASON 0x12  from L1. Then HLT.

#include "vmx_lab.inc"

#define EPT_PAGE_TABLE LAB_PAGE_1
#define PAGE_A LAB_PAGE_2
#define PAGE_B LAB_PAGE_3
#define EPT_PAGE 0x37                    // read, write, execute; write-back
#define EPT_ENTRY (EPT_PAGE_TABLE + PAGE_A / 0x1000 * 8)

#define VPID 1
#define SINGLE_CONTEXT 1                 // type of INVEPT and of INVVPID

    image_begin vmx_ept

    movl $0x11a0, PAGE_A
    movl $0x11b0, PAGE_B
    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    vmcs_set_bits VMCS_SECONDARY_CONTROLS, SECONDARY_VPID_ENABLED
    movq $(EPT_PAGE_TABLE | PTE_TABLE), GUEST_NESTED_PD + 8 // in place of the alias of everything
    movq $(PAGE_A | EPT_PAGE), EPT_ENTRY
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    cmpl $REASON_VMCALL, %eax
    jne unexpected
    decl %r12d                  // of L2: how often it will come back
    jz finished
    movq $(PAGE_B | EPT_PAGE), EPT_ENTRY
    movl $SINGLE_CONTEXT, %eax
    invept ept_descriptor(%rip), %rax
    jbe vm_failed
    invvpid vpid_descriptor(%rip), %rax
    jbe vm_failed
    report PORT_PHASE, $1
    vmx_skip_instruction
    vmresume
    jmp vm_failed
finished:
    halt
    vmx_failures

l2_entry:
    movl $2, %r12d
l2_look:
    report PORT_VALUE, GUEST_L2_ALIAS + PAGE_A
    vmcall
    jmp l2_look

    .balign 16
ept_descriptor:
    .quad GUEST_NESTED_PML4 | EPT_POINTER_WB_4_LEVELS, 0
vpid_descriptor:
    .quad VPID, 0
    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_VPID, VPID
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_ept
