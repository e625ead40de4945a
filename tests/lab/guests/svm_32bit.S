// SPDX-License-Identifier: MIT
//
// svm_32bit: a 32-bit L1 with paging by 4 MiB pages (VMRUN needs paging, AMD APM Vol. 2, VMRUN) and a 32-bit L2 without
// any paging. The program that runs the guest puts the vCPU into that mode.
//   PORT_PHASE 1        from L1
//   PORT_PHASE 2        from L2
//   PORT_CHECKS 7       from L2: CR0 without paging, its stack, its code segment's size
//   PORT_EXITCODE 0x81  from L1: L2 has called it
//   PORT_CHECKS 0x38    from L1: CR0 with paging, its stack, CR3. Then HLT.

#include "svm_lab.inc"

#define L1_COOKIE 0x11c0011e
#define L2_COOKIE 0x12c0011e

#define CR0_PE_ET 0x11
#define CR0_PG 0x80000000
#define ATTRIB_CODE32 0xc9b

#define FOUND_L2_CR0 0x1
#define FOUND_L2_STACK 0x2
#define FOUND_L2_CODE32 0x4
#define FOUND_L1_CR0 0x8
#define FOUND_L1_STACK 0x10
#define FOUND_L1_CR3 0x20

// EBP collects.
.macro found_if_equal what
    jne .Lnot_found_\@
    orl $\what, %ebp
.Lnot_found_\@:
.endm

    image_begin svm_32bit
    .code32

    pushl $L1_COOKIE
    report PORT_PHASE, $1
    svm_on

    movl $GPA(vmcb_rows), %esi
1:  movzwl 2(%esi), %ecx        // as vmcb_write does in 64-bit code
    jecxz 2f
    movzwl (%esi), %edi
    addl $GUEST_VMCB12, %edi
    addl $4, %esi
    rep movsb
    jmp 1b
2:
    movl $GUEST_VMCB12, %eax
    vmrun %eax                  // by itself: L2 uses nothing that VMLOAD loads
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE

    xorl %ebp, %ebp
    movl %cr0, %eax
    andl $CR0_PG, %eax
    cmpl $CR0_PG, %eax
    found_if_equal FOUND_L1_CR0
    popl %eax
    cmpl $L1_COOKIE, %eax
    jne 1f
    cmpl $GUEST_L1_STACK, %esp
    found_if_equal FOUND_L1_STACK
1:  movl %cr3, %eax
    cmpl $GUEST_L1_PML4, %eax
    found_if_equal FOUND_L1_CR3
    report PORT_CHECKS, %ebp
    halt

l2_entry:
    pushl $L2_COOKIE
    report PORT_PHASE, $2
    xorl %ebp, %ebp
    movl %cr0, %eax
    cmpl $CR0_PE_ET, %eax
    found_if_equal FOUND_L2_CR0
    popl %eax
    cmpl $L2_COOKIE, %eax
    jne 1f
    cmpl $GUEST_L2_STACK, %esp
    found_if_equal FOUND_L2_STACK
1:  xorl %eax, %eax
    .byte 0x40                  // INC EAX; in 64-bit code a prefix of the next instruction, which changes nothing
    nop
    cmpl $1, %eax
    found_if_equal FOUND_L2_CODE32
    report PORT_CHECKS, %ebp
    vmmcall
    report PORT_UNEXPECTED, $0  // L1 does not come back; only what is no L2 gets here
    halt

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_segment VMCB_CS, SELECTOR_CODE, ATTRIB_CODE32, 0xffffffff, 0
    vmcb_u64 VMCB_EFER, EFER_SVME
    vmcb_u64 VMCB_CR0, CR0_PE_ET
    vmcb_u64 VMCB_CR3, 0
    vmcb_u64 VMCB_CR4, 0
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_32bit
