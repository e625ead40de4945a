// SPDX-License-Identifier: MIT
//
// vmx_smm: an L1 and an L2 that are interrupted by SMIs, which the program running the guest sends where the guest says
// so. The SMI handler lies where a processor looks for it after a reset (Intel SDM, Vol. 3, chapter 32: SMBASE 0x30000,
// handler at 0x8000 behind it), reports on PORT_SMI how often it ran, and leaves with RSM.
//   PORT_PHASE 1           from L1, in VMX operation without a current VMCS
//   PORT_PHASE 2           from L1, with a current VMCS
//   PORT_PHASE 3           from L2
//   PORT_SMI               from SMM, behind each of these where the program sends an SMI
//   PORT_CHECKS 7          from L2: what of its own it found unchanged, FOUND_* below
//   PORT_EXIT_REASON 0x12  from L1: L2 has called it
//   PORT_CHECKS 0x38       from L1: what of its own it found unchanged. Then HLT.

#include "vmx_lab.inc"

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

    image_begin vmx_smm

    leaq smi_handler(%rip), %rsi
    movl $SMI_HANDLER, %edi
    movl $(smi_handler_end - smi_handler), %ecx
    rep movsb

    pushq $COOKIE
    movl $(COOKIE + 1), %r12d
    vmx_on
    report PORT_PHASE, $1
    vmx_load_vmcs
    report PORT_PHASE, $2
    vmx_make_l2 vmcs_rows
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
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
    vmx_failures

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
    vmcall

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
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_smm
