// SPDX-License-Identifier: MIT
//
// vmx_real_mode: an L2 in real mode, under EPT as an unrestricted guest. Needs PARAMETER_FLAG_NESTED_PAGING.
//   PORT_PHASE 1           from L2
//   PORT_VALUE 0x800       from L2: its CS
//   PORT_VALUE 0x12c0      from L2: what L1 left for it in its data segment
//   PORT_EXIT_REASON 0x12  from L1: L2 has called it. Then HLT.

#include "vmx_lab.inc"

#define SECONDARY_UNRESTRICTED_GUEST (1 << 7)

#define CR0_ET_NE 0x30                   // neither PE nor PG
#define RIGHTS_REAL_CODE 0x9b
#define RIGHTS_REAL_DATA 0x93

#define DATA_FOR_L2 0x200

    image_begin vmx_real_mode

    movl $0x12c0, GUEST_DATA + DATA_FOR_L2
    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    vmcs_set_bits VMCS_SECONDARY_CONTROLS, SECONDARY_UNRESTRICTED_GUEST
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    halt
    vmx_failures

l2_entry:
    .code16
    movl $1, %eax
    outl %eax, $PORT_PHASE
    xorl %eax, %eax
    movw %cs, %ax
    outl %eax, $PORT_VALUE
    movl DATA_FOR_L2, %eax
    outl %eax, $PORT_VALUE
    vmcall
    .code64

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_controls VMCS_ENTRY_CONTROLS, MSR_VMX_TRUE_ENTRY_CTLS, (L2_ENTRY_CONTROLS - ENTRY_TO_64_BIT)
    vmcs_guest_segment VMCS_ES, (GUEST_DATA >> 4), RIGHTS_REAL_DATA, 0xffff, GUEST_DATA
    vmcs_guest_segment VMCS_CS, (GUEST_IMAGE >> 4), RIGHTS_REAL_CODE, 0xffff, GUEST_IMAGE
    vmcs_guest_segment VMCS_SS, (GUEST_DATA >> 4), RIGHTS_REAL_DATA, 0xffff, GUEST_DATA
    vmcs_guest_segment VMCS_DS, (GUEST_DATA >> 4), RIGHTS_REAL_DATA, 0xffff, GUEST_DATA
    vmcs_guest_segment VMCS_FS, (GUEST_DATA >> 4), RIGHTS_REAL_DATA, 0xffff, GUEST_DATA
    vmcs_guest_segment VMCS_GS, (GUEST_DATA >> 4), RIGHTS_REAL_DATA, 0xffff, GUEST_DATA
    vmcs_field VMCS_GUEST_CR0, CR0_ET_NE
    vmcs_field VMCS_GUEST_EFER, 0
    vmcs_field VMCS_GUEST_RIP, (l2_entry - .Limage)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_real_mode
