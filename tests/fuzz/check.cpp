// SPDX-License-Identifier: MIT
//
// The record of a destination, and behind it, in the same input, a state: what check() and explain() say of
// them. Without a line "}" that ends the record nothing is known of the destination.
#include "fuzz.hpp"

#include <span>
#include <string_view>

import kvm.nested.json;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace kvm::nested;
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    constexpr std::string_view end_of_record = "\n}\n";
    const auto end = text.find(end_of_record);
    const auto record = end == text.npos ? std::string_view{} : text.substr(0, end + end_of_record.size());
    Destination to;
    if (const auto read = destination_from_json(record)) {
        to = *read;
        const auto again = destination_from_json(to_json(to));
        fuzz::require(again.has_value() && *again == to, "a destination survives JSON");
    } else {
        fuzz::require(!read.error().message().empty(), "an error has a message");
    }
    const auto state = std::as_bytes(std::span{data, size}).subspan(record.size());
    const auto findings = check(state, to);
    for (const auto& finding : findings)
        fuzz::require(!finding.message().view().empty(), "a finding has a message");
    const auto first = first_refusal(state, to);
    fuzz::require(first.has_value() == findings.verdict().has_value(),
                  "both say whether something was found");
    for (const int result : {-1, 2}) {
        const Error error{.code = Errc::refused,
                          .operation = Operation::set_nested_state,
                          .raw_result = result,
                          .error_number = 22};
        fuzz::require(!explain(state, to, error).message().view().empty(), "an explanation has a message");
    }
    return 0;
}
