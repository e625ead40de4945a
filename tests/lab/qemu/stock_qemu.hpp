// SPDX-License-Identifier: MIT
//
// A stock QEMU as a child process, told what to do by QMP on its standard input and output.
#pragma once

#include <nlohmann/json.hpp>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace lab {

/// For L1's boot and its program, for a migration, and for each answer of QEMU: far more than it takes, even
/// where everything is emulated.
constexpr auto patience = std::chrono::seconds{100};

/// Ends the test where QEMU does not do as it is told, or does not answer: it is not under test.
class StockQemu {
  public:
    /// @param environment "NAME=VALUE", nothing else
    StockQemu(const std::string& program, std::vector<std::string> arguments,
              std::vector<std::string> environment);
    StockQemu(const StockQemu&) = delete;
    StockQemu& operator=(const StockQemu&) = delete;
    ~StockQemu();

    /// A QMP command. What it returns.
    nlohmann::json execute(std::string_view command, nlohmann::json arguments = nlohmann::json::object());

    /// A command of the monitor for people. What it prints.
    std::string monitor(std::string_view command);

    /// Migrates to `file`, while the machine is stopped, and waits for the end.
    void migrate(const std::string& file);

    /// "running", or why the machine stands: "paused", "internal-error" after one of KVM.
    std::string status();

  private:
    StockQemu() = default;
    std::string line();

    pid_t process_ = -1;
    int socket_ = -1;      ///< QEMU's standard input and output
    std::string received_; ///< of which no line is complete yet
};

} // namespace lab
