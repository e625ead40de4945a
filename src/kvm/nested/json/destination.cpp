// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
module kvm.nested.json;

#include "text.hpp"

namespace kvm::nested {
namespace {

using namespace detail;
using Cause = JsonError::Cause;

constexpr std::string_view version_key = "kvm.nested.destination";
constexpr std::uint64_t version = 1;

/// A value of JSON that is no object.
struct Scalar {
    std::optional<bool> truth = {};
    std::optional<std::uint64_t> number = {};
    std::optional<std::string_view> text = {};
};

template <class T>
std::optional<T> number_of(const Scalar& scalar) {
    const auto value = scalar.text ? number_in(*scalar.text) : scalar.number;
    if (!value || *value > std::numeric_limits<T>::max())
        return std::nullopt;
    return static_cast<T>(*value);
}

// --- one key of the record: how it is written, and how it is read

/// As uname -r begins: exactly three numbers.
std::optional<KernelVersion> kernel_of(std::string_view text) {
    KernelVersion kernel;
    const auto* at = text.data();
    const auto* const end = at + text.size();
    for (auto* part : {&kernel.major, &kernel.minor, &kernel.patch}) {
        if (part != &kernel.major && (at == end || *at++ != '.'))
            return std::nullopt;
        const auto [next, error] = std::from_chars(at, end, *part);
        if (error != std::errc{})
            return std::nullopt;
        at = next;
    }
    return at == end ? std::optional{kernel} : std::nullopt;
}

/// A key with one value.
struct Row {
    std::string_view key;
    void (*write)(Document&, std::string_view key, const Destination&);
    bool (*read)(Destination&, const Scalar&); ///< false: it is not a value that fits
};

enum class Base : std::uint8_t { ten, sixteen };

template <auto Member, Base base = Base::sixteen>
constexpr Row number(std::string_view key) {
    return {key,
            [](Document& out, std::string_view name, const Destination& destination) {
                const auto& value = destination.*Member;
                if (value && base == Base::ten)
                    out.raw(name, std::to_string(*value));
                else if (value)
                    out.string(name, hexadecimal(*value));
            },
            [](Destination& destination, const Scalar& scalar) {
                using T = typename std::remove_cvref_t<decltype(destination.*Member)>::value_type;
                destination.*Member = number_of<T>(scalar);
                return (destination.*Member).has_value();
            }};
}
template <auto Member>
constexpr Row truth(std::string_view key) {
    return {key,
            [](Document& out, std::string_view name, const Destination& destination) {
                if (const auto& value = destination.*Member)
                    out.raw(name, *value ? "true" : "false");
            },
            [](Destination& destination, const Scalar& scalar) {
                destination.*Member = scalar.truth;
                return scalar.truth.has_value();
            }};
}

constexpr Row vendor_row{"vendor",
                         [](Document& out, std::string_view key, const Destination& destination) {
                             if (destination.vendor)
                                 out.string(key, name(*destination.vendor));
                         },
                         [](Destination& destination, const Scalar& scalar) {
                             for (const auto vendor : {VendorId::vmx, VendorId::svm})
                                 if (scalar.text == name(vendor))
                                     destination.vendor = vendor;
                             return destination.vendor.has_value();
                         }};
constexpr Row kernel_row{"kernel",
                         [](Document& out, std::string_view key, const Destination& destination) {
                             if (const auto& kernel = destination.kernel)
                                 out.string(key, std::to_string(kernel->major) + "."
                                                     + std::to_string(kernel->minor) + "."
                                                     + std::to_string(kernel->patch));
                         },
                         [](Destination& destination, const Scalar& scalar) {
                             destination.kernel = scalar.text ? kernel_of(*scalar.text) : std::nullopt;
                             return destination.kernel.has_value();
                         }};

constexpr auto rows = std::to_array<Row>({
    vendor_row,
    kernel_row,
    truth<&Destination::nested>("nested"),
    number<&Destination::maxphyaddr, Base::ten>("maxphyaddr"),
    truth<&Destination::smm>("smm"),
    number<&Destination::efer>("efer"),
    number<&Destination::cr0>("cr0"),
    number<&Destination::cr3>("cr3"),
    number<&Destination::cr4>("cr4"),
    truth<&Destination::enlightened_vmcs>("enlightened_vmcs"),
    number<&Destination::disabled_quirks>("disabled_quirks"),
    truth<&Destination::nested_paging>("nested_paging"),
    number<&Destination::perf_global_ctrl>("perf_global_ctrl"),
    truth<&Destination::exception_payload>("exception_payload"),
    number<&Destination::tsc_khz, Base::ten>("tsc_khz"),
});

/// Keys with an object.
constexpr auto groups = std::to_array<std::string_view>({"guest", "host", "vmx", "svm"});
enum Group : std::size_t { guest, host, vmx_msrs, svm_cpuid };
constexpr auto svm_keys = std::to_array<std::string_view>({"features", "asids"});

void write_features(Document& out, std::string_view key, const Features& features) {
    if (features.empty())
        return;
    out.open(key);
    for (std::size_t i = 0; i < feature_count; ++i)
        if (const auto there = features[static_cast<Feature>(i)]; there != Known::unknown)
            out.raw(name(static_cast<Feature>(i)), there == Known::yes ? "true" : "false");
    out.close();
}

// --- reading

/// What the reader of JSON calls, event by event. The first error is kept, and reading goes on: whether the
/// version is another one may stand behind it, and then that is what is wrong.
class Reader {
  public:
    using number_integer_t = nlohmann::json::number_integer_t;
    using number_unsigned_t = nlohmann::json::number_unsigned_t;
    using number_float_t = nlohmann::json::number_float_t;
    using string_t = nlohmann::json::string_t;
    using binary_t = nlohmann::json::binary_t;

