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

consteval bool tables_are_sound(std::span<const Field> fields) {
    for (const auto& field : fields) {
        const auto& what = *field.bit_layout;
        if (!bits_are_apart(what, 8u * (field.size < 8 ? field.size : 8)))
            return false;
        if ((what.kind == ValueKind::bits) == what.bits.empty()
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

constexpr std::uint64_t bit(const BitLayout& what, std::string_view name) {
    const auto bits = find(what, name);
    return bits ? bits->mask() : 0;
}

// Intel SDM Vol. 3 chapter 25: the bits that the rules of VM entry speak of.
static_assert(bit(bit_layout::pin_based, "virtual NMIs") == 1u << 5);
static_assert(bit(bit_layout::pin_based, "process posted interrupts") == 1u << 7);
static_assert(bit(bit_layout::cpu_based, "use TPR shadow") == 1u << 21);
static_assert(bit(bit_layout::cpu_based, "use MSR bitmaps") == 1u << 28);
static_assert(bit(bit_layout::cpu_based, "activate secondary controls") == 1u << 31);
static_assert(bit(bit_layout::secondary, "enable EPT") == 1u << 1);
static_assert(bit(bit_layout::secondary, "VMCS shadowing") == 1u << 14);
static_assert(bit(bit_layout::secondary, "enable PML") == 1u << 17);
static_assert(bit(bit_layout::exit_controls, "host address-space size") == 1u << 9);
static_assert(bit(bit_layout::exit_controls, "save VMX-preemption timer value") == 1u << 22);
static_assert(bit(bit_layout::entry_controls, "IA-32e mode guest") == 1u << 9);
static_assert(bit(bit_layout::entry_controls, "load CET state") == 1u << 20);
static_assert(bit(bit_layout::vmx_access_rights, "unusable") == 1u << 16);
static_assert(bit(bit_layout::vmx_access_rights, "L") == 1u << 13);
static_assert(bit(bit_layout::svm_attributes, "L") == 1u << 9);
static_assert(bit(bit_layout::intercept_word3, "MSR_PROT") == 1u << 28);
static_assert(bit(bit_layout::intercept_word4, "VMRUN") == 1u << 0);
static_assert(bit(bit_layout::int_ctl, "V_NMI_ENABLE") == 1u << 26);
static_assert(bit(bit_layout::misc_ctl, "NP_ENABLE") == 1u << 0);
static_assert(bit(bit_layout::efer, "SVME") == 1u << 12);
static_assert(bit(bit_layout::cr4, "LA57") == 1u << 12);
static_assert(bit(bit_layout::rflags, "VM") == 1u << 17);
static_assert(bit(bit_layout::cr0, "no such bit") == 0);

// The reserved bits that are 1, next to the named ones that were (Intel SDM Vol. 3 appendix A: what may not
// be 0 without the TRUE capability MSRs).
constexpr bool is_known(const BitLayout& what, std::uint64_t value) {
    return kvm::nested::undefined_bits(what, value) == 0;
}
static_assert(is_known(bit_layout::pin_based, 0x16) && is_known(bit_layout::cpu_based, 0x0401'e172));
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
