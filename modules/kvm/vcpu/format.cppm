// SPDX-License-Identifier: MIT
//
// std::format for the errors of a whole vCPU. Nothing else in the library needs <format>.
module;
#include <concepts>
#include <format>
#include <string_view>
export module kvm.vcpu:format;
import :error;
import :state;

namespace kvm::vcpu::detail {

template <class T>
concept Named = std::same_as<T, Errc> || std::same_as<T, Operation> || std::same_as<T, Step>
                || std::same_as<T, Cause> || std::same_as<T, Called>;

} // namespace kvm::vcpu::detail

// Not exported: reachable through the import, and GCC refuses an export here.

/// Errc, Operation, Step, Cause, Called: the name. Takes what std::string_view takes.
template <kvm::vcpu::detail::Named T>
struct std::formatter<T, char> : std::formatter<std::string_view, char> {
    auto format(T value, auto& context) const {
        return std::formatter<std::string_view, char>::format(name(value), context);
    }
};

/// Error: message().
template <>
struct std::formatter<kvm::vcpu::Error, char> : std::formatter<std::string_view, char> {
    auto format(const kvm::vcpu::Error& error, auto& context) const {
        return std::formatter<std::string_view, char>::format(error.message().view(), context);
    }
};
