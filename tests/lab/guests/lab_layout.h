// SPDX-License-Identifier: MIT
//
// layout.h goes on: what the lab's guests and the tests that run them must agree on. Read by the assembler
// and by C++, too; C++ code uses the typed names in lab_guests.hpp.
#ifndef GUESTS_LAB_LAYOUT_H
#define GUESTS_LAB_LAYOUT_H

#include <guests/layout.h>

// The data page, relative to GUEST_DATA, 8 bytes.
#define DATA_L1_ROUNDS 0x38 // *_stress: how often L2 came back with its call

// Ports, written with OUT of 4 bytes.
#define PORT_PHASE 0x10     // *_phases: a phase is reached, PHASE_*
#define PORT_L1_ROUNDS 0x22 // *_stress, L1 at the end: how often L2 came back

// *_phases: the values on PORT_PHASE, in the order in which they come.
#define PHASE_SVM_OFF 1    // L1, EFER.SVME clear
#define PHASE_SVM_ON 2     // L1, EFER.SVME set
#define PHASE_GIF_CLEAR 3  // L1, after CLGI
#define PHASE_GIF_SET 4    // L1, after STGI
#define PHASE_L2 5         // L2
#define PHASE_EXITED 6     // L1, after #VMEXIT, which leaves GIF clear
#define PHASE_EXITED_GIF 7 // L1, after #VMEXIT and STGI

#define PHASE_VMX_OFF 0x11      // L1, before VMXON
#define PHASE_VMX_ON 0x12       // L1, after VMXON
#define PHASE_VMCS_LOADED 0x13  // L1, after VMCLEAR and VMPTRLD
#define PHASE_VMCS_WRITTEN 0x14 // L1, after its VMWRITEs. Then PHASE_L2 and PHASE_EXITED, as above
#define PHASE_VMCS_CLEARED 0x15 // L1, after VMCLEAR of the VMCS that was current
#define PHASE_VMXOFF 0x16       // L1, after VMXOFF

// *_stress: how often L2 increments its counter between two calls of L1.
#define STRESS_INCREMENTS 200

#endif
