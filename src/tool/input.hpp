// SPDX-License-Identifier: MIT
//
// An input by its name: opened, its format found out, read.
#pragma once
#include "reader.hpp"

#include <string>

namespace kvm::tool {

/// Finds out the format of `input` and reads it.
Reading read_any(Bytes input);

/// A file, or standard input where `path` is "-". A file is mapped, not read: of a virtual machine's memory
/// in it only the pages are touched that a reader looks at.
Reading read_input(const std::string& path);

} // namespace kvm::tool
