// SPDX-License-Identifier: MIT
//
// The migration stream of QEMU: what `migrate "exec:cat > FILE"` writes.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

/// Whether it begins like one.
[[nodiscard]] bool is_qemu_stream(Bytes input);

/// Every vCPU of a stream, in the stream's order. Trusts nothing. Looks at the beginning and at the end
/// alone: guest memory, however much of it is in the stream, is not read.
[[nodiscard]] Reading read_qemu_stream(Bytes input);

} // namespace kvm::tool
