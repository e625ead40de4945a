// SPDX-License-Identifier: MIT
//
// vmx_interrupt: an interrupt of L1's APIC, which must be in the kernel, while L2 runs. L1 and L2 have an interrupt
// handler each, which count on PORT_INTERRUPTS: 1 and up L1's, 0x101 and up L2's. With no flag the interrupt is L2's:
//   PORT_PHASE 1               from L2, which has sent itself an interrupt and does not take any yet
//   PORT_INTERRUPTS 0x101      from L2's handler
//   PORT_EXIT_REASON 0x12      from L1: L2 has called it
// With FLAG_EXIT the program running the guest sends it at PORT_PHASE 1, and it is L1's:
//   PORT_PHASE 1               from L2
//   PORT_EXIT_REASON 1         from L1: an external interrupt
//   PORT_VALUE                 from L1: which, with FLAG_ACKNOWLEDGE 0x80000050; or 0
//   PORT_INTERRUPTS 1          from L1's handler, without FLAG_ACKNOWLEDGE
// Then a shutdown.

#include "vmx_lab.inc"

#define FLAG_EXIT 0x100                  // in the parameters
#define FLAG_ACKNOWLEDGE 0x200

#define VECTOR 0x50
#define SVR_ENABLED 0x1ff
#define ICR_SELF 0x40000

#define DATA_L1_INTERRUPTS 0x200
#define DATA_L2_INTERRUPTS 0x208

    image_begin vmx_interrupt

    lgdt gdt_pointer(%rip)
    lidt l1_idt_pointer(%rip)
    movq $0x100, GUEST_DATA + DATA_L2_INTERRUPTS
    movl $MSR_APIC_BASE, %ecx
    rdmsr
    orl $APIC_BASE_EN_EXTD, %eax
    wrmsr
    write_msr MSR_X2APIC_SVR, SVR_ENABLED

    vmx_on
    vmx_load_vmcs
    vmx_make_l2 vmcs_rows
    testl $FLAG_EXIT, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    vmcs_set_bits VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPTS
1:  testl $FLAG_ACKNOWLEDGE, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    vmcs_set_bits VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT
1:  vmlaunch
    jmp vm_failed

l1_exit:
    report_exit_reason
    cmpl $REASON_EXTERNAL_INTERRUPT, %eax
    jne finished
    vmcs_read VMCS_EXIT_INTERRUPTION_INFORMATION
    testl %eax, %eax
    js 1f
    xorl %eax, %eax
1:  outl %eax, $PORT_VALUE
    sti
    nop
    cli
finished:
    shut_down
    vmx_failures

l1_interrupt:
    pushq %rax
    pushq %rcx
    pushq %rdx
    incq GUEST_DATA + DATA_L1_INTERRUPTS
    report PORT_INTERRUPTS, GUEST_DATA + DATA_L1_INTERRUPTS
    write_msr MSR_X2APIC_EOI, 0
    popq %rdx
    popq %rcx
    popq %rax
    iretq

l2_entry:
    testl $FLAG_EXIT, GUEST_PARAMETERS + PARAMETER_FLAGS
    jnz 1f
    write_msr MSR_X2APIC_ICR, (ICR_SELF | VECTOR)
1:  report PORT_PHASE, $1
    sti
    nop
    cli
    vmcall

l2_interrupt:
    pushq %rax
    pushq %rcx
    pushq %rdx
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_INTERRUPTS
    report PORT_INTERRUPTS, GUEST_DATA + DATA_L2_INTERRUPTS
    write_msr MSR_X2APIC_EOI, 0
    popq %rdx
    popq %rcx
    popq %rax
    iretq

    .balign 16
gdt:
    gdt_rows
gdt_end:
l1_idt:
    .rept VECTOR
    idt_gate_absent
    .endr
    idt_gate l1_interrupt
l1_idt_end:
l2_idt:
    .rept VECTOR
    idt_gate_absent
    .endr
    idt_gate l2_interrupt
l2_idt_end:
    .balign 8
gdt_pointer:
    table_pointer gdt, gdt_end
l1_idt_pointer:
    table_pointer l1_idt, l1_idt_end

    .balign 8
vmcs_rows:
    vmcs_rows_common
    vmcs_field VMCS_HOST_GDTR_BASE, GPA(gdt)
    vmcs_field VMCS_HOST_IDTR_BASE, GPA(l1_idt)
    vmcs_field VMCS_GUEST_GDTR_BASE, GPA(gdt)
    vmcs_field VMCS_GUEST_GDTR_LIMIT, GDT_LIMIT
    vmcs_field VMCS_GUEST_IDTR_BASE, GPA(l2_idt)
    vmcs_field VMCS_GUEST_IDTR_LIMIT, (l2_idt_end - l2_idt - 1)
    vmcs_field VMCS_GUEST_RIP, GPA(l2_entry)
    vmcs_field VMCS_HOST_RIP, GPA(l1_exit)
    vmcs_rows_end

    image_end vmx_interrupt
