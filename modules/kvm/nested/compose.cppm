// SPDX-License-Identifier: MIT
//
// A nested state put together of a header and its pages: built from nothing for a test, or taken from a view,
// edited and put together again.
module;
#include <bit>
#include <cstddef>
#include <cstdint>
#include <expected>
export module kvm.nested:compose;
import :uapi;
import :vendor;
import :vmcs12;
import :vmcb12;
import :error;
import :state;

export namespace kvm::nested {

/// The header of a state: uapi::state_flag bits, and what the vendor keeps there. compose() adds the size.
constexpr uapi::StateHeader header_of(std::uint16_t flags, const uapi::VmxHeader& vmx) noexcept {
    return {.flags = flags,
            .format = Vmx::format,
            .size = 0,
            .vendor = std::bit_cast<decltype(uapi::StateHeader::vendor)>(vmx)};
}
constexpr uapi::StateHeader header_of(std::uint16_t flags, const uapi::SvmHeader& svm) noexcept {
    return {.flags = flags,
            .format = Svm::format,
            .size = 0,
            .vendor = std::bit_cast<decltype(uapi::StateHeader::vendor)>(svm)};
}

/// A state with a vmcs12. The error is NestedState::parse()'s, and Errc::wrong_vendor for a header of SVM.
///
///     auto page = l2.image();                                      // l2: vmx::L2Active, from visit()
///     set(page.secondary_vm_exec_control, vmx::Secondary::enable_vpid);
///     const auto edited = compose(l2.header(), page);              // expected<NestedState<Vmx>, Error>
///
/// A page from nothing begins with `page.hdr = uapi::vmcs12_revision`.
[[nodiscard]] std::expected<NestedState<Vmx>, Error> compose(const uapi::StateHeader& header,
                                                             const Vmcs12& vmcs12) noexcept;
/// A state with a shadow vmcs12, too.
[[nodiscard]] std::expected<NestedState<Vmx>, Error>
compose(const uapi::StateHeader& header, const Vmcs12& vmcs12, const Vmcs12& shadow_vmcs12) noexcept;
/// A state of SVM with L2 active.
[[nodiscard]] std::expected<NestedState<Svm>, Error> compose(const uapi::StateHeader& header,
                                                             const Vmcb12& vmcb12) noexcept;

} // namespace kvm::nested
