// SPDX-License-Identifier: MIT
//
// svm_virtual_nmi: L1 makes an NMI pending for L2 with V_NMI, and blocks it, as if L2 were in its handler. L2 ends that
// with IRET, and is told at once.
//   PORT_PHASE 1        from L2: blocked
//   PORT_PHASE 2        from L2's handler, where the processor has virtual NMIs
//   PORT_NMIS           from L2: 1 there, 0 elsewhere
//   PORT_EXITCODE 0x81  from L1: L2 has called it. Then HLT.

#include "svm_lab.inc"

#define DATA_NMIS 0x200

    image_begin svm_virtual_nmi

    svm_on
    svm_make_l2 vmcb_rows
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    halt

l2_entry:
    report PORT_PHASE, $1
    movq %rsp, %rax             // what IRETQ pops: RIP, CS, RFLAGS, RSP, SS
    pushq $SELECTOR_DATA
    pushq %rax
    pushq $RFLAGS_FIXED
    pushq $SELECTOR_CODE
    pushq $GPA(l2_not_blocked)
    iretq
l2_not_blocked:
    nop
    report PORT_NMIS, GUEST_L2_ALIAS + GUEST_DATA + DATA_NMIS
    vmmcall

l2_nmi:
    pushq %rax
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_NMIS
    report PORT_PHASE, $2
    popq %rax
    iretq

    .balign 16
gdt:
    gdt_rows
gdt_end:
l2_idt:
    idt_gates_absent VECTOR_NMI
    idt_gate l2_nmi
l2_idt_end:

    .balign 8
vmcb_rows:
    vmcb_rows_common
    // Without the NMI intercept V_NMI is an invalid VMCB.
    vmcb_u32 VMCB_INTERCEPTS_WORD3, (INTERCEPT_WORD3_IOIO | INTERCEPT_WORD3_SHUTDOWN | INTERCEPT_WORD3_NMI)
    vmcb_u32 VMCB_INT_CTL, (INT_CTL_V_NMI_ENABLE | INT_CTL_V_NMI_PENDING | INT_CTL_V_NMI_BLOCKING)
    vmcb_segment VMCB_GDTR, 0, 0, gdt_end - gdt - 1, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, l2_idt_end - l2_idt - 1, GPA(l2_idt)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_virtual_nmi
