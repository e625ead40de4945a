// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

std::unexpected<Error> refuse(Errc code, DetailKind kind, std::uint64_t detail) noexcept {
    return std::unexpected{
        Error{.code = code, .operation = Operation::parse, .detail_kind = kind, .detail = detail}};
}

/// The one judgement of bytes. A state that is cut or has bytes behind it is that, whatever else it is.
std::expected<Phase, Error> recognise(std::span<const std::byte> bytes, const uapi::StateHeader& header,
                                      bool more_may_follow) noexcept {
    if (bytes.size() < uapi::header_size)
        return refuse(Errc::too_short, DetailKind::bytes, bytes.size());
    const auto vendor = vendor_of(header);
    if (!vendor)
        return refuse(Errc::unknown_format, DetailKind::vmx_offset, header_offset("format"));
    if (header.size < uapi::header_size)
        return refuse(Errc::bad_size, offset_in(*vendor), header_offset("size"));
    if (header.size > bytes.size())
        return refuse(Errc::too_short, DetailKind::bytes, bytes.size());
    if (header.size < bytes.size() && !more_may_follow)
        return refuse(Errc::too_long, DetailKind::bytes, header.size);
    return phase_of(header, bytes.first(header.size).subspan(uapi::header_size));
}

// --- what comparing leaves out

/// The ranges of one class of states, those that touch as one.
struct Ranges {
    std::array<IgnoredBytes, 64> all{};
    std::size_t count = 0;

    constexpr void add(std::size_t begin, std::size_t end) {
        if (count != 0 && all[count - 1].end == begin)
            all[count - 1].end = static_cast<std::uint16_t>(end);
        else
            all[count++] = {static_cast<std::uint16_t>(begin), static_cast<std::uint16_t>(end)};
    }
};

consteval Ranges ranges_of(VendorId vendor, bool l2_active) {
    Ranges ranges;
    for (const auto& part : parts_of(vendor))
        for (const auto& field : part.fields)
            if (is_ignored(field, part.part, l2_active))
                ranges.add(part.begin + field.offset, part.begin + field.end());
    return ranges;
}

template <VendorId vendor, bool l2_active>
constexpr auto ranges = [] {
    constexpr auto found = ranges_of(vendor, l2_active);
    std::array<IgnoredBytes, found.count> exact{};
    std::ranges::copy_n(found.all.begin(), found.count, exact.begin());
    return exact;
}();

/// Compares from `begin` to `end`, which both have.
std::optional<std::size_t> difference_in(std::span<const std::byte> a, std::span<const std::byte> b,
                                         std::size_t begin, std::size_t end) noexcept {
    if (begin >= end || std::memcmp(a.data() + begin, b.data() + begin, end - begin) == 0)
        return std::nullopt;
    while (a[begin] == b[begin])
        ++begin;
    return begin;
}

// --- summary

/// Appends what a summary says about each phase.
struct Describe {
    Text<256>& text;

    void number(std::string_view label, std::uint64_t value) const {
        text << ", " << label << " ";
        text.hexadecimal(value);
    }
    void operator()(const Empty&) const {}
    void operator()(const Unrecognised& view) const {
        text << ", flags ";
        text.hexadecimal(view.header().flags);
    }
    void operator()(const vmx::Off&) const {}
    void operator()(const vmx::InVmxOperation& view) const { number("vmxon_pa", view.vmxon_pa()); }
    void operator()(const vmx::WithVmcs12& view) const {
        number("vmxon_pa", view.vmxon_pa());
        if (const auto pa = view.vmcs12_pa())
            number("vmcs12_pa", *pa);
        if (view.enlightened_vmcs())
            text << ", enlightened VMCS";
    }
    void operator()(const vmx::L2Active& view) const {
        (*this)(static_cast<const vmx::WithVmcs12&>(view));
        if (view.shadow_vmcs12())
            text << ", shadow vmcs12";
        if (view.run_pending())
            text << ", run pending";
        if (view.mtf_pending())
            text << ", MTF pending";
        if (const auto deadline = view.preemption_timer_deadline())
            number("preemption timer deadline", *deadline);
    }
    void operator()(const svm::WithGif&) const {}
    void operator()(const svm::L2Active& view) const {
        number("vmcb12_pa", view.vmcb12_pa());
        text << (view.gif() ? ", GIF set" : ", GIF clear");
        if (view.run_pending())
            text << ", run pending";
        if (view.gpat() != 0)
            number("gpat", view.gpat());
    }
};

} // namespace

NestedStateView::NestedStateView(std::span<const std::byte> bytes, bool more_may_follow) noexcept
    : bytes_{bytes} {
    if (bytes.size() >= uapi::header_size)
        std::memcpy(&header_, bytes.data(), sizeof header_);
    recognised_ = recognise(bytes, header_, more_may_follow);
    if (more_may_follow && header_.size >= uapi::header_size && header_.size < bytes.size())
        bytes_ = bytes.first(header_.size);
}

NestedStateView::NestedStateView(std::span<const std::byte> bytes) noexcept : NestedStateView{bytes, false} {}

NestedStateView NestedStateView::prefix_of(std::span<const std::byte> bytes) noexcept {
    return NestedStateView{bytes, true};
}

std::span<const IgnoredBytes> ignored_bytes(VendorId vendor, bool l2_active) noexcept {
    if (vendor == VendorId::vmx)
        return l2_active ? std::span<const IgnoredBytes>{ranges<VendorId::vmx, true>}
                         : ranges<VendorId::vmx, false>;
    return l2_active ? std::span<const IgnoredBytes>{ranges<VendorId::svm, true>}
                     : ranges<VendorId::svm, false>;
}

std::optional<std::size_t> first_difference(const NestedStateView& a, const NestedStateView& b) noexcept {
    const auto common = std::min(a.bytes().size(), b.bytes().size());
    std::size_t begin = 0;
    if (const auto phase = a.phase(); a.recognised() && phase == b.phase()) {
        const bool l2_active = phase == Phase::vmx_l2_active || phase == Phase::svm_l2_active;
        for (const auto& ignored : ignored_bytes(*a.vendor(), l2_active)) {
            if (ignored.begin >= common)
                break;
            if (const auto found = difference_in(a.bytes(), b.bytes(), begin, ignored.begin))
                return found;
            begin = ignored.end;
        }
    }
    if (const auto found = difference_in(a.bytes(), b.bytes(), begin, common))
        return found;
    if (a.bytes().size() != b.bytes().size())
        return common;
    return std::nullopt;
}

Text<256> summary(const NestedStateView& state) noexcept {
    Text<256> text;
    if (state.bytes().size() < uapi::header_size) {
        text << "no nested state";
        return text;
    }
    const auto vendor = state.vendor();
    text << (vendor ? name(*vendor) : "unknown vendor") << ", " << name(state.phase()) << ", ";
    text.decimal(static_cast<std::int64_t>(state.bytes().size())) << " bytes";
    state.visit(Describe{text});
    return text;
}

namespace detail {

std::expected<std::size_t, Error> parse(const NestedStateView& state, std::optional<VendorId> vendor,
                                        uapi::StateHeader& header, std::span<std::byte> payload) noexcept {
    if (const auto given = state.vendor(); vendor && given && *given != *vendor)
        return refuse(Errc::wrong_vendor, offset_in(*vendor), header_offset("format"));
    const auto& phase = state.recognised();
    if (!phase)
        return std::unexpected(phase.error());
    header = canonical(state.header(), *phase, state.payload());
    std::memcpy(payload.data(), state.payload().data(), header.size - uapi::header_size);
    return state.header().size;
}

} // namespace detail
} // namespace kvm::nested
