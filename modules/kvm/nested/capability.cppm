// SPDX-License-Identifier: MIT
//
// The capability MSRs of VMX, IA32_FEATURE_CONTROL and CPUID.8000000AH as data: what each is called, how it
// is to be read, and where the manuals speak of it.
//
// Three kinds of bits are not what they seem. A capability MSR of controls has each control twice: bits 31:0
// say which must be 1, bits 63:32 which may be 1. The MSRs of CR0 and CR4 that end in FIXED0 say which bits
// must be 1, those in FIXED1 which may be. And some controls, the default1 class, were 1 before anybody could
// choose: of them it is a capability that they may be 0.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:capability;
import :vendor;
import :bit_layout;
import :vmx_bit_layout;
import :capabilities;
import :capability_bit_layout;
import :feature_name;
import :sink;

export namespace kvm::nested {

/// How the bits of a capability are meant.
enum class CapabilityForm : std::uint8_t {
    controls,  ///< bits 31:0 must be 1, bits 63:32 may be 1 (Intel SDM Vol. 3 appendix A.2)
    must_be_1, ///< what is set must be 1 in the register that it is about
    may_be_1,  ///< what is clear must be 0 there
    features,  ///< what is set is there; numbers
};

/// Which of its two sides a bit of a capability has.
enum class AllowedSetting : std::uint8_t {
    feature,   ///< none: it is there or not
    must_be_1, ///< set where it cannot be 0; bits 31:0 of an MSR of controls
    may_be_1,  ///< set where it can be 1; bits 63:32 of an MSR of controls
};

/// "must be 1", "may be 1"; nothing of a feature.
constexpr std::string_view name(AllowedSetting setting) noexcept {
    return setting == AllowedSetting::must_be_1  ? "must be 1"
           : setting == AllowedSetting::may_be_1 ? "may be 1"
                                                 : "";
}

/// One register of capabilities.
struct CapabilityLayout {
    VendorId vendor;
    std::uint32_t index;   ///< of the MSR; of SVM svm::Capabilities::function
    std::string_view name; ///< "IA32_VMX_BASIC", "CPUID.8000000AH:EDX"
    CapabilityForm form;
    const BitLayout* bit_layout; ///< of controls, of one half
    std::string_view section;    ///< of the Intel SDM, or of the AMD APM
    /// Controls that are 1 where there is no choice (appendix A.2): those of the reserved bits, and a few
    /// that got a name.
    std::uint32_t default1 = 0;
    /// The MSR that has the same bits and is the one that counts, where this is not: the TRUE one.
    std::uint32_t true_index = 0;
};

} // namespace kvm::nested

