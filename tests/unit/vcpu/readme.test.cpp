// SPDX-License-Identifier: MIT
//
// The README's tables of a restore, held against the order itself.
#include <algorithm>
#include <array>
#include <format>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::vcpu::restore_order;

/// The lines of the table behind this heading, without its own two.
std::vector<std::string> table_behind(std::string_view heading) {
    std::ifstream file{README};
    REQUIRE(file.good());
    std::vector<std::string> rows;
    bool behind = false;
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("#")) {
            if (behind)
                break;
            behind = line.ends_with(heading);
        } else if (behind && line.starts_with("|")) {
            rows.push_back(line);
        } else if (!rows.empty()) {
            break;
        }
    }
    REQUIRE(rows.size() > 2);
    rows.erase(rows.begin(), rows.begin() + 2);
    return rows;
}

/// The cells of a row.
std::vector<std::string> cells(const std::string& row) {
    std::vector<std::string> result;
    std::istringstream in{row.substr(1)};
    for (std::string cell; std::getline(in, cell, '|');)
        result.push_back(cell);
    return result;
}

/// What stands in backticks.
std::vector<std::string> names_in(const std::string& cell) {
    std::vector<std::string> result;
    std::istringstream in{cell};
    bool inside = false;
    for (std::string part; std::getline(in, part, '`'); inside = !inside)
        if (inside)
            result.push_back(part);
    return result;
}

TEST_CASE("the README's order of a restore is the order of a restore") {
    const auto rows = table_behind("The order of a restore");
    REQUIRE(rows.size() == restore_order.size());
    for (std::size_t i = 0; i < rows.size(); ++i)
        CHECK(rows[i]
              == std::format("| `{}` | {} | {} |", restore_order[i].name, restore_order[i].how,
                             restore_order[i].reason));
}

TEST_CASE("the README says of every step who carries it, and names no step that there is not") {
    std::vector<std::string> named;
    for (const auto& row : table_behind("Who carries what")) {
        CAPTURE(row);
        const auto cell = cells(row);
        REQUIRE(cell.size() == 3);
        const bool says_who = cell[1].starts_with(" carried") || cell[1].starts_with(" yours")
                              || cell[1].starts_with(" not carried");
        CHECK(says_who);
        for (const auto& name : names_in(cell[2])) {
            CAPTURE(name);
            CHECK(
                std::ranges::contains(restore_order, std::string_view{name}, &kvm::vcpu::OrderedStep::name));
            named.push_back(name);
        }
    }
    for (const auto& step : restore_order) {
        CAPTURE(step.name);
        CHECK(std::ranges::contains(named, step.name));
    }
}

} // namespace
