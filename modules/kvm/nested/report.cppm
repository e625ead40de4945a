// SPDX-License-Identifier: MIT
//
// A nested state as text: what it is in ten lines, then every field by its name.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:report;
import :uapi;
import :vendor;
import :bit_layout;
import :field;
import :vmcs12;
import :vmcb12;
import :parts;
import :text;
import :sink;
import :state_view;

export namespace kvm::nested {

/// One part of a state: where it begins in it, its bytes and its fields.
struct PartOfState {
    Part part;
    std::size_t begin;
    std::span<const std::byte> bytes;
    std::span<const Field> fields;

    constexpr std::span<const std::byte> bytes_of(const Field& field) const noexcept {
        return bytes.subspan(field.offset, field.size);
    }
};

/// Up to three of them.
class PartsOfState {
  public:
    /// The parts that are there as a whole. Trusts nothing: of bytes that are no state there may be none.
    /// Valid as long as the bytes, which the view may not be.
    explicit PartsOfState(const NestedStateView& state) noexcept;

    constexpr const PartOfState* begin() const noexcept { return parts_.data(); }
    constexpr const PartOfState* end() const noexcept { return parts_.data() + count_; }

  private:
    std::array<PartOfState, 3> parts_{};
    std::size_t count_ = 0;
};

/// Which fields describe() shows behind the summary.
enum class FieldsShown : std::uint8_t {
    none,     ///< the summary alone
    non_zero, ///< what is not zero
    all,      ///< and the names of what is
};

struct ReportOptions {
    /// What the state is, in about ten lines.
    bool summary = true;
    FieldsShown fields = FieldsShown::non_zero;
    /// The guest memory that the state refers to.
    bool ranges = true;
    /// For bug reports: addresses, registers and reserved bytes are masked. What remains is structure: flags,
    /// control bits, sizes, counts, kinds of events, exit reasons, and whether something is zero.
    bool redact = false;
};

/// Tells what a state is: vendor, phase, where its VMCS or VMCB is, what L2 was about to do; then its fields
/// by group. Bytes that are no state are no error: the text says why.
void describe(const NestedStateView& state, TextSink sink, const ReportOptions& options = {}) noexcept;

/// Tells all about the fields of that name: group, place, width, what KVM_SET_NESTED_STATE does with it, its
/// value in `state`. Answers how many there are: a shadow vmcs12 has the same names as the vmcs12.
std::size_t describe_field(const NestedStateView& state, std::string_view name, TextSink sink,
                           const ReportOptions& options = {}) noexcept;

/// Tells what the bits of a value are: "PE, ET, PG". Nothing where there is no more to say than the number.
void explain(const BitLayout& layout, std::uint64_t value, TextSink sink, bool redact = false) noexcept;

/// The value of a field alone: "0x80050033", "4224", "masked, page-aligned".
void write_value(const Field& field, std::span<const std::byte> bytes, TextSink sink,
                 bool redact = false) noexcept;

} // namespace kvm::nested

namespace kvm::nested::detail {

/// Text with columns, to a sink.
class Writer {
  public:
    explicit constexpr Writer(TextSink sink) noexcept : sink_{sink} {}

    inline Writer& operator<<(std::string_view text) noexcept {
        if (!text.empty())
            sink_(text);
        column_ += text.size();
        return *this;
    }
    inline Writer& operator<<(const char* text) noexcept { return *this << std::string_view{text}; }
    inline Writer& decimal(std::uint64_t value) noexcept {
        Text<20> text;
        text.decimal(static_cast<std::int64_t>(value));
        return *this << text.view();
    }
    /// With leading zeros where it has fewer digits than `digits`.
    inline Writer& hexadecimal(std::uint64_t value, unsigned digits = 1) noexcept {
        Text<20> text;
        text << "0x";
        for (unsigned left = digits; left > 1 && value >> (4 * (left - 1)) == 0; --left)
            text << "0";
        Text<20> number;
        number.hexadecimal(value);
        text << number.view().substr(2);
        return *this << text.view();
    }
    inline std::size_t column() const noexcept { return column_; }
    /// Goes on at `column`, with a blank where the line is longer already.
    inline Writer& at(std::size_t column) noexcept {
        constexpr std::string_view blanks = "                                                            ";
        if (column_ >= column)
            return *this << " ";
        while (column_ < column)
            *this << blanks.substr(0, column - column_ < blanks.size() ? column - column_ : blanks.size());
        return *this;
    }
    inline Writer& end_line() noexcept {
        sink_("\n");
        column_ = 0;
        return *this;
    }
    inline TextSink sink() const noexcept { return sink_; }

  private:
    TextSink sink_;
    std::size_t column_ = 0;
};

/// A little-endian number of up to 8 bytes.
constexpr std::uint64_t number_in(std::span<const std::byte> bytes) noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = bytes.size() < 8 ? bytes.size() : 8; i-- > 0;)
        value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
    return value;
}
inline bool is_zero(std::span<const std::byte> bytes) noexcept {
    for (const auto byte : bytes)
        if (byte != std::byte{0})
            return false;
    return true;
}

/// The value of a field, without what it means. Masked if `redact` and its bit layout say so.
void write_value(Writer& out, const Field& field, std::span<const std::byte> bytes, bool redact) noexcept;
/// What it means, behind `before`; nothing where there is no more to say.
void explain(Writer& out, const BitLayout& layout, std::uint64_t value, bool redact,
             std::string_view before) noexcept;
/// An address, or that there is none.
void write_address(Writer& out, std::uint64_t address, bool redact) noexcept;
/// One part of a value: "vector #PF", "NMI exiting", "write CR3, write CR4".
void write_bits(Writer& out, const NamedBits& bits, std::uint64_t value) noexcept;
/// Whether write_bits() has anything to say about it.
bool is_worth_naming(const NamedBits& bits, std::uint64_t value) noexcept;

} // namespace kvm::nested::detail
