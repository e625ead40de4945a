// SPDX-License-Identifier: MIT
//
// svm_inject: an L1 that gives L2 events with VMRUN. In each of PARAMETER_ROUNDS rounds it injects an external
// interrupt, an exception with an error code and an NMI, each with a VMRUN of its own, and then runs L2 once more
// without any: what was injected before must not come again. L2 counts in its handlers and calls L1, again and again
// from the same place. Nothing exits to user space before the end, so the program that runs the guest can
// interrupt it anywhere. Then
//   PORT_L1_ROUNDS: 4 * rounds; PORT_INTERRUPTS, PORT_EXCEPTIONS, PORT_NMIS: rounds each. Then HLT.

#include "svm_lab.inc"

#define VECTOR 0x30
#define ERROR_CODE 0x12c0

#define DATA_INTERRUPTS 0x200
#define DATA_EXCEPTIONS 0x208
#define DATA_NMIS 0x210

// Runs L2 with this event, which may be none. It must come back with VMMCALL, the event delivered, its stack empty.
.macro run_l2_with event
    movl $\event, GUEST_VMCB12 + VMCB_EVENTINJ
    movl $ERROR_CODE, GUEST_VMCB12 + VMCB_EVENTINJ_ERROR
    call run_l2
.endm

    image_begin svm_inject

    svm_on
    svm_make_l2 vmcb_rows

    movq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbx  // rounds to go; L2 leaves it alone
next_round:
    run_l2_with (EVENTINJ_INTERRUPT | VECTOR)
    run_l2_with (EVENTINJ_EXCEPTION_WITH_ERROR | VECTOR_GP)
    run_l2_with EVENTINJ_NMI
    call run_l2                 // with what the last exit left in EVENTINJ
    decq %rbx
    jnz next_round

    report PORT_L1_ROUNDS, GUEST_DATA + DATA_L1_ROUNDS
    report PORT_INTERRUPTS, GUEST_DATA + DATA_INTERRUPTS
    report PORT_EXCEPTIONS, GUEST_DATA + DATA_EXCEPTIONS
    report PORT_NMIS, GUEST_DATA + DATA_NMIS
    halt

run_l2:
    svm_run_l2
    cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected
    testl $0x80000000, VMCB_EXITINTINFO(%rax)   // an event on its way would be L1's to inject again
    jnz unexpected
    cmpq $GUEST_L2_STACK, VMCB_RSP(%rax)
    jne unexpected
    incq GUEST_DATA + DATA_L1_ROUNDS
    ret

unexpected:
    unexpected_exit

l2_entry:
    vmmcall                     // L1 leaves RIP where it is

.macro count_l2 what
    incq GUEST_L2_ALIAS + GUEST_DATA + \what
.endm

l2_interrupt:
    count_l2 DATA_INTERRUPTS
    iretq
l2_nmi:
    count_l2 DATA_NMIS
    iretq
l2_general_protection:
    cmpl $ERROR_CODE, (%rsp)
    jne 1f
    count_l2 DATA_EXCEPTIONS
1:  addq $8, %rsp
    iretq

    .balign 16
gdt:
    gdt_rows
gdt_end:
l2_idt:
    idt_gates_absent VECTOR_NMI
    idt_gate l2_nmi
    idt_gates_absent VECTOR_GP - VECTOR_NMI - 1
    idt_gate l2_general_protection
    idt_gates_absent VECTOR - VECTOR_GP - 1
    idt_gate l2_interrupt
l2_idt_end:

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_segment VMCB_GDTR, 0, 0, gdt_end - gdt - 1, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, l2_idt_end - l2_idt - 1, GPA(l2_idt)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_inject
