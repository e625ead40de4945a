// SPDX-License-Identifier: MIT
//
// devices: no hypervisor. Sets the PICs and the PIT, and tells what they hold when it goes on.
//   PORT_DEVICES   0: they are set. Then the masks of the PICs (slave in bits 15:8), and how the PIT's channel 2 works (the
//                  six bits of its control word that the guest chose)

#define PORT_DEVICES 0x27
#define PIC_MASTER_MASK 0x21
#define PIC_SLAVE_MASK 0xa1
#define PIT_CHANNEL_2 0x42
#define PIT_CONTROL 0x43

#include "common.inc"

.macro out_byte port, value
    movb $\value, %al
    outb %al, $\port
.endm

    image_begin devices

    out_byte PIC_MASTER_MASK, 0xa5
    out_byte PIC_SLAVE_MASK, 0x5a
    out_byte PIT_CONTROL, 0xb6   // channel 2, both bytes, square wave
    out_byte PIT_CHANNEL_2, 0x34
    out_byte PIT_CHANNEL_2, 0x12
    report PORT_DEVICES, $0

    xorl %eax, %eax
    inb $PIC_SLAVE_MASK, %al
    shll $8, %eax
    movl %eax, %ebx
    inb $PIC_MASTER_MASK, %al
    movb %al, %bl
    report PORT_DEVICES, %ebx

    out_byte PIT_CONTROL, 0xe8   // read back the status of channel 2
    xorl %eax, %eax
    inb $PIT_CHANNEL_2, %al
    andl $0x3f, %eax
    outl %eax, $PORT_DEVICES
.Lend:
    jmp .Lend

    image_end devices
