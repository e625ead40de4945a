// SPDX-License-Identifier: MIT
//
// vmx_mtf: L1 uses the monitor trap flag: L2 exits after each instruction. Its first one is an OUT, which L0 completes.
//   PORT_PHASE 1           from L2, its first instruction
//   PORT_EXIT_REASON 0x25  from L1: the monitor trap flag
//   PORT_VALUE 0           from L1: how many bytes behind the OUT L2 is
//   PORT_EXIT_REASON 0x25  from L1, after the next instruction
//   PORT_VALUE 1
//   PORT_EXIT_REASON 0x12  from L1, which has turned the flag off: L2 has called it. Then HLT.

#include "vmx_lab.inc"

#define STEPPED_CONTROLS (L2_PRIMARY_CONTROLS | PRIMARY_MONITOR_TRAP_FLAG)

    image_begin vmx_mtf

    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    movl $2, %ebx               // how many steps L1 wants; L2 leaves it alone
    movl $1, %eax               // for L2's OUT
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    cmpl $REASON_MONITOR_TRAP_FLAG, %eax
    jne finished
    vmcs_read VMCS_GUEST_RIP
    subl $GPA(l2_after_out), %eax
    outl %eax, $PORT_VALUE
    decl %ebx
    jnz 1f
    vmcs_clear_bits VMCS_PRIMARY_CONTROLS, PRIMARY_MONITOR_TRAP_FLAG
1:  vmresume
    jmp vm_failed
finished:
    halt
    vmx_failures

l2_entry:
    outl %eax, $PORT_PHASE
l2_after_out:
    nop
    nop
    vmcall

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_controls VMCS_PRIMARY_CONTROLS, MSR_VMX_TRUE_PROCBASED_CTLS, STEPPED_CONTROLS
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_mtf
