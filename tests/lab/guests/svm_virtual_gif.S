// SPDX-License-Identifier: MIT
//
// svm_virtual_gif: L1 gives L2 a GIF of its own (virtual GIF) and makes an interrupt pending for it with V_IRQ. L2
// clears its GIF and sets RFLAGS.IF, so that the interrupt stays pending until it sets GIF. L1 sees none of that.
//   PORT_PHASE 1        from L2: IF set, its GIF clear
//   PORT_INTERRUPTS 0   from L2: still pending
//   PORT_PHASE 2        from L2's handler
//   PORT_INTERRUPTS 1   from L2: taken once
//   PORT_PHASE 3        from L2: GIF clear again
//   PORT_EXITCODE 0x81  from L1: L2 has called it
//   PORT_VALUE 0        from L1: V_GIF in the VMCB, as L2 left it. Then HLT.

#include "svm_lab.inc"

#define VECTOR 0x50
#define INT_CTL (INT_CTL_V_IRQ | INT_CTL_V_INTR_PRIORITY | INT_CTL_V_IGN_TPR | INT_CTL_V_INTR_MASKING)

#define DATA_INTERRUPTS 0x200

    image_begin svm_virtual_gif

    svm_on
    svm_make_l2 vmcb_rows
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    movl GUEST_VMCB12 + VMCB_INT_CTL, %ecx
    andl $INT_CTL_V_GIF, %ecx
    report PORT_VALUE, %ecx
    halt

l2_entry:
    clgi
    sti
    report PORT_PHASE, $1
    report PORT_INTERRUPTS, GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
    pushq %rax                  // touches the stack: svm_virtual_interrupt.S tells why
    popq %rax
    stgi
    nop
    clgi
    report PORT_INTERRUPTS, GUEST_L2_ALIAS + GUEST_DATA + DATA_INTERRUPTS
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
    vmcb_u32 VMCB_INT_CTL, (INT_CTL | INT_CTL_V_GIF_ENABLE | INT_CTL_V_GIF)
    vmcb_u32 VMCB_INT_VECTOR, VECTOR
    vmcb_segment VMCB_GDTR, 0, 0, gdt_end - gdt - 1, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, l2_idt_end - l2_idt - 1, GPA(l2_idt)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_virtual_gif
