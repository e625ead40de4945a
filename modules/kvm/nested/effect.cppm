// SPDX-License-Identifier: MIT
//
// What became of a vCPU's nested state when an operation failed. It says whether the vCPU can go on, whatever
// the cause of the failure was.
module;
#include <cstdint>
#include <string_view>
export module kvm.nested:effect;

export namespace kvm::nested {

/// What became of the vCPU's nested state.
enum class Effect : std::uint8_t {
    unchanged, ///< cannot have changed
    /// the old state is gone and the new one is not in force; clear_nested_state() leads back
    nested_state_lost,
    /// It cannot be told. KVM_SET_NESTED_STATE only, and only where
    /// - GET fails afterwards as well, or
    /// - VMX: the vCPU is in VMX operation with the addresses that were to be set, L2 not active. KVM leaves
    ///   that behind after a late failure, and the vCPU may have been so before, or
    /// - VMX: KVM was out of memory and the vCPU is outside VMX operation, where it may have been before, or
    /// - VMX: enlightened VMCSs are enabled on the vCPU, so that a GET could spoil one that was set and has
    ///   not run yet, and nobody asked, or
    /// - SVM: L2 is active with the state that was to be set, but for bits that KVM rewrites. The one late
    ///   failure, an illegal CR3 of the vCPU, leaves that behind, and the vCPU may have been so before, or
    /// - what was to be set is not known: classify() without it.
    undetermined,
};

std::string_view name(Effect) noexcept; ///< the enumerator's name
/// "the vCPU's nested state is lost": a clause for a message.
std::string_view description(Effect) noexcept;

} // namespace kvm::nested
