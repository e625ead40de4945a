// SPDX-License-Identifier: MIT
#include "output.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <format>
#include <unistd.h>

namespace kvm::tool {
namespace {

bool has_colour(int fd) {
    const char* no_colour = std::getenv("NO_COLOR"); // any value but an empty one: no-color.org
    const char* terminal = std::getenv("TERM");
    return ::isatty(fd) != 0 && (no_colour == nullptr || *no_colour == '\0')
           && (terminal == nullptr || std::strcmp(terminal, "dumb") != 0);
}

constexpr std::string_view bold = "\x1b[1m", red = "\x1b[31m", plain = "\x1b[0m";

} // namespace

void Output::heading(std::string_view text) {
    static const bool colour = has_colour(STDOUT_FILENO);
    if (colour)
        ((text_ += bold) += text) += plain;
    else
        text_ += text;
    text_ += '\n';
}

void Output::add_piece(std::string_view piece) {
    while (!piece.empty()) {
        const auto end = piece.find('\n');
        line_ += piece.substr(0, end);
        if (end == std::string_view::npos)
            return;
        piece.remove_prefix(end + 1);
        if (line_.empty() || line_.front() == ' ')
            (text_ += line_) += '\n';
        else
            heading(line_);
        line_.clear();
    }
}

int Output::flush(int status) {
    std::string_view rest = text_;
    while (!rest.empty()) {
        const auto written = ::write(STDOUT_FILENO, rest.data(), rest.size());
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EPIPE)
            return status;
        if (written < 0)
            return complain("standard output", {std::strerror(errno), std::nullopt, "see where it goes"});
        rest.remove_prefix(static_cast<std::size_t>(written));
    }
    text_.clear();
    return status;
}

void tell(std::string_view text) {
    while (!text.empty()) {
        const auto written = ::write(STDERR_FILENO, text.data(), text.size());
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0) // nobody is left to be told
            return;
        text.remove_prefix(static_cast<std::size_t>(written));
    }
}

int complain(std::string_view about, const Trouble& trouble) {
    const bool colour = has_colour(STDERR_FILENO);
    auto text = std::format("{}kvm-nested: {}: ", colour ? red : "", about == "-" ? "standard input" : about);
    if (trouble.offset)
        text += std::format("offset {}: ", *trouble.offset);
    text += std::format("{}{}\n", trouble.reason, colour ? plain : "");
    if (!trouble.next_step.empty())
        text += std::format("  next: {}\n", trouble.next_step);
    tell(text);
    return in_trouble;
}

} // namespace kvm::tool
