// SPDX-License-Identifier: MIT
//
// svm_run_pending: an L1 that injects an interrupt into L2 with each VMRUN and can itself be interrupted (by its local
// APIC, which must be in the kernel, with vector INTERRUPT_VECTOR) from VMRUN on. VMRUN comes first: the event is L2's
// before L1 gets it back for the interrupt. L1 relies on it, as a hypervisor may: after any #VMEXIT it takes what it
// injected for delivered, unless EXITINTINFO says otherwise.
// Nothing exits to user space before the end. After PARAMETER_ROUNDS rounds, each of which ends with L2's VMMCALL:
//   PORT_L1_ROUNDS: rounds; PORT_INTERRUPTS: how many L2 took, rounds if all is well; PORT_VALUE: how many L1 took.
// Then a shutdown.

#include "svm_lab.inc"

#define L2_VECTOR 0x30
#define INTERRUPT_VECTOR 0x40

#define DATA_L2_INTERRUPTS 0x200
#define DATA_L1_INTERRUPTS 0x208

    image_begin svm_run_pending

    load_tables gdt_pointer, l1_idt_pointer
    movl $MSR_APIC_BASE, %ecx
    rdmsr
    orl $APIC_BASE_EN_EXTD, %eax
    wrmsr
    write_msr MSR_X2APIC_SVR, 0x1ff     // enabled, spurious vector ff
    svm_on
    svm_make_l2 vmcb_rows
    sti

    movq GUEST_PARAMETERS + PARAMETER_ROUNDS, %rbx  // rounds to go; L2 leaves it alone
next_round:
    movl $(EVENTINJ_INTERRUPT | L2_VECTOR), GUEST_VMCB12 + VMCB_EVENTINJ
run_l2:
    svm_run_l2                  // its STGI lets a pending interrupt in
    cmpl $VMEXIT_INTR, VMCB_EXITCODE(%rax)
    jne 1f
    movl VMCB_EXITINTINFO(%rax), %ecx   // valid if the delivery was cut short; then L1 injects it again
    movl %ecx, VMCB_EVENTINJ(%rax)
    jmp run_l2
1:  cmpl $VMEXIT_VMMCALL, VMCB_EXITCODE(%rax)
    jne unexpected
    incq GUEST_DATA + DATA_L1_ROUNDS
    decq %rbx
    jnz next_round

    report PORT_L1_ROUNDS, GUEST_DATA + DATA_L1_ROUNDS
    report PORT_INTERRUPTS, GUEST_DATA + DATA_L2_INTERRUPTS
    report PORT_VALUE, GUEST_DATA + DATA_L1_INTERRUPTS
    shut_down

unexpected:
    unexpected_exit

l1_interrupt:
    pushq %rax
    pushq %rcx
    pushq %rdx
    incq GUEST_DATA + DATA_L1_INTERRUPTS
    write_msr MSR_X2APIC_EOI, 0
    popq %rdx
    popq %rcx
    popq %rax
    iretq

l2_entry:
    vmmcall                     // L1 leaves RIP where it is
l2_interrupt:
    incq GUEST_L2_ALIAS + GUEST_DATA + DATA_L2_INTERRUPTS
    iretq

    .balign 16
gdt:
    gdt_rows
gdt_end:
l1_idt:
    idt_gates_absent INTERRUPT_VECTOR
    idt_gate l1_interrupt
l1_idt_end:
l2_idt:
    idt_gates_absent L2_VECTOR
    idt_gate l2_interrupt
l2_idt_end:
    .balign 8
gdt_pointer:
    table_pointer gdt, gdt_end
    .balign 8
l1_idt_pointer:
    table_pointer l1_idt, l1_idt_end

    .balign 8
vmcb_rows:
    vmcb_rows_common
    vmcb_u32 VMCB_INTERCEPTS_WORD3, (INTERCEPT_WORD3_IOIO | INTERCEPT_WORD3_SHUTDOWN | INTERCEPT_WORD3_INTR)
    vmcb_u32 VMCB_INT_CTL, INT_CTL_V_INTR_MASKING
    vmcb_segment VMCB_GDTR, 0, 0, gdt_end - gdt - 1, GPA(gdt)
    vmcb_segment VMCB_IDTR, 0, 0, l2_idt_end - l2_idt - 1, GPA(l2_idt)
    vmcb_u64 VMCB_RIP, GPA(l2_entry)
    vmcb_rows_end

    image_end svm_run_pending
