// SPDX-License-Identifier: MIT
//
// The order in which a vCPU is restored, as data: WholeVcpu::restore() walks it, and a VMM that restores by
// itself can hold its own order against it at compile time.
module;
#include <array>
#include <cstddef>
#include <span>
#include <string_view>
export module kvm.vcpu:order;
import :error;
import :state;

export namespace kvm::vcpu {

struct OrderedStep {
    Step step;
    std::string_view name;
    std::string_view how;    ///< the ioctl, or whose the step is
    std::string_view reason; ///< why here
};

/// The order that works on every kernel from Linux 6.1 to 7.3.
inline constexpr auto restore_order = [] {
    std::array<OrderedStep, detail::rows.size()> order{};
    for (std::size_t i = 0; i < order.size(); ++i) {
        const auto& row = detail::rows[i];
        order[i] = {row.step, row.name, row.how, row.reason};
    }
    return order;
}();

/// Whether these steps come in restore_order. Steps may be left out, not swapped and not repeated.
///
///     static_assert(kvm::vcpu::keeps_restore_order(std::array{kvm::vcpu::Step::cpuid,
///     kvm::vcpu::Step::nested_state}));
constexpr bool keeps_restore_order(std::span<const Step> steps) noexcept {
    for (std::size_t i = 1; i < steps.size(); ++i)
        if (steps[i] <= steps[i - 1])
            return false;
    return true;
}

} // namespace kvm::vcpu
