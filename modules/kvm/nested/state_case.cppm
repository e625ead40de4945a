// SPDX-License-Identifier: MIT
//
// What the rules of both vendors look at, and what they share: the header's first checks, addresses, control
// registers.
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:state_case;
import :uapi;
import :vendor;
import :bit_layout;
import :field;
import :header;
import :error;
import :destination;
import :rule;

export namespace kvm::nested {

constexpr Known negation(Known value) noexcept {
    return value == Known::yes ? Known::no : value == Known::no ? Known::yes : Known::unknown;
}
constexpr Known both(Known a, Known b) noexcept {
    if (a == Known::no || b == Known::no)
        return Known::no;
    return a == Known::yes && b == Known::yes ? Known::yes : Known::unknown;
}

/// The bytes of a state and the vCPU that they are for.
class StateCase {
  public:
    /// @param payload what there is behind the header, whatever the header's size says
    constexpr StateCase(const uapi::StateHeader& header, std::span<const std::byte> payload,
                        const Destination& to) noexcept
        : header_{header}, payload_{payload}, to_{&to} {}

    constexpr const uapi::StateHeader& header() const noexcept { return header_; }
    constexpr std::span<const std::byte> payload() const noexcept { return payload_; }
    /// How many bytes of the state are there.
    constexpr std::size_t given() const noexcept { return uapi::header_size + payload_.size(); }
    constexpr const Destination& to() const noexcept { return *to_; }
    constexpr bool has(std::uint16_t flag) const noexcept { return (header_.flags & flag) != 0; }
    /// Whether the kernel comes as far as that with this state.
    constexpr bool reaches(Reached step) const noexcept { return (reached_ & bit(step)) != 0; }

    // --- judgements

    static constexpr Judgement violated(bool violation, std::uint16_t offset,
                                        std::uint64_t bits = 0) noexcept {
        return violation ? Judgement{Judgement::Outcome::violated, offset, Needs::bytes, bits} : holds;
    }
    static constexpr Judgement unknown(Needs missing, std::uint16_t offset) noexcept {
        return {Judgement::Outcome::unknown, offset, missing, 0};
    }
    /// The answer of newer kernels or of older ones; both, if it is not known which this is.
    static constexpr Judgement either(Known newer, Judgement of_newer, Judgement of_older,
                                      std::uint16_t offset) noexcept {
        if (newer != Known::unknown)
            return newer == Known::yes ? of_newer : of_older;
        return of_newer.outcome == of_older.outcome ? of_newer : unknown(Needs::kernel, offset);
    }
    constexpr Judgement needs_feature(Feature feature, std::uint16_t offset) const noexcept {
        return if_known(negation(to().guest[feature]), Needs::guest_cpuid, violated(true, offset));
    }

