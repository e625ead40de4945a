// SPDX-License-Identifier: MIT
//
// std::format for what a log wants to print. Nothing else in the library needs <format>.
module;
#include <concepts>
#include <cstddef>
#include <format>
#include <string_view>
export module kvm.nested:format;
import :vendor;
import :text;
import :effect;
import :error;
import :phase;
import :state_view;
import :state;
import :buffer;

namespace kvm::nested::detail {

template <class T>
inline constexpr bool is_state = false;
template <Vendor V>
inline constexpr bool is_state<NestedState<V>> = true;
template <>
inline constexpr bool is_state<NestedStateBuffer> = true;
template <>
inline constexpr bool is_state<NestedStateView> = true;

template <class T>
concept Named = std::same_as<T, VendorId> || std::same_as<T, Phase> || std::same_as<T, Errc>
                || std::same_as<T, Operation> || std::same_as<T, Effect>;

} // namespace kvm::nested::detail

// Not exported: reachable through the import, and GCC refuses an export here.

/// VendorId, Phase, Errc, Operation, Effect: the name. Takes what std::string_view takes.
template <kvm::nested::detail::Named T>
struct std::formatter<T, char> : std::formatter<std::string_view, char> {
    auto format(T value, auto& context) const {
        return std::formatter<std::string_view, char>::format(kvm::nested::name(value), context);
    }
};

/// Text, such as message() and summary() give: what it says.
template <std::size_t Capacity>
struct std::formatter<kvm::nested::Text<Capacity>, char> : std::formatter<std::string_view, char> {
    auto format(const kvm::nested::Text<Capacity>& text, auto& context) const {
        return std::formatter<std::string_view, char>::format(text.view(), context);
    }
};

/// Error: message().
template <>
struct std::formatter<kvm::nested::Error, char> : std::formatter<std::string_view, char> {
    auto format(const kvm::nested::Error& error, auto& context) const {
        return std::formatter<std::string_view, char>::format(error.message().view(), context);
    }
};

/// NestedState, NestedStateBuffer, NestedStateView: summary().
template <class T>
    requires kvm::nested::detail::is_state<T>
struct std::formatter<T, char> : std::formatter<std::string_view, char> {
    auto format(const T& state, auto& context) const {
        return std::formatter<std::string_view, char>::format(kvm::nested::summary(state).view(), context);
    }
};
