// SPDX-License-Identifier: MIT
//
// svm_migrate: an L1 and an L2 that notice if anything of the vCPU got lost on the way.
//
// L1 gives itself and L2 known values in every register it can think of, then runs L2. L2 goes PARAMETER_ROUNDS
// times round a loop and shows itself on PORT_PROGRESS each time: an exit to user space in the middle of L2, at
// which the program running the guest can save the vCPU and go on with it elsewhere. In each round L2 also writes to
// a port that L1 intercepts. At the end L2 looks at its values and calls L1; L1 looks at its own, and reports on
// PORT_ROUNDS how far L2 counted and on PORT_CHECKS which checks held (CHECK_*). Then HLT. guests.hpp tells what each
// bit proves.

#include "svm.inc"

// The known values. Nothing about them matters but that no register has them by itself.
#define L1_COOKIE 0x11c0011e11c0011e
#define L1_PAT 0x0705040600070406      // unlike PAT_RESET in entries 4, 6 and 7, which nothing here uses
#define L1_MSR_PATTERN 0x1c00          // 16 bits: SYSENTER_CS holds no more
#define TSC_AUX 0x11c0a0e5             // L1 and L2 have the same: SVM does not switch it
#define L1_APIC_SVR 0x11c              // enabled, spurious vector 1c
#define TSC_START_BIT 40               // L1 sets its TSC to 1 << 40, days ahead of a fresh vCPU
#define TSC_OFFSET_BIT 44              // and L2's runs 1 << 44 ahead of L1's, far beyond what the guest's life can add

#define L2_COOKIE 0x12c0011e12c0011e
#define L2_GPR_PATTERN 0x12c06e9500000000
#define L2_FS_WORD 0x12c0f500f500f500
#define L2_CR0 (CR0_PE_ET_NE_PG | 0x10000) // with WP, which L1 has not
#define L2_CR2 0x12c0c200
#define L2_XMM_PATTERN 0x12c0a33312c0a333
#define L2_YMM_PATTERN 0x12c0a44412c0a444
#define L2_MXCSR 0x5f80                // round up; all exceptions masked
#define L2_DR_PATTERN 0x12c0d000       // DR0; DR1 to DR3 count up from it
#define L2_DR7 0x000d0400              // a condition for breakpoint 0, which is not enabled
#define L2_MSR_PATTERN 0x2c00

// If the last comparison said "equal", notes that `check` held. %r15d collects.
.macro held_if_equal check
    jne .Lnot_held_\@
    orl $\check, %r15d
.Lnot_held_\@:
.endm

// Applies a macro to each general register in which L2 keeps a known value, with a number to tell them apart. Left
// over are %rax, %rcx, %rdx to work with, %rbp for the count, and %rsp.
.macro for_each_known_gpr action
    \action rbx, 1
    \action rsi, 2
    \action rdi, 3
    \action r8, 4
    \action r9, 5
    \action r10, 6
    \action r11, 7
    \action r12, 8
    \action r13, 9
    \action r14, 10
    \action r15, 11
.endm

// Applies a macro to each MSR that VMLOAD and VMSAVE switch, with its offset in the VMCB and a number.
.macro for_each_known_msr action
    \action MSR_STAR, VMCB_STAR, 1
    \action MSR_LSTAR, VMCB_LSTAR, 2
    \action MSR_CSTAR, VMCB_CSTAR, 3
    \action MSR_SFMASK, VMCB_SFMASK, 4
    \action MSR_KERNEL_GS_BASE, VMCB_KERNEL_GS_BASE, 5
    \action MSR_SYSENTER_CS, VMCB_SYSENTER_CS, 6
    \action MSR_SYSENTER_ESP, VMCB_SYSENTER_ESP, 7
    \action MSR_SYSENTER_EIP, VMCB_SYSENTER_EIP, 8
.endm

// A number made of what CPUID says about this vCPU, in %r14. Only leaves that do not change with the state of the vCPU.
// Clobbers %rax, %rbx, %rcx, %rdx.
.macro cpuid_digest
    xorl %r14d, %r14d
    .irp leaf, 0x00000000, 0x00000007, 0x80000001, 0x80000008, 0x8000000a
    movl $\leaf, %eax
    xorl %ecx, %ecx
    cpuid
    .irp part, %rax, %rbx, %rcx, %rdx
    rolq $7, %r14
    xorq \part, %r14
    .endr
    .endr