    std::expected<Destination, JsonError> finish() {
        if (other_version_)
            return std::unexpected{JsonError{.cause = Cause::version, .where = std::string{version_key}}};
        if (error_)
            return std::unexpected{*std::move(error_)};
        if (!has_version_)
            return std::unexpected{JsonError{.cause = Cause::missing, .where = std::string{version_key}}};
        return destination_;
    }

    bool null() { return value({}); }
    bool boolean(bool truth) { return value({.truth = truth}); }
    bool number_integer(number_integer_t) { return value({}); } // it is negative
    bool number_float(number_float_t number, const string_t&) {
        return number > static_cast<double>(largest_exact) ? fails(Cause::rounded) : value({});
    }
    bool number_unsigned(number_unsigned_t number) {
        return number > largest_exact ? fails(Cause::rounded) : value({.number = number});
    }
    bool string(string_t& text) { return value({.text = text}); }
    bool binary(binary_t&) { return value({}); }
    bool start_array(std::size_t) {
        ++depth_;
        return fails(depth_ == 1 ? Cause::shape : Cause::bad_value);
    }
    bool end_array() {
        --depth_;
        return true;
    }
    bool start_object(std::size_t) {
        if (++depth_ == 1 || error_)
            return true;
        const auto found = std::ranges::find(groups, key_);
        if (depth_ > 2 || found == groups.end())
            return fails(Cause::bad_value);
        group_ = static_cast<Group>(found - groups.begin());
        seen_inside_.reset();
        return true;
    }
    bool end_object() {
        --depth_;
        return true;
    }
    bool key(string_t& name) {
        (depth_ == 1 ? key_ : inside_) = name;
        if (error_)
            return true;
        if (depth_ == 2)
            return key_inside();
        if (key_ == version_key)
            return is_first(seen_, groups.size() + rows.size());
        if (const auto found = std::ranges::find(groups, key_); found != groups.end())
            return is_first(seen_, static_cast<std::size_t>(found - groups.begin()));
        const auto found = std::ranges::find(rows, key_, &Row::key);
        if (found == rows.end())
            return fails(Cause::unknown_name);
        return is_first(seen_, groups.size() + static_cast<std::size_t>(found - rows.begin()));
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) {
        if (!error_)
            error_ =
                JsonError{.cause = Cause::syntax, .where = {}, .offset = position == 0 ? 0 : position - 1};
        return false;
    }

