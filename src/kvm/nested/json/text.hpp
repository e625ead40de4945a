// SPDX-License-Identifier: MIT
//
// What all JSON forms are written with, and how numbers in them are read. Internal: included by
// implementation units, behind `module kvm.nested.json;`, with <algorithm>, <cstddef>, <cstdint>, <optional>,
// <string>, <string_view>, <utility> before.
#pragma once

namespace kvm::nested::detail {

/// The largest number that is itself alone where JSON numbers are doubles (RFC 8259 section 6).
inline constexpr std::uint64_t largest_exact = (std::uint64_t{1} << 53) - 1;

inline std::string hexadecimal(std::uint64_t value) {
    Text<20> text;
    text.hexadecimal(value);
    return std::string{text.view()};
}

/// JSON with two blanks for each level. Names and values have nothing in them that needs an escape; a message
/// may. (The members of a class in a module are inline only if they say so.)
class Document {
  public:
    inline void open(std::string_view name = {}) {
        begin(name);
        text_ += '{';
        ++level_;
        first_ = true;
    }
    inline void close() {
        --level_;
        if (!first_)
            line();
        text_ += '}';
        first_ = false;
    }
    inline void raw(std::string_view name, std::string_view value) {
        begin(name);
        text_ += value;
    }
    inline void string(std::string_view name, std::string_view value) {
        begin(name);
        (((text_ += '"') += value) += '"');
    }
    inline std::string take() && { return std::move(text_ += '\n'); }

  private:
    inline void line() {
        text_ += '\n';
        text_.append(2 * level_, ' ');
    }
    inline void begin(std::string_view name) {
        if (level_ == 0)
            return;
        if (!std::exchange(first_, false))
            text_ += ',';
        line();
        (((text_ += '"') += name) += "\": ");
    }

    std::string text_;
    std::size_t level_ = 0;
    bool first_ = true;
};

/// A number as a person writes it: "0x1f", "31".
inline std::optional<std::uint64_t> number_in(std::string_view text) {
    const bool hex = text.starts_with("0x") || text.starts_with("0X");
    const std::uint64_t base = hex ? 16 : 10;
    if (hex)
        text.remove_prefix(2);
    if (text.empty())
        return std::nullopt;
    std::uint64_t value = 0;
    for (const char c : text) {
        const auto digit = c >= '0' && c <= '9'   ? static_cast<std::uint64_t>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<std::uint64_t>(c - 'a' + 10)
                           : c >= 'A' && c <= 'F' ? static_cast<std::uint64_t>(c - 'A' + 10)
                                                  : base;
        if (digit >= base || value > (~std::uint64_t{0} - digit) / base)
            return std::nullopt;
        value = value * base + digit;
    }
    return value;
}

/// A name out of the text, for a message: no control characters, and no longer than a name can be.
inline std::string printable(std::string_view name) {
    constexpr std::size_t longest = 64;
    std::string text{name.substr(0, longest)};
    std::ranges::replace_if(text, [](char c) { return c < ' ' || c > '~'; }, '?');
    return name.size() > longest ? text + "..." : text;
}

} // namespace kvm::nested::detail
