// SPDX-License-Identifier: MIT
//
// What KVM_GET_NESTED_STATE writes, as it is: with or without bytes behind it, since kvm-bindings always
// writes 8320.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

/// Takes a state that no vCPU can be in, too, as long as its header says how long it is: somebody wants to
/// see it.
Reading read_raw(Bytes input);

} // namespace kvm::tool