  private:
    bool fails(Cause cause) {
        if (error_)
            return true;
        auto where = printable(key_);
        if (depth_ > 1 && !inside_.empty())
            (where += '/') += printable(inside_);
        error_ = JsonError{.cause = cause, .where = std::move(where)};
        return true;
    }
    template <std::size_t N>
    bool is_first(std::bitset<N>& seen, std::size_t index) {
        if (seen[index])
            return fails(Cause::repeated_name);
        seen[index] = true;
        inside_.clear();
        return true;
    }
    /// "0x480", as to_json() writes it; else 0.
    static std::uint32_t msr_of(std::string_view key) {
        const auto index = number_in(key);
        return index && key.starts_with("0x") && *index <= vmx::Capabilities::last
                       && vmx::Capabilities::has_place_for(static_cast<std::uint32_t>(*index))
                   ? static_cast<std::uint32_t>(*index)
                   : 0;
    }
    bool key_inside() {
        std::optional<std::size_t> index;
        switch (group_) {
        case guest:
        case host:
            for (std::size_t i = 0; i < feature_count; ++i)
                if (inside_ == name(static_cast<Feature>(i)))
                    index = i;
            break;
        case vmx_msrs:
            if (const auto msr = msr_of(inside_); msr != 0)
                index = msr - vmx::Capabilities::first;
            break;
        case svm_cpuid:
            if (const auto found = std::ranges::find(svm_keys, inside_); found != svm_keys.end())
                index = static_cast<std::size_t>(found - svm_keys.begin());
            break;
        }
        if (!index)
            return fails(Cause::unknown_name);
        if (seen_inside_[*index])
            return fails(Cause::repeated_name);
        seen_inside_[*index] = true;
        index_ = *index;
        return true;
    }
    bool value(const Scalar& scalar) {
        if (depth_ == 0)
            return fails(Cause::shape);
        if (depth_ == 1 && key_ == version_key) {
            other_version_ = other_version_ || scalar.number.value_or(version) != version;
            has_version_ = scalar.number.has_value();
            return has_version_ || fails(Cause::bad_value);
        }
        if (error_)
            return true;
        if (depth_ == 2)
            return value_inside(scalar) || fails(Cause::bad_value);
        const auto found = std::ranges::find(rows, key_, &Row::key);
        return (found != rows.end() && found->read(destination_, scalar)) || fails(Cause::bad_value);
    }
    bool value_inside(const Scalar& scalar) {
        switch (group_) {
        case guest:
        case host:
            if (scalar.truth)
                (group_ == guest ? destination_.guest : destination_.host)
                    .set(static_cast<Feature>(index_), *scalar.truth);
            return scalar.truth.has_value();
        case vmx_msrs: {
            const auto number = number_of<std::uint64_t>(scalar);
            return number
                   && destination_.vmx.set(vmx::Capabilities::first + static_cast<std::uint32_t>(index_),
                                           *number);
        }
        case svm_cpuid: {
            const auto number = number_of<std::uint32_t>(scalar);
            (index_ == 0 ? destination_.svm.features : destination_.svm.asids) = number;
            return number.has_value();
        }
        }
        return false;
    }

    Destination destination_;
    std::optional<JsonError> error_;
    std::size_t depth_ = 0;
    std::string key_, inside_;
    Group group_{};
    std::size_t index_ = 0; // of the key inside its group
    bool has_version_ = false, other_version_ = false;
    std::bitset<groups.size() + rows.size() + 1> seen_;
    std::bitset<64> seen_inside_;
    static_assert(feature_count <= 64 && vmx::Capabilities::last - vmx::Capabilities::first < 64);
};

} // namespace

std::string to_json(const Destination& destination) {
    Document out;
    out.open();
    out.raw(version_key, std::to_string(version));
    for (const auto& row : rows)
        row.write(out, row.key, destination);
    write_features(out, groups[guest], destination.guest);
    write_features(out, groups[host], destination.host);
    if (!destination.vmx.empty()) {
        out.open(groups[vmx_msrs]);
        for (auto index = vmx::Capabilities::first; index <= vmx::Capabilities::last; ++index)
            if (const auto value = destination.vmx[index])
                out.string(hexadecimal(index), hexadecimal(*value));
        out.close();
    }
    if (!destination.svm.empty()) {
        out.open(groups[svm_cpuid]);
        if (destination.svm.features)
            out.string(svm_keys[0], hexadecimal(*destination.svm.features));
        if (destination.svm.asids)
            out.raw(svm_keys[1], std::to_string(*destination.svm.asids));
        out.close();
    }
    out.close();
    return std::move(out).take();
}

std::expected<Destination, JsonError> destination_from_json(std::string_view text) {
    Reader reader;
    nlohmann::json::sax_parse(text, &reader);
    return reader.finish();
}

} // namespace kvm::nested
