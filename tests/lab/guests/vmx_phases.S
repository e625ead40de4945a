// SPDX-License-Identifier: MIT
//
// vmx_phases: an L1 that walks through every phase a vCPU with VMX can be in, and says on PORT_PHASE where it is.
// The program that runs it can save the vCPU at each of these exits. It ends with HLT after the last phase.

#include "vmx_lab.inc"

    image_begin vmx_phases

    report PORT_PHASE, $PHASE_VMX_OFF
    vmx_on
    report PORT_PHASE, $PHASE_VMX_ON
    vmx_load_vmcs
    report PORT_PHASE, $PHASE_VMCS_LOADED
    vmx_make_l2 vmcs_rows
    report PORT_PHASE, $PHASE_VMCS_WRITTEN

    vmlaunch
    jmp vm_failed
l1_exit:
    vmcs_read VMCS_EXIT_REASON
    cmpl $REASON_VMCALL, %eax
    jne unexpected
    report PORT_PHASE, $PHASE_EXITED

    vmx_region vmclear, GUEST_VMCS12
    report PORT_PHASE, $PHASE_VMCS_CLEARED
    vmxoff
    jbe vm_failed
    report PORT_PHASE, $PHASE_VMXOFF
halted:
    hlt
    jmp halted

unexpected:
    unexpected_exit
vm_failed:
    unexpected_vm_fail

l2_entry:
    report PORT_PHASE, $PHASE_L2
    vmcall

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_phases
