// SPDX-License-Identifier: MIT
//
// What bits mean. The tables are data: here is that they are sound, and the facts that matter most by hand.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::BitLayout;
using kvm::nested::BitsForm;
using kvm::nested::Field;
using kvm::nested::ValueKind;
namespace bit_layout = kvm::nested::bit_layout;

consteval bool bits_are_apart(const BitLayout& what, unsigned width) {
    std::uint64_t seen = what.always_ones;
    for (const auto& bits : what.bits) {
        if (bits.first > bits.last || bits.last >= width || (seen & bits.mask()) != 0)
            return false;
        if ((bits.form == BitsForm::flag) != (bits.first == bits.last))
            return false;
        seen |= bits.mask();
    }
    return true;
}

/// Addresses are redacted whoever writes the row.
consteval bool addresses_are_redacted(const BitLayout& what) {
    return std::ranges::none_of(
        what.bits, [](const auto& bits) { return bits.form == BitsForm::address && !bits.redacted; });
}

consteval bool tables_are_sound(std::span<const Field> fields) {
    for (const auto& field : fields) {
        const auto& what = *field.bit_layout;
        if (!bits_are_apart(what, 8u * (field.size < 8 ? field.size : 8)))
            return false;
        if (!addresses_are_redacted(what) || (what.kind == ValueKind::bits) == what.bits.empty()
            || (what.kind == ValueKind::code) == what.values.empty())
            return false;
    }
    return true;
}
static_assert(tables_are_sound(kvm::nested::vmcs12_fields) && tables_are_sound(kvm::nested::vmcb12_fields));

consteval bool values_rise(std::span<const kvm::nested::NamedValue> values) {
    return std::ranges::is_sorted(values, [](const auto& a, const auto& b) {
        return std::max(a.value, a.last) < std::max(b.value, b.last);
    });
}
static_assert(values_rise(bit_layout::vmx_exit_reasons) && values_rise(bit_layout::vm_instruction_errors));
static_assert(
    values_rise(std::span{bit_layout::svm_exit_codes}.first<bit_layout::svm_exit_codes.size() - 4>()));

// --- enumerations and names are one

/// The name of an enumerator, as the compiler spells it; nothing where the number has none.
template <auto E>
consteval std::string_view enumerator() {
    std::string_view text =
        __PRETTY_FUNCTION__; // ... [E = kvm::nested::Cr0::pe] or [E = (kvm::nested::Cr0)6]
    text = text.substr(text.rfind(' ') + 1);
    if (text.front() == '(')
        return {};
    text = text.substr(text.rfind(':') + 1);
    return text.substr(0, text.size() - 1);
}

constexpr bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/// Whether an enumerator is what the rule in bit_layout.cppm makes of a manual's name.
constexpr bool names(std::string_view enumerator, std::string_view name) {
    std::size_t at = 0;
    const auto takes = [&](char c) { return at < enumerator.size() && enumerator[at++] == c; };
    for (std::size_t i = 0; i < name.size(); ++i) {
        const bool io =
            name[i] == '/' && (i == 1 || name[i - 2] == ' ') && (i + 2 == name.size() || name[i + 2] == ' ');
        if (io)
            continue;
        if (is_word(name[i])) {
            if (!takes(name[i] >= 'A' && name[i] <= 'Z' ? static_cast<char>(name[i] - 'A' + 'a') : name[i]))
                return false;
        } else if (at > 0 && enumerator[at - 1] != '_' && !takes('_')) {
            return false;
        }
    }
    return enumerator.substr(at).empty() || enumerator == "if_"; // a keyword
}
static_assert(names("enable_ept", "enable EPT") && names("use_io_bitmaps", "use I/O bitmaps"));
static_assert(names("ept_violation_ve", "EPT-violation #VE")
              && names("enable_xsaves_xrstors", "enable XSAVES/XRSTORS"));
static_assert(names("db", "D/B") && names("if_", "IF") && names("pf", "#PF"));
static_assert(!names("enable_ep", "enable EPT") && !names("enable_ept_", "enable EPT") && !names("pg", "PE"));

/// Whether each flag of `layout` has the enumerator of its name at its place, and no other bit has one.
/// `first` is the number of the enumeration's that is bit 0.
template <class E, unsigned first, unsigned... bit>
consteval bool is_numbered_by(const BitLayout& layout, std::integer_sequence<unsigned, bit...>) {
    const auto flag_at = [&](unsigned n) -> std::string_view {
        for (const auto& bits : layout.bits)
            if (bits.form == BitsForm::flag && bits.first == n)
                return bits.name;
        return {};
    };
    return (names(enumerator<static_cast<E>(first + bit)>(), flag_at(bit)) && ...);
}
template <class E>
consteval bool is_one_with_its_layout() {
    return is_numbered_by<E, 0>(*bit_layout::of<E>, std::make_integer_sequence<unsigned, 64>{});
}
template <class... E>
consteval bool are_one_with_their_layouts() {
    return (is_one_with_its_layout<E>() && ...);
}
namespace vmx = kvm::nested::vmx;
namespace svm = kvm::nested::svm;
using kvm::nested::Cr0, kvm::nested::Cr4, kvm::nested::Efer, kvm::nested::Rflags;
static_assert(are_one_with_their_layouts<Cr0, Cr4, Efer, Rflags, kvm::nested::Dr6, kvm::nested::Dr7,
                                         kvm::nested::DebugCtl, kvm::nested::SCet, kvm::nested::Exception,
                                         kvm::nested::PageFaultError>());
