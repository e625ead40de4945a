// SPDX-License-Identifier: MIT
//
// svm_pat: an L1 and an L2 with different page attribute tables. Each tells the lower half of its own.
//   PORT_PHASE 1, PORT_VALUE  from L2: the PAT that L1 gave it
//   PORT_PHASE 2, PORT_VALUE  from L2: the PAT that it gave itself
//   PORT_EXITCODE 0x81        from L1: L2 has called it
//   PORT_VALUE                from L1: its own PAT
//   PORT_VALUE                from L1: L2's PAT in the VMCB. Then HLT.

#include "svm_lab.inc"

#define L1_PAT 0x0007040600070401
#define L2_PAT 0x0007040600070405
#define L2_SECOND_PAT 0x0007040600070404

.macro report_pat
    read_msr MSR_PAT
    outl %eax, $PORT_VALUE
.endm

    image_begin svm_pat

    write_msr MSR_PAT, L1_PAT
    svm_on
    svm_make_l2 vmcb_rows
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    report_pat
    report PORT_VALUE, GUEST_VMCB12 + VMCB_G_PAT
    halt

l2_entry:
    report PORT_PHASE, $1
    report_pat
    write_msr MSR_PAT, L2_SECOND_PAT
    report PORT_PHASE, $2
    report_pat
    vmmcall

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_G_PAT, L2_PAT
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_pat
