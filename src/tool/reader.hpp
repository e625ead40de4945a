// SPDX-License-Identifier: MIT
//
// What the program reads: one function for each format in which nested states are kept, all with the same answer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

namespace kvm::tool {

/// Why there is no answer, for a person.
struct Trouble {
    std::string reason;       ///< "the JSON description ends before the vCPU's section does"
    std::size_t offset = 0;   ///< in the input, of the byte that made it fail
    std::string next_step{};  ///< what the person can do about it; may be empty
};

/// The nested state of one vCPU.
struct FoundState {
    unsigned vcpu = 0;             ///< its number in the input
    std::vector<std::byte> bytes;  ///< as KVM_SET_NESTED_STATE takes it; empty where the vCPU has none
    std::vector<std::string> notes{}; ///< what the format has lost, where that matters
};

/// All that was found in an input.
struct Contents {
    std::string format; ///< "QEMU migration stream (pc-q35-7.2)"
    std::vector<FoundState> states;
};

using Reading = std::expected<Contents, Trouble>;
using Bytes = std::span<const std::byte>;

} // namespace kvm::tool
