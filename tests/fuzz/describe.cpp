// SPDX-License-Identifier: MIT
//
// Bytes to text: describe() and its neighbours take what is no state, too.
#include "fuzz.hpp"

#include <string_view>

import kvm.nested;

namespace {

void printable(std::string_view piece) noexcept {
    for (const char letter : piece)
        fuzz::require(letter == '\n' || (letter >= ' ' && letter <= '~'), "text is printable");
}

void describe(std::span<const std::byte> state) {
    for (const bool redact : {false, true}) {
        kvm::nested::describe(state, printable, {.fields = kvm::nested::FieldsShown::all, .redact = redact});
        kvm::nested::describe_field(state, "guest_rip", printable, {.redact = redact});
    }
    kvm::nested::guest_ranges(state, [](const kvm::nested::GuestRange& range) noexcept {
        printable(kvm::nested::name(range.role));
        printable(kvm::nested::name(range.access));
        fuzz::require(range.size == 0 || range.pages() != 0, "a range has pages");
    });
    fuzz::require(kvm::nested::difference(state, state, printable) == 0,
                  "a state does not differ from itself");
    const auto vendor = kvm::nested::NestedStateView{state}.vendor();
    for (const auto& feature : kvm::nested::feature_names) {
        const auto usage = kvm::nested::used_by(feature, state);
        printable(kvm::nested::name(usage));
        fuzz::require(vendor || usage == kvm::nested::Usage::not_known, "of no state is nothing known");
    }
}

/// The first 8 bytes as a value of each capability.
void capabilities(std::span<const std::byte> input) {
    std::uint64_t value = 0;
    for (const auto byte : input.first(input.size() < 8 ? input.size() : 8))
        value = value << 8 | std::to_integer<std::uint64_t>(byte);
    for (const auto& layout : kvm::nested::capability_layouts)
        kvm::nested::describe(layout, value, printable);
}

} // namespace

/// The first byte is where the input is cut in two.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto input = fuzz::bytes(data, size);
    describe(input);
    capabilities(input);
    if (size < 2)
        return 0;
    const auto rest = input.subspan(1);
    const auto cut = rest.size() * data[0] / 256;
    const auto a = rest.first(cut), b = rest.subspan(cut);
    const auto there = kvm::nested::difference(a, b, printable, {.redact = true});
    const auto back = kvm::nested::difference(b, a, printable, {.ignored_too = false});
    fuzz::require((there == 0) == (back == 0), "a differs from b exactly if b differs from a");
    fuzz::require((there == 0) == !kvm::nested::first_difference(a, b),
                  "states differ exactly if they are not equivalent");
    return 0;
}
