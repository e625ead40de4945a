// SPDX-License-Identifier: MIT
//
// What differs between two states, field by field.
module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:difference;
import :field;
import :parts;
import :sink;
import :state_view;

export namespace kvm::nested {

/// A field that two states have and in which they differ.
struct Difference {
    Part part;
    const Field* field;
    std::span<const std::byte> a;
    std::span<const std::byte> b;
};

struct DifferenceOptions {
    /// What equivalent() ignores counts, too: see ignored_bytes().
    bool ignored_too = false;
    /// As ReportOptions::redact.
    bool redact = false;
};

/// Hands over every field that differs and answers how many differ: 0 exactly if the states are equivalent.
/// Where only one has a payload, or the vendors differ, that is told by the header's fields. Where one of the
/// two is no state, or bytes differ that are in no field, the answer is 1 and nothing is handed over.
std::size_t difference(const NestedStateView& a, const NestedStateView& b,
                       Receiver<const Difference&> receiver, const DifferenceOptions& options = {}) noexcept;

/// The same as text, a line for each field: both values, and what changed in them.
std::size_t difference(const NestedStateView& a, const NestedStateView& b, TextSink sink,
                       const DifferenceOptions& options = {}) noexcept;

} // namespace kvm::nested
