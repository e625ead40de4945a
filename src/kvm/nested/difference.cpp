// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
module kvm.nested;

namespace kvm::nested {
namespace {

using detail::number_in;
using detail::Writer;

/// What changed in a value of named bits: "-MP, +PG, vector #PF -> #GP".
void write_changes(Writer& out, const BitLayout& layout, std::uint64_t a, std::uint64_t b, bool redact,
                   std::string_view before) noexcept {
    if (redact) {
        a = kept_bits(layout, a);
        b = kept_bits(layout, b);
    }
    for (const auto& bits : layout.bits) {
        if (bits.of(a) == bits.of(b))
            continue;
        out << before;
        before = ", ";
        if (bits.form == BitsForm::flag) {
            out << (bits.of(a) != 0 ? "-" : "+") << bits.name;
        } else if (bits.form == BitsForm::each) {
            std::string_view comma;
            for (const auto& [sign, gone] :
                 {std::pair{"-", bits.of(a) & ~bits.of(b)}, std::pair{"+", bits.of(b) & ~bits.of(a)}})
                for (unsigned i = 0; i < 64; ++i)
                    if ((gone >> i & 1) != 0) {
                        (out << comma << sign << bits.name).decimal(i);
                        comma = ", ";
                    }
        } else {
            detail::write_bits(out, bits, a);
            out << " -> ";
            detail::write_bits(out, bits, b);
        }
    }
    if (redact && a == b)
        out << before << "in masked bits";
    if (const auto undefined = undefined_bits(layout, a ^ b); undefined != 0)
        (out << before << "undefined bits ").hexadecimal(undefined);
}

/// The names of both values: "CPUID -> EPT violation".
void write_names(Writer& out, const BitLayout& layout, std::uint64_t a, std::uint64_t b,
                 bool redact) noexcept {
    const auto write = [&](std::uint64_t value, std::string_view before) {
        const bool is_unknown = layout.kind == ValueKind::code && !find(layout.values, value);
        detail::explain(out << (is_unknown ? before : ""), layout, value, redact, before);
        out << (is_unknown ? "unknown" : "");
    };
    write(a, "  ");
    write(b, " -> ");
}

void write_difference(Writer& out, const Difference& what, bool redact) noexcept {
    const auto& field = *what.field;
    if (what.part != Part::header)
        out << name(what.part) << " ";
    out << field.name << ": ";
    detail::write_value(out, field, what.a, redact);
    out << " -> ";
    detail::write_value(out, field, what.b, redact);
    if (field.is_number()) {
        const auto a = number_in(what.a), b = number_in(what.b);
        if (field.bit_layout->kind == ValueKind::bits)
            write_changes(out, *field.bit_layout, a, b, redact, "  ");
        else if (field.bit_layout->kind == ValueKind::code || field.bit_layout->kind == ValueKind::pat)
            write_names(out, *field.bit_layout, a, b, redact);
    }
    if (field.group == FieldGroup::l1_host || field.group == FieldGroup::l1_save)
        out << "  (L1's)";
    out.end_line();
}

} // namespace

std::size_t difference(const NestedStateView& a, const NestedStateView& b,
                       Receiver<const Difference&> receiver, const DifferenceOptions& options) noexcept {
    if (options.ignored_too ? detail::equal(a.bytes(), b.bytes()) : equivalent(a, b))
        return 0;
    const PartsOfState of_a{a}, of_b{b};
    const bool one_vendor = a.vendor() == b.vendor();
    const auto phase = a.phase();
    const bool one_phase = a.recognised() && phase == b.phase();
    const bool l2_active = phase == Phase::vmx_l2_active || phase == Phase::svm_l2_active;
    std::size_t count = 0;
    for (auto part = of_a.begin(), other = of_b.begin(); part != of_a.end() && other != of_b.end();
         ++part, ++other)
        for (const auto& field : part->fields) {
            if (!one_vendor
                && (part->part != Part::header || field.end() > offsetof(uapi::StateHeader, vendor)))
                break; // flags, format and size are all that two vendors share
            if (!options.ignored_too && one_phase && is_ignored(field, part->part, l2_active))
                continue;
            const auto in_a = part->bytes_of(field), in_b = other->bytes_of(field);
            if (detail::equal(in_a, in_b))
                continue;
            ++count;
            receiver({part->part, &field, in_a, in_b});
        }
    // What is in no field: a payload that is cut off, bytes behind it. The kernel has no such states.
    return count == 0 ? 1 : count;
}

std::size_t difference(const NestedStateView& a, const NestedStateView& b, TextSink sink,
                       const DifferenceOptions& options) noexcept {
    Writer out{sink};
    return difference(
        a, b, [&](const Difference& what) noexcept { write_difference(out, what, options.redact); }, options);
}

} // namespace kvm::nested
