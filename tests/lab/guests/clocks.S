// SPDX-License-Identifier: MIT
//
// clocks: no hypervisor. A vCPU that tells its TSC again and again, and has KVM keep a kvmclock for it: 64 bytes below its
// stack, so that several vCPUs can run the one image.
//   PORT_CLOCKS, twice   the lower half of the TSC, and the upper

#include "common.inc"

#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define PORT_CLOCKS 0x27

    image_begin clocks

    leaq -64+1(%rsp), %rax // bit 0 switches it on
    xorl %edx, %edx
    movl $MSR_KVM_SYSTEM_TIME, %ecx
    wrmsr
again:
    rdtsc
    outl %eax, $PORT_CLOCKS
    movl %edx, %eax
    outl %eax, $PORT_CLOCKS
    jmp again

    image_end clocks
