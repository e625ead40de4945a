// SPDX-License-Identifier: MIT
//
// What a person reads: the text that describe() makes of a state, taken apart again; and whether it is what
// was expected of each field.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "lab.hpp"

namespace lab {

/// The words of a line, or the lines of a text: what lies between separators.
inline std::vector<std::string_view> pieces(std::string_view text, char separator) {
    std::vector<std::string_view> pieces;
    while (!text.empty()) {
        const auto end = std::min(text.find(separator), text.size());
        if (end != 0)
            pieces.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return pieces;
}

/// The values that are printed, by the names of their fields. Of a name that two parts have (a shadow vmcs12
/// behind a vmcs12) the first one. Areas, which are no numbers, are left out where they are not zero.
class Printed {
  public:
    explicit Printed(std::span<const std::byte> state) {
        std::string text;
        kvm::nested::describe(state, [&](std::string_view piece) noexcept { text += piece; },
                              {.fields = kvm::nested::FieldsShown::all, .ranges = false});
        bool zeros = false; // names of what is zero go on in lines that begin with more blanks
        for (const auto line : pieces(text, '\n')) {
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

  private:
    void add_zeros(std::string_view line) {
        for (auto word : pieces(line, ' ')) {
            if (word.ends_with(','))
                word.remove_suffix(1);
            values_.emplace(word, 0);
        }
    }
    void add_value(std::string_view line) {
        const auto words = pieces(line, ' '); // place, name, value, meaning
        const std::string value{words.at(2)};
        const auto number = std::strtoull(value.c_str(), nullptr, 0);
        if (value == std::format("{}", number) || value == std::format("{:#x}", number))
            values_.emplace(words.at(1), number);
    }

    std::map<std::string, std::uint64_t, std::less<>> values_;
};

/// By the names of fields. Zero where there is none.
using Values = std::map<std::string_view, std::uint64_t>;

/// A line for each field whose value in the page, or in print, is not the expected one.
template <class Table>
std::string differing(std::span<const std::byte> state, const kvm::nested::Fields<Table>& fields,
                      const Values& expected) {
    const Printed printed{state};
    std::string lines;
    for (const auto [field, value] : fields) {
        using enum kvm::nested::FieldGroup;
        if (!field->is_number() || field->group == header || field->group == reserved)
            continue;
        const auto found = expected.find(field->name);
        const auto wanted = found == expected.end() ? 0 : found->second;
        const auto in_print = printed[field->name];
        if (value == wanted && in_print == wanted)
            continue;
        lines += field->name;
        if (field->encoding != kvm::nested::no_encoding)
            lines += std::format(" (VMCS encoding {:#06x})", field->encoding);
        lines += std::format(", offset {:#05x}: {:#x} instead of {:#x}, printed as {}\n", field->offset,
                             value, wanted, in_print ? std::format("{:#x}", *in_print) : "nothing");
    }
    return lines;
}

/// The areas of the page that are no numbers, padding and the tail among them, and are not zero.
template <class Table>
std::string bytes_of_no_field(const kvm::nested::Fields<Table>& fields) {
    std::string names;
    for (const auto [field, value] : fields)
        if (!field->is_number()
            && std::ranges::any_of(fields.bytes(*field), [](std::byte byte) { return byte != std::byte{0}; }))
            names += std::format("{} ", field->name);
    return names;
}

} // namespace lab