static_assert(
    are_one_with_their_layouts<vmx::PinBased, vmx::Primary, vmx::Secondary, vmx::ExitControl,
                               vmx::EntryControl, vmx::VmFunction, vmx::EptPointer, vmx::EntryEvent,
                               vmx::ExitEvent, vmx::VectoringEvent, vmx::ExitReasonFlag, vmx::AccessRight,
                               vmx::Interruptibility, vmx::PendingDebug, vmx::VmcsRevision>());
static_assert(are_one_with_their_layouts<svm::ErapControl, svm::IntCtl, svm::IntState, svm::MiscCtl,
                                         svm::MiscCtl2, svm::Clean, svm::Event, svm::Attribute>());
static_assert(are_one_with_their_layouts<vmx::FeatureControl, vmx::Basic, vmx::Misc, vmx::EptVpidCap,
                                         vmx::Tertiary, vmx::SecondaryExitControl, svm::Feature>());
constexpr std::make_integer_sequence<unsigned, 32> word;
static_assert(!is_numbered_by<Cr0, 0>(bit_layout::cr4, word)
              && !is_numbered_by<Cr0, 1>(bit_layout::cr0, word));
static_assert(is_numbered_by<svm::Intercept, 96>(bit_layout::intercept_word3, word)
              && is_numbered_by<svm::Intercept, 128>(bit_layout::intercept_word4, word)
              && is_numbered_by<svm::Intercept, 160>(bit_layout::intercept_word5, word));

// --- values

