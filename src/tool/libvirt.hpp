// SPDX-License-Identifier: MIT
//
// The image that libvirt writes with `virsh save` and `virsh managedsave`: a header, the domain's XML, and
// the migration stream of QEMU.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

/// Whether it begins like one, complete or not.
[[nodiscard]] bool is_libvirt_image(Bytes input);

/// Every vCPU of the stream in it. Trusts nothing.
[[nodiscard]] Reading read_libvirt_image(Bytes input);

} // namespace kvm::tool
