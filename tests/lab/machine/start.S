# SPDX-License-Identifier: MIT
#
# Starts a kernel that is not compressed. It takes the place of the decompressor in a bzImage, which costs an emulator
# seconds: the kernel's own real-mode part has called the BIOS and enters here in 32-bit mode, with its parameters at %esi;
# the decompressed kernel lies behind this page. tests/lab/setup makes such images, and gives
#   ENTRY, SIZE     of the kernel: where it is entered, and its length, a multiple of 4
#
# The protocols are those of Linux, Documentation/arch/x86/boot.rst: "32-bit" is how this is entered, "64-bit" how the kernel is.

.set KERNEL, 0x1000000      # where a kernel lies that is not moved (nokaslr)
.set PAGE_TABLES, 0x200000  # below the kernel; by then the copy there is not needed any more
.set PRESENT_WRITABLE, 3
.set LARGE_PAGE, 0x83
.set CR4_PAE, 0x20
.set MSR_EFER, 0xc0000080
.set EFER_LME, 0x100
.set CR0_PG_PE, 0x80000001
.set KERNEL_CS, 0x10        # the protocol's choice

.text
.code32
.globl _start
_start:
    movl %esi, %ebp

# From here to where it belongs, from the end, for the two overlap.
    std
    movl $(_start + 0x1000 + SIZE - 4), %esi
    movl $(KERNEL + SIZE - 4), %edi
    movl $(SIZE / 4), %ecx
    rep movsl
    cld

# Addresses are to stay what they are: one PML4, one PDPT, four directories with 2048 large pages, 4 GB.
    movl $PAGE_TABLES, %edi
    movl $(6 * 1024), %ecx
    xorl %eax, %eax
    rep stosl
    movl $(PAGE_TABLES + 0x1000 + PRESENT_WRITABLE), PAGE_TABLES
    movl $(PAGE_TABLES + 0x2000 + PRESENT_WRITABLE), %eax
    xorl %ecx, %ecx
1:  movl %eax, PAGE_TABLES + 0x1000(, %ecx, 8)
    addl $0x1000, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    movl $LARGE_PAGE, %eax
    xorl %ecx, %ecx
2:  movl %eax, PAGE_TABLES + 0x2000(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 2b

# 64-bit mode. The data segments can stay: a limit means nothing there.
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $PAGE_TABLES, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    xorl %edx, %edx
    movl $EFER_LME, %eax
    wrmsr
    lgdt gdt_register
    movl $CR0_PG_PE, %eax
    movl %eax, %cr0
    ljmp $KERNEL_CS, $3f
.code64
3:  movl %ebp, %esi
    movl $ENTRY, %eax
    jmpq *%rax

.balign 8
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff # KERNEL_CS: 64-bit code
    .quad 0x00cf93000000ffff # and data
gdt_register:
    .word . - gdt - 1
    .long gdt
.org 0x1000
