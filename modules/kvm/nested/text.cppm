// SPDX-License-Identifier: MIT
//
// Text without a heap: a value of fixed capacity that is filled in src/ and returned by value.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
export module kvm.nested:text;

export namespace kvm::nested {

/// At most `Capacity` characters. What does not fit is cut, never written elsewhere.
template <std::size_t Capacity>
class Text {
  public:
    constexpr std::string_view view() const noexcept { return {characters_.data(), length_}; }
    constexpr operator std::string_view() const noexcept { return view(); }
    /// The text with a terminating zero, for C interfaces.
    constexpr const char* c_str() const noexcept { return characters_.data(); }

    constexpr Text& operator<<(std::string_view text) noexcept {
        for (char c : text) {
            if (length_ == Capacity)
                break;
            characters_[length_++] = c;
        }
        return *this;
    }
    constexpr Text& operator<<(const char* text) noexcept { return *this << std::string_view{text}; }

    constexpr Text& decimal(std::int64_t value) noexcept {
        if (value < 0) {
            *this << "-";
            return digits(0 - static_cast<std::uint64_t>(value), 10);
        }
        return digits(static_cast<std::uint64_t>(value), 10);
    }
    constexpr Text& hexadecimal(std::uint64_t value) noexcept {
        *this << "0x";
        return digits(value, 16);
    }

  private:
    constexpr Text& digits(std::uint64_t value, unsigned base) noexcept {
        std::array<char, 20> reversed{};
        std::size_t count = 0;
        do {
            reversed[count++] = "0123456789abcdef"[value % base];
            value /= base;
        } while (value != 0);
        while (count != 0)
            *this << std::string_view{&reversed[--count], 1};
        return *this;
    }

    std::array<char, Capacity + 1> characters_{};
    std::size_t length_ = 0;
};

} // namespace kvm::nested
