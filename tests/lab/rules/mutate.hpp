// SPDX-License-Identifier: MIT
//
// States that are nearly good: a good one with a few changes, the same ones for the same number.
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "../support/migration.hpp"

namespace rules {

using kvm::nested::VendorId;

/// Numbers that only look random (splitmix64).
class Random {
  public:
    Random(std::uint64_t seed, std::uint64_t number) : state_{seed * 0x9e37'79b9'7f4a'7c15 + number} {
        next();
    }
    std::uint64_t next() {
        auto z = state_ += 0x9e37'79b9'7f4a'7c15;
        z = (z ^ z >> 30) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ z >> 27) * 0x94d0'49bb'1331'11eb;
        return z ^ z >> 31;
    }
    std::uint64_t below(std::uint64_t limit) { return next() % limit; }
    bool one_in(std::uint64_t count) { return below(count) == 0; }
    template <class Range>
    auto& of(Range& range) {
        return range[below(std::size(range))];
    }

  private:
    std::uint64_t state_;
};

/// A field as bytes of a state.
struct Place {
    std::size_t begin;
    const kvm::nested::Field* field;
};

/// All fields of a vendor's states that are numbers, and those of them that a rule is about.
struct Places {
    std::vector<Place> all, header, in_rules;

    explicit Places(VendorId vendor) {
        for (const auto& part : kvm::nested::parts_of(vendor))
            for (const auto& field : part.fields) {
                if (!field.is_number())
                    continue;
                const Place place{part.begin + field.offset, &field};
                all.push_back(place);
                if (part.part == kvm::nested::Part::header)
                    header.push_back(place);
                for (const auto& rule : kvm::nested::rules(vendor))
                    if (names(rule.fields, field.name) && part.part != kvm::nested::Part::shadow_vmcs12) {
                        in_rules.push_back(place);
                        break;
                    }
            }
    }
    static bool names(std::string_view fields, std::string_view name) {
        for (std::size_t begin = 0; begin <= fields.size();) {
            const auto end = std::min(fields.find(", ", begin), fields.size());
            if (fields.substr(begin, end - begin) == name)
                return true;
            begin = end + 2;
        }
        return false;
    }
};

inline std::uint64_t get(std::span<const std::byte> state, const Place& place) {
    std::uint64_t value = 0;
    std::memcpy(&value, state.data() + place.begin, place.field->size);
    return value;
}
inline void put(std::span<std::byte> state, const Place& place, std::uint64_t value) {
    std::memcpy(state.data() + place.begin, &value, place.field->size);
}

/// A value that is worth trying in place of another one.
inline std::uint64_t interesting(Random& random, std::uint64_t before, unsigned bits, unsigned maxphyaddr) {
    const auto one = std::uint64_t{1};
    const std::array edges{std::uint64_t{0},
                           one,
                           ~std::uint64_t{0},
                           one << maxphyaddr,
                           (one << maxphyaddr) - 1,
                           (one << maxphyaddr) - 16,
                           (one << maxphyaddr) - 4096,
                           (one << maxphyaddr) - 8192,
                           (one << maxphyaddr) - 12288,
                           one << 52,
                           std::uint64_t{0x1000},
                           std::uint64_t{0x2000},
                           std::uint64_t{0x7000},
                           (one << 47) - 1,
                           one << 47,
                           ~std::uint64_t{0} << 47,
                           ~std::uint64_t{0} << 48,
                           one << 56,
                           ~std::uint64_t{0} << 56,
                           ~std::uint64_t{0} << 57,
                           one << 32,
                           std::uint64_t{3} << 61,
                           std::uint64_t{15},
                           std::uint64_t{16},
                           std::uint64_t{512},
                           std::uint64_t{513},
                           std::uint64_t{0x0007'0406'0007'0406}};
    switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
        return before ^ one << random.below(bits);
    case 3:
        return before ^ one << random.below(bits) ^ one << random.below(bits);
    case 4:
        return before + (random.one_in(2) ? 1 : ~std::uint64_t{0});
    case 5:
        return random.one_in(4) ? random.next() : random.below(32);
    default:
        return edges[random.below(edges.size())];
    }
}

/// One change, in words and done.
inline void change(Random& random, std::span<std::byte> state, const Places& places,
                   std::span<const lab::Bytes> good, unsigned maxphyaddr) {
    constexpr std::array<std::uint64_t, 18> sizes{0,    1,    127,  128,  129,   1125,
                                                  1126, 4095, 4223, 4224, 4225,  5221,
                                                  5222, 8319, 8320, 8321, 65536, 0xffff'ffff};
    // The first three are flags, format and size.
    switch (random.below(20)) {
    case 0:
        return put(state, places.header[2], sizes[random.below(sizes.size())]);
    case 1:
        return put(state, places.header[0], get(state, places.header[0]) ^ (1u << random.below(10)));
    case 2:
        return put(state, places.header[1], random.below(4));
    case 3: { // a part of another good state
        const auto& other = good[random.below(good.size())];
        const auto& from = random.of(places.all);
        const auto& to = random.of(places.all);
        const auto begin = std::min(from.begin, to.begin);
        const auto count =
            std::min<std::size_t>(std::max(from.begin, to.begin) - begin, 64 + random.below(512));
        std::memcpy(state.data() + begin, other.data() + begin, count);
        return;
    }
    case 4:
    case 5: {
        const auto& place = random.of(places.header);
        return put(state, place, interesting(random, get(state, place), place.field->size * 8u, maxphyaddr));
    }
    case 6:
    case 7: {
        const auto& place = random.of(places.all);
        return put(state, place, interesting(random, get(state, place), place.field->size * 8u, maxphyaddr));
    }
    default: {
        const auto& place = random.of(places.in_rules);
        return put(state, place, interesting(random, get(state, place), place.field->size * 8u, maxphyaddr));
    }
    }
}

} // namespace rules
