// SPDX-License-Identifier: MIT
//
// A nested state from the inside: what it is, which guest memory it needs, and one field of it. Takes a file
// of raw bytes.
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <print>
#include <span>
#include <string_view>
#include <vector>

import kvm.nested;

void print(std::string_view piece) noexcept {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
}

int main(int argc, char** argv) {
    if (argc != 2) {
        std::println(stderr, "usage: look FILE      what KVM_GET_NESTED_STATE wrote");
        return 2;
    }
    std::ifstream file{argv[1], std::ios::binary};
    const std::vector<char> bytes{std::istreambuf_iterator{file}, {}};
    const auto state = kvm::nested::NestedStateBuffer::parse_prefix(std::as_bytes(std::span{bytes}));
    if (!state) {
        std::println(stderr, "look: {}: {}", argv[1], state.error());
        return 1;
    }

    kvm::nested::describe(state->state, print, {.fields = kvm::nested::FieldsShown::none, .ranges = false});

    std::uint64_t written = 0;
    kvm::nested::guest_ranges(state->state, [&](const kvm::nested::GuestRange& range) noexcept {
        if (range.access == kvm::nested::PageAccess::writes
            || range.access == kvm::nested::PageAccess::reads_and_writes)
            written += range.pages();
    });
    std::println("KVM writes to {} guest pages behind it", written);

    state->state.visit([]<class View>(const View& view) {
        if constexpr (std::derived_from<View, kvm::nested::vmx::WithVmcs12>)
            std::println("L2's CR3 is {:#x}", view.fields()["guest_cr3"]);
        if constexpr (std::same_as<View, kvm::nested::svm::L2Active>)
            std::println("L1's CR3 is {:#x}", view.fields()["cr3"]);
    });
}
