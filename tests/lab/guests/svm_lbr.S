// SPDX-License-Identifier: MIT
//
// svm_lbr: an L1 that asks for LBR virtualization, so that L2 has a DEBUGCTL of its own. L2 finds last branch records
// turned on there; L1 has them off.
//   PORT_PHASE 1        from L2
//   PORT_VALUE          from L2: its DEBUGCTL: 1 where the processor has LBR virtualization, 0 elsewhere
//   PORT_EXITCODE 0x81  from L1: L2 has called it
//   PORT_VALUE 0        from L1: its DEBUGCTL. Then HLT.

#include "svm_lab.inc"

#define LBR_CTL_ENABLE 0x1

.macro report_debugctl
    read_msr MSR_DEBUGCTL
    outl %eax, $PORT_VALUE
.endm

    image_begin svm_lbr

    svm_on
    svm_make_l2 vmcb_rows
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    report_debugctl
    halt

l2_entry:
    report PORT_PHASE, $1
    report_debugctl
    vmmcall

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_LBR_CTL, LBR_CTL_ENABLE
    vmcb_u64 VMCB_DBGCTL, DEBUGCTL_LBR
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_lbr
