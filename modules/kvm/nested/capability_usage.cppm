// SPDX-License-Identifier: MIT
//
// Whether a state needs a capability: what a destination lacks matters to a migration only if L1 uses it.
module;
#include <cstdint>
#include <string_view>
export module kvm.nested:capability_usage;
import :capability_difference;
import :feature_name;
import :state_view;

export namespace kvm::nested {

/// Whether a state depends on a capability.
enum class Usage : std::uint8_t {
    uses,
    does_not_use,
    /// It cannot be seen in a nested state: L1 uses it by an instruction, in its own memory or in an MSR; or
    /// L2 is not active, and L1's other VMCSs or VMCBs are in guest memory.
    not_known,
};

constexpr std::string_view name(Usage usage) noexcept {
    return usage == Usage::uses ? "uses" : usage == Usage::does_not_use ? "does not use" : "not known";
}

/// Whether `state` depends on what one side has and the other lacks: a control is set (where the difference
/// is that it may be 0, clear), a number is greater than the lesser side has, an EPT pointer has the page
/// walk. Where L2 runs, or an SMI interrupted it, both answers are final of that VMCS or VMCB; where L1 runs
/// and has a current VMCS, only `uses` is.
Usage used_by(const CapabilityDifference& what, const NestedStateView& state) noexcept;

/// Whether it depends on a feature by its name in QEMU or libvirt.
Usage used_by(const FeatureName& feature, const NestedStateView& state) noexcept;

} // namespace kvm::nested
