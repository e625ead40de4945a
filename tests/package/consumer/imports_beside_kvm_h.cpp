// SPDX-License-Identifier: MIT
//
// The kernel header as it comes.
#include <linux/kvm.h>

#include "beside_kvm_h.hpp"
