// SPDX-License-Identifier: MIT
//
// vmx_migrate for a second vCPU in the same memory: see second_vcpu.inc.

#include "second_vcpu.inc"
#define vmx_migrate vmx_migrate_second
#include "vmx_migrate.S"
