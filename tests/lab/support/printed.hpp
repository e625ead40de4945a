// SPDX-License-Identifier: MIT
//
// What a person reads: the text that describe() makes of a state, taken apart again; and whether it is what
// was expected of each field.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

#include <charconv>
#include <sstream>

namespace lab {

/// The values that are printed, by the names of their fields. Of a name that two parts have (a shadow vmcs12
/// behind a vmcs12) the first one. Areas, which are no numbers, are left out where they are not zero.
class Printed {
  public:
    explicit Printed(std::span<const std::byte> state) {
        kvm::describe(state, [&](std::string_view text) noexcept { text_ += text; },
                      {.fields = kvm::FieldsShown::all, .ranges = false});
        std::istringstream lines{text_};
        bool zeros = false; // names of what is zero go on in lines that begin with more blanks
        for (std::string line; std::getline(lines, line);) {
            zeros = line.starts_with("  zero: ") || (zeros && line.starts_with("       "));
            if (zeros)
                add_zeros(line);
            else if (line.starts_with("  0x") || line.starts_with("  +0x"))
                add_value(line);
        }
    }

    /// Nothing where the text does not have the field.
    [[nodiscard]] std::optional<std::uint64_t> operator[](std::string_view name) const {
        const auto found = values_.find(name);
        if (found == values_.end())
            return std::nullopt;
        return found->second;
    }
    [[nodiscard]] const std::string& text() const { return text_; }

  private:
    void add_zeros(const std::string& line) {
        std::istringstream words{line};
        for (std::string word; words >> word;) {
            if (word.ends_with(','))
                word.pop_back();
            if (word != "zero:")
                values_.emplace(word, 0);
        }
    }
    void add_value(const std::string& line) {
        std::istringstream words{line};
        std::string place, name, value;
        words >> place >> name >> value;
        const bool hexadecimal = value.starts_with("0x");
        const auto digits = std::string_view{value}.substr(hexadecimal ? 2 : 0);
        std::uint64_t number = 0;
        const auto end = digits.data() + digits.size();
        if (const auto parsed = std::from_chars(digits.data(), end, number, hexadecimal ? 16 : 10);
            parsed.ec == std::errc{} && parsed.ptr == end)
            values_.emplace(name, number);
    }

    std::string text_;
    std::map<std::string, std::uint64_t, std::less<>> values_;
};

/// By the names of fields. Zero where there is none.
using Values = std::map<std::string_view, std::uint64_t>;

/// A line for each field whose value in the page, or in print, is not the expected one.
template <class Table>
std::string differing(std::span<const std::byte> state, const kvm::Fields<Table>& fields,
                      const Values& expected) {
    const Printed printed{state};
    std::string lines;
    for (const auto [field, value] : fields) {
        using enum kvm::FieldGroup;
        if (!field->is_number() || field->group == header || field->group == reserved)
            continue;
        const auto found = expected.find(field->name);
        const auto wanted = found == expected.end() ? 0 : found->second;
        const auto in_print = printed[field->name];
        if (value == wanted && in_print == wanted)
            continue;
        lines += field->name;
        if (field->encoding != kvm::no_encoding)
            lines += std::format(" (VMCS encoding {:#06x})", field->encoding);
        lines += std::format(", offset {:#05x}: {:#x} instead of {:#x}, printed as {}\n", field->offset,
                             value, wanted, in_print ? std::format("{:#x}", *in_print) : "nothing");
    }
    return lines;
}

/// The areas of the page that are no numbers, padding and the tail among them, and are not zero.
template <class Table>
std::string bytes_of_no_field(const kvm::Fields<Table>& fields) {
    std::string names;
    for (const auto [field, value] : fields)
        if (!field->is_number()
            && std::ranges::any_of(fields.bytes(*field), [](std::byte byte) { return byte != std::byte{0}; }))
            names += std::format("{} ", field->name);
    return names;
}

} // namespace lab
