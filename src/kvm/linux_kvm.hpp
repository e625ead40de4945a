// SPDX-License-Identifier: MIT
//
// <linux/kvm.h>, made right for C++. For implementation units only: no interface unit includes a kernel
// header.
#pragma once

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpragmas"
#pragma clang diagnostic ignored "-Wunknown-warning-option"
#pragma clang diagnostic ignored "-Wvariadic-macros"
#pragma clang diagnostic ignored "-Wzero-length-array"
#pragma clang diagnostic ignored "-Wc99-extensions"
#pragma clang diagnostic ignored "-Wgnu-anonymous-struct"
#pragma clang diagnostic ignored "-Wnested-anon-types"
#include <linux/stddef.h>

// The header of Linux 6.1 wraps a flexible array into a struct that is empty in C and one byte long in C++.
// Structs grow by it, and so do the sizes encoded in ioctl numbers: KVM_GET_SUPPORTED_CPUID would be another
// number, and the kernel would answer EINVAL. Later headers are right by themselves.
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]

#include <linux/kvm.h>
#pragma clang diagnostic pop

static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05, "the flexible-array cure did not work");
