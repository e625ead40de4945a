// SPDX-License-Identifier: MIT
//
// The parts that a state consists of, and which field each of its bytes belongs to.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
export module kvm.nested:parts;
import :uapi;
import :vendor;
import :field;
import :header;
import :vmcs12;
import :vmcb12;

export namespace kvm::nested {

/// The parts that a state consists of.
enum class Part : std::uint8_t { header, vmcs12, shadow_vmcs12, vmcb };
std::string_view name(Part) noexcept;

/// Where a part begins in a state.
constexpr std::size_t begin_of(Part part) noexcept {
    return part == Part::header          ? 0
           : part == Part::shadow_vmcs12 ? uapi::header_size + uapi::page_size
                                         : uapi::header_size;
}

/// A part of the largest state of a vendor: where it begins, and its fields.
struct PartLayout {
    Part part;
    std::size_t begin;
    std::span<const Field> fields;

    constexpr std::size_t end() const noexcept { return begin + fields.back().end(); }
};

} // namespace kvm::nested

namespace kvm::nested::detail {

inline constexpr std::array vmx_parts = std::to_array<PartLayout>({
    {Part::header, begin_of(Part::header), header_fields(VendorId::vmx)},
    {Part::vmcs12, begin_of(Part::vmcs12), vmcs12_fields},
    {Part::shadow_vmcs12, begin_of(Part::shadow_vmcs12), vmcs12_fields},
});
inline constexpr std::array svm_parts = std::to_array<PartLayout>({
    {Part::header, begin_of(Part::header), header_fields(VendorId::svm)},
    {Part::vmcb, begin_of(Part::vmcb), vmcb12_fields},
});
static_assert(vmx_parts.back().end() == Vmx::capacity && svm_parts.back().end() == Svm::capacity);

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// The parts of the largest state of `vendor`, in order and without a gap.
constexpr std::span<const PartLayout> parts_of(VendorId vendor) noexcept {
    if (vendor == VendorId::vmx)
        return detail::vmx_parts;
    return detail::svm_parts;
}

/// Whether comparing leaves `field` out, see Ignore. A shadow vmcs12 is L2's VMCS for its own guests: what L2
/// has yet to read in it is not ignored because L2 is active.
constexpr bool is_ignored(const Field& field, Part part, bool l2_active) noexcept {
    return field.ignore == Ignore::always
           || (field.ignore == Ignore::with_l2_active && l2_active && part != Part::shadow_vmcs12);
}

/// A field and the part that it is in.
struct FieldOfState {
    Part part;
    const Field* field; ///< null behind the state
};

/// What the byte at `offset` of a state of `vendor` belongs to.
constexpr FieldOfState field_at(VendorId vendor, std::size_t offset) noexcept {
    for (const auto& part : parts_of(vendor))
        for (const auto& field : part.fields)
            if (part.begin + field.offset <= offset && offset < part.begin + field.end())
                return {part.part, &field};
    return {Part::header, nullptr};
}

} // namespace kvm::nested
