// SPDX-License-Identifier: MIT
//
// Holds the tables of fields against the images themselves, at compile time: Boost.PFR tells the names and
// the number of an image's members, and an image in which every byte tells its own offset where each of them
// is. Nothing here ends up in the library, and PFR stays out of every interface.
module;
#include <array>
#include <bit>
#include <boost/pfr.hpp>
#include <boost/pfr/core_name.hpp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
module kvm.nested;

namespace kvm::nested {
namespace {

using Page = std::array<std::byte, uapi::page_size>;

/// The image in which byte n is bits 7:0 of n, or bits 15:8.
template <class Image>
consteval Image image_of_offsets(unsigned shift) {
    Page page{};
    for (std::size_t i = 0; i < page.size(); ++i)
        page[i] = static_cast<std::byte>(i >> shift);
    return std::bit_cast<Image>(page);
}

/// Where the first byte of a member is, out of two such images.
template <class T>
constexpr std::size_t offset_told_by(const T& low, const T& high) {
    const auto first = [](const T& member) {
        return std::to_integer<std::size_t>(std::bit_cast<std::array<std::byte, sizeof(T)>>(member)[0]);
    };
    return first(low) | first(high) << 8;
}

/// "prefix" and "prefix.member" or "prefix[index]".
constexpr bool is_composed(std::string_view name, std::string_view prefix, char separator,
                           std::string_view member) {
    return name.starts_with(prefix) && name.size() >= prefix.size() + 1 + member.size()
           && name[prefix.size()] == separator && name.substr(prefix.size() + 1, member.size()) == member;
}

/// Walks the members of an image along the rows of its table.
struct Walk {
    std::span<const Field> rows;
    std::size_t at = 0;
    std::size_t end = 0;
    bool fits = true;

    constexpr void row(auto&& has_the_name, std::size_t offset, std::size_t size) {
        fits = fits && at < rows.size() && has_the_name(rows[at].name) && rows[at].offset == offset
               && rows[at].size == size && offset == end;
        ++at;
        end = offset + size;
    }

    template <class T>
    constexpr void member(std::string_view name, const T& low, const T& high) {
        row([name](std::string_view row) { return row == name; }, offset_told_by(low, high), sizeof(T));
    }
    constexpr void member(std::string_view name, const std::array<std::uint32_t, 6>& low,
                          const std::array<std::uint32_t, 6>& high) {
        for (std::size_t i = 0; i < low.size(); ++i) {
            const char digit = static_cast<char>('0' + i);
            row([&](std::string_view row) { return is_composed(row, name, '[', {&digit, 1}); },
                offset_told_by(low[i], high[i]), sizeof low[i]);
        }
    }
    constexpr void member(std::string_view name, const Vmcb12Segment& low, const Vmcb12Segment& high) {
        constexpr auto names = boost::pfr::names_as_array<Vmcb12Segment>();
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (row(
                 [&](std::string_view row) {
                     return is_composed(row, name, '.', names[I])
                            && row.size() == name.size() + 1 + names[I].size();
                 },
                 offset_told_by(boost::pfr::get<I>(low), boost::pfr::get<I>(high)),
                 sizeof(boost::pfr::tuple_element_t<I, Vmcb12Segment>)),
             ...);
        }(std::make_index_sequence<boost::pfr::tuple_size_v<Vmcb12Segment>>{});
    }
};

/// Whether the table names every member, in order, where it is and as large as it is, and nothing else.
template <class Image>
consteval bool is_the_table_of(std::span<const Field> rows) {
    constexpr auto low = image_of_offsets<Image>(0);
    constexpr auto high = image_of_offsets<Image>(8);
    constexpr auto names = boost::pfr::names_as_array<Image>();
    Walk walk{rows};
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (walk.member(names[I], boost::pfr::get<I>(low), boost::pfr::get<I>(high)), ...);
    }(std::make_index_sequence<boost::pfr::tuple_size_v<Image>>{});
    return walk.fits && walk.at == rows.size() && walk.end == uapi::page_size;
}
static_assert(is_the_table_of<Vmcs12>(vmcs12_fields));
static_assert(is_the_table_of<Vmcb12>(vmcb12_fields));

/// Whether the table is still taken for the image's after `change` to one row: the check can fail.
template <class Image>
consteval bool is_taken_with(auto rows, std::size_t row, auto change) {
    change(rows[row]);
    return is_the_table_of<Image>(rows);
}
constexpr auto moved = [](Field& field) { ++field.offset; };
constexpr auto widened = [](Field& field) { field.size = static_cast<std::uint16_t>(2 * field.size); };
constexpr auto renamed = [](Field& field) { field.name = field.name.substr(1); };
static_assert(is_taken_with<Vmcs12>(detail::vmcs12_rows, 70, [](Field&) {}));
static_assert(!is_taken_with<Vmcs12>(detail::vmcs12_rows, 70, moved));
static_assert(!is_taken_with<Vmcs12>(detail::vmcs12_rows, 0, widened));
static_assert(!is_taken_with<Vmcs12>(detail::vmcs12_rows, 153, renamed));
static_assert(!is_taken_with<Vmcb12>(detail::vmcb12_rows, 3, renamed));  // intercepts[3]
static_assert(!is_taken_with<Vmcb12>(detail::vmcb12_rows, 60, renamed)); // a segment register's
static_assert(!is_the_table_of<Vmcs12>(vmcs12_fields.first(vmcs12_fields.size() - 1)));

/// An encoding says width and group, and no two fields share one (Intel SDM Vol. 3 section 25.11.2).
consteval bool encodings_fit(std::span<const Field> rows) {
    for (const auto& field : rows) {
        if (field.encoding == no_encoding)
            continue;
        const auto width = vmcs_width(field.encoding);
        const std::size_t size = width == VmcsWidth::bits_16 ? 2 : width == VmcsWidth::bits_32 ? 4 : 8;
        if (field.size != size || field.group != vmcs_group(field.encoding)
            || find_vmcs12_field(field.encoding) != &field)
            return false;
    }
    return true;
}
static_assert(encodings_fit(vmcs12_fields));

/// Whether each field that comparing leaves out is dropped or says why.
consteval bool every_ignored_field_has_a_reason(std::span<const Field> rows) {
    for (const auto& field : rows)
        if (field.ignore != Ignore::never && field.on_set != OnSet::ignores && field.note.empty())
            return false;
    return true;
}
static_assert(every_ignored_field_has_a_reason(vmcs12_fields)
              && every_ignored_field_has_a_reason(vmcb12_fields));

} // namespace
} // namespace kvm::nested
