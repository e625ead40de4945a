// SPDX-License-Identifier: MIT
#include "stock_qemu.hpp"

#include "../support/verdict.hpp"

#include <array>
#include <chrono>
#include <csignal>
#include <format>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

namespace lab {

namespace {

std::vector<char*> pointers_to(std::vector<std::string>& words) {
    std::vector<char*> result;
    for (auto& word : words)
        result.push_back(word.data());
    result.push_back(nullptr);
    return result;
}

} // namespace

StockQemu::StockQemu(const std::string& program, std::vector<std::string> arguments,
                     std::vector<std::string> environment) {
    arguments.insert(arguments.begin(), program);
    arguments.insert(arguments.end(), {"-qmp", "stdio"});
    std::array<int, 2> to_qemu{}, from_qemu{};
    if (::pipe(to_qemu.data()) != 0 || ::pipe(from_qemu.data()) != 0 || (process_ = ::fork()) < 0)
        give_up("no process could be made for QEMU");
    if (process_ == 0) {
        ::dup2(to_qemu[0], STDIN_FILENO);
        ::dup2(from_qemu[1], STDOUT_FILENO);
        ::close(to_qemu[1]);
        ::execve(program.c_str(), pointers_to(arguments).data(), pointers_to(environment).data());
        std::perror(program.c_str());
        ::_exit(127);
    }
    ::close(to_qemu[0]);
    ::close(from_qemu[1]);
    commands_ = ::fdopen(to_qemu[1], "w");
    answers_ = ::fdopen(from_qemu[0], "r");
    line(); // its greeting
    execute("qmp_capabilities");
}

StockQemu::~StockQemu() {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    std::fclose(commands_);
    std::fclose(answers_);
}

bool StockQemu::has_ended() {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOHANG | WNOWAIT) == 0
           && info.si_pid != 0;
}

std::string StockQemu::line() {
    std::string result;
    for (int c = 0; (c = std::fgetc(answers_)) != '\n';) {
        if (c == EOF)
            give_up("QEMU has ended");
        result += static_cast<char>(c);
    }
    return result;
}

nlohmann::json StockQemu::execute(std::string_view command, nlohmann::json arguments) {
    const nlohmann::json message{{"execute", command}, {"arguments", std::move(arguments)}};
    std::fputs((message.dump() + '\n').c_str(), commands_);
    std::fflush(commands_);
    for (;;) {
        auto answer = nlohmann::json::parse(line(), nullptr, false);
        if (answer.contains("error"))
            give_up(std::format("QEMU refuses {}: {}", message.dump(), answer["error"].dump()));
        if (answer.contains("return")) // events come in between
            return answer["return"];
    }
}

std::string StockQemu::monitor(std::string_view command) {
    return execute("human-monitor-command", {{"command-line", command}}).get<std::string>();
}

void StockQemu::migrate(const std::string& file) {
    using namespace std::chrono_literals;
    execute("migrate", {{"uri", std::format("exec:cat > {}", file)}});
    for (;;) {
        const auto status = execute("query-migrate").value("status", "none");
        if (status == "completed")
            return;
        if (status == "failed" || status == "cancelled")
            give_up(std::format("QEMU's migration to {}: {}", file, status));
        std::this_thread::sleep_for(50ms);
    }
}

} // namespace lab
