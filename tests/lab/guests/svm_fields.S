// SPDX-License-Identifier: MIT
//
// svm_fields: an L1 whose VMCB has a value of its own in each field of the control area, and whose own registers, as
// far as VMRUN saves them, have each a value of its own.
//   PORT_PHASE 1  from L1: the next is VMRUN
//   PORT_PHASE 2  from L2, which then calls L1
//   PORT_PHASE 3  from L1, L2 having exited. Then HLT.

#include "svm_lab.inc"
#include "guests/svm_fields.h"

// L1's registers, of no meaning where they need none.
#define L1_STACK 0x10f00
#define L1_CR0 (CR0_PE_ET_NE_PG | CR0_WP | CR0_AM)
#define L1_CR2 0x00005a0100010203
#define L1_CR3 (GUEST_L1_PML4 | 0x18) // PCD, PWT
#define L1_CR4_BITS (CR4_TSD | CR4_PCE)
#define L1_DR7 0x700
#define L1_EFER_BITS 0x801            // NXE, SCE
#define L1_PAT 0x0007040600070401
#define L1_RFLAGS (RFLAGS_FIXED | RFLAGS_ID | RFLAGS_AC)
#define L1_STAR 0x5a02010203040506
#define L1_LSTAR 0x00005a0301020304
#define L1_CSTAR 0x00005a0401020304
#define L1_SFMASK 0x5a050102
#define L1_KERNEL_GS_BASE 0x00005a0601020304
#define L1_SYSENTER_CS 0x5a07
#define L1_SYSENTER_ESP 0x00005a0801020304
#define L1_SYSENTER_EIP 0x5a090102    // KVM_GET_MSRS tells its lower half alone
#define L1_IDT_LIMIT 0x5a0a
#define L1_IDT_BASE 0x00005a0b01020304

// A row for vmcb_write, of any size.
.macro control_row offset, size, value
    .short \offset, \size
    .if \size == 1
    .byte \value
    .elseif \size == 2
    .short \value
    .elseif \size == 4
    .long \value
    .else
    .quad \value
    .endif
.endm
#define CONTROL_ROW(name, offset, size, value) control_row offset, size, value

// A descriptor of a GDT, 8 bytes; that of a system segment has 8 more, for the upper half of its base. `rights` has type,
// S, DPL and P in its lower byte, AVL, L, D and G above it.
.macro descriptor base, limit, rights
    .short \limit & 0xffff, \base & 0xffff
    .byte \base >> 16 & 0xff, \rights & 0xff, (\limit >> 16 & 0xf) | (\rights >> 8 << 4), \base >> 24 & 0xff
.endm
#define SELECTOR_L1_CODE 0x20
#define SELECTOR_L1_ES 0x28
#define SELECTOR_L1_SS 0x30
#define SELECTOR_L1_DS 0x38
#define SELECTOR_L1_FS 0x40
#define SELECTOR_L1_GS 0x48
#define SELECTOR_L1_LDT 0x50
#define SELECTOR_L1_TSS 0x60

.macro load_segment register, selector
    movl $\selector, %eax
    movl %eax, %\register
.endm

    image_begin svm_fields

    svm_on
    svm_make_l2 vmcb_rows
    movl $SVM_FIELDS_JUNK, %eax
    movl $GUEST_VMCB12, %edi
    movl $SVM_CONTROL_AREA_SIZE, %ecx
    rep stosb
    vmcb_write control_rows

    lgdt gdt_pointer(%rip)
    lidt idt_pointer(%rip)
    load_segment es, SELECTOR_L1_ES
    load_segment ss, SELECTOR_L1_SS
    load_segment ds, SELECTOR_L1_DS
    load_segment fs, SELECTOR_L1_FS
    load_segment gs, SELECTOR_L1_GS
    movl $SELECTOR_L1_LDT, %eax
    lldt %ax
    movl $SELECTOR_L1_TSS, %eax
    ltr %ax
    movl $L1_STACK, %esp
    leaq 1f(%rip), %rax
    pushq $SELECTOR_L1_CODE
    pushq %rax
    lretq
1:
    write_msr MSR_PAT, L1_PAT
    write_msr MSR_STAR, L1_STAR
    write_msr MSR_LSTAR, L1_LSTAR
    write_msr MSR_CSTAR, L1_CSTAR
    write_msr MSR_SFMASK, L1_SFMASK
    write_msr MSR_KERNEL_GS_BASE, L1_KERNEL_GS_BASE
    write_msr MSR_SYSENTER_CS, L1_SYSENTER_CS
    write_msr MSR_SYSENTER_ESP, L1_SYSENTER_ESP
    write_msr MSR_SYSENTER_EIP, L1_SYSENTER_EIP
    movl $MSR_EFER, %ecx
    rdmsr
    orl $L1_EFER_BITS, %eax
    wrmsr
    movl $L1_DR7, %eax
    movq %rax, %dr7
    movabsq $L1_CR2, %rax
    movq %rax, %cr2
    movl $L1_CR3, %eax
    movq %rax, %cr3
    movq %cr4, %rax
    orq $L1_CR4_BITS, %rax
    movq %rax, %cr4
    movl $L1_CR0, %eax
    movq %rax, %cr0
    pushq $L1_RFLAGS
    popfq
    report PORT_PHASE, $1
    movl $GUEST_VMCB12, %eax    // 5 bytes
    vmrun %rax                  // 3 bytes
    report PORT_PHASE, $3
    halt

l2_entry:
    report PORT_PHASE, $2
    vmmcall

    .balign 8
gdt:
    gdt_rows
    .quad 0
    descriptor 0, 0xfffff, 0xb9b            // code64 with AVL
    descriptor 0x5a100102, 0xfff28, 0xd93   // data of several kinds
    descriptor 0x5a110102, 0xfff30, 0xc93
    descriptor 0x5a120102, 0xfff38, 0xcf3
    descriptor 0x5a130102, 0xfff40, 0xdf3
    descriptor 0x5a140102, 0xfff48, 0xcb3
    descriptor 0x5a150102, 0x5a50, 0x082    // LDT
    .quad 0
    descriptor 0x5a160102, 0x5a60, 0x089    // TSS, which LTR makes busy
    .quad 0
gdt_end:
gdt_pointer:
    table_pointer gdt, gdt_end
idt_pointer:
    .short L1_IDT_LIMIT
    .quad L1_IDT_BASE

control_rows:
    SVM_FIELDS(CONTROL_ROW, ;)
    vmcb_rows_end

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_fields
