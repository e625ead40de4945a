// SPDX-License-Identifier: MIT
//
// What `kvm-nested show --json` prints, and what people write in the same form.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

/// Anything that could be JSON.
bool is_json(Bytes input);
Reading read_json_state(Bytes input);

} // namespace kvm::tool
