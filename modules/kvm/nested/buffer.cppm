// SPDX-License-Identifier: MIT
//
// NestedStateBuffer: a nested state of either vendor, where the vendor is known only at run time.
module;
#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
export module kvm.nested:buffer;
import :uapi;
import :vendor;
import :header;
import :error;
import :phase;
import :view;
import :state_view;
import :state;

export namespace kvm::nested {

/// Room for the nested state of any vCPU: 8320 bytes, regular and trivially copyable. An empty buffer holds
/// no vendor and no state, and is armed for KVM_GET_NESTED_STATE.
class NestedStateBuffer {
  public:
    constexpr NestedStateBuffer() noexcept : storage_{nothing()} {}
    /// Only for the library itself: nobody else can name the argument.
    inline explicit NestedStateBuffer(detail::Armed) noexcept { arm(); }

    /// Holds nothing. (A state that says "not in nested operation" is something.)
    static constexpr NestedStateBuffer empty() noexcept { return NestedStateBuffer{}; }

    /// What a vCPU of `vendor` holds that never used nesting, and what clears one that did.
    static constexpr NestedStateBuffer not_in_nested_operation(VendorId vendor) noexcept {
        return NestedStateBuffer{detail::outside_nested_operation(vendor)};
    }

    /// Every state of a known vendor is a state.
    template <Vendor V>
    inline NestedStateBuffer(const NestedState<V>& state) noexcept {
        // The header is copied even where a seam answered with a size that is smaller.
        std::memcpy(this, &state, std::max(state.bytes().size(), uapi::header_size));
    }

    /// The way back. Copies only what the state uses.
    /// @return Errc::no_state or Errc::wrong_vendor
    template <Vendor V>
    [[nodiscard]] inline std::expected<NestedState<V>, Error> to() const noexcept {
        std::expected<NestedState<V>, Error> result{std::in_place};
        if (is_empty())
            result = std::unexpected(Error{.code = Errc::no_state, .operation = Operation::narrow});
        else if (format() != V::format)
            result = std::unexpected(Error{.code = Errc::wrong_vendor,
                                           .operation = Operation::narrow,
                                           .detail_kind = offset_in(V::id),
                                           .detail = header_offset("format")});
        else
            std::memcpy(static_cast<void*>(&*result), this,
                        std::clamp(bytes().size(), uapi::header_size, V::capacity));
        return result;
    }

    /// As NestedState::parse(), for either vendor: the format in the bytes decides.
    [[nodiscard]] static inline std::expected<NestedStateBuffer, Error>
    parse(const NestedStateView& bytes) noexcept {
        std::expected<NestedStateBuffer, Error> result{std::in_place};
        auto& storage = result->storage_;
        if (const auto consumed = detail::parse(bytes, std::nullopt, storage.header, storage.payload);
            !consumed)
            result = std::unexpected(consumed.error());
        return result;
    }

    /// As NestedState::parse_prefix().
    [[nodiscard]] static inline std::expected<Parsed<NestedStateBuffer>, Error>
    parse_prefix(std::span<const std::byte> bytes) noexcept {
        std::expected<Parsed<NestedStateBuffer>, Error> result{std::in_place};
        auto& storage = result->state.storage_;
        const auto consumed =
            detail::parse(NestedStateView::prefix_of(bytes), std::nullopt, storage.header, storage.payload);
        if (consumed)
            result->consumed = *consumed;
        else
            result = std::unexpected(consumed.error());
        return result;
    }

    /// As NestedState's: looks at this state. Of no bytes if the buffer is empty.
    inline operator NestedStateView() const noexcept [[clang::lifetimebound]] {
        return NestedStateView{std::as_const(*this).bytes()};
    }

    /// Back to empty().
    constexpr void clear() noexcept { storage_.header = nothing(); }
    constexpr bool is_empty() const noexcept { return storage_.header.format == no_format; }

    /// The vendor; none if the buffer is empty or holds a format that this library does not know.
    constexpr std::optional<VendorId> vendor() const noexcept { return vendor_of(storage_.header); }

    /// uapi::state_flag bits.
    constexpr std::uint16_t flags() const noexcept { return storage_.header.flags; }
    /// A uapi::state_format; none if the buffer is empty.
    constexpr std::optional<std::uint16_t> format() const noexcept {
        return is_empty() ? std::nullopt : std::optional{storage_.header.format};
    }
    /// Bytes of the state: 0 if the buffer is empty.
    inline std::size_t size() const noexcept { return bytes().size(); }
    constexpr const uapi::StateHeader& header() const& noexcept { return storage_.header; }
    const uapi::StateHeader& header() const&& = delete;
    /// What follows the header.
    inline std::span<const std::byte> data() const& noexcept {
        const auto all = bytes();
        return all.subspan(std::min(all.size(), uapi::header_size));
    }
    std::span<const std::byte> data() const&& = delete;

    /// As NestedState::bytes(). Nothing if the buffer is empty.
    inline std::span<const std::byte> bytes() const& noexcept {
        return is_empty() ? std::span<const std::byte>{} : storage_.used(capacity_of_format());
    }
    std::span<const std::byte> bytes() const&& = delete;

    inline Phase phase() const noexcept {
        const auto phase = NestedStateView{*this}.phase();
        return is_empty() || phase != Phase::none ? phase : Phase::unrecognised;
    }

    /// As NestedState::visit(), with the views of both vendors and Empty.
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const& {
        return visit_phase<Any>(phase(), header(), data(), std::forward<Visitor>(visitor));
    }
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const&& {
        static_assert(
            !detail::is_phase_view<decltype(this->visit(std::forward<Visitor>(visitor)))>,
            "what visit() returns would look at a state that is gone: give that state a name first");
        return this->visit(std::forward<Visitor>(visitor));
    }

    inline bool operator==(const NestedStateBuffer& other) const noexcept {
        return is_empty() == other.is_empty() && detail::equal(bytes(), other.bytes());
    }

  private:
    template <VendorOrAny, class>
    friend class Vcpu;

    /// No kernel's format. GET looks at `size` alone, so an empty buffer can be handed to it as it is.
    static constexpr std::uint16_t no_format = 0xffff;
    static constexpr uapi::StateHeader nothing() noexcept {
        return {.flags = 0, .format = no_format, .size = Any::capacity, .vendor = {}};
    }

    explicit constexpr NestedStateBuffer(const uapi::StateHeader& header) noexcept : storage_{header} {}

    inline void arm() noexcept { storage_.header.size = Any::capacity; }

    constexpr std::size_t capacity_of_format() const noexcept {
        return storage_.header.format == Svm::format ? Svm::capacity : Any::capacity;
    }

    detail::Storage<Any::capacity> storage_;
};

static_assert(sizeof(NestedStateBuffer) == 8320 && alignof(NestedStateBuffer) == 8);
static_assert(std::is_trivially_copyable_v<NestedStateBuffer>
              && std::is_standard_layout_v<NestedStateBuffer>);
static_assert(std::regular<NestedStateBuffer>);

} // namespace kvm::nested
