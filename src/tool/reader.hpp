// SPDX-License-Identifier: MIT
//
// What the program reads: one function for each format in which nested states are kept, all with the same
// answer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

import kvm.nested;

namespace kvm::tool {

using namespace nested;

using Bytes = std::span<const std::byte>;

/// Why there is no answer, for a person.
struct Trouble {
    std::string reason;                ///< "the JSON description ends before the vCPU's section does"
    std::optional<std::size_t> offset; ///< in the input, of the byte that made it fail
    std::string next_step{};           ///< what the person can do about it; may be empty
};

/// Registers of a vCPU that its nested state does not have: L2's while L2 is active, else L1's.
struct Registers {
    std::uint64_t rip, rsp, cr3, rflags;
};

/// The nested state of one vCPU.
struct FoundState {
    unsigned vcpu = 0;                ///< its number in the input
    std::vector<std::byte> bytes;     ///< as they were found; empty where the vCPU has none
    std::vector<std::string> notes{}; ///< what its format has lost, and what is odd about it; nothing secret
    std::optional<Registers> registers{}; ///< where the input has them, too
    /// The vCPU that a restore makes of the input on a host: registers, CPUID and MSRs are the input's, as
    /// far as it has them. Null where it has the nested state alone.
    std::function<Destination(const Destination& host)> on_host{};
    /// Whoever restores such an input goes on where KVM refuses an MSR.
    bool skips_refused_msrs = false;

    /// Why no vCPU can be in that state; none if all is well.
    std::optional<Error> refused() const;
};

/// All that was found in an input.
struct Contents {
    std::string format; ///< "QEMU migration stream (pc-q35-7.2)"
    std::vector<FoundState> states;
};

using Reading = std::expected<Contents, Trouble>;

} // namespace kvm::tool
