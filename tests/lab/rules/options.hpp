// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>

namespace rules {

/// What the command line says: see main.cpp.
struct Options {
    std::uint64_t cases = 20'000;
    std::uint64_t seed = 1;
    std::optional<std::uint64_t> only; ///< replay this one case, and tell all of it
};
extern Options options;

} // namespace rules