namespace kvm::nested::detail {

consteval auto make_capability_layouts() {
    using enum CapabilityForm;
    using enum VendorId;
    namespace msr = kvm::nested::vmx::msr;
    constexpr auto function = svm::Capabilities::function;
    // Appendix A.2 and the sections of A.3 to A.5.
    constexpr std::uint32_t pin = 0x16, primary = 0x0401'e172, exit = 0x0003'6dff, entry = 0x11ff;
    return std::to_array<CapabilityLayout>({
        {vmx, 0x3a, "IA32_FEATURE_CONTROL", features, &bit_layout::feature_control, "Vol. 3 section 24.7"},
        {vmx, msr::basic, "IA32_VMX_BASIC", features, &bit_layout::vmx_basic, "Vol. 3 appendix A.1"},
        {vmx, msr::pin_based_controls, "IA32_VMX_PINBASED_CTLS", controls, &bit_layout::pin_based,
         "Vol. 3 appendix A.3.1", pin, msr::true_pin_based_controls},
        {vmx, msr::primary_controls, "IA32_VMX_PROCBASED_CTLS", controls, &bit_layout::primary,
         "Vol. 3 appendix A.3.2", primary, msr::true_primary_controls},
        {vmx, msr::exit_controls, "IA32_VMX_EXIT_CTLS", controls, &bit_layout::exit_controls,
         "Vol. 3 appendix A.4.1", exit, msr::true_exit_controls},
        {vmx, msr::entry_controls, "IA32_VMX_ENTRY_CTLS", controls, &bit_layout::entry_controls,
         "Vol. 3 appendix A.5", entry, msr::true_entry_controls},
        {vmx, msr::misc, "IA32_VMX_MISC", features, &bit_layout::vmx_misc, "Vol. 3 appendix A.6"},
        {vmx, msr::cr0_fixed0, "IA32_VMX_CR0_FIXED0", must_be_1, &bit_layout::cr0, "Vol. 3 appendix A.7"},
        {vmx, msr::cr0_fixed1, "IA32_VMX_CR0_FIXED1", may_be_1, &bit_layout::cr0, "Vol. 3 appendix A.7"},
        {vmx, msr::cr4_fixed0, "IA32_VMX_CR4_FIXED0", must_be_1, &bit_layout::cr4, "Vol. 3 appendix A.8"},
        {vmx, msr::cr4_fixed1, "IA32_VMX_CR4_FIXED1", may_be_1, &bit_layout::cr4, "Vol. 3 appendix A.8"},
        {vmx, msr::vmcs_enum, "IA32_VMX_VMCS_ENUM", features, &bit_layout::vmcs_enum, "Vol. 3 appendix A.9"},
        {vmx, msr::secondary_controls, "IA32_VMX_PROCBASED_CTLS2", controls, &bit_layout::secondary,
         "Vol. 3 appendix A.3.3"},
        {vmx, msr::ept_vpid_cap, "IA32_VMX_EPT_VPID_CAP", features, &bit_layout::ept_vpid_cap,
         "Vol. 3 appendix A.10"},
        {vmx, msr::true_pin_based_controls, "IA32_VMX_TRUE_PINBASED_CTLS", controls, &bit_layout::pin_based,
         "Vol. 3 appendix A.3.1", pin},
        {vmx, msr::true_primary_controls, "IA32_VMX_TRUE_PROCBASED_CTLS", controls, &bit_layout::primary,
         "Vol. 3 appendix A.3.2", primary},
        {vmx, msr::true_exit_controls, "IA32_VMX_TRUE_EXIT_CTLS", controls, &bit_layout::exit_controls,
         "Vol. 3 appendix A.4.1", exit},
        {vmx, msr::true_entry_controls, "IA32_VMX_TRUE_ENTRY_CTLS", controls, &bit_layout::entry_controls,
         "Vol. 3 appendix A.5", entry},
        {vmx, msr::vm_functions, "IA32_VMX_VMFUNC", may_be_1, &bit_layout::vm_functions,
         "Vol. 3 appendix A.11"},
        {vmx, msr::tertiary_controls, "IA32_VMX_PROCBASED_CTLS3", may_be_1, &bit_layout::tertiary,
         "Vol. 3 appendix A.3.4"},
        {vmx, msr::secondary_exit_controls, "IA32_VMX_EXIT_CTLS2", may_be_1,
         &bit_layout::secondary_exit_controls, "Vol. 3 appendix A.4.2"},
        {svm, function, "CPUID.8000000AH:EDX", features, &bit_layout::svm_features, "Vol. 3 appendix E.4.9"},
        {svm, function, "CPUID.8000000AH:EBX", features, &bit_layout::svm_asids, "Vol. 3 appendix E.4.9"},
    });
}
inline constexpr auto capability_layout_rows = make_capability_layouts();

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All of them, VMX by the index of the MSR, then SVM.
inline constexpr std::span<const CapabilityLayout> capability_layouts{detail::capability_layout_rows};

/// The capability MSR of that index; svm::Capabilities::function finds EDX of CPUID.8000000AH. Null if it is
/// none.
constexpr const CapabilityLayout* find_capability(std::uint32_t index) noexcept {
    for (const auto& layout : capability_layouts)
        if (layout.index == index)
            return &layout;
    return nullptr;
}
/// The same by the manual's name, "IA32_VMX_MISC".
constexpr const CapabilityLayout* find_capability(std::string_view name) noexcept {
    for (const auto& layout : capability_layouts)
        if (layout.name == name)
            return &layout;
    return nullptr;
}

/// What QEMU and libvirt call a bit of an MSR, or of EDX of CPUID.8000000AH; null if neither names it. Of
/// controls `bit` is the number of the control, and an MSR that has a TRUE one is as good.
constexpr const FeatureName* find_feature(std::uint32_t index, unsigned bit) noexcept {
    if (const auto* layout = find_capability(index); layout != nullptr && layout->true_index != 0)
        index = layout->true_index;
    for (const auto& row : feature_names)
        if (row.index == index && row.bit == bit)
            return &row;
    return nullptr;
}

/// What the manuals call the bit, or the number that it is part of; none if it is reserved or not known here.
constexpr std::optional<NamedBits> find_bit(const CapabilityLayout& layout, unsigned bit) noexcept {
    for (const auto& bits : layout.bit_layout->bits)
        if (bits.first <= bit && bit <= bits.last)
            return bits;
    return std::nullopt;
}

/// The half of its MSR in which a feature is told. Of a control of the default1 class that is the lower one:
/// QEMU's vmx-exit-nosave-debugctl is that "save debug controls" need not be 1.
constexpr AllowedSetting setting_of(const FeatureName& feature) noexcept {
    const auto* layout = find_capability(feature.index);
    if (layout == nullptr || layout->form == CapabilityForm::features)
        return AllowedSetting::feature;
    if (layout->form == CapabilityForm::controls && (layout->default1 >> feature.bit & 1) != 0)
        return AllowedSetting::must_be_1;
    return AllowedSetting::may_be_1;
}

/// The manual's name of a feature.
constexpr std::string_view manual_name(const FeatureName& feature) noexcept {
    const auto* layout = find_capability(feature.index);
    const auto bits = layout == nullptr ? std::nullopt : find_bit(*layout, feature.bit);
    return bits ? bits->name : std::string_view{};
}

/// Whether a value of its MSR has a feature, as QEMU counts: of a control, that it may be 0 and may be 1.
constexpr bool has_feature(std::uint64_t value, const FeatureName& feature) noexcept {
    const bool low = (value >> feature.bit & 1) != 0;
    const auto* layout = find_capability(feature.index);
    if (layout == nullptr || layout->form != CapabilityForm::controls)
        return low;
    return !low && (value >> 32 >> feature.bit & 1) != 0;
}
/// The same of a host; none if the MSR, or EDX, is not known.
constexpr std::optional<bool> has_feature(const vmx::Capabilities& of, const FeatureName& feature) noexcept {
    const auto value = of[feature.index];
    return value ? std::optional{has_feature(*value, feature)} : std::nullopt;
}
constexpr std::optional<bool> has_feature(const svm::Capabilities& of, const FeatureName& feature) noexcept {
    if (feature.index != svm::Capabilities::function || !of.features)
        return std::nullopt;
    return has_feature(*of.features, feature);
}

/// For argument-dependent look-up.
namespace vmx {
using nested::has_feature;
}
namespace svm {
using nested::has_feature;
}

/// Tells what a value of a capability is, a line for each bit that has a name: the number of the bit, what
/// it may be or whether it is there, the manual's name, QEMU's, and libvirt's where that is another. Bits
/// that are set and have no name are in a line of their own.
void describe(const CapabilityLayout& layout, std::uint64_t value, TextSink sink) noexcept;

} // namespace kvm::nested

namespace kvm::nested::detail {

consteval bool capability_layouts_are_sound() {
    for (std::size_t i = 0; i < capability_layouts.size(); ++i) {
        const auto& layout = capability_layouts[i];
        if (i > 0 && capability_layouts[i - 1].index > layout.index)
            return false;
        // A default1 control is a reserved bit that is always 1, or has a name.
        for (unsigned bit = 0; bit < 32; ++bit)
            if ((layout.default1 >> bit & 1) != 0 && (layout.bit_layout->always_ones >> bit & 1) == 0
                && !find_bit(layout, bit))
                return false;
        if ((layout.bit_layout->always_ones & ~std::uint64_t{layout.default1}) != 0)
            return false;
        if (layout.true_index != 0) {
            const auto* other = find_capability(layout.true_index);
            if (other == nullptr || other->bit_layout != layout.bit_layout
                || other->default1 != layout.default1)
                return false;
        }
    }
    return true;
}
static_assert(capability_layouts_are_sound());

consteval bool features_have_manual_names() {
    for (const auto& feature : feature_names)
        if (manual_name(feature).empty())
            return false;
    return true;
}
static_assert(features_have_manual_names());

} // namespace kvm::nested::detail