    /// All of `size` bytes from `value` on can be addressed. Below 4 GB they always can.
    constexpr Known addressable(std::uint64_t value, std::uint64_t size) const noexcept {
        constexpr unsigned most = 52, least = 32;
        const auto last = value + size - 1;
        if (value >> most != 0 || last >> most != 0)
            return Known::no;
        if (to().maxphyaddr) {
            const unsigned width =
                *to().maxphyaddr < most ? *to().maxphyaddr : most; // a record may say anything
            return known(std::optional{value >> width == 0 && last >> width == 0});
        }
        return value >> least == 0 && last >> least == 0 ? Known::yes : Known::unknown;
    }
    /// A guest physical address of something.
    constexpr Judgement address(std::uint64_t value, std::uint64_t alignment, std::uint64_t size,
                                std::uint16_t offset) const noexcept {
        return value % alignment != 0
                   ? violated(true, offset, alignment - 1)
                   : if_known(negation(addressable(value, size)), Needs::maxphyaddr, violated(true, offset));
    }
    /// CR3 without the bits that choose linear-address masking, where the guest has that.
    constexpr Judgement legal_cr3(std::uint64_t value, std::uint16_t offset) const noexcept {
        constexpr std::uint64_t lam = std::uint64_t{3} << 61;
        const auto plain =
            if_known(negation(addressable(value, 1)), Needs::maxphyaddr, violated(true, offset));
        if ((value & lam) == 0)
            return plain;
        const auto masked =
            if_known(negation(addressable(value & ~lam, 1)), Needs::maxphyaddr, violated(true, offset));
        const auto has_lam = both(from_6_12.in(to().kernel), to().guest[Feature::lam]);
        if (has_lam != Known::unknown)
            return has_lam == Known::yes ? masked : plain;
        return masked.outcome == plain.outcome ? plain : unknown(Needs::guest_cpuid | Needs::kernel, offset);
    }
    /// Bits of a linear address with four levels of paging, and with five.
    static constexpr unsigned narrow_addresses = 48, wide_addresses = 57;
    /// Whether all bits from the highest of `width` on are the same.
    static constexpr bool is_canonical(std::uint64_t value, unsigned width) noexcept {
        const auto shift = 64 - width;
        return static_cast<std::uint64_t>(static_cast<std::int64_t>(value << shift) >> shift) == value;
    }
    /// A linear address of 48 bits, or 57 where `wide`, and `more` than that.
    static constexpr Judgement canonical(std::uint64_t value, Known wide, Needs missing, std::uint16_t offset,
                                         unsigned more = 0) noexcept {
        if (is_canonical(value, narrow_addresses + more))
            return holds;
        if (!is_canonical(value, wide_addresses + more))
            return violated(true, offset);
        return if_known(negation(wide), missing, violated(true, offset));
    }
    static constexpr bool is_valid_pat(std::uint64_t value) noexcept {
        for (unsigned i = 0; i < 8; ++i) {
            const auto type = value >> 8 * i & 0xff;
            if (type > 7 || type == 2 || type == 3)
                return false;
        }
        return true;
    }
    /// CR4 bits that KVM does not know, or that the guest's or the host's CPUID has not.
    constexpr Judgement reserved_cr4(std::uint64_t value, std::uint16_t offset) const noexcept {
        using enum Cr4;
        constexpr auto always = mask(vme, pvi, tsd, de, pse, pae, mce, pge, pce, osfxsr, osxmmexcpt, pcide,
                                     osxsave, smep, fsgsbase, la57, vmxe, smap, pke, umip);
        struct Row {
            Cr4 bit;
            Feature feature;
        };
        constexpr auto with_feature = std::to_array<Row>({{osxsave, Feature::xsave},
                                                          {smep, Feature::smep},
                                                          {smap, Feature::smap},
                                                          {fsgsbase, Feature::fsgsbase},
                                                          {pke, Feature::pku},
                                                          {la57, Feature::la57},
                                                          {umip, Feature::umip},
                                                          {vmxe, Feature::vmx},
                                                          {pcide, Feature::pcid},
                                                          {lam_sup, Feature::lam}});
        const auto surplus = value & ~(always | mask(lam_sup, cet));
        auto judgement = violated(surplus != 0, offset, surplus);
        if ((value & mask(lam_sup)) != 0)
            judgement = all(judgement, if_known(negation(from_6_12.in(to().kernel)), Needs::kernel,
                                                violated(true, offset, mask(lam_sup))));
        if ((value & mask(cet)) != 0) {
            const auto either_has = [](const Features& features) {
                return negation(both(negation(features[Feature::shstk]), negation(features[Feature::ibt])));
            };
            judgement = all(
                judgement,
                if_known(negation(from_7.in(to().kernel)), Needs::kernel, violated(true, offset, mask(cet))),
                if_known(negation(both(either_has(to().guest), either_has(to().host))),
                         Needs::guest_cpuid | Needs::host_cpuid, violated(true, offset, mask(cet))));
        }
        for (const auto& row : with_feature)
            if ((value & mask(row.bit)) != 0)
                judgement = all(judgement,
                                if_known(negation(to().guest[row.feature]), Needs::guest_cpuid,
                                         violated(true, offset, mask(row.bit))),
                                if_known(negation(to().host[row.feature]), Needs::host_cpuid,
                                         violated(true, offset, mask(row.bit))));
        return judgement;
    }
    /// EFER bits that KVM does not know, or that the guest's CPUID has not.
    constexpr Judgement efer(std::uint64_t value, std::uint16_t offset) const noexcept {
        using enum Efer;
        const auto svm_host =
            known(to().vendor ? std::optional{*to().vendor == VendorId::svm} : std::nullopt);
        constexpr auto always = mask(sce, lme, lma, nxe);
        const auto surplus = value & ~(always | mask(svme, lmsle, ffxsr, aibrse));
        const auto with = [&](Efer bit, Known there, Needs missing) {
            return (value & mask(bit)) == 0
                       ? holds
                       : if_known(negation(there), missing, violated(true, offset, mask(bit)));
        };
        const auto guest_and_host = [&](Feature feature) {
            return both(to().guest[feature], to().host[feature]);
        };
        return all(violated(surplus != 0, offset, surplus),
                   with(svme, both(svm_host, to().guest[Feature::svm]), Needs::guest_cpuid),
                   with(lmsle, svm_host, Needs::vendor),
                   with(ffxsr, both(svm_host, guest_and_host(Feature::fxsr_opt)), Needs::guest_cpuid),
                   with(aibrse,
                        both(both(svm_host, from_6_12.in(to().kernel)), guest_and_host(Feature::autoibrs)),
                        Needs::guest_cpuid | Needs::host_cpuid | Needs::kernel),
                   with(lme, to().guest[Feature::lm], Needs::guest_cpuid),
                   with(lma, to().guest[Feature::lm], Needs::guest_cpuid),
                   with(nxe, to().guest[Feature::nx], Needs::guest_cpuid));
    }

