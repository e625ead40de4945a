// SPDX-License-Identifier: MIT
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

using detail::Writer;

/// Numbers of which more is better. All others have to be the same: revisions, the rate of the
/// VMX-preemption timer, the memory type and size of a VMCS region.
bool more_is_better(const CapabilityLayout& layout, const NamedBits& named) noexcept {
    switch (layout.index) {
    case vmx::msr::misc:
        return named.first == bits(bit_layout::vmx_misc, "CR3-target count").first
               || named.first == bits(bit_layout::vmx_misc, "MSR-list maximum").first;
    case vmx::msr::vmcs_enum:
    case vmx::msr::ept_vpid_cap: // maximum HLAT prefix size
    case svm::Capabilities::function:
        return true;
    default:
        return false;
    }
}

/// Compares one register of both sides.
class Comparison {
  public:
    Comparison(const CapabilityLayout& layout, Receiver<const CapabilityDifference&> receiver) noexcept
        : layout_{layout}, receiver_{receiver} {}

    std::size_t operator()(std::uint64_t a, std::uint64_t b) noexcept {
        switch (layout_.form) {
        case CapabilityForm::controls:
            bits(a & 0xffff'ffff, b & 0xffff'ffff, AllowedSetting::must_be_1);
            bits(a >> 32, b >> 32, AllowedSetting::may_be_1);
            break;
        case CapabilityForm::must_be_1:
            bits(a, b, AllowedSetting::must_be_1);
            break;
        case CapabilityForm::may_be_1:
            bits(a, b, AllowedSetting::may_be_1);
            break;
        case CapabilityForm::features:
            bits(a, b, AllowedSetting::feature);
            break;
        }
        return count_;
    }

  private:
    void bits(std::uint64_t a, std::uint64_t b, AllowedSetting setting) noexcept {
        std::uint64_t left = a ^ b;
        for (unsigned bit = 0; bit < 64; ++bit) {
            if ((left >> bit & 1) == 0)
                continue;
            const auto number = static_cast<std::uint8_t>(bit);
            const auto named = find_bit(layout_, bit).value_or(NamedBits{number, number, {}});
            left &= ~named.mask();
            ++count_;
            const auto of_a = named.of(a), of_b = named.of(b);
            const bool ordered = named.form == BitsForm::flag || more_is_better(layout_, named);
            const bool a_has = (of_a > of_b) != (setting == AllowedSetting::must_be_1);
            receiver_({.layout = &layout_,
                       .bits = named,
                       .setting = setting,
                       .holder = !ordered ? Holder::neither
                                 : a_has  ? Holder::a
                                          : Holder::b,
                       .a = of_a,
                       .b = of_b,
                       .feature = feature(bit)});
        }
    }

    const FeatureName* feature(unsigned bit) const noexcept {
        return layout_.bit_layout == &bit_layout::svm_asids ? nullptr : find_feature(layout_.index, bit);
    }

    const CapabilityLayout& layout_;
    Receiver<const CapabilityDifference&> receiver_;
    std::size_t count_ = 0;
};

/// What a host has in a register.
std::optional<std::uint64_t> value_of(const vmx::Capabilities& of, const CapabilityLayout& layout) noexcept {
    return layout.vendor == VendorId::vmx ? of[layout.index] : std::nullopt;
}
std::optional<std::uint64_t> value_of(const svm::Capabilities& of, const CapabilityLayout& layout) noexcept {
    if (layout.vendor != VendorId::svm)
        return std::nullopt;
    return layout.bit_layout == &bit_layout::svm_asids ? of.asids : of.features;
}

/// Whether the TRUE MSR of a register says the same, and better.
bool is_superseded(const vmx::Capabilities& a, const vmx::Capabilities& b,
                   const CapabilityLayout& layout) noexcept {
    return layout.true_index != 0 && a.knows(layout.true_index) && b.knows(layout.true_index);
}
bool is_superseded(const svm::Capabilities&, const svm::Capabilities&, const CapabilityLayout&) noexcept {
    return false;
}

template <class Capabilities>
std::size_t compare(const Capabilities& a, const Capabilities& b,
                    Receiver<const CapabilityDifference&> receiver) noexcept {
    std::size_t count = 0;
    for (const auto& layout : capability_layouts) {
        const auto of_a = value_of(a, layout), of_b = value_of(b, layout);
        if (of_a && of_b && !is_superseded(a, b, layout))
            count += Comparison{layout, receiver}(*of_a, *of_b);
    }
    return count;
}

void write_number(Writer& out, const NamedBits& bits, std::uint64_t number) noexcept {
    if (const auto named = find(bits.values, number))
        out << named->name;
    else if (bits.form == BitsForm::number)
        out.decimal(number);
    else
        out.hexadecimal(number);
}

void write_difference(Writer& out, const CapabilityDifference& what,
                      const CapabilityDifferenceOptions& options) noexcept {
    const bool flag = what.bits.form == BitsForm::flag;
    if (!flag)
        out << options.a << " and " << options.b;
    else
        out << (what.holder == Holder::a ? options.a : options.b) << " only";
    out << "  ";
    if (what.layout->vendor == VendorId::vmx)
        out.hexadecimal(what.layout->index);
    else
        out << what.layout->name;
    out << "  ";
    if (what.bits.name.empty())
        (out << "undefined bit ").decimal(what.bits.first);
    else
        out << what.bits.name;
    if (!flag) {
        write_number(out << " ", what.bits, what.a);
        write_number(out << " and ", what.bits, what.b);
    } else if (what.setting != AllowedSetting::feature) {
        out << (what.setting == AllowedSetting::must_be_1 ? " may be 0" : " may be 1");
    }
    if (what.feature != nullptr)
        detail::write_feature(out << "  ", *what.feature);
}

template <class Capabilities>
std::size_t write_all(const Capabilities& a, const Capabilities& b, TextSink sink,
                      const CapabilityDifferenceOptions& options) noexcept {
    Writer out{sink};
    const auto count = compare(a, b, [&](const CapabilityDifference& what) noexcept {
        write_difference(out, what, options);
        out.end_line();
    });
    bool first = true;
    for (const auto& layout : capability_layouts) {
        const auto of_a = value_of(a, layout), of_b = value_of(b, layout);
        if (of_a.has_value() == of_b.has_value())
            continue;
        out << (first ? "not compared, since known of one alone: " : ", ") << layout.name;
        first = false;
    }
    if (!first)
        out.end_line();
    return count;
}

} // namespace

std::size_t capability_difference(const vmx::Capabilities& a, const vmx::Capabilities& b,
                                  Receiver<const CapabilityDifference&> receiver) noexcept {
    return compare(a, b, receiver);
}
std::size_t capability_difference(const svm::Capabilities& a, const svm::Capabilities& b,
                                  Receiver<const CapabilityDifference&> receiver) noexcept {
    return compare(a, b, receiver);
}

std::size_t capability_difference(const vmx::Capabilities& a, const vmx::Capabilities& b, TextSink sink,
                                  const CapabilityDifferenceOptions& options) noexcept {
    return write_all(a, b, sink, options);
}
std::size_t capability_difference(const svm::Capabilities& a, const svm::Capabilities& b, TextSink sink,
                                  const CapabilityDifferenceOptions& options) noexcept {
    return write_all(a, b, sink, options);
}

void describe(const CapabilityDifference& what, TextSink sink,
              const CapabilityDifferenceOptions& options) noexcept {
    Writer out{sink};
    write_difference(out, what, options);
}

} // namespace kvm::nested
