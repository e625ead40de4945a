// SPDX-License-Identifier: MIT
module;
#include <cstddef>
#include <cstdint>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

using detail::Writer;

constexpr std::size_t bit_column = 2, value_column = 9, name_column = 20, feature_column = 58;

void write_place(Writer& out, const NamedBits& bits) noexcept {
    out.at(bit_column).decimal(bits.first);
    if (bits.last != bits.first)
        (out << "-").decimal(bits.last);
}

/// What a control, or a bit of a control register, may be.
std::string_view choice(bool must_be_1, bool may_be_1) noexcept {
    if (must_be_1)
        return may_be_1 ? "must be 1" : "neither"; // that no processor has
    return may_be_1 ? "0 or 1" : "must be 0";
}

std::string_view value_of_flag(const CapabilityLayout& layout, const NamedBits& bits,
                               std::uint64_t value) noexcept {
    const bool set = bits.of(value) != 0;
    switch (layout.form) {
    case CapabilityForm::controls:
        return choice(set, bits.of(value >> 32) != 0);
    case CapabilityForm::must_be_1:
        return set ? "must be 1" : "0 or 1";
    case CapabilityForm::may_be_1:
        return set ? "0 or 1" : "must be 0";
    case CapabilityForm::features:
        break;
    }
    return set ? "yes" : "no";
}

void write_value(Writer& out, const CapabilityLayout& layout, const NamedBits& bits,
                 std::uint64_t value) noexcept {
    if (bits.form == BitsForm::flag)
        out << value_of_flag(layout, bits, value);
    else if (const auto named = find(bits.values, bits.of(value)))
        out << named->name;
    else if (bits.form == BitsForm::number)
        out.decimal(bits.of(value));
    else
        out.hexadecimal(bits.of(value));
}

void write_undefined(Writer& out, std::string_view what, std::uint64_t bits) noexcept {
    if (bits == 0)
        return;
    (out << "  " << what << " ").hexadecimal(bits);
    out.end_line();
}

} // namespace

namespace detail {

void write_feature(Writer& out, const FeatureName& feature) noexcept {
    out << feature.qemu;
    if (!feature.own_libvirt.empty())
        out << (feature.qemu.empty() ? "libvirt: " : ", libvirt: ") << feature.own_libvirt;
}

} // namespace detail

void describe(const CapabilityLayout& layout, std::uint64_t value, TextSink sink) noexcept {
    Writer out{sink};
    const bool is_vmx = layout.vendor == VendorId::vmx;
    if (is_vmx)
        out.hexadecimal(layout.index) << " ";
    (out << layout.name << " ").hexadecimal(value, is_vmx ? 16 : 8);
    out << (is_vmx ? " (Intel SDM " : " (AMD APM ") << layout.section << ")";
    out.end_line();
    for (const auto& bits : layout.bit_layout->bits) {
        write_place(out, bits);
        write_value(out.at(value_column), layout, bits, value);
        out.at(name_column) << bits.name;
        if (const auto* feature = find_feature(layout.index, bits.first);
            feature != nullptr && bits.form == BitsForm::flag)
            detail::write_feature(out.at(feature_column), *feature);
        out.end_line();
    }
    const auto undefined = undefined_bits(*layout.bit_layout, value);
    switch (layout.form) {
    case CapabilityForm::controls:
        write_undefined(out, "reserved, must be 1:", value & layout.bit_layout->always_ones);
        write_undefined(out, "undefined bits that must be 1:", undefined & 0xffff'ffff);
        write_undefined(out,
                        "undefined bits that may be 1:", undefined_bits(*layout.bit_layout, value >> 32));
        return;
    case CapabilityForm::must_be_1:
        write_undefined(out, "undefined bits that must be 1:", undefined);
        return;
    case CapabilityForm::may_be_1:
        write_undefined(out, "undefined bits that may be 1:", undefined);
        return;
    case CapabilityForm::features:
        write_undefined(out, "undefined bits:", undefined);
        return;
    }
}

} // namespace kvm::nested