  protected:
    constexpr void reach(Reached step) noexcept {
        reached_ = static_cast<std::uint8_t>(reached_ | bit(step));
    }

  private:
    static constexpr std::uint8_t bit(Reached step) noexcept {
        return static_cast<std::uint8_t>(1U << static_cast<unsigned>(step));
    }

    uapi::StateHeader header_;
    std::span<const std::byte> payload_;
    const Destination* to_;
    std::uint8_t reached_ = bit(Reached::always);
};

} // namespace kvm::nested

namespace kvm::nested::detail {

template <class Case>
inline constexpr auto common_rules = std::to_array<Rule<Case>>({
    {.id = "X1",
     .holds = "the vendor module was loaded with nested=1",
     .needs = Needs::nested | Needs::kernel,
     .applies = from_7,
     .advice = "load the module with nested=1",
     .judge =
         [](const Case& c) noexcept {
             return if_known(negation(known(c.to().nested)), Needs::nested, c.violated(true, 0));
         }},
    // Where it cannot, there is nothing to ask the others about: check() says so itself.
    {.id = "X2",
     .holds = "the header can be read",
     .fields = "size",
     .needs = Needs::caller_memory,
     .answer = Answer::efault,
     .advice = "a state begins with a header of 128 bytes",
     .judge = [](const Case&) noexcept { return holds; }},
    {.id = "X3",
     .holds = "the size is at least that of the header, 128",
     .fields = "size",
     .cause = Errc::bad_size,
     .is_last = true,
     .judge =
         [](const Case& c) noexcept {
             return c.violated(c.header().size < uapi::header_size, header_offset("size"));
         }},
    {.id = "P1",
     .holds = "the size is one that KVM itself reports",
     .fields = "size",
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .cause = Errc::bad_size,
     .advice = "KVM takes it and reports another size afterwards",
     .judge =
         [](const Case& c) noexcept {
             const auto size = c.header().size;
             return c.violated(size > uapi::header_size && size != uapi::header_size + uapi::page_size
                                   && size != capacity(Case::vendor),
                               header_offset("size"));
         }},
    {.id = "X4",
     .holds = "no unknown flag is set",
     .fields = "flags",
     .cause = Errc::unknown_flags,
     .judge =
         [](const Case& c) noexcept {
             const auto unknown = c.header().flags & ~uapi::state_flag::known;
             return c.violated(unknown != 0, header_offset("flags"), static_cast<std::uint64_t>(unknown));
         }},
    {.id = "X5",
     .holds = "an entry is pending only while L2 is active",
     .fields = "flags",
     .cause = Errc::run_pending_outside_l2,
     .judge =
         [](const Case& c) noexcept {
             return c.violated(c.has(uapi::state_flag::run_pending) && !c.has(uapi::state_flag::guest_mode),
                               header_offset("flags"), uapi::state_flag::run_pending);
         }},
});

template <class Case, std::size_t A, std::size_t B>
consteval std::array<Rule<Case>, A + B> joined(const std::array<Rule<Case>, A>& a,
                                               const std::array<Rule<Case>, B>& b) {
    std::array<Rule<Case>, A + B> all{};
    std::ranges::copy(b, std::ranges::copy(a, all.begin()).out);
    return all;
}

} // namespace kvm::nested::detail
