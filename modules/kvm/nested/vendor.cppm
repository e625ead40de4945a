// SPDX-License-Identifier: MIT
//
// Intel VMX and AMD SVM as types, and all that differs between their nested states.
module;
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
export module kvm.nested:vendor;
import :uapi;

export namespace kvm::nested {

/// The vendor as a value, where it is known only at run time.
enum class VendorId : std::uint8_t { vmx, svm };

/// Intel VMX, as kvm-intel keeps it: header, vmcs12 page, shadow vmcs12 page.
struct Vmx {
    static constexpr VendorId id = VendorId::vmx;
    static constexpr std::uint16_t format = uapi::state_format::vmx;
    /// Bytes that the kernel may write, and so the bytes of a NestedState<Vmx>.
    static constexpr std::size_t capacity = uapi::header_size + 2 * uapi::page_size;
    using Header = uapi::VmxHeader;
};

/// AMD SVM, as kvm-amd keeps it: header, one page that is laid out like a VMCB.
struct Svm {
    static constexpr VendorId id = VendorId::svm;
    static constexpr std::uint16_t format = uapi::state_format::svm;
    static constexpr std::size_t capacity = uapi::header_size + uapi::page_size;
    using Header = uapi::SvmHeader;
};

/// Stands where the vendor is chosen at run time: Host<Any>, Vcpu<Any>.
struct Any {
    static constexpr std::size_t capacity = Vmx::capacity;
};

/// A vendor that is fixed at compile time.
template <class V>
concept Vendor = std::same_as<V, Vmx> || std::same_as<V, Svm>;

/// A vendor, fixed or open.
template <class V>
concept VendorOrAny = Vendor<V> || std::same_as<V, Any>;

static_assert(Vmx::capacity == 8320 && Svm::capacity == 4224);

constexpr std::string_view name(VendorId vendor) noexcept {
    return vendor == VendorId::vmx ? "VMX" : "SVM";
}

/// uapi::state_format of `vendor`.
constexpr std::uint16_t format(VendorId vendor) noexcept {
    return vendor == VendorId::vmx ? Vmx::format : Svm::format;
}

/// Whose format a header has; none if it is neither's.
constexpr std::optional<VendorId> vendor_of(const uapi::StateHeader& header) noexcept {
    if (header.format == Vmx::format)
        return VendorId::vmx;
    if (header.format == Svm::format)
        return VendorId::svm;
    return std::nullopt;
}

/// Bytes that the largest state of `vendor` takes.
constexpr std::size_t capacity(VendorId vendor) noexcept {
    return vendor == VendorId::vmx ? Vmx::capacity : Svm::capacity;
}

} // namespace kvm::nested