.endm

.macro write_l1_msr msr, offset, number
    write_msr \msr, (L1_MSR_PATTERN + \number)
.endm

.macro check_l1_msr msr, offset, number
    read_msr \msr
    cmpq $(L1_MSR_PATTERN + \number), %rax
    jne l1_msrs_checked
.endm

.macro check_l2_msr msr, offset, number
    read_msr \msr
    cmpq $(L2_MSR_PATTERN + \number), %rax
    jne l2_msrs_checked
.endm

.macro vmcb_l2_msr msr, offset, number
    vmcb_u64 \offset, (L2_MSR_PATTERN + \number)
.endm

    image_begin svm_migrate

// ======================================================================================================= L1

// What this CPU has.
    movl $0x80000001, %eax
    cpuid
    btl $27, %edx               // RDTSCP, and with it TSC_AUX
    jnc 1f
    orl $FEATURE_TSC_AUX, GUEST_DATA + DATA_FEATURES
1:  movl $1, %eax
    cpuid
    btl $26, %ecx               // XSAVE
    jnc 2f
    orl $FEATURE_XSAVE, GUEST_DATA + DATA_FEATURES
    btl $28, %ecx               // AVX
    jnc 2f
    orl $FEATURE_AVX, GUEST_DATA + DATA_FEATURES
2:  cpuid_digest
    movq %r14, GUEST_DATA + DATA_CPUID_DIGEST
    read_msr MSR_PATCH_LEVEL
    movq %rax, GUEST_DATA + DATA_PATCH_LEVEL

// L1's own known values.
    lgdt gdt_pointer(%rip)
    lidt l1_idt_pointer(%rip)
    write_msr MSR_PAT, L1_PAT
    for_each_known_msr write_l1_msr
    write_msr MSR_TSC, (1 << TSC_START_BIT)
    testl $FEATURE_TSC_AUX, GUEST_DATA + DATA_FEATURES
    jz 1f
    write_msr MSR_TSC_AUX, TSC_AUX
1:  testl $PARAMETER_FLAG_APIC, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    movl $MSR_APIC_BASE, %ecx
    rdmsr
    orl $APIC_BASE_EN_EXTD, %eax
    wrmsr
    write_msr MSR_X2APIC_SVR, L1_APIC_SVR
1:  testl $FEATURE_XSAVE, GUEST_DATA + DATA_FEATURES
    jz 1f
    movq %cr4, %rax
    orq $CR4_OSXSAVE, %rax
    movq %rax, %cr4
    call expected_xcr0
    xorl %ecx, %ecx
    xorl %edx, %edx
    xsetbv
1:  pushfq
    orl $RFLAGS_ID, (%rsp)
    popfq
    movabsq $L1_COOKIE, %rax
    pushq %rax

// VMCB12. L2 has L1's CR4, since whether that has OSXSAVE depends on the CPU.
    svm_on
    svm_make_l2 vmcb_rows
    movq %cr4, %rax
    movq %rax, GUEST_VMCB12 + VMCB_CR4
    movq %rax, GUEST_DATA + DATA_L1_CR4
    orb $(1 << (PORT_INTERCEPTED & 7)), GUEST_IOPM + PORT_INTERCEPTED / 8
    movabsq $L2_FS_WORD, %rax
    movq %rax, GUEST_DATA + DATA_L2_FS_WORD

// L2 runs, and comes back once in each round for its intercepted OUT. All registers but %rax are L2's in this loop.
run_l2:
    svm_run_l2
    cmpl $VMEXIT_IOIO, VMCB_EXITCODE(%rax)
    jne not_ioio
    cmpw $PORT_INTERCEPTED, VMCB_EXITINFO1 + 2(%rax)
    jne unexpected
    incq GUEST_DATA + DATA_L1_IOIO_EXITS
    pushq %rcx
    movq VMCB_EXITINFO2(%rax), %rcx // the address after OUT
    movq %rcx, VMCB_RIP(%rax)
    popq %rcx
    jmp run_l2

not_ioio:
    cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected

