// SPDX-License-Identifier: MIT
//
// svm_smm: an L1 and an L2 that are interrupted by SMIs, which the program running the guest sends where it says so.
// The SMI handler lies where a processor looks for it after a reset (AMD APM Vol. 2, chapter 10: SMBASE 0x30000,
// handler at 0x8000 behind it), reports on PORT_SMI how often it ran, and leaves with RSM.
//
// From L1, and from L2 if L1 does not intercept SMI:
//   PORT_PHASE 1        from L1: the program sends an SMI
//   PORT_SMI 1          from SMM
//   PORT_PHASE 2        from L1
//   PORT_PHASE 3        from L2: the program sends an SMI
//   PORT_SMI 2          from SMM
//   PORT_CHECKS 7       from L2: what of its own it found unchanged, CHECK_* below
//   PORT_EXITCODE 0x81  from L1: L2 has called it
//   PORT_CHECKS 0x38    from L1: what of its own it found unchanged. Then HLT.
// With FLAG_INTERCEPT_SMI the SMI ends L2, and is taken by L1 when it sets GIF: in place of the second PORT_SMI
//   PORT_EXITCODE 0x62  from L1, GIF clear
//   PORT_SMI 2          from SMM
//   PORT_PHASE 4        from L1, which goes on with L2.

#include "svm_lab.inc"

#define FLAG_INTERCEPT_SMI 0x100 // in the parameters

#define SMI_HANDLER 0x38000

#define COOKIE 0x11c0011e

#define FOUND_L2_GPRS 0x1
#define FOUND_L2_STACK 0x2
#define FOUND_L2_CR3 0x4
#define FOUND_L1_GPRS 0x8
#define FOUND_L1_STACK 0x10
#define FOUND_L1_CR3 0x20

#define DATA_SMIS 0x200

.macro found_if_equal what
    jne .Lnot_found_\@
    orl $\what, %r15d
.Lnot_found_\@:
.endm

    image_begin svm_smm

    leaq smi_handler(%rip), %rsi
    movl $SMI_HANDLER, %edi
    movl $(smi_handler_end - smi_handler), %ecx
    rep movsb

    pushq $COOKIE
    movl $(COOKIE + 1), %r12d
    xorl %r15d, %r15d
    svm_on
    report PORT_PHASE, $1
    report PORT_PHASE, $2

    svm_make_l2 vmcb_rows
    testl $FLAG_INTERCEPT_SMI, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    orl $INTERCEPT_WORD3_SMI, GUEST_VMCB12 + VMCB_INTERCEPTS_WORD3
1:
run_l2:
    movl $GUEST_VMCB12, %eax
    vmrun %rax                  // by itself: L2 uses nothing that VMLOAD loads
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    stgi
    nop
    cmpl $VMEXIT_SMI, GUEST_VMCB12 + VMCB_EXITCODE
    jne 1f
    report PORT_PHASE, $4
    jmp run_l2
1:
    xorl %r15d, %r15d
    cmpl $(COOKIE + 1), %r12d
    found_if_equal FOUND_L1_GPRS
    popq %rax
    cmpq $COOKIE, %rax
    jne 1f
    cmpq $GUEST_L1_STACK, %rsp
    found_if_equal FOUND_L1_STACK
1:  movq %cr3, %rax
    cmpq $GUEST_L1_PML4, %rax
    found_if_equal FOUND_L1_CR3
    report PORT_CHECKS, %r15d
    halt

l2_entry:
    pushq $(COOKIE + 2)
    movl $(COOKIE + 3), %r13d
    report PORT_PHASE, $3
    xorl %r15d, %r15d
    cmpl $(COOKIE + 3), %r13d
    found_if_equal FOUND_L2_GPRS
    movq GUEST_L2_ALIAS + GUEST_L2_STACK - 8, %rax
    cmpq $(COOKIE + 2), %rax
    jne 1f
    cmpq $(GUEST_L2_STACK - 8), %rsp
    found_if_equal FOUND_L2_STACK
1:  movq %cr3, %rax
    cmpq $GUEST_L2_PML4, %rax
    found_if_equal FOUND_L2_CR3
    report PORT_CHECKS, %r15d
    vmmcall

// In SMM: real mode, but for segments of 4 GiB; RSM puts all registers back.
smi_handler:
    .code16
    movl $(GUEST_DATA + DATA_SMIS), %ebx
    incl (%ebx)
    movl (%ebx), %eax
    outl %eax, $PORT_SMI
    rsm
    .code64
smi_handler_end:

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_smm
