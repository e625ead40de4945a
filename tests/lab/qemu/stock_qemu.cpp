// SPDX-License-Identifier: MIT
#include "stock_qemu.hpp"

#include "../support/verdict.hpp"

#include <array>
#include <csignal>
#include <cstdio>
#include <format>
#include <thread>

#include <poll.h>
#include <sys/socket.h>
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
                     std::vector<std::string> environment)
    : StockQemu{} { // so that the destructor runs when QEMU does not greet
    arguments.insert(arguments.begin(), program);
    arguments.insert(arguments.end(), {"-qmp", "stdio"});
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0 || (process_ = ::fork()) < 0)
        give_up("no process could be made for QEMU");
    if (process_ == 0) {
        ::dup2(ends[1], STDIN_FILENO);
        ::dup2(ends[1], STDOUT_FILENO);
        ::execve(program.c_str(), pointers_to(arguments).data(), pointers_to(environment).data());
        std::perror(program.c_str());
        ::_exit(127);
    }
    ::close(ends[1]);
    socket_ = ends[0];
    line(); // its greeting
    execute("qmp_capabilities");
}

StockQemu::~StockQemu() {
    if (process_ > 0) {
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
        ::close(socket_);
    }
}

std::string StockQemu::line() {
    for (;;) {
        if (const auto end = received_.find('\n'); end != std::string::npos) {
            auto result = received_.substr(0, end);
            received_.erase(0, end + 1);
            return result;
        }
        pollfd answer{.fd = socket_, .events = POLLIN, .revents = 0};
        if (::poll(&answer, 1, std::chrono::milliseconds{patience}.count()) == 0)
            give_up(std::format("QEMU has not answered for {}", patience));
        std::array<char, 4096> bytes{};
        const auto size = ::read(socket_, bytes.data(), bytes.size());
        if (size <= 0)
            give_up("QEMU has ended");
        received_.append(bytes.data(), static_cast<std::size_t>(size));
    }
}

nlohmann::json StockQemu::execute(std::string_view command, nlohmann::json arguments) {
    const nlohmann::json message{{"execute", command}, {"arguments", std::move(arguments)}};
    const auto text = message.dump() + '\n';
    if (::send(socket_, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
        give_up("QEMU has ended");
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

std::string StockQemu::status() {
    return execute("query-status").value("status", "none");
}

void StockQemu::migrate(const std::string& file) {
    using namespace std::chrono_literals;
    execute("migrate", {{"uri", std::format("exec:cat > {}", file)}});
    const auto deadline = std::chrono::steady_clock::now() + patience;
    for (;;) {
        const auto status = execute("query-migrate").value("status", "none");
        if (status == "completed")
            return;
        if (status == "failed" || status == "cancelled" || std::chrono::steady_clock::now() > deadline)
            give_up(std::format("QEMU's migration to {}: {}", file, status));
        std::this_thread::sleep_for(50ms);
    }
}

} // namespace lab
