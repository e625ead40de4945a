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
}

} // namespace

/// The first byte is where the input is cut in two.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto input = fuzz::bytes(data, size);
    describe(input);
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
