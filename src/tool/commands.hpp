// SPDX-License-Identifier: MIT
//
// The commands of kvm-nested, a file for each. Each declares its arguments and what happens when it is
// called.
#pragma once
#include "reader.hpp"

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace kvm::tool {

/// What a chosen command leaves behind to be run: its exit status is the program's.
using Command = std::function<int()>;

void add_show(CLI::App& program, Command& chosen);
void add_diff(CLI::App& program, Command& chosen);
void add_pages(CLI::App& program, Command& chosen);
void add_extract(CLI::App& program, Command& chosen);
void add_make(CLI::App& program, Command& chosen);
void add_probe(CLI::App& program, Command& chosen);

// --- what several of them share
// ------------------------------------------------------------------------------------

/// "--vcpu N".
void add_vcpu_option(CLI::App& command, std::optional<unsigned>& vcpu);

/// The states of an input, or of one vCPU in it; complains where there are none.
std::optional<Contents> states_of(const std::string& path, std::optional<unsigned> vcpu);

/// "FILE: vCPU 0, QEMU migration stream".
std::string title(const std::string& path, const Contents& contents, const FoundState& state);

} // namespace kvm::tool
