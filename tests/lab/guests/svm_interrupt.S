// SPDX-License-Identifier: MIT
//
// svm_interrupt: physical interrupts (those of L1's local APIC, which must be in the kernel) while L2 runs, with
// V_INTR_MASKING and the INTR intercept. Whether L1 can be interrupted then is told by L1's RFLAGS.IF at VMRUN. The
// program that runs the guest sends vector INTERRUPT_VECTOR where it says so.
//
// L1 with IF clear: the interrupt stays pending, whatever L2 does.
//   PORT_PHASE 1        from L2: the program sends the interrupt
//   PORT_PHASE 2        from L2: it is pending
//   PORT_EXITCODE 0x81  from L1: L2 has called it
//   PORT_INTERRUPTS 0   from L1: still pending
//   PORT_INTERRUPTS 1   from L1, after STI
// L1 with IF set: the interrupt ends L2, and L1 takes it when it sets GIF.
//   PORT_PHASE 3        from L2: the program sends the interrupt
//   PORT_EXITCODE 0x60  from L1, GIF clear: #VMEXIT for the interrupt
//   PORT_INTERRUPTS 1   from L1, GIF clear: still pending
//   PORT_INTERRUPTS 2   from L1, after STGI
//   PORT_PHASE 4        from L2, which goes on
//   PORT_EXITCODE 0x81, PORT_INTERRUPTS 2 from L1. Then a shutdown.

#include "svm_lab.inc"

#define INTERRUPT_VECTOR 0x40

#define DATA_INTERRUPTS 0x200

// VMRUN by itself, with GIF clear afterwards: L2 uses nothing that VMLOAD loads.
.macro run_l2_to_gif_clear
    clgi
    movl $GUEST_VMCB12, %eax
    vmrun %rax
.endm

    image_begin svm_interrupt

    load_tables gdt_pointer, l1_idt_pointer
    movl $MSR_APIC_BASE, %ecx
    rdmsr
    orl $APIC_BASE_EN_EXTD, %eax
    wrmsr
    write_msr MSR_X2APIC_SVR, 0x1ff     // enabled, spurious vector ff
    svm_on
    svm_make_l2 vmcb_rows

    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    sti
    nop                         // STI takes effect after the instruction behind it
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS

    addq $VMMCALL_LENGTH, GUEST_VMCB12 + VMCB_RIP
    run_l2_to_gif_clear
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    stgi
    nop
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS

    run_l2_to_gif_clear
    stgi
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    shut_down

l1_interrupt:
    pushq %rax
    pushq %rcx
    pushq %rdx
    incq GUEST_DATA + DATA_INTERRUPTS
    write_msr MSR_X2APIC_EOI, 0
    popq %rdx
    popq %rcx
    popq %rax
    iretq

l2_entry:
    report PORT_PHASE, $1
    report PORT_PHASE, $2
    vmmcall
    report PORT_PHASE, $3
    report PORT_PHASE, $4
    vmmcall

    .balign 16
gdt:
    gdt_rows
gdt_end:
l1_idt:
    idt_gates_absent INTERRUPT_VECTOR
    idt_gate l1_interrupt
l1_idt_end:
    .balign 8
gdt_pointer:
    table_pointer gdt, gdt_end
    .balign 8
l1_idt_pointer:
    table_pointer l1_idt, l1_idt_end

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u32 VMCB_INTERCEPTS_WORD3, (INTERCEPT_WORD3_IOIO | INTERCEPT_WORD3_SHUTDOWN | INTERCEPT_WORD3_INTR)
    vmcb_u32 VMCB_INT_CTL, INT_CTL_V_INTR_MASKING
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_interrupt
