// SPDX-License-Identifier: MIT
//
// The file form of kvm.vcpu: a whole vCPU.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

bool is_vcpu_file(Bytes input);
Reading read_vcpu_file(Bytes input);

} // namespace kvm::tool
