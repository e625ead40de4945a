// SPDX-License-Identifier: MIT
//
// The kernel header with the cure that C++ needs for the flexible arrays of Linux 6.1, as VMMs write it.
#include <linux/stddef.h>
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include <linux/kvm.h>

#include "beside_kvm_h.hpp"
