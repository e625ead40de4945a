// SPDX-License-Identifier: MIT
//
// What a vCPU or a host can do in VMX or SVM, as two small values: the capability MSRs of VMX, and what
// CPUID.8000000AH says of SVM. Each part of them may be unknown, and nothing is made up for what is. What the
// bits mean is told by find_capability().
module;
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
export module kvm.nested:capabilities;
import :bit_layout;
import :vmx_bit_layout;
import :capability_bit_layout;

export namespace kvm::nested::vmx {

/// Capability MSRs: Intel SDM Vol. 3 appendix A.
namespace msr {
inline constexpr std::uint32_t basic = 0x480;
inline constexpr std::uint32_t pin_based_controls = 0x481;
inline constexpr std::uint32_t primary_controls = 0x482;
inline constexpr std::uint32_t exit_controls = 0x483;
inline constexpr std::uint32_t entry_controls = 0x484;
inline constexpr std::uint32_t misc = 0x485;
inline constexpr std::uint32_t cr0_fixed0 = 0x486;
inline constexpr std::uint32_t cr0_fixed1 = 0x487;
inline constexpr std::uint32_t cr4_fixed0 = 0x488;
inline constexpr std::uint32_t cr4_fixed1 = 0x489;
inline constexpr std::uint32_t vmcs_enum = 0x48a;
inline constexpr std::uint32_t secondary_controls = 0x48b;
inline constexpr std::uint32_t ept_vpid_cap = 0x48c;
inline constexpr std::uint32_t true_pin_based_controls = 0x48d;
inline constexpr std::uint32_t true_primary_controls = 0x48e;
inline constexpr std::uint32_t true_exit_controls = 0x48f;
inline constexpr std::uint32_t true_entry_controls = 0x490;
inline constexpr std::uint32_t vm_functions = 0x491;
inline constexpr std::uint32_t tertiary_controls = 0x492;
inline constexpr std::uint32_t secondary_exit_controls = 0x493;
} // namespace msr

/// Which settings of 32 controls VM entry allows: the two halves of a capability MSR of controls (appendix
/// A.2).
struct AllowedSettings {
    std::uint32_t must_be_1; ///< bits 31:0, the allowed 0-settings: a control that is set here cannot be 0
    std::uint32_t may_be_1;  ///< bits 63:32, the allowed 1-settings: a control that is clear here cannot be 1

    static constexpr AllowedSettings of(std::uint64_t msr) noexcept {
        return {static_cast<std::uint32_t>(msr), static_cast<std::uint32_t>(msr >> 32)};
    }
    constexpr std::uint64_t msr() const noexcept { return std::uint64_t{may_be_1} << 32 | must_be_1; }

    /// The controls of `word` that are not allowed to be as they are; 0 if VM entry takes it.
    constexpr std::uint32_t refused(std::uint32_t word) const noexcept {
        return (word & ~may_be_1) | (~word & must_be_1);
    }
    constexpr bool allow(std::uint32_t word) const noexcept { return refused(word) == 0; }

    bool operator==(const AllowedSettings&) const = default;
};

/// The enumerations of controls that a capability MSR of two halves governs.
template <class E>
concept Controls = std::same_as<E, PinBased> || std::same_as<E, Primary> || std::same_as<E, Secondary>
                   || std::same_as<E, ExitControl> || std::same_as<E, EntryControl>;

/// The VMX capability MSRs of a vCPU, or of a host, as far as they are known.
class Capabilities {
  public:
    static constexpr std::uint32_t first = msr::basic, last = msr::secondary_exit_controls;
    static constexpr bool has_place_for(std::uint32_t msr) noexcept { return msr >= first && msr <= last; }

    /// The value of an MSR; none if it is not known, or is no capability MSR.
    constexpr std::optional<std::uint64_t> operator[](std::uint32_t msr) const noexcept {
        return knows(msr) ? std::optional{values_[msr - first]} : std::nullopt;
    }
    constexpr bool knows(std::uint32_t msr) const noexcept {
        return has_place_for(msr) && (known_ >> (msr - first) & 1) != 0;
    }
    /// Whether not one of them is known.
    constexpr bool empty() const noexcept { return known_ == 0; }

    /// Answers whether `msr` is one of them; others are left out.
    constexpr bool set(std::uint32_t msr, std::uint64_t value) noexcept {
        if (!has_place_for(msr))
            return false;
        values_[msr - first] = value;
        known_ |= std::uint32_t{1} << (msr - first);
        return true;
    }
    constexpr void forget(std::uint32_t msr) noexcept {
        if (!has_place_for(msr))
            return;
        values_[msr - first] = 0;
        known_ &= ~(std::uint32_t{1} << (msr - first));
    }

    /// What decides about a word of controls: allowed<vmx::Secondary>(). That is the TRUE MSR, where KVM
    /// checks against it; the other one only if IA32_VMX_BASIC says that there are no TRUE ones. (From a vCPU
    /// KVM reads the others out as the TRUE ones with all default1 controls added, appendix A.2.)
    template <Controls E>
    constexpr std::optional<AllowedSettings> allowed() const noexcept {
        auto value = (*this)[true_msr<E>()];
        if (const auto given = (*this)[msr::basic]; !value && given && !has(*given, Basic::true_control_msrs))
            value = (*this)[msr_of<E>()];
        return value ? std::optional{AllowedSettings::of(*value)} : std::nullopt;
    }

    bool operator==(const Capabilities&) const = default;

  private:
    template <Controls E>
    static consteval std::uint32_t msr_of() {
        return std::same_as<E, PinBased>      ? msr::pin_based_controls
               : std::same_as<E, Primary>     ? msr::primary_controls
               : std::same_as<E, Secondary>   ? msr::secondary_controls
               : std::same_as<E, ExitControl> ? msr::exit_controls
                                              : msr::entry_controls;
    }
    template <Controls E>
    static consteval std::uint32_t true_msr() {
        return std::same_as<E, PinBased>      ? msr::true_pin_based_controls
               : std::same_as<E, Primary>     ? msr::true_primary_controls
               : std::same_as<E, Secondary>   ? msr::secondary_controls
               : std::same_as<E, ExitControl> ? msr::true_exit_controls
                                              : msr::true_entry_controls;
    }

    std::array<std::uint64_t, last - first + 1> values_{}; // 0 where it is not known
    std::uint32_t known_ = 0;
};

} // namespace kvm::nested::vmx

export namespace kvm::nested::svm {

/// CPUID.8000000AH of a vCPU's guest, or of a host: AMD APM Vol. 3 appendix E.4.9.
struct Capabilities {
    static constexpr std::uint32_t function = 0x8000'000a;

    std::optional<std::uint32_t> features; ///< EDX
    std::optional<std::uint32_t> asids;    ///< EBX: how many there are

    /// Whether not one of them is known.
    constexpr bool empty() const noexcept { return !features && !asids; }

    bool operator==(const Capabilities&) const = default;
};

} // namespace kvm::nested::svm
