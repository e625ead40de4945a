// SPDX-License-Identifier: MIT
//
// vmx_stress: an L1 that does nothing but run L2 and take its exits, as fast as it can, PARAMETER_ROUNDS times. L2 adds
// STRESS_INCREMENTS to a counter in memory, one at a time, and calls L1. Neither exits to user space before the end, so
// the program that runs it can interrupt it anywhere: in L1, in L2, between VM entry and the first instruction of L2.
// If all is well, and only then, both final counts are exact:
//   PORT_L1_ROUNDS: rounds;  PORT_ROUNDS: rounds * STRESS_INCREMENTS.  Then HLT.

#include "vmx_lab.inc"

    image_begin vmx_stress

    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows

    movq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbx  // rounds to go; L2 leaves it alone
    vmlaunch
    jmp vm_failed
l1_exit:
    vmcs_read VMCS_EXIT_REASON
    cmpl $REASON_VMCALL, %eax
    jne unexpected
    vmx_skip_instruction
    incq GUEST_DATA + DATA_L1_ROUNDS
    decq %rbx
    jz finished
    vmresume
    jmp vm_failed

finished:
    report PORT_L1_ROUNDS, GUEST_DATA + DATA_L1_ROUNDS
    report PORT_ROUNDS, GUEST_DATA + DATA_L2_ROUNDS
halted:
    hlt
    jmp halted

unexpected:
    unexpected_exit
vm_failed:
    unexpected_vm_fail

l2_entry:
    movl $STRESS_INCREMENTS, %ecx
l2_increment:
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_ROUNDS
    decl %ecx
    jnz l2_increment
    vmcall
    jmp l2_entry

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_stress
