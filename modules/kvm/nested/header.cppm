// SPDX-License-Identifier: MIT
//
// The header of a nested state, field by field: the 128 bytes that it begins with, which both vendors share
// up to the size and lay out each for itself behind it.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:header;
import :uapi;
import :vendor;
import :bit_layout;
import :field;

namespace kvm::nested::detail {

using uapi::StateHeader;
using uapi::SvmHeader;
using uapi::VmxHeader;

/// Places come from the layouts in :uapi, which src/kvm/nested/uapi.cpp holds against the kernel's header.
consteval std::uint16_t in_vendors_part(std::size_t offset) {
    return static_cast<std::uint16_t>(offsetof(StateHeader, vendor) + offset);
}

// Name, offset, size, group, what KVM_SET_NESTED_STATE does with it, bit layout.
inline constexpr std::array vmx_header_rows = std::to_array<Field>({
    {"flags", offsetof(StateHeader, flags), sizeof(StateHeader::flags), FieldGroup::header,
     OnSet::checks_and_uses, &bit_layout::state_flags},
    {"format", offsetof(StateHeader, format), sizeof(StateHeader::format), FieldGroup::header, OnSet::checks,
     &bit_layout::state_format},
    {"size", offsetof(StateHeader, size), sizeof(StateHeader::size), FieldGroup::header,
     OnSet::checks_and_uses, &bit_layout::number},
    {"hdr.vmx.vmxon_pa", in_vendors_part(offsetof(VmxHeader, vmxon_pa)), sizeof(VmxHeader::vmxon_pa),
     FieldGroup::header, OnSet::checks_and_uses, &bit_layout::address},
    {"hdr.vmx.vmcs12_pa", in_vendors_part(offsetof(VmxHeader, vmcs12_pa)), sizeof(VmxHeader::vmcs12_pa),
     FieldGroup::header, OnSet::checks_and_uses, &bit_layout::address},
    {"hdr.vmx.smm.flags", in_vendors_part(offsetof(VmxHeader, smm_flags)), sizeof(VmxHeader::smm_flags),
     FieldGroup::header, OnSet::checks_and_uses, &bit_layout::smm_flags},
    {"hdr.vmx.pad", in_vendors_part(offsetof(VmxHeader, padding)), sizeof(VmxHeader::padding),
     FieldGroup::reserved, OnSet::ignores, &bit_layout::bytes},
    {"hdr.vmx.flags", in_vendors_part(offsetof(VmxHeader, flags)), sizeof(VmxHeader::flags),
     FieldGroup::header, OnSet::checks_and_uses, &bit_layout::vmx_header_flags},
    {"hdr.vmx.preemption_timer_deadline", in_vendors_part(offsetof(VmxHeader, preemption_timer_deadline)),
     sizeof(VmxHeader::preemption_timer_deadline), FieldGroup::header, OnSet::uses, &bit_layout::value},
    {"hdr.pad", in_vendors_part(offsetof(VmxHeader, reserved)), sizeof(VmxHeader::reserved),
     FieldGroup::reserved, OnSet::ignores, &bit_layout::bytes},
});
inline constexpr std::array svm_header_rows = std::to_array<Field>({
    vmx_header_rows[0], // flags, format and size are common
    vmx_header_rows[1],
    vmx_header_rows[2],
    {"hdr.svm.vmcb_pa", in_vendors_part(offsetof(SvmHeader, vmcb12_pa)), sizeof(SvmHeader::vmcb12_pa),
     FieldGroup::header, OnSet::checks_and_uses, &bit_layout::address},
    {"hdr.svm.gpat", in_vendors_part(offsetof(SvmHeader, gpat)), sizeof(SvmHeader::gpat), FieldGroup::header,
     OnSet::checks_and_uses, &bit_layout::pat, no_encoding, FirstSeen::linux_7,
     "7.x, with KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT disabled"},
    {"hdr.pad", in_vendors_part(offsetof(SvmHeader, reserved)), sizeof(SvmHeader::reserved),
     FieldGroup::reserved, OnSet::ignores, &bit_layout::bytes},
});

/// Whether the rows cover the header without a gap, in order.
consteval bool covers_the_header(std::span<const Field> rows) {
    std::size_t end = 0;
    for (const auto& row : rows) {
        if (row.offset != end)
            return false;
        end = row.end();
    }
    return end == uapi::header_size;
}
static_assert(covers_the_header(vmx_header_rows) && covers_the_header(svm_header_rows));

inline void the_header_has_no_one_field_of_this_name() noexcept {}

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// The header of a state of `vendor` as fields in the order of their offsets, padding included.
constexpr std::span<const Field> header_fields(VendorId vendor) noexcept {
    if (vendor == VendorId::vmx)
        return detail::vmx_header_rows;
    return detail::svm_header_rows;
}

/// The header's field of that name, as the kernel spells it; null if `vendor` has none.
constexpr const Field* find_header_field(VendorId vendor, std::string_view name) noexcept {
    for (const auto& field : header_fields(vendor))
        if (field.name == name)
            return &field;
    return nullptr;
}

/// Where a field of the header is in the state: header_offset("hdr.vmx.vmxon_pa"). A name that is none does
/// not compile, nor does hdr.pad, which each vendor has elsewhere.
consteval std::uint16_t header_offset(std::string_view name) {
    const auto* in_vmx = find_header_field(VendorId::vmx, name);
    const auto* in_svm = find_header_field(VendorId::svm, name);
    const auto* field = in_vmx != nullptr ? in_vmx : in_svm;
    if (field == nullptr || (in_svm != nullptr && in_svm->offset != field->offset))
        detail::the_header_has_no_one_field_of_this_name();
    return field->offset;
}

} // namespace kvm::nested
