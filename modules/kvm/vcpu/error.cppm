// SPDX-License-Identifier: MIT
//
// What can go wrong with a whole vCPU, as values: what was called, at which step it failed, why, and what
// became of the vCPU's nested state.
module;
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>
#include <type_traits>
export module kvm.vcpu:error;
import kvm.nested;
import :uapi;

export namespace kvm::vcpu {

/// One group of what makes a vCPU, or another step of its restore. The enumerators are in :state.
enum class Step : std::uint8_t;

/// Causes of this floor. Those of the lower one are nested::Errc; a Cause is either.
enum class Errc : std::uint8_t {
    not_prepared = 1,        ///< saved or restored without a capability that must be on before
    requirement_not_offered, ///< the host cannot enable what the state requires
    requirement_differs,     ///< the state and the VM disagree about what must be alike
    exit_pending,            ///< KVM wants another exit to user space handled before the vCPU can be saved
    no_vcpu_group,           ///< a group that the vCPU must have is missing, or one that no vCPU can have
    xsave_too_large,         ///< the XSAVE area has more in it than this VM's take; detail: their bytes

    // The file form.
    not_our_file,              ///< the magic is not there
    unknown_file_version,      ///< written by a newer library
    damaged_file,              ///< a checksum does not fit
    unknown_mandatory_section, ///< a section that must be understood and is not
    repeated_section,
    malformed_section,
    missing_section,
    file_system,     ///< open, write, sync or rename failed; the errno says why
    file_not_synced, ///< the new file is in its place; after a power failure it may not be
};

/// What was called.
enum class Operation : std::uint8_t {
    prepare = 1,
    save,
    restore,
    abandon,
    enable_capabilities,
    first_run,
    capture,
    file, ///< encode(), parse_vcpu(), write_file(), read_file()
};

/// A value of this floor's enumeration or of the lower one's. Compares with both.
template <class Lower, class Own>
class EitherFloor {
  public:
    constexpr EitherFloor(Lower value) noexcept : value_{static_cast<std::uint8_t>(value)} {}
    constexpr EitherFloor(Own value) noexcept : value_{static_cast<std::uint8_t>(value)}, is_own_{true} {}

    constexpr std::optional<Lower> lower() const noexcept {
        return is_own_ ? std::nullopt : std::optional{static_cast<Lower>(value_)};
    }
    constexpr std::optional<Own> own() const noexcept {
        return is_own_ ? std::optional{static_cast<Own>(value_)} : std::nullopt;
    }

    friend constexpr bool operator==(EitherFloor, EitherFloor) noexcept = default;

  private:
    std::uint8_t value_;
    bool is_own_ = false;
};

using Cause = EitherFloor<nested::Errc, Errc>;
using Called = EitherFloor<nested::Operation, Operation>;

/// What an error is about beyond its cause: a number, and what it counts.
struct Detail {
    enum class Kind : std::uint8_t {
        none,        ///< nothing, or the cause says what it is
        vmx_offset,  ///< nested::DetailKind
        svm_offset,  ///< nested::DetailKind
        bytes,       ///< nested::DetailKind
        capability,  ///< one of uapi::cap
        group,       ///< Step of the group that is meant
        msr,         ///< its index
        exit_reason, ///< KVM_EXIT_*
        file_offset, ///< in bytes
        section,     ///< a type of the file form
        answer,      ///< what the kernel answered and no kernel does
    };
    Kind kind = Kind::none;
    std::uint64_t value = 0;

    constexpr bool operator==(const Detail&) const = default;
};

static_assert(static_cast<int>(Detail::Kind::vmx_offset) == static_cast<int>(DetailKind::vmx_offset)
              && static_cast<int>(Detail::Kind::svm_offset) == static_cast<int>(DetailKind::svm_offset)
              && static_cast<int>(Detail::Kind::bytes) == static_cast<int>(DetailKind::bytes));

constexpr Detail capability(std::uint32_t number) noexcept {
    return {Detail::Kind::capability, number};
}
constexpr Detail group(Step step) noexcept {
    return {Detail::Kind::group, static_cast<std::uint64_t>(step)};
}
constexpr Detail file_offset(std::uint64_t bytes) noexcept {
    return {Detail::Kind::file_offset, bytes};
}

/// A failure. Small, trivially copyable, no allocation.
struct [[nodiscard]] Error {
    Cause cause;
    Called operation;
    std::optional<Step> step = {};     ///< where save() or restore() was
    Effect effect = Effect::unchanged; ///< on the nested state that the vCPU had before
    std::uint32_t request = 0;         ///< the ioctl that failed; 0 where none did
    int raw_result = 0;                ///< what the ioctl returned; 0 where none was issued
    int error_number = 0;              ///< errno, where raw_result is negative
    Detail detail = {};

    /// What was called, step, ioctl, cause, errno or raw result, detail by its name, effect and a next step,
    /// in one line.
    Text<512> message() const noexcept;

    constexpr Error(Cause why, Called what) noexcept : cause{why}, operation{what} {}
    constexpr Error(Cause why, Called what, Detail about) noexcept
        : cause{why}, operation{what}, detail{about} {}
    /// What the lower floor says is said here as well.
    constexpr Error(const nested::Error& lower) noexcept
        : cause{lower.code}, operation{lower.operation}, effect{lower.effect},
          request{request_of(lower.operation)}, raw_result{lower.raw_result},
          error_number{lower.error_number},
          detail{static_cast<Detail::Kind>(lower.detail_kind), lower.detail} {}

    constexpr bool operator==(const Error&) const = default;

  private:
    static constexpr std::uint32_t request_of(nested::Operation operation) noexcept {
        switch (operation) {
        case nested::Operation::get_nested_state:
        case nested::Operation::verify:
            return uapi::request::get_nested_state;
        case nested::Operation::set_nested_state:
            return uapi::request::set_nested_state;
        default:
            return 0;
        }
    }
};
static_assert(std::is_trivially_copyable_v<Error> && sizeof(Error) <= 48);

std::string_view name(Errc) noexcept;        ///< the enumerator's name
std::string_view description(Errc) noexcept; ///< the cause in a sentence
std::string_view next_step(Errc) noexcept;   ///< what to do about it
std::string_view name(Operation) noexcept;
std::string_view name(Cause) noexcept;
std::string_view description(Cause) noexcept;
std::string_view name(Called) noexcept;

/// The category of Errc as std::error_code. Each cause maps to a std::errc condition where there is one.
const std::error_category& error_category() noexcept;
std::error_code make_error_code(Errc) noexcept;
/// In kvm.vcpu's category or in kvm.nested's.
std::error_code make_error_code(Cause) noexcept;

} // namespace kvm::vcpu

template <>
struct std::is_error_code_enum<kvm::vcpu::Errc> : std::true_type {};
