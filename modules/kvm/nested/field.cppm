// SPDX-License-Identifier: MIT
//
// One field of a vmcs12 or VMCB as data: where it is, what it is called, what it means and what KVM does with
// it.
module;
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
export module kvm.nested:field;
import :uapi;
import :bit_layout;

export namespace kvm::nested {

/// Whose state a field is.
enum class FieldGroup : std::uint8_t {
    header,    ///< of the nested state, or the words that a VMCS begins with
    control,   ///< L1's controls over L2
    l2_guest,  ///< VMX: L2's registers, but for those that travel with other ioctls
    l1_host,   ///< VMX: L1's registers, to which the next VM exit returns
    read_only, ///< VMX: information about the last VM exit
    l1_save,   ///< SVM: L1's registers, to which the next #VMEXIT returns
    reserved,  ///< no field: padding and reserved areas
};

std::string_view name(FieldGroup) noexcept;

/// What KVM_SET_NESTED_STATE does with a field where L2 is active, on Linux 6.1 to 7.3. (Where L1 runs, a
/// vmcs12 is kept as it is and nothing of it but the revision is looked at.)
enum class OnSet : std::uint8_t {
    ignores, ///< drops it: KVM_GET_NESTED_STATE does not show it again
    keeps,   ///< carries it along
    checks,  ///< may refuse the state because of it, and else carries it along
    uses,    ///< runs L2 or, later, L1 with it
    checks_and_uses,
};

std::string_view name(OnSet) noexcept;

/// The first kernel that was seen to have a field by its name. Offsets never move: before, the bytes were
/// padding.
enum class FirstSeen : std::uint8_t {
    linux_6_1, ///< 6.1 or before
    linux_7,   ///< after 6.12, up to 7.2
};

/// Where comparing two states leaves a field out, because a vCPU makes the same of both.
enum class Ignore : std::uint8_t {
    never,
    /// While L2 is active: information about the last VM exit, which the next one overwrites before L1 runs
    /// again, and what KVM keeps up to date. While L1 runs it is L1's data like any other.
    with_l2_active,
    always, ///< KVM_SET_NESTED_STATE does not bring it back, or KVM_GET_NESTED_STATE does not show it
};

/// A field without a VMCS encoding: VMCB fields, the header of a VMCS, reserved areas.
inline constexpr std::uint32_t no_encoding = ~std::uint32_t{0};

struct Field {
    std::string_view name; ///< as the kernel spells it
    std::uint16_t offset;  ///< in the page; of a VMCB field what the AMD APM gives in appendix B
    std::uint16_t size;    ///< in bytes, as stored
    FieldGroup group;
    OnSet on_set;
    const BitLayout* bit_layout;
    std::uint32_t encoding = no_encoding; ///< of a VMCS field: Intel SDM Vol. 3 appendix B
    FirstSeen first_seen = FirstSeen::linux_6_1;
    std::string_view note = {}; ///< where more is to be said about `on_set` and `ignore`
    /// What is dropped is ignored; where anything else is, the note says why.
    Ignore ignore = on_set == OnSet::ignores ? Ignore::always : Ignore::never;

