// SPDX-License-Identifier: MIT
//
// vmx_inject: L1 injects an interrupt into L2 at each VM entry, PARAMETER_ROUNDS times, and L2 calls L1 after each.
// There is no exit to user space before the end: the program that runs it interrupts it where it likes, in the moment
// between VM entry and the first instruction of L2's handler if it can.
//   PORT_L1_ROUNDS   from L1: how often it injected
//   PORT_INTERRUPTS  from L1: how often L2's handler ran. Then HLT.

#include "vmx_lab.inc"

#define VECTOR 0x20
#define DATA_INTERRUPTS 0x200

    image_begin vmx_inject

    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    movq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbx  // rounds to go; L2 leaves it alone
    incq GUEST_DATA + DATA_L1_ROUNDS
    vmlaunch
    jmp vm_failed

l1_exit:
    vmcs_read VMCS_EXIT_REASON
    cmpl $REASON_VMCALL, %eax
    jne unexpected
    decq %rbx
    jz finished
    vmx_skip_instruction
    movl $(INTERRUPTION_VALID | VECTOR), %eax
    vmcs_write VMCS_ENTRY_INTERRUPTION_INFORMATION
    incq GUEST_DATA + DATA_L1_ROUNDS
    vmresume
    jmp vm_failed

finished:
    report PORT_L1_ROUNDS, GUEST_DATA + DATA_L1_ROUNDS
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    halt
    vmx_failures

l2_entry:
    vmcall
    jmp l2_entry

l2_interrupt:
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
    iretq

    .balign 16
gdt:
    gdt_rows
idt:
    .rept VECTOR
    idt_gate_absent
    .endr
    idt_gate l2_interrupt
idt_end:

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_ENTRY_INTERRUPTION_INFORMATION, (INTERRUPTION_VALID | VECTOR)
    vmcs_field VMCS_GUEST_GDTR_BASE, GPA(gdt)
    vmcs_field VMCS_GUEST_GDTR_LIMIT, GDT_LIMIT
    vmcs_field VMCS_GUEST_IDTR_BASE, GPA(idt)
    vmcs_field VMCS_GUEST_IDTR_LIMIT, (idt_end - idt - 1)
    vmcs_field VMCS_GUEST_RFLAGS, (RFLAGS_FIXED | RFLAGS_IF)
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_inject
