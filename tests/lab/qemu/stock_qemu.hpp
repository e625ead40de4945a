// SPDX-License-Identifier: MIT
//
// A stock QEMU as a child process, told what to do by QMP on its standard input and output.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace lab {

/// Ends the test where QEMU does not do as it is told: it is not under test.
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

    /// As it does when L1 reboots.
    bool has_ended();

  private:
    std::string line();

    pid_t process_ = -1;
    std::FILE* commands_ = nullptr;
    std::FILE* answers_ = nullptr;
};

} // namespace lab
