// SPDX-License-Identifier: MIT
//
// vmx_shadow: L1 gives L2 a shadow VMCS, and L2 reads and writes it without an exit to L1.
//   PORT_VALUE 0x11c0      from L2: what L1 had written into the shadow VMCS
//   PORT_PHASE 1           from L2, after it has written 0x12c0
//   PORT_VALUE 0x12c0      from L2: what it reads
//   PORT_EXIT_REASON 0x12  from L1: L2 has called it
//   PORT_PHASE 2           from L1, whose current VMCS still has the shadow VMCS linked
//   PORT_VALUE 0x12c0      from L1: what it reads in the shadow VMCS, having loaded that. Then HLT.

#include "vmx_lab.inc"

#define SHADOW_VMCS LAB_PAGE_1
#define BITMAPS LAB_PAGE_2               // all clear: no VMREAD and no VMWRITE of L2 exits
#define SHADOWED_FIELD VMCS_TSC_OFFSET   // any that is 64 bits wide and read by nobody else
#define L1_VALUE 0x11c0
#define L2_VALUE 0x12c0

    image_begin vmx_shadow

    vmx_on
    vmx_make_region SHADOW_VMCS
    orl $VMCS_SHADOW_INDICATOR, SHADOW_VMCS
    vmx_region vmclear, SHADOW_VMCS
    vmx_region vmptrld, SHADOW_VMCS
    movl $L1_VALUE, %eax
    vmcs_write SHADOWED_FIELD
    vmx_region vmclear, SHADOW_VMCS

    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    vmcs_set_bits VMCS_SECONDARY_CONTROLS, SECONDARY_VMCS_SHADOWING
    vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    report PORT_PHASE, $2
    vmx_region vmclear, GUEST_VMCS12
    vmx_region vmptrld, SHADOW_VMCS
    vmcs_read SHADOWED_FIELD
    outl %eax, $PORT_VALUE
    halt
    vmx_failures

l2_entry:
    vmcs_read SHADOWED_FIELD
    outl %eax, $PORT_VALUE
    movl $L2_VALUE, %eax
    vmcs_write SHADOWED_FIELD
    report PORT_PHASE, $1
    vmcs_read SHADOWED_FIELD
    outl %eax, $PORT_VALUE
    vmcall

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_LINK_POINTER, SHADOW_VMCS
    vmcs_field VMCS_VMREAD_BITMAP, BITMAPS
    vmcs_field VMCS_VMWRITE_BITMAP, BITMAPS
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_shadow
