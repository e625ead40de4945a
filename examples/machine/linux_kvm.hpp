// SPDX-License-Identifier: MIT
//
// The kernel's KVM interface, safe to include from C++.
//
// Include this instead of <linux/kvm.h>. The headers of Linux 6.1 declare trailing arrays through a macro
// that puts an empty struct in front of them. That struct has size 0 in C and size 1 in C++, so the enclosing
// structs grow, and with them the ioctl numbers, which contain the size: the program compiles and the kernel
// answers ENOTTY. Where the macro is found, it is replaced by a plain zero-length array; later headers do not
// need it and are not harmed by it.
#pragma once

#include <linux/stddef.h>

#if defined(__DECLARE_FLEX_ARRAY)
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#endif

// Zero-length arrays and empty unions are the kernel's C, not ours to warn about.
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wzero-length-array"
#pragma clang diagnostic ignored "-Wflexible-array-extensions"
#endif
#include <linux/kvm.h>
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

// The numbers that go wrong without the cure, as every x86-64 kernel has them.
static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05);
static_assert(KVM_GET_MSR_INDEX_LIST == 0xc004ae02);
static_assert(KVM_GET_MSR_FEATURE_INDEX_LIST == 0xc004ae0a);
static_assert(KVM_GET_MSRS == 0xc008ae88);
static_assert(KVM_SET_MSRS == 0x4008ae89);
static_assert(KVM_SET_SIGNAL_MASK == 0x4004ae8b);
static_assert(KVM_SET_CPUID2 == 0x4008ae90);
static_assert(KVM_GET_CPUID2 == 0xc008ae91);
static_assert(KVM_GET_XSAVE == 0x9000aea4);
static_assert(KVM_SET_XSAVE == 0x5000aea5);