// Intel SDM Vol. 3 chapter 25: the bits that the rules of VM entry speak of.
static_assert(mask(vmx::PinBased::virtual_nmis) == 1u << 5);
static_assert(mask(vmx::PinBased::process_posted_interrupts) == 1u << 7);
static_assert(mask(vmx::Primary::use_tpr_shadow) == 1u << 21);
static_assert(mask(vmx::Primary::use_msr_bitmaps) == 1u << 28);
static_assert(mask(vmx::Primary::activate_secondary_controls) == 1u << 31);
static_assert(mask(vmx::Secondary::enable_ept) == 1u << 1);
static_assert(mask(vmx::Secondary::vmcs_shadowing) == 1u << 14);
static_assert(mask(vmx::Secondary::enable_pml) == 1u << 17);
static_assert(mask(vmx::ExitControl::host_address_space_size) == 1u << 9);
static_assert(mask(vmx::ExitControl::save_vmx_preemption_timer_value) == 1u << 22);
static_assert(mask(vmx::EntryControl::ia_32e_mode_guest) == 1u << 9);
static_assert(mask(vmx::EntryControl::load_cet_state) == 1u << 20);
static_assert(mask(vmx::AccessRight::unusable) == 1u << 16);
static_assert(mask(vmx::AccessRight::l) == 1u << 13);
static_assert(mask(svm::Attribute::l) == 1u << 9);
static_assert(mask(svm::Intercept::msr_prot) == 1u << 28);
static_assert(mask(svm::Intercept::vmrun) == 1u << 0);
static_assert(mask(svm::IntCtl::v_nmi_enable) == 1u << 26);
static_assert(mask(svm::MiscCtl::np_enable) == 1u << 0);
static_assert(mask(Efer::svme) == 1u << 12 && mask(Cr4::la57) == 1u << 12 && mask(Rflags::vm) == 1u << 17);
static_assert(mask(Cr4::fred) == 1ull << 32);
static_assert(mask(Cr0::pe, Cr0::pg) == 0x8000'0001);

static_assert(kvm::nested::bits(bit_layout::rflags, "IOPL").of(0x3246) == 3);
static_assert(find(bit_layout::cr0, "PG")->mask() == 1u << 31 && !find(bit_layout::cr0, "PGG"));

TEST_CASE("control bits are read, set and cleared by the manuals' names") {
    kvm::nested::Vmcs12 vmcs{};
    set(vmcs.secondary_vm_exec_control, vmx::Secondary::enable_ept, vmx::Secondary::enable_vpid);
    CHECK(vmcs.secondary_vm_exec_control == 0x22);
    CHECK(has(vmcs.secondary_vm_exec_control, vmx::Secondary::enable_ept));
    CHECK_FALSE(has(vmcs.secondary_vm_exec_control, vmx::Secondary::enable_pml));
    clear(vmcs.secondary_vm_exec_control, vmx::Secondary::enable_ept);
    CHECK(vmcs.secondary_vm_exec_control == 0x20);

    kvm::nested::Vmcb12 vmcb{};
    set(vmcb.intercepts, svm::Intercept::vmrun, svm::Intercept::cpuid, svm::Intercept::invpcid);
    CHECK(vmcb.intercepts == svm::Intercepts{0, 0, 0, 1u << 18, 1, 4});
    CHECK(has(vmcb.intercepts, svm::Intercept::cpuid));
    CHECK(has(std::uint64_t{vmcb.intercepts[4]}, svm::Intercept::vmrun));
    clear(vmcb.intercepts, svm::Intercept::vmrun);
    CHECK_FALSE(has(vmcb.intercepts, svm::Intercept::vmrun));
    set(vmcb.int_ctl, svm::IntCtl::v_irq);
    CHECK(vmcb.int_ctl == 0x100);
}

// The reserved bits that are 1, next to the named ones that were (Intel SDM Vol. 3 appendix A: what may not
// be 0 without the TRUE capability MSRs).
constexpr bool is_known(const BitLayout& what, std::uint64_t value) {
    return kvm::nested::undefined_bits(what, value) == 0;
}
static_assert(is_known(bit_layout::pin_based, 0x16) && is_known(bit_layout::primary, 0x0401'e172));
static_assert(is_known(bit_layout::exit_controls, 0x0003'6dff)
              && is_known(bit_layout::entry_controls, 0x11ff));
static_assert(is_known(bit_layout::rflags, 0x2) && is_known(bit_layout::dr6, 0xffff'0ff0)
              && is_known(bit_layout::dr7, 0x400));
static_assert(kvm::nested::undefined_bits(bit_layout::pin_based, 0x1'0016) == 0x1'0000);
static_assert(kvm::nested::undefined_bits(bit_layout::rflags, 0x8002) == 0x8000);

constexpr std::string_view named(std::span<const kvm::nested::NamedValue> values, std::uint64_t value) {
    const auto found = find(values, value);
    return found ? found->name : "";
}

TEST_CASE("exit reasons and codes are those of the manuals") {
    CHECK(named(bit_layout::vmx_exit_reasons, 0) == "exception or NMI");
    CHECK(named(bit_layout::vmx_exit_reasons, 10) == "CPUID");
    CHECK(named(bit_layout::vmx_exit_reasons, 18) == "VMCALL");
    CHECK(named(bit_layout::vmx_exit_reasons, 33) == "invalid guest state");
    CHECK(named(bit_layout::vmx_exit_reasons, 48) == "EPT violation");
    CHECK(named(bit_layout::vmx_exit_reasons, 52) == "VMX-preemption timer expired");
    CHECK(named(bit_layout::vmx_exit_reasons, 35).empty());
    CHECK(named(bit_layout::svm_exit_codes, 0x72) == "CPUID");
    CHECK(named(bit_layout::svm_exit_codes, 0x7c) == "RDMSR or WRMSR");
    CHECK(named(bit_layout::svm_exit_codes, 0x81) == "VMMCALL");
    CHECK(named(bit_layout::svm_exit_codes, 0x400) == "nested page fault");
    CHECK(named(bit_layout::svm_exit_codes, ~0ull) == "invalid guest state");
    CHECK(named(bit_layout::svm_exit_codes, 0x13) == "write of CR");
    CHECK(named(bit_layout::svm_exit_codes, 0x04) == "read of CR");
    CHECK(named(bit_layout::svm_exit_codes, 0x5f).empty());
    CHECK(named(bit_layout::svm_exit_codes, 0x404).empty());
    CHECK(named(bit_layout::exception_names, 14) == "#PF");
    CHECK(named(bit_layout::vm_instruction_errors, 7) == "VM entry with invalid control fields");
}

TEST_CASE("parts of a value are taken out of their place") {
    constexpr auto type = find(bit_layout::svm_event, "");
    static_assert(type.has_value() && type->of(0x8000'0b0e) == 3);
    constexpr auto vector = find(bit_layout::svm_event, "vector");
    static_assert(vector.has_value() && vector->of(0x8000'0b0e) == 14);
    constexpr auto root = find(bit_layout::ept_pointer, "root");
    static_assert(root.has_value() && (root->mask() & 0x12'3456'705e) == 0x12'3456'7000);
    static_assert(kvm::nested::NamedBits{0, 63, ""}.mask() == ~0ull
                  && kvm::nested::NamedBits{63, 63, ""}.mask() == 1ull << 63);
}

} // namespace