// L2 is done. Flags first, before a comparison can change them.
    pushfq
    popq %rcx
    movl GUEST_DATA + DATA_L2_CHECKS, %r15d
    andl $(RFLAGS_ID | RFLAGS_AC), %ecx
    cmpl $RFLAGS_ID, %ecx       // ID is L1's, AC is L2's
    held_if_equal CHECK_L1_RFLAGS

    popq %rcx
    movabsq $L1_COOKIE, %rdx
    cmpq %rdx, %rcx
    jne 1f
    cmpq $GUEST_L1_STACK, %rsp
    held_if_equal CHECK_L1_STACK
1:
    movl $CR0_PE_ET_NE_PG, %ecx
    movq %cr0, %rax
    cmpq %rcx, %rax
    jne 1f
    movq %cr3, %rax
    cmpq $GUEST_L1_PML4, %rax
    jne 1f
    movq %cr4, %rax
    cmpq GUEST_DATA + DATA_L1_CR4, %rax
    jne 1f
    read_msr MSR_EFER
    cmpl $(EFER_SVME | EFER_LME | EFER_LMA), %eax
    held_if_equal CHECK_L1_CONTROL
1:
    sgdt GUEST_DATA + DATA_SCRATCH
    movq GUEST_DATA + DATA_SCRATCH, %rax
    cmpq gdt_pointer(%rip), %rax    // limit and low half of the base
    jne 1f
    sidt GUEST_DATA + DATA_SCRATCH
    movq GUEST_DATA + DATA_SCRATCH, %rax
    cmpq l1_idt_pointer(%rip), %rax
    held_if_equal CHECK_L1_TABLES
1:
    read_msr MSR_PAT
    movabsq $L1_PAT, %rcx
    cmpq %rcx, %rax
    held_if_equal CHECK_L1_PAT

    read_msr MSR_VM_HSAVE_PA
    cmpq $GUEST_HSAVE, %rax
    held_if_equal CHECK_L1_HSAVE

    for_each_known_msr check_l1_msr
    orl $CHECK_L1_MSRS, %r15d
l1_msrs_checked:

    call read_tsc
    shrq $TSC_OFFSET_BIT, %rcx
    jnz 1f
    shrq $TSC_START_BIT, %rax
    jz 1f
    orl $CHECK_L1_TSC, %r15d
1:
    movq GUEST_DATA + DATA_L1_IOIO_EXITS, %rax
    cmpq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rax
    held_if_equal CHECK_L1_IOIO

    report PORT_ROUNDS, GUEST_DATA + DATA_L2_ROUNDS
    report PORT_CHECKS, %r15d
halted:
    hlt
    jmp halted

unexpected:
    unexpected_exit

// ======================================================================================================= L2

.macro write_pattern register, number
    movabsq $(L2_GPR_PATTERN + \number), %\register
.endm

.macro check_pattern register, number
    movabsq $(L2_GPR_PATTERN + \number), %rax
    cmpq %rax, %\register
    jne l2_gprs_checked
.endm

l2_entry:
    movl $L2_CR2, %eax
    movq %rax, %cr2

    .irp n, 0, 1, 2, 3
    movl $(L2_DR_PATTERN + \n), %eax
    movq %rax, %dr\n
    .endr

    fninit
    fldpi
    ldmxcsr l2_mxcsr(%rip)
    movabsq $L2_XMM_PATTERN, %rax
    movq %rax, %xmm3
    punpcklqdq %xmm3, %xmm3
    testl $FEATURE_AVX, GUEST_DATA + DATA_FEATURES
    jz 1f
    movabsq $L2_YMM_PATTERN, %rax
    vmovq %rax, %xmm4
    vpunpcklqdq %xmm4, %xmm4, %xmm4
    vinsertf128 $1, %xmm4, %ymm4, %ymm4
1:
    movabsq $L2_COOKIE, %rax
    pushq %rax
    for_each_known_gpr write_pattern
    xorl %ebp, %ebp             // rounds

