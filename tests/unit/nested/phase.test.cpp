// SPDX-License-Identifier: MIT
//
// The whole phase table, walked, against the kernel's rules written down a second time and in another form.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <map>
#include <span>
#include <string_view>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Errc;
using kvm::nested::Phase;
using unit::Bytes;
using unit::none;
using unit::SvmBlob;
using unit::VmxBlob;

/// What decides the phase of a VMX state.
struct VmxFacts {
    std::uint16_t flags = 0;
    std::uint64_t vmxon_pa = none;
    std::uint64_t vmcs12_pa = none;
    std::uint16_t smm_flags = 0;
    std::uint32_t vmx_flags = 0;
    std::uint32_t size = 0;
    std::uint32_t revision = 0x11e57ed0;
    bool links_shadow = false;
    std::uint32_t shadow_revision = 0x91e57ed0;
};

/// What decides the phase of an SVM state.
struct SvmFacts {
    std::uint16_t flags = 0;
    std::uint32_t size = 0;
    std::uint64_t vmcb12_pa = 0;
    bool intercepts_vmrun = true;
    std::uint32_t asid = 1;
};

/// As much of two pages as a state of `size` bytes has.
std::span<const std::byte> payload(std::span<const std::byte> pages, std::uint32_t size) {
    return pages.first(std::clamp<std::size_t>(size, 128, 128 + pages.size()) - 128);
}

std::expected<Phase, kvm::nested::Error> phase_of(const VmxFacts& s) {
    static Bytes pages(8192);
    unit::put(pages, 0, s.revision);
    unit::put(pages, 176, s.links_shadow ? std::uint64_t{0x7000} : none); // the link pointer
    unit::put(pages, 748, 1u << 31);                                      // secondary controls
    unit::put(pages, 804, s.links_shadow ? 1u << 14 : 0u);                // VMCS shadowing
    unit::put(pages, 4096, s.shadow_revision);
    const kvm::nested::uapi::StateHeader header{
        .flags = s.flags,
        .format = 0,
        .size = s.size,
        .vendor = {s.vmxon_pa, s.vmcs12_pa, s.smm_flags | std::uint64_t{s.vmx_flags} << 32}};
    return kvm::nested::phase_of(header, payload(pages, s.size));
}

std::expected<Phase, kvm::nested::Error> phase_of(const SvmFacts& s) {
    static Bytes page(4096);
    unit::put(page, 0x10, s.intercepts_vmrun ? 1u : 0u);
    unit::put(page, 0x58, s.asid);
    const kvm::nested::uapi::StateHeader header{
        .flags = s.flags, .format = 1, .size = s.size, .vendor = {s.vmcb12_pa}};
    return kvm::nested::phase_of(header, payload(page, s.size));
}

/// Of a header and what follows it.
VmxFacts vmx_facts(const kvm::nested::uapi::StateHeader& header) {
    const auto vmx = std::bit_cast<kvm::nested::uapi::VmxHeader>(header.vendor);
    return {.flags = header.flags,
            .vmxon_pa = vmx.vmxon_pa,
            .vmcs12_pa = vmx.vmcs12_pa,
            .smm_flags = vmx.smm_flags,
            .vmx_flags = vmx.flags,
            .size = header.size};
}
SvmFacts svm_facts(const kvm::nested::uapi::StateHeader& header) {
    return {.flags = header.flags,
            .size = header.size,
            .vmcb12_pa = std::bit_cast<kvm::nested::uapi::SvmHeader>(header.vendor).vmcb12_pa};
}

/// The first of the kernel's rules that a VMX state breaks by itself; empty: the kernel would take it, the
/// vCPU permitting. In the kernel's words and order (vmx_set_nested_state and its caller, Linux 6.1 to 7.3).
std::string_view kernel_refuses(const VmxFacts& s) {
    const bool guest_mode = s.flags & 0x1, run_pending = s.flags & 0x2, evmcs = s.flags & 0x4;
    if (s.size < 128)
        return "X3";
    if (s.flags & ~0x010f)
        return "X4";
    if (run_pending && !guest_mode)
        return "X5";
    if (s.vmxon_pa == none) {
        if (s.smm_flags)
            return "V2";
        if (s.vmcs12_pa != none)
            return "V3";
        if (s.flags & ~0x4)
            return "V4";
    } else if ((s.vmxon_pa & 0xfff) || s.vmxon_pa >> 52) { // no processor addresses more
        return "V6";
    }
    if ((s.smm_flags & 0x1) && guest_mode)
        return "V7";
    if (s.smm_flags & ~0x3)
        return "V8";
    if (s.vmx_flags & ~0x1u)
        return "V9";
    if (s.smm_flags && (guest_mode || run_pending)) // the vCPU cannot be in SMM and outside of it
        return "V10";
    if ((s.smm_flags & 0x1) && !(s.smm_flags & 0x2))
        return "V11";
    if (s.vmxon_pa == none)
        return ""; // V13
    if (s.size < 128 + 998) {
        if (guest_mode || evmcs || s.vmcs12_pa != none)
            return "V15";
        return "";
    }
    if (s.vmcs12_pa != none) {
        if (s.vmcs12_pa == s.vmxon_pa || (s.vmcs12_pa & 0xfff) || s.vmcs12_pa >> 52)
            return "V16";
    } else if (!evmcs) {
        return "V17";
    }
    if ((s.revision & 0x7fffffff) != 0x11e57ed0)
        return "V19";
    if (!guest_mode)
        return ""; // V20
    if (s.links_shadow) {
        if (s.size < 128 + 4096 + 998)
            return "V21";
        if (s.shadow_revision != 0x91e57ed0)
            return "V23";
    }
    return "";
}

