// SPDX-License-Identifier: MIT
//
// vmx_timer: L1 arms the VMX-preemption timer, and L2 waits for it by its own clock. All times are those of the TSC.
//   PORT_PHASE 1           from L2: the timer runs
//   PORT_PHASE 2           from L2: half of the time is over
//   PORT_EXIT_REASON 0x34  from L1: the timer; 0x12 if L2 gave up waiting for it
//   PORT_VALUE 2           from L1: how many halves of the time it took. 1 is too early, 3 too late. Then HLT.

#include "vmx_lab.inc"

#define HALF_BIT 24                      // half of the time is 1 << 24 cycles
#define TSC_START_BIT 40                 // L1 sets its TSC to 1 << 40, hours ahead of a fresh vCPU
#define MISC_TIMER_RATE 0x1f             // the timer counts down each time that this bit of the TSC changes
#define MOST_LOOKS (1 << 25)             // at the clock, where it goes wrong

#define DATA_START 0x200

// The TSC, in %rax. Clobbers %rdx.
.macro read_tsc
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
.endm

    image_begin vmx_timer

    write_msr MSR_TSC, (1 << TSC_START_BIT)
    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    read_msr MSR_VMX_MISC
    movl %eax, %ecx
    andl $MISC_TIMER_RATE, %ecx
    movl $(2 << HALF_BIT), %eax
    shrl %cl, %eax
    vmcs_write VMCS_PREEMPTION_TIMER_VALUE
    read_tsc
    movq %rax, GUEST_DATA + DATA_START
    vmlaunch
    jmp vm_failed

l1_exit:
    read_tsc
    movq %rax, %rbx
    subq GUEST_DATA + DATA_START, %rbx
    report_exit_reason
    shrq $HALF_BIT, %rbx
    report PORT_VALUE, %ebx
    halt
    vmx_failures

// Waits until so many cycles have passed since L1 started L2.
.macro wait_for cycles
    movl $MOST_LOOKS, %ecx
1:  read_tsc
    subq GUEST_L2_ALIAS + GUEST_DATA + DATA_START, %rax
    cmpq $\cycles, %rax
    jae 2f
    decl %ecx
    jnz 1b
2:
.endm

l2_entry:
    report PORT_PHASE, $1
    wait_for (1 << HALF_BIT)
    report PORT_PHASE, $2
    wait_for (16 << HALF_BIT)
    vmcall

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_controls VMCS_PIN_BASED_CONTROLS, MSR_VMX_TRUE_PINBASED_CTLS, PIN_PREEMPTION_TIMER
    // L0's own interrupts have to end L2's waiting. While RFLAGS.IF is clear, Bochs 3.0 does not let them.
    vmcs_field VMCS_GUEST_RFLAGS, (RFLAGS_FIXED | RFLAGS_IF)
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_timer
