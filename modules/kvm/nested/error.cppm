// SPDX-License-Identifier: MIT
//
// What can go wrong, as values: which operation failed, why, and what became of the vCPU.
module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <system_error>
#include <type_traits>
export module kvm.nested:error;
import :text;
import :vendor;
import :effect;

export namespace kvm::nested {

/// Causes. Those that the kernel distinguishes stand alone; those that it does not share one that says so.
/// The rule numbers name the checks of KVM_SET_NESTED_STATE in the order in which the kernel makes them: X
/// common, V VMX, S SVM; the README lists them.
enum class Errc : std::uint8_t {
    // The host.
    not_supported = 1, ///< this KVM has no nested state at all
    nesting_off,       ///< the vendor module was loaded with nested=0
    /// KVM_CAP_NESTED_STATE is neither 8320 (VMX) nor 4224 (SVM): a kernel whose states this library does
    /// not know; detail: what it is
    capacity_unknown,
    vendor_unclear, ///< capacity and CPUID disagree about the vendor
    wrong_vendor,   ///< the other vendor's host or state

    // The descriptor.
    bad_descriptor,       ///< EBADF: not open
    not_a_kvm_descriptor, ///< open, but nothing of KVM's
    system_fd_given,      ///< /dev/kvm, where another descriptor belongs
    vm_fd_given,          ///< a VM, where another descriptor belongs
    vcpu_fd_given,        ///< a vCPU, where another descriptor belongs
    /// EIO: the VM belongs to another process (after fork, too) or KVM has given it up
    other_process_or_dead_vm,

    // The call.
    interrupted,      ///< EINTR: a fatal signal while another thread was in KVM_RUN on this vCPU
    bad_address,      ///< EFAULT
    out_of_memory,    ///< ENOMEM
    buffer_too_small, ///< E2BIG: a kernel whose states are larger than its own capacity says
    refused,          ///< EINVAL: one of the kernel's checks; it does not say which
    entry_failed, ///< KVM_SET_NESTED_STATE returned a positive number: all checks passed, entering L2 failed
    unexpected,   ///< an errno or a result that this operation is not known to give
    not_equivalent, ///< what the vCPU holds is not what was expected; detail: offset of the first difference

    // A state that no vCPU can be in. Errors of parse(); detail: offset of the field.
    no_state,                   ///< the buffer is empty
    too_short,                  ///< fewer bytes than the header takes, or than `size` says
    too_long,                   ///< more bytes than `size` says
    bad_size,                   ///< X3: `size` is not one that the kernel produces
    unknown_flags,              ///< X4
    run_pending_outside_l2,     ///< X5
    unknown_format,             ///< V1, S1: neither VMX nor SVM
    smm_without_vmxon,          ///< V2
    vmcs12_without_vmxon,       ///< V3
    flags_without_vmxon,        ///< V4
    bad_vmxon_address,          ///< V6: unaligned, or beyond 52 bits
    l2_active_in_smm,           ///< V7, V10
    unknown_smm_flags,          ///< V8
    unknown_vmx_flags,          ///< V9
    smm_l2_without_smm_vmxon,   ///< V11
    payload_missing,            ///< V15, S7: the phase needs a vmcs12 or VMCB and there is none
    payload_without_vmcs12,     ///< V17: a vmcs12 without an address, and not enlightened
    bad_vmcs12_address,         ///< V16: the same, or the VMXON region itself
    bad_vmcs12_revision,        ///< V19
    shadow_vmcs12_missing,      ///< V21: the vmcs12 links to a shadow VMCS and the state ends before it
    bad_shadow_vmcs12_revision, ///< V23: or not marked as a shadow VMCS
    flags_of_other_vendor,      ///< S2
    bad_vmcb12_address,         ///< S6: unaligned, or beyond 52 bits
    vmrun_not_intercepted,      ///< S9
    asid_zero,                  ///< S10
};

/// What failed.
enum class Operation : std::uint8_t {
    probe = 1,        ///< Host::probe
    get_nested_state, ///< KVM_GET_NESTED_STATE
    set_nested_state, ///< KVM_SET_NESTED_STATE
    verify,           ///< reading back and comparing
    parse,            ///< making a state of bytes
    narrow,           ///< NestedStateBuffer to NestedState, Host<Any> to Host<V>
};

/// What kind of descriptor a number is, as far as KVM can tell.
enum class DescriptorKind : std::uint8_t { unknown, not_open, not_kvm, system, vm, vcpu };

/// What Error::detail is.
enum class DetailKind : std::uint8_t {
    none,       ///< there is none, or Errc says what it is
    vmx_offset, ///< a byte of a VMX state, which message() gives by the name of its field
    svm_offset, ///< the same of an SVM state
    bytes,      ///< a number of bytes
};

/// The offset of a byte in a state of `vendor`.
constexpr DetailKind offset_in(VendorId vendor) noexcept {
    return vendor == VendorId::vmx ? DetailKind::vmx_offset : DetailKind::svm_offset;
}

/// A failure. Small, trivially copyable, no allocation.
struct [[nodiscard]] Error {
    Errc code;
    Operation operation;
    Effect effect = Effect::unchanged;
    DetailKind detail_kind = DetailKind::none;
    int raw_result = 0;       ///< what the ioctl returned; 0 where none was issued
    int error_number = 0;     ///< errno, where raw_result is negative
    std::uint64_t detail = 0; ///< what detail_kind and Errc say: an offset, a size, a capability

