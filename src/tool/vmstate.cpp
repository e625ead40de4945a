// SPDX-License-Identifier: MIT
#include "vmstate.hpp"

#include <algorithm>
#include <format>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

namespace kvm::tool {

namespace {

using Json = nlohmann::json;
using Done = std::expected<void, Trouble>;

// QEMU's names for them: QEMU_VM_EOF and so on.
constexpr std::byte end_of_sections{0x00}, full_section{0x04}, subsection{0x05}, description{0x06},
    section_footer{0x7e};

/// Of a description. That of a machine with 2 vCPUs has 110 KB, and each further vCPU adds 20 KB.
constexpr std::size_t longest = (std::size_t{1} << 24) - 1;
/// Of a description. A field of the nested state is on level 11.
constexpr unsigned deepest = 64;

constexpr std::string_view take_it_again = "migrate again, to a file on a disk with room, and wait until "
                                           "`info migrate` says completed; types of machines "
                                           "before 2.4 have no description";
constexpr std::string_view no_footers = "the streams of machine types up to 2.3 have no footers behind their "
                                        "sections, and are not read; of another "
                                        "report this, with the version of the QEMU that wrote it";
constexpr std::string_view report = "report this, with the version of the QEMU that wrote it";

std::unexpected<Trouble> trouble(std::size_t offset, std::string reason, std::string_view next_step) {
    return std::unexpected{
        Trouble{.reason = std::move(reason), .offset = offset, .next_step = std::string{next_step}}};
}

std::string_view text_of(Bytes bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// --- finding the description

/// Why the stream does not end with a description.
std::unexpected<Trouble> without_description(Bytes stream) {
    constexpr std::size_t footer = 1 + 4;
    const auto size = stream.size();
    if (size > footer && stream[size - 1] == end_of_sections && stream[size - 1 - footer] == section_footer)
        return trouble(
            size,
            "the stream is complete, but without the description of its fields that QEMU writes at the end",
            "migrate again, without going over to postcopy, and without suppress-vmdesc=on in -machine");
    return trouble(
        size,
        "the stream does not end with the description of its fields: it is cut off, or something follows it",
        take_it_again);
}

/// The offset of its tag.
std::expected<std::size_t, Trouble> find_description(Bytes stream) {
    if (stream.empty() || stream.back() != std::byte{'}'})
        return without_description(stream);
    // Text up to the byte that is none. This is one of the length's, of which the first is 0: up to three
    // more may look like text.
    constexpr std::size_t header = 1 + 4;
    const auto is_text = [](std::byte byte) { return byte >= std::byte{' '}; };
    const auto searched = stream.last(std::min(stream.size(), longest + header));
    const auto text = std::ranges::find_last_if_not(searched, is_text);
    if (text.empty() && searched.size() < stream.size())
        return trouble(stream.size() - searched.size(),
                       std::format("the description at the end is longer than {} bytes", longest), report);
    const auto begin = stream.size() - (text.empty() ? searched.size() : text.size() - 1);
    for (auto tag = begin - std::min(begin, header); tag + 2 <= begin; ++tag)
        if (stream[tag] == description && stream.size() - tag > header
            && big_endian(stream.subspan(tag + 1, 4)) == stream.size() - tag - header)
            return tag;
    return without_description(stream);
}

/// Brackets inside each other, which the parser below would take any number of.
unsigned depth_of(std::string_view json) {
    unsigned depth = 0, most = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (in_string) {
            i += c == '\\' ? 1 : 0;
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            most = std::max(most, ++depth);
        } else if ((c == '}' || c == ']') && depth > 0) {
            --depth;
        }
    }
    return most;
}

// --- what is in it

/// An error has the description's offset: a value inside has none of its own.
class Reader {
  public:
    Reader(Bytes stream, std::size_t description) : stream_{stream}, description_{description} {}

    std::expected<std::vector<DeviceSection>, Trouble> sections(const Json& devices, std::string_view name);

  private:
    std::unexpected<Trouble> malformed(std::string reason) const {
        return trouble(description_, std::move(reason), report);
    }