std::string_view kernel_refuses(const SvmFacts& s) {
    if (s.size < 128)
        return "X3";
    if (s.flags & ~0x010f)
        return "X4";
    if ((s.flags & 0x2) && !(s.flags & 0x1))
        return "X5";
    if (s.flags & ~0x0103)
        return "S2";
    if (!(s.flags & 0x1))
        return ""; // S5
    if ((s.vmcb12_pa & 0xfff) || s.vmcb12_pa >> 52)
        return "S6";
    if (s.size < 4224)
        return "S7";
    if (!s.intercepts_vmrun)
        return "S9";
    if (s.asid == 0)
        return "S10";
    return "";
}

Errc cause_of(std::string_view rule) {
    static const std::map<std::string_view, Errc> causes{
        {"X3", Errc::bad_size},
        {"X4", Errc::unknown_flags},
        {"X5", Errc::run_pending_outside_l2},
        {"V2", Errc::smm_without_vmxon},
        {"V3", Errc::vmcs12_without_vmxon},
        {"V4", Errc::flags_without_vmxon},
        {"V6", Errc::bad_vmxon_address},
        {"V7", Errc::l2_active_in_smm},
        {"V8", Errc::unknown_smm_flags},
        {"V9", Errc::unknown_vmx_flags},
        {"V10", Errc::l2_active_in_smm},
        {"V11", Errc::smm_l2_without_smm_vmxon},
        {"V15", Errc::payload_missing},
        {"V16", Errc::bad_vmcs12_address},
        {"V17", Errc::payload_without_vmcs12},
        {"V19", Errc::bad_vmcs12_revision},
        {"V21", Errc::shadow_vmcs12_missing},
        {"V23", Errc::bad_shadow_vmcs12_revision},
        {"S2", Errc::flags_of_other_vendor},
        {"S6", Errc::bad_vmcb12_address},
        {"S7", Errc::payload_missing},
        {"S9", Errc::vmrun_not_intercepted},
        {"S10", Errc::asid_zero},
    };
    return causes.at(rule);
}

/// What KVM_GET_NESTED_STATE means by it.
Phase meaning(const VmxFacts& s) {
    if (s.vmxon_pa == none)
        return Phase::vmx_off;
    const bool page = s.size > 128;
    switch (s.smm_flags) {
    case 0:
        return s.flags & 1 ? Phase::vmx_l2_active : page ? Phase::vmx_current_vmcs : Phase::vmx_vmxon_only;
    case 2:
        return page ? Phase::vmx_smm_current_vmcs : Phase::vmx_smm_vmxon_only;
    default:
        return Phase::vmx_smm_interrupted_l2;
    }
}

Phase meaning(const SvmFacts& s) {
    return s.flags & 1       ? Phase::svm_l2_active
           : s.flags & 0x100 ? Phase::svm_outside_l2_gif_set
                             : Phase::svm_outside_l2_gif_clear;
}

bool size_is_ours(const VmxFacts& s) {
    return s.size == 128 || s.size == 4224 || s.size == 8320;
}
bool size_is_ours(const SvmFacts& s) {
    return s.size == 128 || s.size == 4224;
}

/// An SMI that came from L2 leaves a vmcs12 behind; a state without one is taken by the kernel and made by
/// none.
bool lacks_interrupted_l2(const VmxFacts& s) {
    return (s.smm_flags & 1) && s.size == 128;
}
bool lacks_interrupted_l2(const SvmFacts&) {
    return false;
}

