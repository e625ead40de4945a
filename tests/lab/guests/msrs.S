// SPDX-License-Identifier: MIT
//
// msrs: a guest that writes MSRs and looks at them later. Knows nothing of virtualization, so that it serves both
// vendors. Which MSRs, and their values, the program that runs it puts into memory, at MSR_LIST; some it sets itself.
//   PORT_PHASE 1    all are set
//   PORT_VALUE      for each that has another value now: its index
//   PORT_PHASE 2    all were looked at. Then HLT.

#include <guests/common.inc>

#include "lab_layout.h"

#define PORT_VALUE 0x27

#define MSR_LIST 0x20000                 // 8 bytes: how many rows follow at MSR_ROWS
#define MSR_ROWS (MSR_LIST + 16)
#define ROW_INDEX 0                      // 4 bytes
#define ROW_GUEST_WRITES 4               // 4 bytes
#define ROW_VALUE 8                      // 8 bytes
#define ROW_SIZE 16

    image_begin msrs

    movl $MSR_ROWS, %esi
    movq MSR_LIST, %rdi
1:  cmpl $0, ROW_GUEST_WRITES(%rsi)
    je 2f
    movl ROW_INDEX(%rsi), %ecx
    movl ROW_VALUE(%rsi), %eax
    movl ROW_VALUE + 4(%rsi), %edx
    wrmsr
2:  addq $ROW_SIZE, %rsi
    decq %rdi
    jnz 1b
    report PORT_PHASE, $1

    movl $MSR_ROWS, %esi
    movq MSR_LIST, %rdi
1:  movl ROW_INDEX(%rsi), %ecx
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    cmpq ROW_VALUE(%rsi), %rax
    je 2f
    report PORT_VALUE, ROW_INDEX(%rsi)
2:  addq $ROW_SIZE, %rsi
    decq %rdi
    jnz 1b
    report PORT_PHASE, $2
1:  hlt
    jmp 1b

    image_end msrs
