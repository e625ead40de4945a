// SPDX-License-Identifier: MIT
//
// How a raw state leaves the program.
#pragma once
#include "reader.hpp"

#include <string>

namespace kvm::tool {

/// To a file (whole or not at all, mode 0600; a device or a FIFO stays what it is), or to standard output
/// where `path` is "-", but never to a terminal. Says on standard error what it wrote.
/// @return fine or in_trouble
int write_state(const std::string& path, Bytes state);

} // namespace kvm::tool
