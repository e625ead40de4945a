// SPDX-License-Identifier: MIT
//
// What the errors of kvm.nested and of kvm.vcpu are made of alike: a table with one row for each cause, and
// what is said of a cause by it. For implementation units only, in their global module fragment.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>

namespace kvm::nested::detail {

/// What is known about a cause.
template <class Code>
struct CauseRow {
    Code code;
    std::string_view name;
    std::string_view description;
    std::string_view next_step;
    std::errc condition{}; ///< what std::error_code compares equal to; 0: nothing
};

/// Whether there is a row for each enumerator, from 1 to the last one, in their order.
template <class Code, std::size_t N>
consteval bool complete_and_in_order(const std::array<CauseRow<Code>, N>& causes, Code last) {
    for (std::size_t i = 0; i < N; ++i)
        if (static_cast<std::size_t>(causes[i].code) != i + 1)
            return false;
    return causes.back().code == last;
}

/// What is said of a number that is no cause.
template <class Code>
inline constexpr CauseRow<Code> no_cause{{}, "?", "no known cause", ""};

template <class Code, std::size_t N>
constexpr const CauseRow<Code>& row_of(const std::array<CauseRow<Code>, N>& causes, Code code) noexcept {
    const auto index = static_cast<std::size_t>(code) - 1;
    return index < N ? causes[index] : no_cause<Code>;
}

/// The name of an enumerator that counts from 1.
template <class Enumerator, std::size_t N>
constexpr std::string_view name_of(const std::array<std::string_view, N>& names, Enumerator value) noexcept {
    const auto index = static_cast<std::size_t>(value) - 1;
    return index < N ? names[index] : "?";
}

/// The causes of a table as std::error_code has them.
template <class Code, const auto& causes>
class CauseCategory final : public std::error_category {
  public:
    constexpr explicit CauseCategory(const char* name) noexcept : name_{name} {}

    const char* name() const noexcept override { return name_; }
    std::string message(int code) const override { return std::string{row(code).description}; }
    std::error_condition default_error_condition(int code) const noexcept override {
        const auto condition = row(code).condition;
        return condition == std::errc{} ? std::error_condition{code, *this}
                                        : std::make_error_condition(condition);
    }

  private:
    static const auto& row(int code) noexcept { return row_of(causes, static_cast<Code>(code)); }

    const char* name_;
};

/// How an ioctl or another system call ended, for a message: nothing where there was none.
template <class Text>
void print_outcome(Text& text, int raw_result, int error_number, std::string_view errno_name) {
    if (raw_result > 0) {
        text << " (returned ";
        text.decimal(raw_result) << ")";
    } else if (raw_result < 0 || error_number != 0) {
        text << " (" << errno_name << ", errno ";
        text.decimal(error_number) << ")";
    }
}

} // namespace kvm::nested::detail
