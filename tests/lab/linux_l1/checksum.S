// SPDX-License-Identifier: MIT
//
// The guest of the guest: computes a checksum over its memory, in rounds, and puts the checksum's way into that memory,
// so that each round depends on all before it. The last round's result is right only if no register and no word of
// memory was ever lost. It starts in 64-bit mode with all registers zero; the first 1 GiB is mapped one to one.

#include "layout.h"

    .section .rodata.guests, "a", @progbits
    .balign 16
    .globl linux_l1_checksum_begin
linux_l1_checksum_begin:
    .code64

    movq L2_PARAMETERS, %rbx // rounds to go
    movabsq $CHECKSUM_SEED, %rax
    movabsq $CHECKSUM_PRIME, %r8
    movl $L2_WINDOWS, %esi
    movq $(L2_REPORT_PAGE | 0x87), L2_PAGE_DIRECTORY + 8 // 2 MiB; nobody has used that entry before

next_round:
    movl %ebx, L2_REPORT_PAGE + REPORT_L2
    movl $L2_ROUND_PASSES, %edi
next_pass:
    movl $L2_WINDOW_WORDS, %ecx
next_word:
    xorq (%rsi), %rax
    imulq %r8, %rax
    movq %rax, (%rsi)
    addq $8, %rsi
    decl %ecx
    jnz next_word
    subq $L2_WINDOW_WORDS * 8, %rsi
    decl %edi
    jnz next_pass
    addq $L2_WINDOW_WORDS * 8, %rsi

    // The sum of all rounds' checksums lives in an XMM register, to have something of the FPU's at stake.
    movq %rax, %xmm0
    paddq %xmm0, %xmm1

    movq %rax, %r9
    shrq $32, %rax
    xorl %r9d, %eax
    movl $REPORT_ROUND, %edx
    outl %eax, %dx
    movq %r9, %rax

    cmpl $L2_WINDOWS + L2_WINDOW_COUNT * L2_WINDOW_WORDS * 8, %esi
    jb 1f
    movl $L2_WINDOWS, %esi
1:  decq %rbx
    jnz next_round

    movq %xmm1, %rcx
    xorq %rcx, %rax
    movl $REPORT_RESULT, %edx
    outl %eax, %dx
    shrq $32, %rax
    outl %eax, %dx
halted:
    hlt
    jmp halted

    .globl linux_l1_checksum_end
linux_l1_checksum_end:
    .section .note.GNU-stack, "", @progbits