    /// A string member; nothing where there is none.
    static std::string_view string(const Json& object, const char* key) {
        const auto found = object.find(key);
        return found != object.end() && found->is_string()
                   ? std::string_view{found->get_ref<const std::string&>()}
                   : std::string_view{};
    }
    static std::optional<std::uint64_t> number(const Json& object, const char* key) {
        const auto found = object.find(key);
        if (found == object.end() || !found->is_number_unsigned())
            return std::nullopt;
        return found->get<std::uint64_t>();
    }
    /// The elements of an array member; none where there is no such.
    static const Json::array_t& array(const Json& object, const char* key) {
        static const Json::array_t none;
        const auto found = object.find(key);
        return found != object.end() && found->is_array() ? found->get_ref<const Json::array_t&>() : none;
    }

    /// Adds to a size; no sum is larger than the stream.
    Done add(std::size_t& sum, std::uint64_t size) const {
        if (size > stream_.size() - sum)
            return malformed("the fields in the description are larger than the whole stream");
        sum += static_cast<std::size_t>(size);
        return {};
    }

    std::expected<std::size_t, Trouble> size_of_field(const Json& field) const;
    std::expected<std::size_t, Trouble> size_of(const Json& structure) const;
    std::size_t subsection_header(const Json& structure) const {
        return 1 + 1 + string(structure, "vmsd_name").size() + 4;
    }

    std::expected<std::size_t, Trouble> begin_of_section(const Json& device, std::size_t end) const;
    Done place(const Json& structure, std::size_t& at, DeviceSection& section) const;
    Done place_subsection(const Json& structure, std::size_t& at, DeviceSection& section) const;

