// SPDX-License-Identifier: MIT
//
// synic: a guest of Hyper-V's interface that lets a synthetic timer tick. Knows nothing of virtualization, so that it
// serves both vendors. Its APIC must be in the kernel.
//   PORT_PHASE 1       the timer runs: timer 1, by messages at SINT2. With FLAG_DIRECT: timer 2, by an interrupt
//   PORT_INTERRUPTS    from the handler, at each tick: how many there were
//   PORT_VALUE         for each of the MSRs that it set up and that has another value after TICKS ticks: its index
//   PORT_PHASE 2       all were looked at. Then a shutdown.
//
// Names and numbers are those of the Hypervisor Top Level Functional Specification, chapters 11 and 12.

#include <guests/common.inc>

#include "lab_layout.h"

#define FLAG_DIRECT 0x100                // in the parameters
#define TICKS 4

#define PORT_INTERRUPTS 0x24
#define PORT_VALUE 0x27

#define MSR_X2APIC_EOI 0x80b
#define MSR_SCONTROL 0x40000080
#define MSR_SIEFP 0x40000082
#define MSR_SIMP 0x40000083
#define MSR_EOM 0x40000084
#define MSR_SINT2 0x40000092
#define MSR_STIMER1_CONFIG 0x400000b2
#define MSR_STIMER1_COUNT 0x400000b3
#define MSR_STIMER2_CONFIG 0x400000b4
#define MSR_STIMER2_COUNT 0x400000b5

#define MESSAGES 0x1d000                 // pages that layout.h leaves free
#define EVENT_FLAGS 0x1e000
#define PAGE_ENABLED 1                   // of SIMP and SIEFP
#define MESSAGE (MESSAGES + 2 * 256)     // the slot of SINT2
#define MESSAGE_TYPE 0                   // 4 bytes; 0: the slot is free
#define MESSAGE_FLAGS 5                  // a byte; bit 0: another one waits for the slot
#define MESSAGE_TIMER 16                 // 4 bytes: which timer
#define TIMER_EXPIRED 0x80000010

#define TIMER_ENABLED 1
#define TIMER_PERIODIC 2
#define TIMER_VECTOR(vector) ((vector) << 4)
#define TIMER_DIRECT 0x1000
#define TIMER_SINT(number) ((number) << 16)
#define PERIOD 100000                    // of 100 ns each

#define VECTOR 0x50
#define SVR_ENABLED 0x1ff

#define DATA_TICKS 0x200

// What the guest sets up, and what it expects to find at the end.
#define MESSAGE_MSRS \
    msr_row MSR_SIEFP, (EVENT_FLAGS | PAGE_ENABLED); \
    msr_row MSR_SIMP, (MESSAGES | PAGE_ENABLED); \
    msr_row MSR_SCONTROL, 1; \
    msr_row MSR_SINT2, VECTOR; \
    msr_row MSR_STIMER1_COUNT, PERIOD; \
    msr_row MSR_STIMER1_CONFIG, (TIMER_ENABLED | TIMER_PERIODIC | TIMER_SINT(2)); \
    msr_row 0, 0
#define DIRECT_MSRS \
    msr_row MSR_STIMER2_COUNT, PERIOD; \
    msr_row MSR_STIMER2_CONFIG, (TIMER_ENABLED | TIMER_PERIODIC | TIMER_DIRECT | TIMER_VECTOR(VECTOR)); \
    msr_row 0, 0

.macro msr_row index, value
    .long \index, \value
.endm

    image_begin synic

    lgdt gdt_pointer(%rip)
    lidt idt_pointer(%rip)
    movl $MSR_APIC_BASE, %ecx
    rdmsr
    orl $APIC_BASE_EN_EXTD, %eax
    wrmsr
    write_msr MSR_X2APIC_SVR, SVR_ENABLED

    leaq message_msrs(%rip), %rbx
    testl $FLAG_DIRECT, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    leaq direct_msrs(%rip), %rbx
1:  movq %rbx, %rsi
    xorl %edx, %edx
2:  movl (%rsi), %ecx
    jrcxz 3f
    movl 4(%rsi), %eax
    wrmsr
    addq $8, %rsi
    jmp 2b
3:  report PORT_PHASE, $1

    sti
4:  hlt
    cmpq $TICKS, GUEST_DATA + DATA_TICKS
    jb 4b
    cli

    movq %rbx, %rsi
5:  movl (%rsi), %ecx
    jrcxz 7f
    rdmsr
    cmpl 4(%rsi), %eax
    je 6f
    report PORT_VALUE, (%rsi)
6:  addq $8, %rsi
    jmp 5b
7:  report PORT_PHASE, $2
    lidt no_idt_pointer(%rip)
    int3

// A tick. With messages only if there is the right one; the report comes when all has been acknowledged.
tick:
    pushq %rax
    pushq %rcx
    pushq %rdx
    testl $FLAG_DIRECT, GUEST_PARAMETERS + PARAMETER_FLAGS
    jnz 1f
    movl MESSAGE + MESSAGE_TYPE, %eax
    cmpl $TIMER_EXPIRED, %eax
    jne 2f
    cmpl $1, MESSAGE + MESSAGE_TIMER
    jne 2f
    movl $0, MESSAGE + MESSAGE_TYPE
    mfence
    testb $1, MESSAGE + MESSAGE_FLAGS
    jz 1f
    write_msr MSR_EOM, 0
1:  incq GUEST_DATA + DATA_TICKS
    write_msr MSR_X2APIC_EOI, 0
    report PORT_INTERRUPTS, GUEST_DATA + DATA_TICKS
    jmp 3f
2:  write_msr MSR_X2APIC_EOI, 0
3:  popq %rdx
    popq %rcx
    popq %rax
    iretq

    .balign 16
gdt:
    gdt_rows
idt:
    .rept VECTOR
    idt_gate_absent
    .endr
    idt_gate tick
idt_end:
    .balign 8
message_msrs:
    MESSAGE_MSRS
direct_msrs:
    DIRECT_MSRS
    .balign 8
gdt_pointer:
    .short GDT_LIMIT
    .quad GPA(gdt)
    .balign 8
idt_pointer:
    .short idt_end - idt - 1
    .quad GPA(idt)
    .balign 8
no_idt_pointer:
    .short 0
    .quad 0

    image_end synic
