// SPDX-License-Identifier: MIT
//
// svm_stress: an L1 that does nothing but run L2 and take its exits, as fast as it can, PARAMETER_ROUNDS times. L2 adds
// STRESS_INCREMENTS to a counter in memory, one at a time, and calls L1. Neither exits to user space before the end, so
// the program that runs it can interrupt it anywhere: in L1 with GIF set or clear, in L2, between VMRUN and the first
// instruction of L2. If all is well, and only then, both final counts are exact:
//   PORT_L1_ROUNDS: rounds;  PORT_ROUNDS: rounds * STRESS_INCREMENTS.  Then HLT.

#include "svm_lab.inc"

    image_begin svm_stress

    svm_on
    svm_make_l2 vmcb_rows

    movq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbx  // rounds to go; L2 leaves it alone
next_round:
    svm_run_l2
    cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected
    addq $VMMCALL_LENGTH, VMCB_RIP(%rax)
    incq GUEST_DATA + DATA_L1_ROUNDS
    decq %rbx
    jnz next_round

    report PORT_L1_ROUNDS, GUEST_DATA + DATA_L1_ROUNDS
    report PORT_ROUNDS, GUEST_DATA + DATA_L2_ROUNDS
halted:
    hlt
    jmp halted

unexpected:
    unexpected_exit

l2_entry:
    movl $STRESS_INCREMENTS, %ecx
l2_increment:
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_ROUNDS
    decl %ecx
    jnz l2_increment
    vmmcall
    jmp l2_entry

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_stress