// One round. The OUT is single-stepped: it exits to user space, and only when user space has completed it is there
// a #DB for L2. So whoever saves the vCPU at this exit, having completed the OUT, saves it with an exception pending.
//
// DR7 is written in each round and looked at right after that exit. It could not be trusted for longer: once L1 has
// been in between, KVM_GET_DEBUGREGS says 0x400 until L2 writes DR7 again, though L2 itself still reads its own value
// (seen on 6.1, 6.12 and 7; VMRUN does not copy DR7 from VMCB12 to where KVM_GET_DEBUGREGS looks).
l2_round:
    movl $L2_DR7, %eax
    movq %rax, %dr7
    incq %rbp
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_ROUNDS
    movl %ebp, %eax
    pushfq
    orl $RFLAGS_TF, (%rsp)
    popfq                       // takes effect after the next instruction
    outl %eax, $PORT_PROGRESS
l2_after_progress:
    movq %dr7, %rcx
    cmpq $L2_DR7, %rcx
    jne 1f
    incq GUEST_DATA + DATA_L2_DR7
1:  outl %eax, $PORT_INTERCEPTED
    cmpq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbp
    jb l2_round

// %r15 has a known value until the general registers are checked: %edx collects up to there. Flags first.
    pushfq
    popq %rax
    andl $(RFLAGS_ID | RFLAGS_AC), %eax
    xorl %edx, %edx
    cmpl $RFLAGS_AC, %eax
    jne 1f
    orl $CHECK_L2_RFLAGS, %edx
1:  for_each_known_gpr check_pattern
    orl $CHECK_L2_GPRS, %edx
l2_gprs_checked:
    movl %edx, %r15d

    cmpq %rbp, GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_ROUNDS
    jne 1f
    cmpq %rbp, GUEST_PARAMETERS + PARAMETER_ROUNDS
    held_if_equal CHECK_L2_ROUNDS
1:
    popq %rax
    movabsq $L2_COOKIE, %rcx
    cmpq %rcx, %rax
    jne 1f
    cmpq $GUEST_L2_STACK, %rsp
    held_if_equal CHECK_L2_STACK
1:
    movq %cr2, %rax
    cmpq $L2_CR2, %rax
    held_if_equal CHECK_L2_CR2

    movq %cr3, %rax
    cmpq $GUEST_L2_PML4, %rax
    held_if_equal CHECK_L2_CR3

    movabsq $L2_FS_WORD, %rcx
    cmpq %fs:DATA_L2_FS_WORD, %rcx
    held_if_equal CHECK_L2_FS

// XCR0 comes before YMM, which cannot be touched where XCR0 got lost. Checks of what the CPU has not, hold.
    testl $FEATURE_XSAVE, GUEST_DATA + DATA_FEATURES
    jz l2_xcr0_held
    call expected_xcr0
    movl %eax, %esi
    xorl %ecx, %ecx
    xgetbv
    cmpl %esi, %eax
    jne l2_ymm_checked
    testl $FEATURE_AVX, GUEST_DATA + DATA_FEATURES
    jz l2_xcr0_held
    orl $CHECK_L2_XCR0, %r15d
    vextractf128 $1, %ymm4, %xmm5
    vmovq %xmm5, %rax
    movabsq $L2_YMM_PATTERN, %rcx
    cmpq %rcx, %rax
    held_if_equal CHECK_L2_YMM
    jmp l2_ymm_checked
l2_xcr0_held:
    orl $(CHECK_L2_XCR0 | CHECK_L2_YMM), %r15d
l2_ymm_checked:

    movabsq $L2_XMM_PATTERN, %rcx
    movq %xmm3, %rax
    cmpq %rcx, %rax
    jne 1f
    movhlps %xmm3, %xmm3
    movq %xmm3, %rax
    cmpq %rcx, %rax
    held_if_equal CHECK_L2_XMM
1:
    stmxcsr GUEST_DATA + DATA_SCRATCH
    cmpl $L2_MXCSR, GUEST_DATA + DATA_SCRATCH
    jne 1f
    fstpt GUEST_DATA + DATA_SCRATCH     // the pi of then
    fninit
    fldpi
    fstpt GUEST_DATA + DATA_SCRATCH + 16 // a fresh one
    movq GUEST_DATA + DATA_SCRATCH, %rax
    cmpq GUEST_DATA + DATA_SCRATCH + 16, %rax
    held_if_equal CHECK_L2_X87
1:
    .irp n, 0, 1, 2, 3
    movq %dr\n, %rax
    cmpq $(L2_DR_PATTERN + \n), %rax
    jne 1f
    .endr
    orl $CHECK_L2_DR0_3, %r15d
