// SPDX-License-Identifier: MIT
//
// NestedState<Vendor>: the nested state of one vCPU as a value, of a vendor that is fixed at compile time.
module;
#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
export module kvm.nested:state;
import :uapi;
import :vendor;
import :header;
import :error;
import :phase;
import :view;
import :state_view;

export namespace kvm::nested {

template <VendorOrAny V, class Ioctl>
class Vcpu;
class NestedStateBuffer;

} // namespace kvm::nested

namespace kvm::nested::detail {

/// Header and payload as one object, so that bytes() is a range of one object's bytes.
template <std::size_t Capacity>
struct Storage {
    uapi::StateHeader header;
    std::array<std::byte, Capacity - uapi::header_size> payload; // not initialised: it costs 8 KiB of zeros

    inline Storage() noexcept {}
    explicit constexpr Storage(const uapi::StateHeader& given) noexcept : header{given} {}

    /// The bytes that belong to the state, whatever its header claims.
    inline std::span<const std::byte> used(std::size_t capacity = Capacity) const noexcept {
        return {reinterpret_cast<const std::byte*>(this), std::min<std::size_t>(header.size, capacity)};
    }
};

/// Asks for a state whose header is armed for KVM_GET_NESTED_STATE and else not initialised.
struct Armed {};

/// How the state of a vCPU outside nested operation begins: what KVM_SET_NESTED_STATE clears a vCPU with, on
/// every kernel. (SVM with EFER.SVME clear: Linux up to 6.12 takes GIF_SET and nothing else.)
/// @param vmxon_pa VMX: after VMXON
constexpr uapi::StateHeader outside_nested_operation(VendorId vendor,
                                                     std::uint64_t vmxon_pa = uapi::no_address) noexcept {
    uapi::StateHeader header{};
    header.size = uapi::header_size;
    header.format = format(vendor);
    if (vendor == VendorId::vmx) {
        uapi::VmxHeader vmx{};
        vmx.vmxon_pa = vmxon_pa;
        vmx.vmcs12_pa = uapi::no_address;
        header.vendor = std::bit_cast<decltype(header.vendor)>(vmx);
    } else {
        header.flags = uapi::state_flag::gif_set;
    }
    return header;
}

/// Byte for byte. (std::ranges::equal over std::byte is a loop of bytes in libc++ 19; this is memcmp.)
inline bool equal(std::span<const std::byte> a, std::span<const std::byte> b) noexcept {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// A state and the number of bytes that it took.
template <class State>
struct Parsed {
    State state;
    std::size_t consumed;
};

/// The nested state of one vCPU: a header of 128 bytes and the vendor's pages, laid out as the kernel's
/// ioctls want it. Regular and trivially copyable, 8320 bytes for Vmx and 4224 for Svm. Only the first
/// bytes().size() bytes mean anything; the rest is neither initialised nor compared.
template <Vendor V>
class NestedState {
  public:
    using vendor = V;

    /// Not in nested operation, see not_in_nested_operation().
    constexpr NestedState() noexcept : storage_{detail::outside_nested_operation(V::id)} {}
    /// Only for the library itself: nobody else can name the argument.
    inline explicit NestedState(detail::Armed) noexcept { arm(); }

    /// What a vCPU holds that never used nesting, and what clears one that did. VMX: not in VMX operation.
    /// SVM: outside L2, GIF set.
    static constexpr NestedState not_in_nested_operation() noexcept { return NestedState{}; }

    /// L1 has executed VMXON and nothing else.
    /// @param vmxon_pa guest physical address of the VMXON region: 4 KiB aligned, below the guest's
    /// MAXPHYADDR
    static constexpr NestedState vmxon_only(std::uint64_t vmxon_pa) noexcept
        requires std::same_as<V, Vmx>
    {
        return NestedState{detail::outside_nested_operation(V::id, vmxon_pa)};
    }

    /// Outside L2 with GIF clear, as CLGI leaves it. Linux up to 6.12 takes it only with EFER.SVME set.
    static constexpr NestedState gif_clear() noexcept
        requires std::same_as<V, Svm>
    {
        auto header = detail::outside_nested_operation(V::id);
        header.flags = 0;
        return NestedState{header};
    }

    /// Makes a state of exactly the bytes of one. Trusts nothing: whatever no vCPU can be in is refused with
    /// its own cause, and what the kernel ignores becomes canonical (see canonical()), so that equal states
    /// have equal bytes. The bytes need not be aligned.
    /// @return Errc::too_short to Errc::asid_zero, or Errc::wrong_vendor; detail: the field
    [[nodiscard]] static inline std::expected<NestedState, Error>
    parse(const NestedStateView& bytes) noexcept {
        std::expected<NestedState, Error> result{std::in_place};
        auto& storage = result->storage_;
        if (const auto consumed = detail::parse(bytes, V::id, storage.header, storage.payload); !consumed)
            result = std::unexpected(consumed.error());
        return result;
    }

    /// The same where more bytes may follow, such as the slack of a fixed-size buffer. Also tells the bytes
    /// taken.
    [[nodiscard]] static inline std::expected<Parsed<NestedState>, Error>
    parse_prefix(std::span<const std::byte> bytes) noexcept {
        std::expected<Parsed<NestedState>, Error> result{std::in_place};
        auto& storage = result->state.storage_;
        const auto consumed =
            detail::parse(NestedStateView::prefix_of(bytes), V::id, storage.header, storage.payload);
        if (consumed)
            result->consumed = *consumed;
        else
            result = std::unexpected(consumed.error());
        return result;
    }

    /// Looks at this state; valid as long as it lives and is not changed.
    inline operator NestedStateView() const noexcept [[clang::lifetimebound]] {
        return NestedStateView{storage_.used()};
    }

    /// The state as it goes on the wire and into a file (of an object that has a name: parse(raw)->bytes()
    /// compiles, for want of a way to refuse it, and is gone at the end of the line): `size` bytes, never
    /// more than the object has.
    inline std::span<const std::byte> bytes() const& noexcept { return storage_.used(); }
    std::span<const std::byte> bytes() const&& = delete;

    constexpr const uapi::StateHeader& header() const& noexcept { return storage_.header; }
    const uapi::StateHeader& header() const&& = delete;
    /// uapi::state_flag bits.
    constexpr std::uint16_t flags() const noexcept { return storage_.header.flags; }

    /// Phase::unrecognised, too, where a seam answered with the other vendor's format.
    inline Phase phase() const noexcept {
        const auto phase = NestedStateView{*this}.phase();
        return header().format == V::format && phase != Phase::none ? phase : Phase::unrecognised;
    }

    /// Calls `visitor` with the view of this state's phase: a type of namespace vmx or svm, or Unrecognised.
    /// All its results must have one type. The view dies with the state.
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const& {
        return visit_phase<V>(phase(), header(), payload(), std::forward<Visitor>(visitor));
    }
    template <class Visitor>
    inline decltype(auto) visit(Visitor&& visitor) const&& {
        static_assert(
            !detail::is_phase_view<decltype(this->visit(std::forward<Visitor>(visitor)))>,
            "what visit() returns would look at a state that is gone: give that state a name first");
        return this->visit(std::forward<Visitor>(visitor));
    }

    /// Byte for byte. For what a vCPU makes of them see equivalent().
    inline bool operator==(const NestedState& other) const noexcept {
        return detail::equal(bytes(), other.bytes());
    }

  private:
    template <VendorOrAny, class>
    friend class Vcpu;
    friend class NestedStateBuffer;

    // A copy of a state cannot be made at compile time, for want of a payload: builders return this as it is.
    explicit constexpr NestedState(const uapi::StateHeader& header) noexcept : storage_{header} {}

    inline void arm() noexcept { storage_.header.size = V::capacity; }
    constexpr void clear() noexcept { storage_.header = detail::outside_nested_operation(V::id); }

    inline std::span<const std::byte> payload() const noexcept {
        const auto all = bytes();
        return all.subspan(std::min(all.size(), uapi::header_size));
    }

    detail::Storage<V::capacity> storage_;
};

static_assert(sizeof(NestedState<Vmx>) == 8320 && alignof(NestedState<Vmx>) == 8);
static_assert(sizeof(NestedState<Svm>) == 4224 && alignof(NestedState<Svm>) == 8);
static_assert(std::is_trivially_copyable_v<NestedState<Vmx>>
              && std::is_trivially_copyable_v<NestedState<Svm>>);
static_assert(std::is_standard_layout_v<NestedState<Vmx>> && std::is_standard_layout_v<NestedState<Svm>>);
static_assert(std::regular<NestedState<Vmx>> && std::regular<NestedState<Svm>>);

} // namespace kvm::nested