    /// Operation, cause, errno or raw result, detail, effect and a next step, in one line.
    Text<384> message() const noexcept;

    constexpr bool operator==(const Error&) const = default;
};
static_assert(std::is_trivially_copyable_v<Error> && sizeof(Error) == 24);

/// Whether a VMM that saves every vCPU has nothing to save here and may go on: the host nests no guests, so
/// no vCPU of it holds a nested state.
constexpr bool nothing_to_save(const Error& error) noexcept {
    return error.code == Errc::nesting_off || error.code == Errc::not_supported;
}

std::string_view name(Errc) noexcept;        ///< the enumerator's name
std::string_view description(Errc) noexcept; ///< the cause in a sentence
/// Error::detail as message() gives it: an offset by the name of its field. Empty: there is none.
Text<96> describe_detail(DetailKind, std::uint64_t detail) noexcept;
std::string_view next_step(Errc) noexcept; ///< what to do about it; empty: nothing but to look at the state
std::string_view name(Operation) noexcept; ///< the ioctl's name, or what the library does

/// What is known around a failed ioctl. All of it may be left out.
struct Context {
    DescriptorKind descriptor = DescriptorKind::unknown;
    std::span<const std::byte> attempted = {}; ///< KVM_SET_NESTED_STATE: what it was given
    std::span<const std::byte> found = {}; ///< what KVM_GET_NESTED_STATE shows afterwards; empty: it failed
    bool nesting_off = false;              ///< KVM_GET_NESTED_STATE fails with EINVAL on a vCPU, too
};

/// Turns what an ioctl came back with into an Error. Pure: asks nobody. `error_number` is consulted only
/// where `raw_result` is negative: KVM_SET_NESTED_STATE can return 2, and errno is then somebody else's.
Error classify(Operation operation, int raw_result, int error_number, const Context& context = {}) noexcept;

/// What an errno means for an ioctl that belongs on a `wanted` descriptor and was made on a `found` one.
Errc classify(DescriptorKind wanted, int error_number, DescriptorKind found) noexcept;

/// The macro's name ("EINVAL"), or "errno" for one that no operation of ours is known to give.
std::string_view errno_name(int error_number) noexcept;

/// The category of Errc as std::error_code. Each cause maps to a std::errc condition where there is one.
const std::error_category& error_category() noexcept;
std::error_code make_error_code(Errc) noexcept;

} // namespace kvm::nested

template <>
struct std::is_error_code_enum<kvm::nested::Errc> : std::true_type {};
