// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
module kvm.nested.json;

#include "json/text.hpp"

namespace kvm::nested {
namespace {

using namespace detail;

constexpr std::string_view version_key = "kvm.nested";
constexpr std::uint64_t version = 1;

constexpr std::array part_keys = std::to_array<std::pair<std::string_view, Part>>({
    {"header", Part::header},
    {"vmcs12", Part::vmcs12},
    {"shadow_vmcs12", Part::shadow_vmcs12},
    {"vmcb", Part::vmcb},
});
std::string_view key_of(Part part) {
    return std::ranges::find(part_keys, part, &decltype(part_keys)::value_type::second)->first;
}

// --- writing
// ------------------------------------------------------------------------------------------------

bool is_zero(std::span<const std::byte> bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

/// Of an area all bytes up to the last that is not zero, as pairs of digits.
std::string digits(std::span<const std::byte> bytes) {
    while (!bytes.empty() && bytes.back() == std::byte{0})
        bytes = bytes.first(bytes.size() - 1);
    std::string result;
    for (const auto byte : bytes) {
        constexpr std::string_view all = "0123456789abcdef";
        result += all[std::to_integer<std::size_t>(byte) >> 4];
        result += all[std::to_integer<std::size_t>(byte) & 15];
    }
    return result;
}

void write_field(Document& out, const PartOfState& part, const Field& field, const JsonOptions& options) {
    const auto bytes = part.bytes_of(field);
    std::string value, meaning;
    if (options.redact)
        write_value(field, bytes, [&](std::string_view piece) noexcept { value += piece; }, true);
    else
        value = field.is_number() ? hexadecimal(read(part.bytes, field)) : digits(bytes);
    if (!options.meanings) {
        out.string(field.name, value);
        return;
    }
    if (field.is_number())
        explain(
            *field.bit_layout, read(part.bytes, field),
            [&](std::string_view piece) noexcept { meaning += piece; }, options.redact);
    out.open(field.name);
    out.string("value", value);
    if (!meaning.empty())
        out.string("meaning", meaning);
    out.close();
}

// --- reading
// ------------------------------------------------------------------------------------------------

/// What the reader of JSON calls, event by event. Any `false` ends the reading.
class Builder {
  public:
    using Cause = JsonError::Cause;
    using number_integer_t = nlohmann::json::number_integer_t;
    using number_unsigned_t = nlohmann::json::number_unsigned_t;
    using number_float_t = nlohmann::json::number_float_t;
    using string_t = nlohmann::json::string_t;
    using binary_t = nlohmann::json::binary_t;

    std::expected<NestedStateBuffer, JsonError> finish(bool complete);

    bool null() { return value_is_bad(); }
    bool boolean(bool) { return value_is_bad(); }
    bool number_integer(number_integer_t) { return value_is_bad(); } // it is negative
    bool number_float(number_float_t value, const string_t&) {
        return is_a_fields() && value > static_cast<double>(largest_exact) ? fails(Cause::rounded)
                                                                           : value_is_bad();
    }
    bool binary(binary_t&) { return value_is_bad(); }
    bool start_array(std::size_t) { return value_is_bad(); }
    bool end_array() { return value_is_bad(); }

    bool start_object(std::size_t) {
        switch (level_) {
        case Level::outside:
            level_ = Level::document;
            return true;
        case Level::document: {
            const auto found = std::ranges::find(part_keys, key_, &decltype(part_keys)::value_type::first);
            if (found == part_keys.end())
                return fails(Cause::shape);
            part_ = found->second;
            has_[static_cast<std::size_t>(part_)] = true;
            level_ = Level::part;
            return true;
        }
        case Level::part:
            level_ = Level::field;
            member_.clear();
            has_member_ = {};
            return true;
        case Level::field:
            break;
        }
        return fails(Cause::shape);
    }
    bool end_object() {
        if (level_ == Level::field && !has_member_[value_member]) {
            member_ = members[value_member];
            return fails(Cause::missing);
        }
        level_ = level_ == Level::field  ? Level::part
                 : level_ == Level::part ? Level::document
                                         : Level::outside;
        return true;
    }
    bool key(string_t& name) {
        switch (level_) {
        case Level::document:
            key_ = name;
            return is_first_of(document_keys, has_key_, name);
        case Level::part:
            field_ = name; // whether it is there twice is seen by its place, at its value
            return find_field() != nullptr || fails(Cause::unknown_name);
        case Level::field:
            member_ = name;
            return is_first_of(members, has_member_, name);
        case Level::outside:
            break;
        }
        return true;
    }

    bool number_unsigned(number_unsigned_t value) {
        if (level_ == Level::document && key_ == version_key)
            return value == version || fails(Cause::version);
        if (!is_a_fields())
            return value_is_bad();
        return value <= largest_exact ? put(value) : fails(Cause::rounded);
    }
    bool string(string_t& value) {
        if (level_ == Level::document)
            return document_string(value);
        if (level_ == Level::field && member_ == members[meaning_member])
            return true;
        if (!is_a_fields())
            return value_is_bad();
        const auto* field = find_field();
        if (!field->is_number())
            return put_area(*field, value);
        const auto number = number_in(value);
        return number ? put(*number) : value_is_bad();
    }

    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) {
        error_ = JsonError{.cause = Cause::syntax, .where = {}, .offset = position == 0 ? 0 : position - 1};
        return false;
    }

  private:
    enum class Level { outside, document, part, field };

    static constexpr std::array document_keys = std::to_array<std::string_view>(
        {version_key, "vendor", "phase", "refused", "header", "vmcs12", "shadow_vmcs12", "vmcb"});
    static constexpr std::array members = std::to_array<std::string_view>({"value", "meaning"});
    static constexpr std::size_t value_member = 0, meaning_member = 1;

    bool fails(Cause cause) {
        std::string where = printable(key_);
        if (level_ == Level::part || level_ == Level::field)
            (where += '/') += printable(field_);
        if (level_ == Level::field)
            (where += '/') += printable(member_);
        error_ = JsonError{.cause = cause, .where = std::move(where)};
        return false;
    }
    bool value_is_bad() {
        return fails(level_ == Level::outside || level_ == Level::document ? Cause::shape : Cause::bad_value);
    }
    bool is_a_fields() const {
        return level_ == Level::part || (level_ == Level::field && member_ == members[value_member]);
    }
    template <std::size_t N>
    bool is_first_of(const std::array<std::string_view, N>& names, std::bitset<N>& seen,
                     std::string_view name) {
        const auto found = std::ranges::find(names, name);
        if (found == names.end())
            return fails(Cause::unknown_name);
        const auto index = static_cast<std::size_t>(found - names.begin());
        if (seen[index])
            return fails(Cause::repeated_name);
        seen[index] = true;
        return true;
    }

    bool document_string(std::string_view value) {
        if (key_ == "phase") // for the reader: header and parts decide it
            return true;
        if (key_ == "refused")
            return fails(Cause::no_state);
        if (key_ != "vendor")
            return fails(key_ == version_key ? Cause::bad_value : Cause::shape);
        for (const auto vendor : {VendorId::vmx, VendorId::svm})
            if (value == name(vendor)) {
                vendor_ = vendor;
                return true;
            }
        return fails(Cause::bad_value);
    }

    /// The header's names may come before the vendor: finish() says whether they are its.
    const Field* find_field() {
        if (part_ == Part::vmcs12 || part_ == Part::shadow_vmcs12)
            return find_vmcs12_field(field_);
        if (part_ == Part::vmcb)
            return find_vmcb12_field(std::string_view{field_});
        const auto* in_vmx = find_header_field(VendorId::vmx, field_);
        const auto* in_svm = find_header_field(VendorId::svm, field_);
        if (in_vmx != nullptr && in_svm == nullptr)
            of_vmx_alone_ = field_;
        if (in_svm != nullptr && in_vmx == nullptr)
            of_svm_alone_ = field_;
        return in_vmx != nullptr ? in_vmx : in_svm;
    }

    bool is_first_of(const Field& field) {
        // With a field of the other vendor's at the place finish() deals.
        const std::size_t at = begin_of(part_) + std::size_t{field.offset};
        if (seen_[at] && (of_vmx_alone_.empty() || of_svm_alone_.empty()))
            return fails(Cause::repeated_name);
        seen_[at] = true;
        return true;
    }

    bool put(std::uint64_t value) {
        const auto* field = find_field();
        if (!field->is_number() || (field->size < 8 && value >> (8 * field->size) != 0))
            return fails(Cause::bad_value);
        if (!is_first_of(*field))
            return false;
        std::memcpy(state_.data() + begin_of(part_) + field->offset, &value, field->size); // little-endian
        return true;
    }
    bool put_area(const Field& field, std::string_view digits) {
        // hdr.pad is as large and where each vendor leaves it, and KVM drops it: only looked at.
        const auto* in_svm = part_ == Part::header ? find_header_field(VendorId::svm, field.name) : nullptr;
        const auto room = std::max(field.size, in_svm != nullptr ? in_svm->size : field.size);
        if (digits.size() % 2 != 0 || digits.size() / 2 > room)
            return fails(Cause::bad_value);
        if (!is_first_of(field))
            return false;
        for (std::size_t i = 0; i < digits.size(); i += 2) {
            const std::array<char, 4> text{'0', 'x', digits[i], digits[i + 1]};
            const auto byte = number_in({text.data(), text.size()});
            if (!byte)
                return fails(Cause::bad_value);
            if (in_svm == nullptr)
                state_[begin_of(part_) + field.offset + i / 2] = static_cast<std::byte>(*byte);
        }
        return true;
    }

    bool has(Part part) const { return has_[static_cast<std::size_t>(part)]; }
    template <class T>
    void put_default(std::size_t offset, T value) {
        if (!seen_[offset])
            std::memcpy(state_.data() + offset, &value, sizeof value);
    }
    /// Whether the header gave a field that the parts decide, and another value.
    template <class T>
    bool contradicts(std::size_t offset, T value) const {
        T given;
        std::memcpy(&given, state_.data() + offset, sizeof given);
        return seen_[offset] && given != value;
    }

    std::array<std::byte, Vmx::capacity> state_{};
    std::bitset<Vmx::capacity> seen_; // by offset in the state
    std::array<bool, 4> has_{};
    std::optional<VendorId> vendor_;
    std::optional<JsonError> error_;
    Level level_ = Level::outside;
    Part part_ = Part::header;
    std::string key_, field_, member_;
    std::bitset<document_keys.size()> has_key_;
    std::bitset<members.size()> has_member_;
    std::string of_vmx_alone_, of_svm_alone_; // the last names of the header that only one vendor has
};

std::expected<NestedStateBuffer, JsonError> Builder::finish(bool complete) {
    const auto wrong = [](Cause cause, std::string_view where) {
        return std::unexpected{JsonError{.cause = cause, .where = std::string{where}}};
    };
    if (error_)
        return std::unexpected{*error_};
    if (!complete)
        return wrong(Cause::shape, "");
    if (!has_key_[0])
        return wrong(Cause::missing, version_key);
    if (!vendor_)
        return wrong(Cause::missing, "vendor");
    const bool vmx = *vendor_ == VendorId::vmx;
    if (const auto& other = vmx ? of_svm_alone_ : of_vmx_alone_; !other.empty())
        return wrong(Cause::other_vendor, "header/" + other);
    if (vmx && has(Part::vmcb))
        return wrong(Cause::other_vendor, "vmcb");
    if (!vmx && (has(Part::vmcs12) || has(Part::shadow_vmcs12)))
        return wrong(Cause::other_vendor, has(Part::vmcs12) ? "vmcs12" : "shadow_vmcs12");
    const auto size = static_cast<std::uint32_t>(has(Part::shadow_vmcs12)               ? Vmx::capacity
                                                 : has(Part::vmcs12) || has(Part::vmcb) ? Svm::capacity
                                                                                        : uapi::header_size);
    constexpr std::size_t format_at = header_offset("format"), size_at = header_offset("size");
    constexpr std::size_t vmxon_at = header_offset("hdr.vmx.vmxon_pa");
    constexpr std::size_t vmcs12_at = header_offset("hdr.vmx.vmcs12_pa");
    if (contradicts(format_at, format(*vendor_)))
        return wrong(Cause::bad_value, "header/format");
    if (contradicts(size_at, size))
        return wrong(Cause::bad_value, "header/size");
    put_default(format_at, format(*vendor_));
    put_default(size_at, size);
    if (vmx) {
        put_default(vmxon_at, uapi::no_address);
        put_default(vmcs12_at, uapi::no_address);
        if (has(Part::vmcs12) || has(Part::shadow_vmcs12))
            put_default(uapi::header_size, uapi::vmcs12_revision);
    }
    auto state = NestedStateBuffer::parse(std::span{state_}.first(size));
    if (!state)
        return std::unexpected{JsonError{.cause = Cause::refused, .where = {}, .refused = state.error()}};
    return *state;
}

} // namespace

std::string to_json(const NestedStateView& state, const JsonOptions& options) {
    Document out;
    out.open();
    out.raw(version_key, std::to_string(version));
    if (const auto& phase = state.recognised(); !phase)
        out.raw("refused", nlohmann::json(phase.error().message().view()).dump());
    for (const auto& part : PartsOfState{state}) {
        if (part.part == Part::header) {
            out.string("vendor", name(*state.vendor()));
            if (state.recognised())
                out.string("phase", name(state.phase()));
        }
        out.open(key_of(part.part));
        for (const auto& field : part.fields)
            if (options.zeros || !is_zero(part.bytes_of(field))
                || (part.part == Part::header && field.group == FieldGroup::header))
                write_field(out, part, field, options);
        out.close();
    }
    out.close();
    return std::move(out).take();
}

std::expected<NestedStateBuffer, JsonError> from_json(std::string_view text) {
    Builder builder;
    const bool complete = nlohmann::json::sax_parse(text, &builder);
    return builder.finish(complete);
}

} // namespace kvm::nested
