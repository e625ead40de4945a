// SPDX-License-Identifier: MIT
//
// What a test says of itself beside passed and failed. main.cpp makes a row of the matrix of it:
//
//     matrix: passed | 0.41 | both | L2 moves to a new virtual machine at each of its reports, ... |
//
// Fields: verdict, seconds, suite, name of the test, reason. tests/run puts the rows of all machines beside
// each other.
#pragma once

#include <string>

namespace lab {

/// For what is not under test: fails the test and ends it.
[[noreturn]] void give_up(const std::string& reason);

/// Exit status of a program that boots a stock Linux as L1 which was lost in its boot, before any migration:
/// EX_TEMPFAIL of sysexits.h. Nothing of ours had a part, so the same may be tried again (tests/run does,
/// once).
inline constexpr int lost_in_boot_status = 75;

/// Ends the program with that status; but where something has failed before, it is a failure like any other.
[[noreturn]] void lost_in_boot(const std::string& reason);

/// The emulated processor or this kernel does not have what the test is about. The test returns after it.
/// `reason` is what was seen, not what was supposed: "CPUID 8000000A EDX bit 25 is clear".
void not_offered(const std::string& reason);

/// What this test is about is refused on this kernel, as it should be; `reason` says what and by whom. The
/// test goes on to assert that.
void refused_as_expected(const std::string& reason);

} // namespace lab
