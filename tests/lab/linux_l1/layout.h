// SPDX-License-Identifier: MIT
//
// What the three programs of this test must agree on: L2 (checksum.S), the program in L1 that runs it
// (l1.cpp), and the test in L0. Read by the assembler and by C++, so it holds #defines of plain numbers and
// nothing else.
#ifndef LINUX_L1_LAYOUT_H
#define LINUX_L1_LAYOUT_H

// L2's physical memory.
#define L2_PAGE_DIRECTORY 0x3000 // machine.hpp writes it
#define L2_PARAMETERS 0x7000     // number of rounds, 8 bytes
#define L2_IMAGE 0x8000          // L2 starts at its first byte
#define L2_STACK 0x11000         // top
#define L2_WINDOWS 0x100000      // L2_WINDOW_COUNT windows behind each other
#define L2_MEMORY 0x200000       // bytes in all

// One round works on one window, the next round on the next one.
#define L2_WINDOW_WORDS 0x8000 // of 8 bytes
#define L2_WINDOW_COUNT 4
#define L2_ROUND_PASSES 64 // over its window

// FNV-1a of 64 bits, on words instead of bytes.
#define CHECKSUM_SEED 0xcbf29ce484222325
#define CHECKSUM_PRIME 0x100000001b3

// What is reported, all of it 4 bytes long. L2 writes the first two to a port of this number, which ends in
// its user space in L1. That passes them on to the test in L0 with its own: by a write to the page
// REPORT_PAGE, at this offset. There is nothing in L1's physical memory, so its VMM gets the write. It does
// not use ports because QEMU 7.2 (TCG) ignores the I/O permission map of a task whose TSS is marked busy, as
// it is after any migration: the OUT of a program that ioperm() has allowed gets a #GP then.
#define REPORT_PAGE 0xd0000000
// L2 has that page, too, here: what it writes there goes past L1 to the test in L0, while L2 is active.
#define L2_REPORT_PAGE 0x200000
#define REPORT_ROUND 0x510  // L2, each round: the checksum, its halves folded into one by exclusive or
#define REPORT_RESULT 0x514 // L2 at the end, twice: the checksum's low half, then the high one
#define REPORT_LOOK 0x518   // L1, every L1_LOOK_ROUNDS rounds: its own checksum of the window, folded
#define REPORT_MEMORY 0x51c // L1 at the end: its checksum of all windows, folded
#define REPORT_BEGIN 0x520  // L1 begins; the value is the number of rounds
#define REPORT_END 0x524    // L1 ends; 0: all went well
#define REPORT_L2 0x528     // L2 by itself, at the beginning of a round: the number of rounds to go

#define L1_LOOK_ROUNDS 4

#endif
