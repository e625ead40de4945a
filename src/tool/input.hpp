// SPDX-License-Identifier: MIT
//
// An input by its name: opened, its format found out, read.
#pragma once
#include "reader.hpp"

#include <expected>
#include <string>

namespace kvm::tool {

/// Finds out the format of `input` and reads it.
Reading read_any(Bytes input);

/// A file, or standard input where `path` is "-". A file is mapped, not read: of a virtual machine's memory
/// in it only the pages are touched that a reader looks at.
Reading read_input(const std::string& path);

/// Text of a few kilobytes, whole: of a file, or of standard input where `path` is "-". More than 1 MiB is
/// `too_much`.
std::expected<std::string, Trouble> read_text(const std::string& path, const Trouble& too_much);

} // namespace kvm::tool
