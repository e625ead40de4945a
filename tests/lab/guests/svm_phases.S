// SPDX-License-Identifier: MIT
//
// svm_phases: an L1 that walks through every phase a vCPU with SVM can be in, and says on PORT_PHASE where it is.
// The program that runs it can save the vCPU at each of these exits. It ends with HLT after the last phase.

#include "svm_lab.inc"

    image_begin svm_phases

    report PORT_PHASE, $PHASE_SVM_OFF
    svm_on
    report PORT_PHASE, $PHASE_SVM_ON
    clgi
    report PORT_PHASE, $PHASE_GIF_CLEAR
    stgi
    report PORT_PHASE, $PHASE_GIF_SET

    svm_make_l2 vmcb_rows

    // VMRUN by itself, not svm_run_l2, which would set GIF before we could tell. L2 uses nothing that VMLOAD loads.
    movl $GUEST_VMCB12, %eax
    vmrun %rax
    cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected
    report PORT_PHASE, $PHASE_EXITED
    stgi
    report PORT_PHASE, $PHASE_EXITED_GIF
halted:
    hlt
    jmp halted

unexpected:
    unexpected_exit

l2_entry:
    report PORT_PHASE, $PHASE_L2
    vmmcall

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_phases
