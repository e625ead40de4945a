// SPDX-License-Identifier: MIT
//
// vmx_triple_fault: an L2 that dies of a triple fault, which is an exit to L1.
//   PORT_PHASE 1       from L2
//   PORT_PHASE 2       from L2, if it has not died yet
//   PORT_EXIT_REASON 2 from L1. Then HLT.

#include "vmx_lab.inc"

    image_begin vmx_triple_fault

    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    halt
    vmx_failures

l2_entry:
    report PORT_PHASE, $1
    report PORT_PHASE, $2
    ud2                         // its IDT is empty

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_triple_fault
