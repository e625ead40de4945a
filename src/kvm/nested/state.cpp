// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <bit>
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

constexpr std::uint16_t in_payload(std::size_t offset) {
    return static_cast<std::uint16_t>(uapi::header_size + offset);
}
constexpr std::uint16_t in_shadow(std::size_t offset) {
    return static_cast<std::uint16_t>(uapi::header_size + uapi::page_size + offset);
}

constexpr std::string_view beyond_vmcs12 = "behind the 998 bytes of a vmcs12: KVM keeps zeros there";
constexpr std::string_view exit_information = "information about the last VM exit: nothing depends on it";
constexpr std::string_view not_restored = "KVM_SET_NESTED_STATE does not restore it";

constexpr std::array ignored_in_vmx = std::to_array<IgnoredBytes>({
    {in_payload(168), in_payload(176), exit_information}, // guest_physical_address
    {in_payload(408), in_payload(424), exit_information}, // exit_qualification, guest_linear_address
    {in_payload(808), in_payload(840), exit_information}, // vm_exit_reason to vmx_instruction_info
    {in_payload(928), in_payload(932),
     "the VMX-preemption timer counts on; the deadline in the header tells"},
    {in_payload(uapi::vmcs12_size), in_payload(uapi::page_size), beyond_vmcs12},
    {in_shadow(uapi::vmcs12_size), in_shadow(uapi::page_size), beyond_vmcs12},
});

constexpr std::array ignored_in_svm = std::to_array<IgnoredBytes>({
    {in_payload(0x018), in_payload(0x03c), not_restored},     // reserved
    {in_payload(0x05e), in_payload(0x060), not_restored},     // reserved
    {in_payload(0x06c), in_payload(0x070), not_restored},     // reserved
    {in_payload(0x070), in_payload(0x090), exit_information}, // exit_code to exit_int_info_err
    {in_payload(0x098), in_payload(0x0a8), not_restored},     // AVIC BAR, GHCB
    {in_payload(0x0c0), in_payload(0x0c8), "KVM never reports the clean bits"},
    {in_payload(0x0d0), in_payload(0x400), not_restored}, // instruction bytes to the end
    {in_payload(0x440), in_payload(0x460), not_restored}, // FS, GS
    {in_payload(0x470), in_payload(0x480), not_restored}, // LDTR
    {in_payload(0x490), in_payload(0x4d0), not_restored}, // TR, CPL
    {in_payload(0x4d8), in_payload(0x548), not_restored}, // reserved
    {in_payload(0x560), in_payload(0x570), "DR7 and DR6 are checked and not restored"},
    {in_payload(0x580), in_payload(0x5d8), not_restored}, // reserved
    {in_payload(0x5e0), in_payload(0x5f8), "CET state of L1: restored by Linux 7.x only"},
    {in_payload(0x600), in_payload(uapi::page_size), not_restored}, // STAR to the end
});

constexpr std::size_t revision_end = uapi::header_size + sizeof(std::uint32_t);

std::uint32_t word_at(std::span<const std::byte> bytes, std::size_t offset) noexcept {
    std::uint32_t word;
    std::memcpy(&word, bytes.data() + offset, sizeof word);
    return word;
}

uapi::StateHeader header_at(std::span<const std::byte> bytes) noexcept {
    uapi::StateHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    return header;
}

std::unexpected<Error> refuse(Errc code, std::uint64_t offset) noexcept {
    return std::unexpected{Error{.code = code, .operation = Operation::parse, .detail = offset}};
}

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

std::span<const IgnoredBytes> ignored_bytes(VendorId vendor) noexcept {
    if (vendor == VendorId::vmx)
        return ignored_in_vmx;
    return ignored_in_svm;
}

std::optional<std::size_t> first_difference(std::span<const std::byte> a,
                                            std::span<const std::byte> b) noexcept {
    const auto common = std::min(a.size(), b.size());
    const auto vendor =
        common >= uapi::header_size && header_at(a).format == Svm::format ? VendorId::svm : VendorId::vmx;
    const auto ignored = ignored_bytes(vendor);
    auto skip = ignored.begin();
    for (std::size_t i = 0; i < common; ++i) {
        while (skip != ignored.end() && i >= skip->end)
            ++skip;
        if (skip != ignored.end() && i >= skip->begin) {
            i = std::size_t{skip->end} - 1;
            continue;
        }
        if (a[i] != b[i])
            return i;
    }
    if (a.size() != b.size())
        return common;
    return std::nullopt;
}

Text<256> summary(std::span<const std::byte> state) noexcept {
    Text<256> text;
    if (state.size() < uapi::header_size) {
        text << "no nested state";
        return text;
    }
    alignas(NestedStateBuffer) uapi::StateHeader header = header_at(state);
    const auto revision = state.size() >= revision_end ? word_at(state, uapi::header_size) : 0;
    const auto phase = header.size == state.size() ? phase_of(header, revision).value_or(Phase::unrecognised)
                                                   : Phase::unrecognised;
    text << (header.format == Vmx::format ? "VMX" : header.format == Svm::format ? "SVM" : "unknown vendor");
    text << ", " << name(phase) << ", ";
    text.decimal(static_cast<std::int64_t>(state.size())) << " bytes";
    visit_phase<Any>(phase, header, state.subspan(uapi::header_size), Describe{text});
    return text;
}

namespace detail {

Phase phase_of_bytes(std::span<const std::byte> bytes) noexcept {
    return recognise(bytes).phase.value_or(Phase::unrecognised);
}

std::expected<std::size_t, Error> parse(std::span<const std::byte> bytes, bool prefix,
                                        std::optional<VendorId> vendor, uapi::StateHeader& header,
                                        std::span<std::byte> payload) noexcept {
    if (bytes.size() < uapi::header_size)
        return refuse(Errc::too_short, bytes.size());
    const auto given = header_at(bytes);
    if (given.format != Vmx::format && given.format != Svm::format)
        return refuse(Errc::unknown_format, 2);
    if (vendor && given.format != format(*vendor))
        return refuse(Errc::wrong_vendor, 2);
    if (given.size < uapi::header_size)
        return refuse(Errc::bad_size, 4);
    if (given.size > bytes.size()) // before the phase: a cut state is cut, whatever else it is
        return refuse(Errc::too_short, bytes.size());
    if (given.size < bytes.size() && !prefix)
        return refuse(Errc::too_long, given.size);
    const auto revision = given.size >= revision_end ? word_at(bytes, uapi::header_size) : 0;
    const auto phase = phase_of(given, revision);
    if (!phase)
        return std::unexpected(phase.error());
    header = canonical(given, *phase);
    std::memcpy(payload.data(), bytes.data() + uapi::header_size, header.size - uapi::header_size);
    return given.size;
}

} // namespace detail
} // namespace kvm::nested
