// SPDX-License-Identifier: MIT
//
// svm_virtual_interrupt: L1 makes an interrupt pending for L2 with V_IRQ. L2 begins with RFLAGS.IF clear, so that it
// stays pending until L2 sets it. In this order:
//   PORT_PHASE 1        from L2: pending
//   PORT_INTERRUPTS 0   from L2: still
//   PORT_PHASE 2        from L2's handler
//   PORT_INTERRUPTS 1   from L2: taken once
//   PORT_EXITCODE 0x81, PORT_VALUE 0 from L1: L2 has called it; V_IRQ is clear in the VMCB
// and once more, with an L2 that leaves it pending:
//   PORT_PHASE 3        from L2
//   PORT_EXITCODE 0x81, PORT_VALUE 0x100 from L1: V_IRQ has stayed
//   PORT_INTERRUPTS 1   from L1. Then HLT.

// L2 touches all pages that the delivery needs (its stack; the tables are in the page that executes) before it sets IF,
// since after a migration none is mapped. QEMU 7.2 has an error here that no processor has: where the delivery of a
// virtual interrupt ends in #VMEXIT for a page, its EXITINTINFO says "exception" instead of "interrupt", and KVM, which
// injects again what EXITINTINFO says, then fails with VMEXIT_INVALID.

#include "svm_lab.inc"

#define VECTOR 0x50
#define INT_CTL (INT_CTL_V_IRQ | INT_CTL_V_INTR_PRIORITY | INT_CTL_V_IGN_TPR | INT_CTL_V_INTR_MASKING)

#define DATA_INTERRUPTS 0x200

    image_begin svm_virtual_interrupt

    svm_on
    svm_make_l2 vmcb_rows
    call run_l2
    movl $INT_CTL, GUEST_VMCB12 + VMCB_INT_CTL
    addq $VMMCALL_LENGTH, GUEST_VMCB12 + VMCB_RIP
    call run_l2
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    halt

run_l2:
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    movl GUEST_VMCB12 + VMCB_INT_CTL, %ecx
    andl $INT_CTL_V_IRQ, %ecx
    report PORT_VALUE, %ecx
    ret

l2_entry:
    report PORT_PHASE, $1
    report PORT_INTERRUPTS, GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
    pushq %rax                  // see below
    popq %rax
    sti
    nop                         // STI takes effect after the instruction behind it
    cli
    report PORT_INTERRUPTS, GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
    vmmcall
    report PORT_PHASE, $3
    vmmcall

l2_interrupt:
    pushq %rax
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
    report PORT_PHASE, $2
    popq %rax
    iretq

    .balign 16
gdt:
    gdt_rows
gdt_end:
l2_idt:
    idt_gates_absent VECTOR
    idt_gate l2_interrupt
l2_idt_end:

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u32 VMCB_INT_CTL, INT_CTL
    vmcb_u32 VMCB_INT_VECTOR, VECTOR
    vmcb_segment VMCB_GDTR, 0, 0, gdt_end - gdt - 1, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, l2_idt_end - l2_idt - 1, GPA(l2_idt)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_virtual_interrupt
