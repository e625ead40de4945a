// SPDX-License-Identifier: MIT
//
// The checksum that L2 computes (checksum.S), in C++, and what is to be reported of it.
#pragma once

#include "layout.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace linux_l1 {

/// What L1 writes for the test in L0 to see.
struct Report {
    std::uint16_t what; ///< REPORT_*
    std::uint32_t value;

    bool operator==(const Report&) const = default;
};

constexpr std::uint64_t checksum_step(std::uint64_t checksum, std::uint64_t word) {
    return (checksum ^ word) * CHECKSUM_PRIME;
}

constexpr std::uint32_t folded(std::uint64_t checksum) {
    return static_cast<std::uint32_t>(checksum >> 32 ^ checksum);
}

/// What L1 makes of L2's memory: a checksum that changes nothing.
constexpr std::uint64_t checksum_of(std::span<const std::uint64_t> words) {
    std::uint64_t checksum = CHECKSUM_SEED;
    for (const auto word : words)
        checksum = checksum_step(checksum, word);
    return checksum;
}

/// All reports of a run in which nothing goes wrong, computed without any guest.
inline std::vector<Report> expected_reports(std::uint64_t rounds) {
    std::vector<std::uint64_t> memory(std::size_t{L2_WINDOW_COUNT} * L2_WINDOW_WORDS);
    std::vector<Report> reports{{REPORT_BEGIN, static_cast<std::uint32_t>(rounds)}};
    std::uint64_t checksum = CHECKSUM_SEED, sum = 0;
    for (std::uint64_t round = 0; round < rounds; ++round) {
        reports.push_back({REPORT_L2, static_cast<std::uint32_t>(rounds - round)});
        const auto window =
            std::span{memory}.subspan(round % L2_WINDOW_COUNT * L2_WINDOW_WORDS, L2_WINDOW_WORDS);
        for (int pass = 0; pass < L2_ROUND_PASSES; ++pass)
            for (auto& word : window)
                word = checksum = checksum_step(checksum, word);
        sum += checksum;
        reports.push_back({REPORT_ROUND, folded(checksum)});
        if ((round + 1) % L1_LOOK_ROUNDS == 0)
            reports.push_back({REPORT_LOOK, folded(checksum_of(window))});
    }
    const auto result = checksum ^ sum;
    reports.push_back({REPORT_RESULT, static_cast<std::uint32_t>(result)});
    reports.push_back({REPORT_RESULT, static_cast<std::uint32_t>(result >> 32)});
    reports.push_back({REPORT_MEMORY, folded(checksum_of(memory))});
    reports.push_back({REPORT_END, 0});
    return reports;
}

} // namespace linux_l1