template <class Facts>
std::expected<Phase, Errc> expected_of(const Facts& facts) {
    if (!size_is_ours(facts))
        return std::unexpected{Errc::bad_size};
    if (const auto rule = kernel_refuses(facts); !rule.empty())
        return std::unexpected{cause_of(rule)};
    if (lacks_interrupted_l2(facts))
        return std::unexpected{Errc::payload_missing};
    return meaning(facts);
}

/// Compares without doctest's help: there are millions.
struct Walk {
    std::size_t states = 0, phases = 0;
    std::map<Phase, std::size_t> seen;
    std::map<Errc, std::size_t> refused;

    template <class Facts>
    void visit(const Facts& facts) {
        ++states;
        const auto got = phase_of(facts);
        const auto want = expected_of(facts);
        if (got)
            ++seen[*got], ++phases;
        else
            ++refused[got.error().code];
        const bool same = got ? want && *want == *got : !want && want.error() == got.error().code;
        if (same)
            return;
        CAPTURE(facts.flags);
        CAPTURE(facts.size);
        if constexpr (requires { facts.vmxon_pa; }) {
            CAPTURE(facts.vmxon_pa);
            CAPTURE(facts.vmcs12_pa);
            CAPTURE(facts.smm_flags);
            CAPTURE(facts.vmx_flags);
            CAPTURE(facts.revision);
            REQUIRE_MESSAGE(same, "the table and the rules disagree");
        }
        REQUIRE_MESSAGE(same, "the table and the rules disagree");
    }
};

