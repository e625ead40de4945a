// SPDX-License-Identifier: MIT
//
// Values as text, and what redacting leaves of them.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace detail {
namespace {

constexpr std::string_view masked = "masked";

/// Reserved areas and instruction bytes: how many are not zero, and the first of them.
void write_area(Writer& out, std::span<const std::byte> bytes, bool redact) noexcept {
    std::size_t count = 0, first = 0;
    for (std::size_t i = bytes.size(); i-- > 0;)
        if (bytes[i] != std::byte{0}) {
            ++count;
            first = i;
        }
    if (count == 0) {
        out << "zero";
        return;
    }
    out.decimal(count) << " of ";
    out.decimal(bytes.size()) << " bytes not zero, from byte ";
    out.decimal(first);
    if (redact)
        return;
    out << " on:";
    for (std::size_t i = first; i < bytes.size() && i < first + 16; ++i) {
        constexpr std::string_view digits = "0123456789abcdef";
        const auto byte = std::to_integer<unsigned>(bytes[i]);
        out << " " << digits.substr(byte >> 4, 1) << digits.substr(byte & 15, 1);
    }
    if (first + 16 < bytes.size())
        out << " ...";
}

void write_pat(Writer& out, std::uint64_t value, std::string_view before) noexcept {
    for (unsigned i = 0; i < 8; ++i) {
        const auto type = find(bit_layout::memory_types, value >> (8 * i) & 0xff);
        out << (i == 0 ? before : " ") << (type ? type->name : "?");
    }
}

/// Whether nothing of a code or a PAT is unknown.
bool is_named(const BitLayout& layout, std::uint64_t value) noexcept {
    if (layout.kind == ValueKind::code)
        return find(layout.values, value).has_value();
    for (unsigned i = 0; i < 64; i += 8)
        if (!find(bit_layout::memory_types, value >> i & 0xff))
            return false;
    return true;
}

} // namespace

bool is_worth_naming(const NamedBits& bits, std::uint64_t value) noexcept {
    return bits.of(value) != 0 || (!bits.values.empty() && find(bits.values, 0));
}

void write_bits(Writer& out, const NamedBits& bits, std::uint64_t value) noexcept {
    const auto number = bits.of(value);
    if (bits.form == BitsForm::flag) {
        out << bits.name;
        return;
    }
    if (bits.form == BitsForm::each) {
        std::string_view before;
        for (unsigned i = 0; i <= unsigned{bits.last} - bits.first; ++i)
            if ((number >> i & 1) != 0) {
                out << before << bits.name;
                out.decimal(i);
                before = ", ";
            }
        return;
    }
    out << bits.name << (bits.name.empty() ? "" : " ");
    if (const auto named = find(bits.values, number))
        out << named->name;
    else if (bits.name.empty())
        (out << "unknown ").decimal(number);
    else if (bits.form == BitsForm::address)
        out.hexadecimal(value & bits.mask());
    else if (bits.form == BitsForm::hexadecimal)
        out.hexadecimal(number);
    else
        out.decimal(number);
}

void write_address(Writer& out, std::uint64_t address, bool redact) noexcept {
    if (!redact || address == 0)
        out.hexadecimal(address);
    else if (address == uapi::no_address)
        out << "all ones";
    else
        out << masked << (address % uapi::page_size == 0 ? ", page-aligned" : ", not page-aligned");
}

void write_value(Writer& out, const Field& field, std::span<const std::byte> bytes, bool redact) noexcept {
    const auto& layout = *field.bit_layout;
    if (!field.is_number()) {
        write_area(out, bytes, redact);
        return;
    }
    const auto value = number_in(bytes);
    switch (layout.kind) {
    case ValueKind::number:
        out.decimal(value);
        return;
    case ValueKind::address:
        write_address(out, value, redact);
        return;
    case ValueKind::bits:
        out.hexadecimal(redact ? kept_bits(layout, value) : value);
        return;
    case ValueKind::mask:
        out.hexadecimal(value);
        return;
    case ValueKind::code:
    case ValueKind::pat:
        if (redact && !is_named(layout, value))
            break;
        out.hexadecimal(value);
        return;
    case ValueKind::value:
    case ValueKind::bytes:
        if (redact && value != 0)
            break;
        out.hexadecimal(value);
        return;
    }
    out << masked;
}

void explain(Writer& out, const BitLayout& layout, std::uint64_t value, bool redact,
             std::string_view before) noexcept {
    switch (layout.kind) {
    case ValueKind::bits: {
        const auto shown = redact ? kept_bits(layout, value) : value;
        for (const auto& bits : layout.bits) {
            if (value == 0 || !is_worth_naming(bits, shown))
                continue;
            out << before;
            write_bits(out, bits, shown);
            before = ", ";
        }
        if (const auto undefined = undefined_bits(layout, value); undefined != 0) {
            out << before << "undefined bits";
            if (!redact)
                (out << " ").hexadecimal(undefined);
        }
        return;
    }
    case ValueKind::code:
        if (const auto named = find(layout.values, value)) {
            out << before << named->name;
            if (named->last != 0)
                out.decimal(value - named->value);
        }
        return;
    case ValueKind::pat:
        write_pat(out, value, before);
        return;
    case ValueKind::address:
        if (value == uapi::no_address)
            out << before << "none";
        return;
    case ValueKind::value:
    case ValueKind::number:
    case ValueKind::mask:
    case ValueKind::bytes:
        return;
    }
}

} // namespace detail

void explain(const BitLayout& layout, std::uint64_t value, TextSink sink, bool redact) noexcept {
    detail::Writer out{sink};
    detail::explain(out, layout, value, redact, "");
}

void write_value(const Field& field, std::span<const std::byte> bytes, TextSink sink, bool redact) noexcept {
    detail::Writer out{sink};
    detail::write_value(out, field, bytes, redact);
}

} // namespace kvm::nested
