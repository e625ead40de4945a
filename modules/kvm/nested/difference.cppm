// SPDX-License-Identifier: MIT
//
// What differs between two states, field by field.
module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:difference;
import :vendor;
import :field;
import :sink;
import :state;
import :buffer;
import :report;

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
std::size_t difference(std::span<const std::byte> a, std::span<const std::byte> b,
                       Receiver<const Difference&> receiver, const DifferenceOptions& options = {}) noexcept;

/// The same as text, a line for each field: both values, and what changed in them.
std::size_t difference(std::span<const std::byte> a, std::span<const std::byte> b, TextSink sink,
                       const DifferenceOptions& options = {}) noexcept;

template <Vendor V>
inline std::size_t difference(const NestedState<V>& a, const NestedState<V>& b, TextSink sink,
                              const DifferenceOptions& options = {}) noexcept {
    return difference(a.bytes(), b.bytes(), sink, options);
}
template <Vendor V>
inline std::size_t difference(const NestedState<V>& a, const NestedState<V>& b,
                              Receiver<const Difference&> receiver,
                              const DifferenceOptions& options = {}) noexcept {
    return difference(a.bytes(), b.bytes(), receiver, options);
}
inline std::size_t difference(const NestedStateBuffer& a, const NestedStateBuffer& b, TextSink sink,
                              const DifferenceOptions& options = {}) noexcept {
    return difference(a.bytes(), b.bytes(), sink, options);
}
inline std::size_t difference(const NestedStateBuffer& a, const NestedStateBuffer& b,
                              Receiver<const Difference&> receiver,
                              const DifferenceOptions& options = {}) noexcept {
    return difference(a.bytes(), b.bytes(), receiver, options);
}

} // namespace kvm::nested
