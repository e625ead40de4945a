// SPDX-License-Identifier: MIT
//
// svm_intercepts: an L2 that exits to L1 in many ways, and an L1 that does for L2 what the instruction would have done.
//   PORT_PHASE 1             from L2
//   PORT_EXITCODE 0x78       from L1: HLT
//   PORT_EXITCODE 0x72       from L1: CPUID
//   PORT_VALUE 0x11c0c101    from L2: what L1 made CPUID say
//   PORT_EXITCODE 0x7c       from L1: RDMSR of STAR, by a bit in the MSR permission map
//   PORT_VALUE 0x11c05701    from L2: what L1 made it read
//   PORT_EXITCODE 0x7c       from L1: WRMSR of STAR
//   PORT_EXITCODE 0x400      from L1: nested page fault (without nested paging 0x4e: page fault)
//   PORT_VALUE 0x11c0da7a    from L2: what it read once L1 had repaired that
//   PORT_PHASE 2             from L2
//   PORT_EXITCODE 0x7f       from L1: shutdown, as L2 has no IDT. Then HLT.

#include "svm_lab.inc"

#define CPUID_FUNCTION 0x11c0
#define CPUID_SAYS 0x11c0c101
#define STAR_SAYS 0x11c05701
#define DATA_SAYS 0x11c0da7a

#define INTERCEPTS (INTERCEPT_WORD3_IOIO | INTERCEPT_WORD3_SHUTDOWN | INTERCEPT_WORD3_CPUID | INTERCEPT_WORD3_HLT \
                    | INTERCEPT_WORD3_MSR)

#define HLT_LENGTH 1
#define CPUID_LENGTH 2
#define MSR_ACCESS_LENGTH 2     // RDMSR and WRMSR

// Two bits for each MSR from C0000000 on, for reading and for writing.
#define STAR_IN_MSRPM (GUEST_MSRPM + 0x800 + (MSR_STAR & 0x1fff) / 4)
#define STAR_BITS (3 << (MSR_STAR & 3) * 2)

// L2 reads through the third 2 MiB, which lead nowhere at first.
#define THIRD 0x400000
#define DATA_WORD 0x200

// Goes on behind label 1 if L2 did not exit with this code.
.macro on_exit code
    cmpl $\code, VMCB_EXITCODE(%rax)
    jne 1f
.endm

.macro go_on_behind length
    addq $\length, GUEST_VMCB12 + VMCB_RIP
    jmp run_l2
.endm

    image_begin svm_intercepts

    svm_on
    svm_make_l2 vmcb_rows
    orb $STAR_BITS, STAR_IN_MSRPM
    movl $DATA_SAYS, GUEST_DATA + DATA_WORD
    testl $PARAMETER_FLAG_NESTED_PAGING, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz run_l2
    movq $(THIRD | PTE_LARGE_PAGE), GUEST_L2_PD + 16

run_l2:
    svm_run_l2
    report PORT_EXITCODE, GUEST_VMCB12 + VMCB_EXITCODE
    movl $GUEST_VMCB12, %eax
    on_exit VMEXIT_HLT
    go_on_behind HLT_LENGTH
1:  on_exit VMEXIT_CPUID
    movq $CPUID_SAYS, VMCB_RAX(%rax)
    go_on_behind CPUID_LENGTH
1:  on_exit VMEXIT_MSR
    testl $1, VMCB_EXITINFO1(%rax)
    jnz 2f
    movq $STAR_SAYS, VMCB_RAX(%rax)
2:  go_on_behind MSR_ACCESS_LENGTH
1:  on_exit VMEXIT_NPF
    cmpq $(THIRD + GUEST_DATA + DATA_WORD), VMCB_EXITINFO2(%rax)
    jne unexpected
    movq $PTE_LARGE_PAGE, GUEST_NESTED_PD + 16
    jmp run_l2
1:  on_exit VMEXIT_PF
    cmpq $(THIRD + GUEST_DATA + DATA_WORD), VMCB_EXITINFO2(%rax)
    jne unexpected
    movq $PTE_LARGE_PAGE, GUEST_L2_PD + 16
    jmp run_l2
1:  on_exit VMEXIT_SHUTDOWN
    halt
1:
unexpected:
    unexpected_exit

l2_entry:
    report PORT_PHASE, $1
    hlt
    movl $CPUID_FUNCTION, %eax
    cpuid
    outl %eax, $PORT_VALUE
    movl $MSR_STAR, %ecx
    rdmsr
    outl %eax, $PORT_VALUE
    wrmsr
    movl THIRD + GUEST_DATA + DATA_WORD, %eax
    outl %eax, $PORT_VALUE
    report PORT_PHASE, $2
    ud2

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u32 VMCB_INTERCEPTS_WORD2, (1 << VECTOR_PF)
    vmcb_u32 VMCB_INTERCEPTS_WORD3, INTERCEPTS
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_intercepts