constexpr std::array<std::uint32_t, 17> sizes = {0,    1,    127,  128,  129,  1125, 1126, 2112,       4223,
                                                 4224, 4225, 5221, 5222, 8319, 8320, 8321, 0xffff'ffff};

TEST_CASE("every VMX state has the phase or the refusal that the kernel's rules give it") {
    Walk walk;
    // The five flags in every combination, and each unknown one next to them.
    for (unsigned known = 0; known < 32; ++known)
        for (unsigned unknown = 0; unknown < 12; ++unknown) {
            auto flags = static_cast<std::uint16_t>((known & 0xf) | (known & 0x10) << 4);
            if (unknown != 0) {
                if (known % 4 != 0)
                    continue; // one unknown flag is enough to be refused
                flags |= static_cast<std::uint16_t>(unknown < 5 ? 0x8 << unknown : 0x10 << unknown);
            }
            for (const std::uint64_t vmxon_pa :
                 {none, std::uint64_t{0}, std::uint64_t{0x1000}, std::uint64_t{0x1008}})
                for (const std::uint64_t vmcs12_pa :
                     {none, std::uint64_t{0}, std::uint64_t{0x1000}, std::uint64_t{0x2000},
                      std::uint64_t{0x2001}, std::uint64_t{0x1008}, std::uint64_t{0xffff'ffff'ffff'f000}})
                    for (const unsigned smm_flags : {0u, 1u, 2u, 3u, 4u, 7u, 0x8000u, 0xffffu})
                        for (const std::uint32_t vmx_flags : {0u, 1u, 2u, 0xffff'ffffu})
                            for (const auto size : sizes)
                                for (const std::uint32_t revision : {0x11e57ed0u, 0x91e57ed0u, 0x11e57ed1u})
                                    walk.visit(VmxFacts{flags, vmxon_pa, vmcs12_pa,
                                                        static_cast<std::uint16_t>(smm_flags), vmx_flags,
                                                        size, revision});
        }
    // Shadow VMCSs, with L2 active and without.
    for (const unsigned flags : {0u, 1u, 3u, 5u})
        for (const unsigned smm_flags : {0u, 2u, 3u})
            for (const auto size : sizes)
                for (const bool links_shadow : {false, true})
                    for (const std::uint32_t shadow_revision : {0x11e57ed0u, 0x91e57ed0u, 0u, 0x91e57ed1u})
                        walk.visit(VmxFacts{.flags = static_cast<std::uint16_t>(flags),
                                            .vmxon_pa = 0x1000,
                                            .vmcs12_pa = 0x2000,
                                            .smm_flags = static_cast<std::uint16_t>(smm_flags),
                                            .size = size,
                                            .links_shadow = links_shadow,
                                            .shadow_revision = shadow_revision});
    // Every value of the flags at all.
    for (unsigned flags = 0; flags <= 0xffff; ++flags)
        for (const std::uint64_t vmcs12_pa : {none, std::uint64_t{0x2000}})
            for (const std::uint64_t vmxon_pa : {none, std::uint64_t{0x1000}})
                for (const std::uint32_t size : {128u, 4224u})
                    walk.visit(VmxFacts{.flags = static_cast<std::uint16_t>(flags),
                                        .vmxon_pa = vmxon_pa,
                                        .vmcs12_pa = vmcs12_pa,
                                        .size = size});
    // Every value of the SMM flags.
    for (unsigned smm_flags = 0; smm_flags <= 0xffff; ++smm_flags)
        walk.visit(
            VmxFacts{.vmxon_pa = 0x1000, .smm_flags = static_cast<std::uint16_t>(smm_flags), .size = 128});

    MESSAGE(walk.states, " states, ", walk.phases, " of them with a phase");
    CHECK(walk.seen.size() == 7); // all phases of VMX were met
    CHECK(walk.refused.size() == 17);
    CHECK(walk.phases > 1000);
}

TEST_CASE("every SVM state has the phase or the refusal that the kernel's rules give it") {
    Walk walk;
    for (unsigned flags = 0; flags <= 0xffff; ++flags)
        for (const auto size : sizes)
            for (const std::uint64_t vmcb12_pa :
                 {std::uint64_t{0}, std::uint64_t{0x3000}, std::uint64_t{0x3123}, none})
                for (const bool intercepts_vmrun : {false, true})
                    for (const std::uint32_t asid : {0u, 1u})
                        walk.visit(SvmFacts{static_cast<std::uint16_t>(flags), size, vmcb12_pa,
                                            intercepts_vmrun, asid});
    CHECK(walk.seen.size() == 3);
    CHECK(walk.refused.size() == 8);
}

TEST_CASE("a refusal points at the field that the rule is about") {
    const auto detail = [](const VmxFacts& facts) { return phase_of(facts).error().detail; };
    CHECK(detail({.size = 127}) == 4);
    CHECK(detail({.flags = 0x10, .size = 128}) == 0);
    CHECK(detail({.smm_flags = 1, .size = 128}) == 24);
    CHECK(detail({.vmcs12_pa = 0x2000, .size = 128}) == 16);
    CHECK(detail({.vmxon_pa = 0x1000, .vmx_flags = 2, .size = 128}) == 28);
    CHECK(detail({.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224, .revision = 0}) == 128);
    CHECK(detail({.vmxon_pa = 0x1001, .size = 128}) == 8);
    VmxFacts shadow{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224, .links_shadow = true};
    CHECK(detail(shadow) == 4);
    shadow.size = 8320;
    shadow.shadow_revision = 0;
    CHECK(detail(shadow) == 128 + 4096);
    CHECK(phase_of(SvmFacts{.flags = 1, .size = 4224, .asid = 0}).error().detail == 128 + 0x58);
}

TEST_CASE("a canonical header keeps its phase, is canonical, and the kernel takes it") {
    std::size_t headers = 0;
    const Bytes vmx_pages = VmxBlob{.size = 8320}, svm_page = SvmBlob{.flags = 1, .size = 4224};
    for (const bool vmx : {true, false})
        for (unsigned flags = 0; flags < 0x110; ++flags)
            for (const std::uint64_t first : {none, std::uint64_t{0x1000}})
                for (const std::uint64_t second : {none, std::uint64_t{0x2000}})
                    for (const std::uint64_t third :
                         {0x0ull, 0x2ull, 0x3ull, 0x1'0000'0000ull, 0x1'dead'0002ull})
                        for (const std::uint32_t size : {128u, 4224u, 8320u}) {
                            kvm::nested::uapi::StateHeader header{
                                .flags = static_cast<std::uint16_t>(flags),
                                .format = static_cast<std::uint16_t>(vmx ? 0 : 1),
                                .size = size,
                                .vendor = {first, second, third, 77, 88, 99}};
                            const auto payload = [&](const auto& of) {
                                const auto all = std::span{vmx ? vmx_pages : svm_page}.subspan(128);
                                return all.first(std::min<std::size_t>(of.size - 128, all.size()));
                            };
                            const auto phase = kvm::nested::phase_of(header, payload(header));
                            if (!phase)
                                continue;
                            ++headers;
                            const auto once = kvm::nested::canonical(header, *phase, payload(header));
                            REQUIRE(kvm::nested::phase_of(once, payload(once)).value_or(Phase::none)
                                    == *phase);
                            REQUIRE(kvm::nested::canonical(once, *phase, payload(once)) == once);
                            REQUIRE(once.size <= header.size);
                            if (vmx)
                                REQUIRE(kernel_refuses(vmx_facts(once)).empty());
                            else
                                REQUIRE(kernel_refuses(svm_facts(once)).empty());
                        }
    CHECK(headers > 100);
}

TEST_CASE("every phase has a name of its own within its vendor") {
    for (int i = 0; i <= static_cast<int>(Phase::svm_l2_active); ++i)
        CHECK(kvm::nested::name(static_cast<Phase>(i)) != "?");
    CHECK(kvm::nested::name(static_cast<Phase>(200)) == "?");
}

} // namespace
