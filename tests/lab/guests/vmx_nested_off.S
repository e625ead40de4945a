// SPDX-License-Identifier: MIT
//
// vmx_nested_off: tries what a hypervisor begins with on a processor without VMX, and says on PORT_PHASE which exception
// each attempt raises: VMXON, then CR4.VMXE. NO_EXCEPTION where it raises none. It ends with HLT.

#include "vmx_lab.inc"

#define EXCEPTION_UD 6
#define EXCEPTION_GP 13
#define NO_EXCEPTION 0xff

    image_begin vmx_nested_off

    lgdt gdt_pointer(%rip)
    lidt idt_pointer(%rip)

    leaq 1f(%rip), %r15         // where the exception handlers go on
    vmxon GUEST_VMXON
    report PORT_PHASE, $NO_EXCEPTION
1:
    leaq 2f(%rip), %r15
    movq %cr4, %rax
    orq $CR4_VMXE, %rax
    movq %rax, %cr4
    report PORT_PHASE, $NO_EXCEPTION
2:
    hlt
    jmp 2b

undefined_instruction:
    report PORT_PHASE, $EXCEPTION_UD
    jmp go_on
general_protection:
    report PORT_PHASE, $EXCEPTION_GP
go_on:
    movq $GUEST_L1_STACK, %rsp  // what the exception pushed is of no use
    jmp *%r15

    .balign 8
gdt:
    gdt_rows
idt:
    .rept EXCEPTION_UD
    idt_gate_absent
    .endr
    idt_gate undefined_instruction
    .rept EXCEPTION_GP - EXCEPTION_UD - 1
    idt_gate_absent
    .endr
    idt_gate general_protection
idt_end:

// What LGDT and LIDT read: limit, base.
gdt_pointer:
    .short GDT_LIMIT
    .quad GPA(gdt)
idt_pointer:
    .short idt_end - idt - 1
    .quad GPA(idt)

    image_end vmx_nested_off
