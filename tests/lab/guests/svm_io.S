// SPDX-License-Identifier: MIT
//
// svm_io: an L2 that does I/O of each kind: intercepted by L1 (a set bit in the I/O permission map) or not, OUT and IN,
// one at a time and as strings. User space sees only what L1 does not intercept.
//   PORT_PHASE 1              from L2: OUT, not intercepted
//   PORT_VALUE INFO           from L1: L2's OUT to PORT_INTERCEPTED; INFO is EXITINFO1 (AMD APM Vol. 2, IOIO intercept)
//   PORT_VALUE INFO           from L1: L2's IN from PORT_INTERCEPTED. L1 gives it L1_GIVES.
//   PORT_VALUE L1_GIVES       from L2
//   IN from PORT_INPUT        from L2
//   PORT_VALUE                from L2: what it got
//   PORT_BYTES, four times    from L2: REP OUTSB of "L2io"
//   INS from PORT_INPUT       from L2: REP INSB of four bytes
//   PORT_VALUE                from L2: what it got
//   PORT_EXITCODE 0x81        from L1: L2 has called it. Then HLT.

#include "svm_lab.inc"

#define PORT_BYTES 0x50
#define PORT_INPUT 0x60

#define L1_GIVES 0x11c0611e

#define DATA_INPUT 0x200

    image_begin svm_io

    svm_on
    svm_make_l2 vmcb_rows
    orb $(1 << (PORT_INTERCEPTED & 7)), GUEST_IOPM + PORT_INTERCEPTED / 8
run_l2:
    svm_run_l2
    cmpl $VMEXIT_IOIO, VMCB_EXITCODE(%rax)
    jne 1f
    movq VMCB_EXITINFO2(%rax), %rcx // the address after the instruction
    movq %rcx, VMCB_RIP(%rax)
    movq $L1_GIVES, VMCB_RAX(%rax)
    report PORT_VALUE, GUEST_VMCB12 + VMCB_EXITINFO1
    jmp run_l2
1:  report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    halt

l2_entry:
    report PORT_PHASE, $1
    outl %eax, $PORT_INTERCEPTED
    xorl %eax, %eax
    inl $PORT_INTERCEPTED, %eax
    outl %eax, $PORT_VALUE
    xorl %eax, %eax
    inl $PORT_INPUT, %eax
    outl %eax, $PORT_VALUE

    leaq l2_bytes(%rip), %rsi
    movl $4, %ecx
    movl $PORT_BYTES, %edx
    rep outsb
    movl $(GUEST_L2_ALIAS + GUEST_DATA + DATA_INPUT), %edi
    movl $4, %ecx
    movl $PORT_INPUT, %edx
    rep insb
    report PORT_VALUE, GUEST_L2_ALIAS + GUEST_DATA + DATA_INPUT
    vmmcall

l2_bytes:
    .ascii "L2io"

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_io
