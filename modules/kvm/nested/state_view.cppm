// SPDX-License-Identifier: MIT
//
// NestedStateView: bytes that are somebody else's, recognised once. Everything that reads a state, and
// everything that makes one of bytes, works from it, so that all say the same of the same bytes.
module;
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
export module kvm.nested:state_view;
import :uapi;
import :vendor;
import :field;
import :parts;
import :text;
import :error;
import :phase;
import :view;

namespace kvm::nested::detail {

// <span> declares enable_borrowed_range; <ranges> in an interface breaks Clang 19 where a user includes it,
// too.

/// What owns its bytes, or anything else that is to outlive a view of them.
template <class T>
concept OwnerOfBytes = std::convertible_to<T, std::span<const std::byte>>
                       && !std::ranges::enable_borrowed_range<std::remove_cvref_t<T>>;

/// What refers to bytes, as a span does.
template <class T>
concept ReferenceToBytes =
    std::convertible_to<const T&, std::span<const std::byte>> && std::ranges::enable_borrowed_range<T>
    && !std::same_as<T, std::span<const std::byte>>;

/// What refers to a state and does not own it.
template <class T>
inline constexpr bool is_phase_view = std::derived_from<std::remove_cvref_t<T>, View>;

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// A state in a mapped file, in shared memory, in a larger buffer: looked at without a copy. Any bytes at all
/// may be looked at; what they are is decided when the view is made, by one function in the kernel's order.
/// Valid as long as the bytes.
///
/// The bytes may change under it. The header is read once, when the view is made, and all sizes and offsets
/// come from that copy, so that no access leaves the bytes; values of fields are read when they are asked for
/// and can be of different times.
class NestedStateView {
  public:
    /// Of no bytes: what an empty NestedStateBuffer holds.
    constexpr NestedStateView() noexcept = default;

    /// Of exactly the bytes of a state; more are Errc::too_long. They need not be aligned.
    NestedStateView(std::span<const std::byte> bytes) noexcept;
    /// Of another span or range that refers to bytes.
    template <detail::ReferenceToBytes Reference>
    inline NestedStateView(const Reference& bytes) noexcept
        : NestedStateView{std::span<const std::byte>{bytes}} {}
    /// Of a container's bytes.
    template <detail::OwnerOfBytes Owner>
    inline NestedStateView(Owner&& owner [[clang::lifetimebound]]) noexcept
        : NestedStateView{std::span<const std::byte>{owner}} {}

    /// The same where more bytes may follow, such as the slack of a fixed-size buffer: bytes() are the
    /// state's alone.
    static NestedStateView prefix_of(std::span<const std::byte> bytes) noexcept;

    /// The bytes that it looks at.
    constexpr std::span<const std::byte> bytes() const noexcept { return bytes_; }
    /// What follows the header.
    constexpr std::span<const std::byte> payload() const noexcept {
        return bytes_.subspan(bytes_.size() < uapi::header_size ? bytes_.size() : uapi::header_size);
    }

    /// As it was read; all zero where there are fewer than 128 bytes.
    constexpr const uapi::StateHeader& header() const& noexcept { return header_; }
    const uapi::StateHeader& header() const&& = delete;

    /// Whose format the header has; none if there is no header, or another format in it.
    constexpr std::optional<VendorId> vendor() const noexcept {
        if (bytes_.size() < uapi::header_size)
            return std::nullopt;
        return vendor_of(header_);
    }

    /// The phase, or why no vCPU can be in this state: what parse() refuses it with.
    constexpr const std::expected<Phase, Error>& recognised() const& noexcept { return recognised_; }
    constexpr std::expected<Phase, Error> recognised() const&& noexcept { return recognised_; }

    /// Phase::none for no bytes, Phase::unrecognised for what no vCPU can be in.
    constexpr Phase phase() const noexcept {
        return bytes_.empty() ? Phase::none : recognised_.value_or(Phase::unrecognised);
    }

    /// Calls `visitor` with the view of this phase: a type of namespace vmx or svm, Unrecognised or Empty.
    /// All its results must have one type. What it is given is valid as long as this object.
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const& {
        return visit_phase<Any>(phase(), header_, payload(), std::forward<Visitor>(visitor));
    }
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const&& {
        static_assert(
            !detail::is_phase_view<decltype(this->visit(std::forward<Visitor>(visitor)))>,
            "what visit() returns would look at a state that is gone: give that state a name first");
        return this->visit(std::forward<Visitor>(visitor));
    }

  private:
    NestedStateView(std::span<const std::byte> bytes, bool more_may_follow) noexcept;

    uapi::StateHeader header_{};
    std::span<const std::byte> bytes_{};
    std::expected<Phase, Error> recognised_ = std::unexpected{Error{.code = Errc::too_short,
                                                                    .operation = Operation::parse,
                                                                    .detail_kind = DetailKind::bytes,
                                                                    .detail = 0}};
};

/// A range of bytes in a state that comparing leaves out.
struct IgnoredBytes {
    std::uint16_t begin; ///< offset in the state
    std::uint16_t end;
};

/// What equivalent() leaves out of states of `vendor`: made of the column `ignore` of the tables of fields.
/// @param l2_active the phase is vmx_l2_active or svm_l2_active
std::span<const IgnoredBytes> ignored_bytes(VendorId vendor, bool l2_active) noexcept;

/// Offset of the first byte in which two states differ for a vCPU that holds them; none if they are
/// equivalent. Where one ends before they differ, its length. Bytes that are no state, and states of
/// different phases, are compared byte for byte.
std::optional<std::size_t> first_difference(const NestedStateView& a, const NestedStateView& b) noexcept;

/// Whether a vCPU makes the same of both: byte for byte, but for ignored_bytes(). States of different vendors
/// never are equivalent, no bytes and no bytes are.
inline bool equivalent(const NestedStateView& a, const NestedStateView& b) noexcept {
    return !first_difference(a, b);
}

/// Vendor, phase, size and the addresses that matter, in a line.
Text<256> summary(const NestedStateView& state) noexcept;

} // namespace kvm::nested

namespace kvm::nested::detail {

/// Copies the state, canonical, to `header` and `payload`, if a vCPU can be in it.
/// @return the bytes that it took
std::expected<std::size_t, Error> parse(const NestedStateView& state, std::optional<VendorId> vendor,
                                        uapi::StateHeader& header, std::span<std::byte> payload) noexcept;

} // namespace kvm::nested::detail
