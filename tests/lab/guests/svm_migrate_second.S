// SPDX-License-Identifier: MIT
//
// svm_migrate for a second vCPU in the same memory: see second_vcpu.inc.

#include "second_vcpu.inc"
#define svm_migrate svm_migrate_second
#include "svm_migrate.S"