1:
    cmpq %rbp, GUEST_DATA + DATA_L2_DR7
    held_if_equal CHECK_L2_DR7

    cmpq %rbp, GUEST_DATA + DATA_L2_STEPS
    held_if_equal CHECK_L2_STEPS

    for_each_known_msr check_l2_msr
    orl $CHECK_L2_MSRS, %r15d
l2_msrs_checked:

    testl $FEATURE_TSC_AUX, GUEST_DATA + DATA_FEATURES
    jz 1f
    read_msr MSR_TSC_AUX
    cmpq $TSC_AUX, %rax
1:  held_if_equal CHECK_L2_TSC_AUX      // also after the jump: TEST said "equal" then

    call read_tsc
    shrq $TSC_OFFSET_BIT, %rcx
    cmpl $1, %ecx
    held_if_equal CHECK_L2_TSC_OFFSET
    btrq $TSC_OFFSET_BIT, %rax
    shrq $TSC_START_BIT, %rax
    jz 1f
    orl $CHECK_L2_TSC, %r15d
1:
    cpuid_digest
    cmpq %r14, GUEST_DATA + DATA_CPUID_DIGEST
    held_if_equal CHECK_L2_CPUID

    read_msr MSR_PATCH_LEVEL
    cmpq GUEST_DATA + DATA_PATCH_LEVEL, %rax
    held_if_equal CHECK_L2_PATCH_LEVEL

    testl $PARAMETER_FLAG_APIC, GUEST_PARAMETERS + PARAMETER_FLAGS
    jz 1f
    read_msr MSR_X2APIC_SVR
    cmpq $L1_APIC_SVR, %rax
1:  held_if_equal CHECK_L2_APIC         // also after the jump, as above

    movl %r15d, GUEST_DATA + DATA_L2_CHECKS
    vmmcall

// #DB. Counts if it is what the OUT asked for, and stops the stepping. Where the exception got lost, TF did not, and
// causes another one an instruction later: that does not count. What IRETQ will pop lies above the pushed %rax: RIP,
// CS, RFLAGS, RSP, SS.
l2_debug_exception:
    pushq %rax
    cmpq $GPA(l2_after_progress), 8(%rsp)
    jne 1f
    movq %dr6, %rax
    testl $DR6_BS, %eax
    jz 1f
    incq GUEST_DATA + DATA_L2_STEPS
1:  movl $DR6_RESET, %eax       // the processor sets bits in DR6 and never clears any
    movq %rax, %dr6
    andl $~RFLAGS_TF, 24(%rsp)
    popq %rax
    iretq

// ================================================================================================ L1 and L2

// The XCR0 that L1 chooses, in %eax: x87 and SSE, and AVX if there is any.
expected_xcr0:
    movl $(XCR0_X87 | XCR0_SSE), %eax
    testl $FEATURE_AVX, GUEST_DATA + DATA_FEATURES
    jz 1f
    orl $XCR0_AVX, %eax
1:  ret

// The TSC, in %rax and once more in %rcx. Clobbers %rdx.
read_tsc:
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, %rcx
    ret

// =================================================================================================== tables

    .balign 16
gdt:
    gdt_rows
gdt_end:
l2_idt:
    idt_gate_absent             // 0
    idt_gate l2_debug_exception // 1
l2_idt_end:

// What LGDT and LIDT read: limit, base. L1's IDT is empty: nothing of what it does may fault.
    .balign 8
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad GPA(gdt)
    .balign 8
l1_idt_pointer:
    .short 7
    .quad GUEST_TSS
    .balign 8
l2_mxcsr:
    .long L2_MXCSR

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u64 VMCB_TSC_OFFSET, (1 << TSC_OFFSET_BIT)
    vmcb_segment VMCB_FS, SELECTOR_DATA, ATTRIB_DATA, 0xffffffff, GUEST_DATA
    vmcb_segment VMCB_GDTR, 0, 0, (gdt_end - gdt - 1), GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, (l2_idt_end - l2_idt - 1), GPA(l2_idt)
    vmcb_u64 VMCB_CR0, L2_CR0
    vmcb_u64 VMCB_RFLAGS, (RFLAGS_FIXED | RFLAGS_AC)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    for_each_known_msr vmcb_l2_msr
    vmcb_rows_end

    image_end svm_migrate