    constexpr std::size_t end() const noexcept { return std::size_t{offset} + size; }
    /// One number of 1, 2, 4 or 8 bytes, not an area.
    constexpr bool is_number() const noexcept { return size <= 8 && bit_layout->kind != ValueKind::bytes; }
};

/// Width of a VMCS field, bits 14:13 of its encoding (Intel SDM Vol. 3 section 25.11.2).
enum class VmcsWidth : std::uint8_t { bits_16, bits_64, bits_32, natural };
constexpr VmcsWidth vmcs_width(std::uint32_t encoding) noexcept {
    return static_cast<VmcsWidth>(encoding >> 13 & 3);
}
/// Group of a VMCS field, bits 11:10 of its encoding.
constexpr FieldGroup vmcs_group(std::uint32_t encoding) noexcept {
    constexpr FieldGroup groups[] = {FieldGroup::control, FieldGroup::read_only, FieldGroup::l2_guest,
                                     FieldGroup::l1_host};
    return groups[encoding >> 10 & 3];
}

/// The number that a field holds. The page need not be aligned. Of an area: its first 8 bytes at most.
constexpr std::uint64_t read(std::span<const std::byte> page, const Field& field) noexcept {
    // One load where the size is one of a number, which compilers do not see in the loop.
    const auto as = [&]<class T>(T) -> std::uint64_t {
        T number;
        std::memcpy(&number, page.data() + field.offset, sizeof number);
        return number;
    };
    if (!std::is_constant_evaluated())
        switch (field.size) {
        case 1:
            return as(std::uint8_t{});
        case 2:
            return as(std::uint16_t{});
        case 4:
            return as(std::uint32_t{});
        case 8:
            return as(std::uint64_t{});
        default:
            break;
        }
    std::uint64_t value = 0;
    for (std::size_t i = field.size < 8 ? field.size : 8; i-- > 0;)
        value = value << 8 | std::to_integer<std::uint64_t>(page[field.offset + i]);
    return value;
}

/// A field and what one page holds in it.
struct FieldValue {
    const Field* field;
    std::uint64_t value; ///< as read() gives it
};

/// A page through a table of fields, without a copy. `Table` has fields(), all of them in the order of their
/// offsets. Valid as long as the page.
template <class Table>
class Fields {
  public:
#ifdef __clang__ // else the complaint is where a visitor is called, not where it has the wrong name
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wgcc-compat"
#define KVM_NESTED_NAME_EXISTS                                                                               \
    __attribute__((diagnose_if(Table::find(std::string_view{name}) == nullptr,                               \
                               "there is no field of this name", "error")))
#else
#define KVM_NESTED_NAME_EXISTS
#endif
    /// The name of a field that exists: a wrong one does not compile. (Where a name is known at run time
    /// only, find_vmcs12_field() and find_vmcb12_field() take it.)
    class Name {
      public:
        consteval Name(const char* name) KVM_NESTED_NAME_EXISTS
            : field_{Table::find(std::string_view{name})} {
            if (field_ == nullptr)
                there_is_no_field_of_this_name();
        }
        constexpr const Field& field() const noexcept { return *field_; }

      private:
        static void there_is_no_field_of_this_name() noexcept {}
        const Field* field_;
    };
#ifdef __clang__
#pragma clang diagnostic pop
#endif
#undef KVM_NESTED_NAME_EXISTS

    explicit constexpr Fields(std::span<const std::byte, uapi::page_size> page) noexcept : page_{page} {}

    constexpr std::span<const std::byte, uapi::page_size> page() const noexcept { return page_; }
    /// fields()["guest_rip"].
    constexpr std::uint64_t operator[](Name name) const noexcept { return read(page_, name.field()); }
    constexpr std::uint64_t operator[](const Field& field) const noexcept { return read(page_, field); }
    /// The bytes of a field.
    constexpr std::span<const std::byte> bytes(const Field& field) const noexcept {
        return page_.subspan(field.offset, field.size);
    }

    class Iterator {
      public:
        using value_type = FieldValue;
        using difference_type = std::ptrdiff_t;
        Iterator() = default;
        constexpr Iterator(const Fields* fields, const Field* at) noexcept : fields_{fields}, at_{at} {}
        constexpr FieldValue operator*() const noexcept { return {at_, (*fields_)[*at_]}; }
        constexpr Iterator& operator++() noexcept {
            ++at_;
            return *this;
        }
        constexpr Iterator operator++(int) noexcept {
            const auto before = *this;
            ++at_;
            return before;
        }
        constexpr bool operator==(const Iterator& other) const noexcept { return at_ == other.at_; }

      private:
        const Fields* fields_ = nullptr;
        const Field* at_ = nullptr;
    };
    /// All fields in the order of the page: for (const auto [field, value] : view.fields()) ...
    constexpr Iterator begin() const noexcept { return {this, Table::fields().data()}; }
    constexpr Iterator end() const noexcept {
        return {this, Table::fields().data() + Table::fields().size()};
    }

  private:
    std::span<const std::byte, uapi::page_size> page_;
};

} // namespace kvm::nested