    Bytes stream_;
    std::size_t description_;
};

std::expected<std::size_t, Trouble> Reader::size_of_field(const Json& field) const {
    const auto size = field.is_object() ? number(field, "size") : std::nullopt;
    if (!size)
        return malformed("a field in the description has no size");
    const bool is_array = field.contains("array_len"); // then the size is that of one element
    const auto elements = is_array ? number(field, "array_len") : 1;
    if (!elements)
        return malformed("an array in the description has no length");
    if (*size != 0 && *elements > stream_.size() / *size)
        return malformed(std::format("the field {} in the description is larger than the whole stream",
                                     printable(string(field, "name"))));
    return static_cast<std::size_t>(*size * *elements);
}

/// All of a device or a subsection that lies behind its header.
std::expected<std::size_t, Trouble> Reader::size_of(const Json& structure) const {
    std::size_t sum = 0;
    for (const auto& field : array(structure, "fields"))
        if (const auto added =
                size_of_field(field).and_then([&](std::size_t size) { return add(sum, size); });
            !added)
            return std::unexpected{added.error()};
    for (const auto& inner : array(structure, "subsections")) {
        if (!inner.is_object())
            return malformed("a subsection in the description is none");
        const auto added =
            size_of(inner).and_then([&](std::size_t size) { return add(sum, size); }).and_then([&] {
                return add(sum, subsection_header(inner));
            });
        if (!added)
            return std::unexpected{added.error()};
    }
    return sum;
}

/// Checks that there is a section of this device which ends there, and tells where it begins.
std::expected<std::size_t, Trouble> Reader::begin_of_section(const Json& device, std::size_t end) const {
    constexpr std::size_t footer = 1 + 4;
    const auto name = string(device, "name");
    const auto instance = number(device, "instance_id");
    if (name.empty() || name.size() > 255 || !instance)
        return malformed("a device in the description has no name or no number");
    const auto size = size_of(device);
    if (!size)
        return size;
    const auto header = 1 + 4 + 1 + name.size() + 4 + 4;
    const auto misplaced = [&](std::size_t offset, std::string_view what) {
        return trouble(offset,
                       std::format("the section of {} {} {} where the description puts it", printable(name),
                                   *instance, what),
                       no_footers);
    };
    if (end < footer || end - footer < *size || end - footer - *size < header)
        return misplaced(0, "does not fit");
    const auto begin = end - footer - *size - header;
    const auto head = stream_.subspan(begin, header);
    const auto version = number(device, "version");
    if (head[0] != full_section || std::to_integer<std::size_t>(head[5]) != name.size()
        || text_of(head.subspan(6, name.size())) != name
        || big_endian(head.subspan(header - 8, 4)) != *instance
        || (version && big_endian(head.last(4)) != *version))
        return misplaced(begin, "does not begin");
    if (stream_[end - footer] != section_footer
        || !std::ranges::equal(stream_.subspan(end - footer + 1, 4), head.subspan(1, 4)))
        return misplaced(end - footer, "does not end");
    return begin;
}

/// The fields at `at` and then the subsections; afterwards `at` is behind them. Every size has been added up
/// before and is inside the stream.
Done Reader::place(const Json& structure, std::size_t& at, DeviceSection& section) const {
    const auto owner = string(structure, "vmsd_name");
    for (const auto& field : array(structure, "fields")) {
        const auto size = size_of_field(field);
        if (!size)
            return std::unexpected{size.error()};
        section.fields.try_emplace(std::format("{}:{}", owner, string(field, "name")), at, *size);
        if (const auto inner = field.find("struct");
            inner != field.end() && inner->is_object() && !field.contains("array_len")) {
            const auto sum = size_of(*inner);
            if (!sum)
                return std::unexpected{sum.error()};
            if (*sum != *size)
                return malformed(
                    std::format("the parts of {} in the description have {} bytes, and all of it {}",
                                printable(string(field, "name")), *sum, *size));
            auto inside = at;
            if (const auto placed = place(*inner, inside, section); !placed)
                return placed;
        }
        at += *size;
    }
    for (const auto& inner : array(structure, "subsections"))
        if (const auto placed = place_subsection(inner, at, section); !placed)
            return placed;
    return {};
}

Done Reader::place_subsection(const Json& structure, std::size_t& at, DeviceSection& section) const {
    const auto name = string(structure, "vmsd_name");
    const auto header = stream_.subspan(at, subsection_header(structure));
    if (header[0] != subsection || std::to_integer<std::size_t>(header[1]) != name.size()
        || text_of(header.subspan(2, name.size())) != name)
        return trouble(
            at,
            std::format("the subsection {} does not begin where the description puts it", printable(name)),
            report);
    at += header.size();
    return place(structure, at, section);
}

std::expected<std::vector<DeviceSection>, Trouble> Reader::sections(const Json& devices,
                                                                    std::string_view name) {
    std::vector<DeviceSection> result;
    const auto wanted = [&](const Json& device) { return string(device, "name") == name; };
    const auto first = std::ranges::find_if(
        devices, [&](const Json& device) { return device.is_object() && wanted(device); });
    // Back to the first that is wanted and no further: what QEMU writes before the guest's memory is
    // described first, and is elsewhere.
    auto end = description_ - 1;
    for (auto device = devices.end(); device != first;) {
        --device;
        if (!device->is_object())
            return malformed("a device in the description is none");
        const auto begin = begin_of_section(*device, end);
        if (!begin)
            return std::unexpected{begin.error()};
        if (wanted(*device)) {
            DeviceSection section{.instance = *number(*device, "instance_id"), .fields = {}};
            auto at = *begin + 1 + 4 + 1 + name.size() + 4 + 4;
            if (const auto placed = place(*device, at, section); !placed)
                return std::unexpected{placed.error()};
            result.push_back(std::move(section));
        }
        end = *begin;
    }
    std::ranges::reverse(result);
    return result;
}

} // namespace

std::uint64_t big_endian(Bytes bytes) {
    std::uint64_t value = 0;
    for (const auto byte : bytes)
        value = value << 8 | std::to_integer<std::uint64_t>(byte);
    return value;
}

std::string printable(std::string_view text) {
    constexpr std::size_t most = 64;
    std::string result{text.substr(0, most)};
    std::ranges::replace_if(result, [](char c) { return c < ' ' || c > '~'; }, '?');
    return text.size() > most ? result + "..." : result;
}

std::expected<std::vector<DeviceSection>, Trouble> device_sections(Bytes stream, std::string_view name) {
    const auto tag = find_description(stream);
    if (!tag)
        return std::unexpected{tag.error()};
    const auto text = text_of(stream.subspan(*tag + 5));
    if (*tag == 0 || stream[*tag - 1] != end_of_sections)
        return trouble(*tag, "the description at the end does not follow the end of the sections", report);
    if (depth_of(text) > deepest)
        return trouble(*tag, "the description at the end has too many levels", report);
    const auto parsed = Json::parse(text, nullptr, false);
    const auto devices = parsed.is_object() ? parsed.find("devices") : parsed.end();
    if (!parsed.is_object() || devices == parsed.end() || !devices->is_array())
        return trouble(*tag, "the description at the end is not JSON, or has no devices in it", report);
    return Reader{stream, *tag}.sections(*devices, name);
}

} // namespace kvm::tool
