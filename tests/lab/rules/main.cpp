// SPDX-License-Identifier: MIT
//
// lab-rules [--cases N] [--seed S] [--only CASE]: asks check() and the kernel the same, many times over. The
// same seed makes the same cases; --only makes one of them again and tells all of it.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "options.hpp"

#include <cstdlib>
#include <print>
#include <string_view>

rules::Options rules::options;

int main(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string_view option = argv[i];
        const auto value = std::strtoull(argv[i + 1], nullptr, 0);
        if (option == "--cases")
            rules::options.cases = value;
        else if (option == "--seed")
            rules::options.seed = value;
        else if (option == "--only")
            rules::options.only = value;
        else {
            std::println(stderr, "lab-rules [--cases N] [--seed S] [--only CASE]");
            return 2;
        }
    }
    return doctest::Context{}.run();
}
