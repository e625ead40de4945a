// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>

#include "../causes.hpp"
module kvm.nested;

namespace kvm::nested {
namespace {

constexpr std::array causes = std::to_array<detail::CauseRow<Errc>>({
    {Errc::not_supported, "not_supported", "this KVM does not offer nested state",
     "use Linux 4.20 or later on x86", std::errc::function_not_supported},
    {Errc::nesting_off, "nesting_off", "nesting is switched off on this host",
     "load kvm_intel or kvm_amd with nested=1", std::errc::function_not_supported},
    {Errc::capacity_unknown, "capacity_unknown",
     "KVM's largest nested state has another size than 8320 bytes (VMX) or 4224 (SVM)",
     "update kvm.nested to one that knows this kernel's states", std::errc::function_not_supported},
    {Errc::vendor_unclear, "vendor_unclear", "KVM's capacity and its CPUID name different vendors",
     "report this host: no kernel is known to do that", std::errc::function_not_supported},
    {Errc::wrong_vendor, "wrong_vendor", "this belongs to the other CPU vendor",
     "nested state cannot cross from VMX to SVM or back", std::errc::invalid_argument},

    {Errc::bad_descriptor, "bad_descriptor", "the descriptor is not open",
     "keep it open as long as it is in use", std::errc::bad_file_descriptor},
    {Errc::not_a_kvm_descriptor, "not_a_kvm_descriptor", "the descriptor is nothing of KVM's",
     "pass what open(\"/dev/kvm\"), KVM_CREATE_VM or KVM_CREATE_VCPU gave",
     std::errc::inappropriate_io_control_operation},
    {Errc::system_fd_given, "system_fd_given", "the descriptor is /dev/kvm itself",
     "pass the descriptor of the right kind", std::errc::invalid_argument},
    {Errc::vm_fd_given, "vm_fd_given", "the descriptor is a VM's", "pass the descriptor of the right kind",
     std::errc::invalid_argument},
    {Errc::vcpu_fd_given, "vcpu_fd_given", "the descriptor is a vCPU's",
     "pass the descriptor of the right kind", std::errc::invalid_argument},
    {Errc::other_process_or_dead_vm, "other_process_or_dead_vm",
     "the VM belongs to another process (fork counts), or KVM has given it up; KVM does not tell which",
     "call from the process that created the VM; look for KVM's last words in the kernel log",
     std::errc::io_error},

    {Errc::interrupted, "interrupted", "a fatal signal came while another thread ran this vCPU",
     "stop the vCPU's thread first", std::errc::interrupted},
    {Errc::bad_address, "bad_address", "the memory of the state cannot be accessed",
     "pass memory that is mapped", std::errc::bad_address},
    {Errc::out_of_memory, "out_of_memory", "the kernel or the process is out of memory",
     "free memory and try again", std::errc::not_enough_memory},
    {Errc::buffer_too_small, "buffer_too_small", "the state is larger than KVM's own capacity says",
     "use a newer kvm.nested", std::errc::argument_list_too_long},
    {Errc::refused, "refused", "one of the kernel's checks failed, and it does not say which",
     "restore in the documented order: CPUID, feature MSRs, SREGS2 and MSRS come first",
     std::errc::invalid_argument},
    {Errc::entry_failed, "entry_failed",
     "all checks passed and entering L2 failed (an illegal guest CR3, or a PERF_GLOBAL_CTRL that could not "
     "be loaded)",
     "restore all registers of the vCPU again, or give it up"},
    {Errc::unexpected, "unexpected", "the kernel gave an answer that this operation is not known to give",
     "report it with the kernel's version"},
    {Errc::not_equivalent, "not_equivalent", "the vCPU holds another nested state than expected",
     "look for a register write after KVM_SET_NESTED_STATE: it can drop the state silently"},

    {Errc::no_state, "no_state", "the buffer is empty", "fill it with nested_state() or parse()",
     std::errc::invalid_argument},
    {Errc::too_short, "too_short", "there are fewer bytes than the state says it has",
     "look for what cut the state", std::errc::invalid_argument},
    {Errc::too_long, "too_long", "there are more bytes than the state says it has",
     "use parse_prefix() if that is meant", std::errc::invalid_argument},
    {Errc::bad_size, "bad_size", "the size is none that the kernel produces (X3)",
     "expect 128, 4224 or, for VMX, 8320 bytes", std::errc::invalid_argument},
    {Errc::unknown_flags, "unknown_flags", "a flag is set that no known kernel has (X4)",
     "use a newer kvm.nested", std::errc::invalid_argument},
    {Errc::run_pending_outside_l2, "run_pending_outside_l2", "RUN_PENDING is set and L2 is not active (X5)",
     "", std::errc::invalid_argument},
    {Errc::unknown_format, "unknown_format", "the format is neither VMX nor SVM (V1, S1)", "",
     std::errc::invalid_argument},
    {Errc::smm_without_vmxon, "smm_without_vmxon", "there are SMM flags outside VMX operation (V2)", "",
     std::errc::invalid_argument},
    {Errc::vmcs12_without_vmxon, "vmcs12_without_vmxon",
     "there is a vmcs12 address outside VMX operation (V3)", "", std::errc::invalid_argument},
    {Errc::flags_without_vmxon, "flags_without_vmxon", "there are flags outside VMX operation (V4)", "",
     std::errc::invalid_argument},
    {Errc::bad_vmxon_address, "bad_vmxon_address", "the VMXON address is not page-aligned (V6)", "",
     std::errc::invalid_argument},
    {Errc::l2_active_in_smm, "l2_active_in_smm", "L2 cannot be active while the vCPU is in SMM (V7, V10)", "",
     std::errc::invalid_argument},
    {Errc::unknown_smm_flags, "unknown_smm_flags", "an SMM flag is set that no known kernel has (V8)", "",
     std::errc::invalid_argument},
    {Errc::unknown_vmx_flags, "unknown_vmx_flags", "a VMX header flag is set that no known kernel has (V9)",
     "", std::errc::invalid_argument},
    {Errc::smm_l2_without_smm_vmxon, "smm_l2_without_smm_vmxon",
     "an SMI is said to have interrupted L2, and L1 not to have been in VMX operation (V11)", "",
     std::errc::invalid_argument},
    {Errc::payload_missing, "payload_missing",
     "the phase needs a vmcs12 or VMCB and the state ends before it (V15, S7)", "",
     std::errc::invalid_argument},
    {Errc::payload_without_vmcs12, "payload_without_vmcs12",
     "there is a vmcs12 page, no address for it, and it is not enlightened (V17)", "",
     std::errc::invalid_argument},
    {Errc::bad_vmcs12_address, "bad_vmcs12_address",
     "the vmcs12 address is unaligned or that of the VMXON region (V16)", "", std::errc::invalid_argument},
    {Errc::bad_vmcs12_revision, "bad_vmcs12_revision",
     "the vmcs12 does not have KVM's revision 0x11e57ed0 (V19)", "", std::errc::invalid_argument},
    {Errc::shadow_vmcs12_missing, "shadow_vmcs12_missing",
     "the vmcs12 links to a shadow VMCS and the state ends before it (V21)", "", std::errc::invalid_argument},
    {Errc::bad_shadow_vmcs12_revision, "bad_shadow_vmcs12_revision",
     "the shadow vmcs12 does not have KVM's revision 0x11e57ed0, or is not marked as a shadow (V23)", "",
     std::errc::invalid_argument},
    {Errc::flags_of_other_vendor, "flags_of_other_vendor", "a flag of VMX is set in an SVM state (S2)", "",
     std::errc::invalid_argument},
    {Errc::bad_vmcb12_address, "bad_vmcb12_address", "the vmcb12 address is not page-aligned (S6)", "",
     std::errc::invalid_argument},
    {Errc::vmrun_not_intercepted, "vmrun_not_intercepted", "L2's controls do not intercept VMRUN (S9)", "",
     std::errc::invalid_argument},
    {Errc::asid_zero, "asid_zero", "L2's ASID is 0 (S10)", "", std::errc::invalid_argument},
});

static_assert(detail::complete_and_in_order(causes, Errc::asid_zero));

constexpr std::array operations = std::to_array<std::string_view>({
    "probe",
    "KVM_GET_NESTED_STATE",
    "KVM_SET_NESTED_STATE",
    "verify",
    "parse",
    "narrow",
});
static_assert(operations.size() == static_cast<std::size_t>(Operation::narrow));

DescriptorKind wanted_by(Operation operation) noexcept {
    return operation == Operation::probe ? DescriptorKind::system : DescriptorKind::vcpu;
}

/// The errno's part of classify(), for an ioctl that returned a negative number.
Errc cause_of(Operation operation, int error_number, const Context& context) noexcept {
    const auto cause = classify(wanted_by(operation), error_number, context.descriptor);
    if (cause != Errc::refused)
        return cause;
    // Linux 7.x with nested=0 refuses even GET, which checks nothing else.
    if (operation == Operation::get_nested_state
        || (operation == Operation::set_nested_state && context.nesting_off))
        return Errc::nesting_off;
    return cause;
}

std::optional<uapi::StateHeader> header_of(std::span<const std::byte> state) noexcept {
    if (state.size() < uapi::header_size)
        return std::nullopt;
    std::array<std::byte, uapi::header_size> raw;
    std::ranges::copy(state.first<uapi::header_size>(), raw.begin());
    return std::bit_cast<uapi::StateHeader>(raw);
}

/// Bits of an SVM state that KVM drops, masks or forces while it takes the state in: GET showing other ones
/// does not prove that it did not.
struct RewrittenBits {
    FieldOfState where;
    std::uint64_t bits;
};
constexpr std::uint64_t all_bits = ~std::uint64_t{0};
consteval FieldOfState in_header(std::string_view name) {
    return {Part::header, find_header_field(VendorId::svm, name)};
}
consteval FieldOfState in_vmcb(std::string_view name) {
    return {Part::vmcb, find_vmcb12_field(name)};
}
consteval std::uint64_t reserved_in(const BitLayout& layout) {
    return undefined_bits(layout, all_bits);
}
/// Of intercepts[4]: those of what the vCPU's CPUID can lack.
constexpr std::uint64_t intercepts_of_features =
    svm::mask(svm::Intercept::skinit) | svm::mask(svm::Intercept::rdtscp) | svm::mask(svm::Intercept::xsetbv)
    | svm::mask(svm::Intercept::rdpru);
constexpr std::uint64_t page_offset = uapi::page_size - 1;
constexpr std::array rewritten_on_svm = std::to_array<RewrittenBits>({
    {in_header("size"), all_bits},                      // slack behind the state is not kept
    {in_vmcb("intercepts[4]"), intercepts_of_features}, // (7.x)
    {in_vmcb("intercepts[5]"), all_bits},               // likewise
    {in_vmcb("iopm_base_pa"), page_offset},
    {in_vmcb("msrpm_base_pa"), page_offset},
    {in_vmcb("tlb_ctl"), all_bits},                                 // (7.x)
    {in_vmcb("erap_ctl"), all_bits},                                // (7.x)
    {in_vmcb("int_vector"), reserved_in(bit_layout::int_vector)},   // (7.x)
    {in_vmcb("int_state"), ~mask(svm::IntState::interrupt_shadow)}, // (7.x)
    {in_vmcb("misc_ctl"), all_bits},                                // nested paging that CPUID lacks (7.x)
    {in_vmcb("event_inj"), reserved_in(bit_layout::svm_event)},     // (7.x)
    {in_vmcb("misc_ctl2"), all_bits},   // LBR virtualization, virtual VMLOAD and VMSAVE
    {in_vmcb("efer"), mask(Efer::nxe)}, // without nested paging on the host
    {in_vmcb("cr0"), mask(Cr0::wp)},    // likewise
    {in_vmcb("rflags"), bit_layout::rflags.always_ones},
});

/// Whether GET would show `found` after KVM had taken `attempted` in. Both have Svm::capacity bytes or more.
bool taken_in_on_svm(std::span<const std::byte> attempted, std::span<const std::byte> found) noexcept {
    std::array<std::byte, Svm::capacity> expected;
    std::ranges::copy(attempted.first<Svm::capacity>(), expected.begin());
    const auto expect = [&](const FieldOfState& where, std::uint64_t bits) {
        const auto offset = begin_of(where.part) + where.field->offset;
        std::uint64_t ours = 0, theirs = 0;
        std::memcpy(&ours, expected.data() + offset, where.field->size);
        std::memcpy(&theirs, found.data() + offset, where.field->size);
        ours = (ours & ~bits) | (theirs & bits);
        std::memcpy(expected.data() + offset, &ours, where.field->size);
    };
    for (const auto& [where, bits] : rewritten_on_svm)
        expect(where, bits);
    if (std::bit_cast<uapi::SvmHeader>(header_of(found)->vendor).gpat == 0)
        expect(in_header("hdr.svm.gpat"), all_bits); // while L1 and L2 share one PAT
    return !first_difference(expected, found.first<Svm::capacity>());
}

/// SVM checks everything before it changes anything, but for the vCPU's own CR3, which it loads last, with L2
/// active.
Effect effect_on_svm(const std::optional<uapi::StateHeader>& attempted, const uapi::StateHeader& found,
                     const Context& context, int error_number) noexcept {
    const auto l2_active = [](const uapi::StateHeader& header) {
        return (header.flags & uapi::state_flag::guest_mode) != 0 && header.size >= Svm::capacity;
    };
    if (error_number != EINVAL || !l2_active(found))
        return Effect::unchanged;
    if (attempted && !l2_active(*attempted))
        return Effect::unchanged;
    if (context.attempted.size() < Svm::capacity || context.found.size() < Svm::capacity)
        return Effect::undetermined;
    // The upper halves of DR7 and DR6 are checked before CR3, and GET does not show them.
    const Vmcb12Fields vmcb{context.attempted.subspan<uapi::header_size, uapi::page_size>()};
    if ((vmcb["dr7"] | vmcb["dr6"]) >> 32 != 0)
        return Effect::unchanged;
    // Had it got as far as CR3, GET would now show what was attempted.
    return taken_in_on_svm(context.attempted, context.found) ? Effect::undetermined : Effect::unchanged;
}

/// VMX tears the old state down after it has checked the header, and never leaves L2 active after a failure.
Effect effect_on_vmx(const uapi::StateHeader& attempted, const uapi::StateHeader& found,
                     int error_number) noexcept {
    const auto wanted = std::bit_cast<uapi::VmxHeader>(attempted.vendor);
    const auto held = std::bit_cast<uapi::VmxHeader>(found.vendor);
    // Behind the teardown KVM allocates; without memory the vCPU stays outside VMX operation.
    if (error_number == ENOMEM && held.vmxon_pa == uapi::no_address)
        return Effect::undetermined;
    if (held.vmxon_pa != wanted.vmxon_pa)
        return Effect::unchanged;
    if ((found.flags & uapi::state_flag::guest_mode) != 0)
        return Effect::unchanged;
    if (held.vmcs12_pa != uapi::no_address && held.vmcs12_pa != wanted.vmcs12_pa)
        return Effect::unchanged;
    return Effect::undetermined;
}

Effect effect_of(Operation operation, int raw_result, int error_number, const Context& context) noexcept {
    if (operation != Operation::set_nested_state)
        return Effect::unchanged;
    if (raw_result > 0)
        return Effect::nested_state_lost; // the teardown comes before the entry that failed
    if (raw_result < 0
        && (error_number == EBADF || error_number == ENOTTY || error_number == EIO || error_number == EINTR))
        return Effect::unchanged; // did not reach KVM's handler
    if (raw_result < 0 && context.nesting_off)
        return Effect::unchanged;
    if (context.descriptor == DescriptorKind::system || context.descriptor == DescriptorKind::vm)
        return Effect::unchanged;
    const auto attempted = header_of(context.attempted);
    const auto found = header_of(context.found);
    if (found && found->format == Svm::format)
        return effect_on_svm(attempted, *found, context, error_number);
    if (attempted && attempted->format == Vmx::format
        && std::bit_cast<uapi::VmxHeader>(attempted->vendor).vmxon_pa == uapi::no_address)
        return Effect::unchanged; // all that can fail comes before the teardown (V13)
    if (!attempted || !found)
        return Effect::undetermined;
    return effect_on_vmx(*attempted, *found, error_number);
}

} // namespace

std::string_view name(Errc code) noexcept {
    return detail::row_of(causes, code).name;
}

std::string_view description(Errc code) noexcept {
    return detail::row_of(causes, code).description;
}

std::string_view next_step(Errc code) noexcept {
    return detail::row_of(causes, code).next_step;
}

Text<96> describe_detail(DetailKind kind, std::uint64_t detail) noexcept {
    Text<96> text;
    const auto offset = [&](VendorId vendor) {
        const auto [part, field] = field_at(vendor, detail);
        text << (field != nullptr ? field->name : "behind the state");
        if (part != Part::header)
            text << " of the " << name(part);
        text << " (offset ";
        text.decimal(static_cast<std::int64_t>(detail)) << ")";
    };
    switch (kind) {
    case DetailKind::none:
        if (detail != 0)
            (text << "detail ").hexadecimal(detail);
        break;
    case DetailKind::vmx_offset:
        offset(VendorId::vmx);
        break;
    case DetailKind::svm_offset:
        offset(VendorId::svm);
        break;
    case DetailKind::bytes:
        text.decimal(static_cast<std::int64_t>(detail)) << " bytes";
        break;
    }
    return text;
}

std::string_view name(Operation operation) noexcept {
    return detail::name_of(operations, operation);
}

Text<384> Error::message() const noexcept {
    Text<384> text;
    text << name(operation) << ": " << description(code);
    detail::print_outcome(text, raw_result, error_number, errno_name(error_number));
    if (const auto about = describe_detail(detail_kind, detail); !about.view().empty())
        text << "; " << about;
    if (operation == Operation::set_nested_state) {
        text << "; " << kvm::nested::description(effect);
    }
    if (const auto next = next_step(code); !next.empty())
        text << ". Next: " << next;
    return text;
}

std::string_view errno_name(int error_number) noexcept {
    switch (error_number) {
    case EPERM:
        return "EPERM";
    case ENOENT:
        return "ENOENT";
    case EINTR:
        return "EINTR";
    case EIO:
        return "EIO";
    case E2BIG:
        return "E2BIG";
    case EBADF:
        return "EBADF";
    case EAGAIN:
        return "EAGAIN";
    case ENOMEM:
        return "ENOMEM";
    case EACCES:
        return "EACCES";
    case EFAULT:
        return "EFAULT";
    case EBUSY:
        return "EBUSY";
    case EEXIST:
        return "EEXIST";
    case ENODEV:
        return "ENODEV";
    case ENOTDIR:
        return "ENOTDIR";
    case EISDIR:
        return "EISDIR";
    case EINVAL:
        return "EINVAL";
    case ENOTTY:
        return "ENOTTY";
    case ENOSPC:
        return "ENOSPC";
    case EROFS:
        return "EROFS";
    case EFBIG:
        return "EFBIG";
    case ENAMETOOLONG:
        return "ENAMETOOLONG";
    case ELOOP:
        return "ELOOP";
    case ENOSYS:
        return "ENOSYS";
    default:
        return "errno";
    }
}

Errc classify(DescriptorKind wanted, int error_number, DescriptorKind found) noexcept {
    switch (error_number) {
    case EBADF:
        return Errc::bad_descriptor;
    case EIO:
        return Errc::other_process_or_dead_vm;
    case EINTR:
        return Errc::interrupted;
    case EFAULT:
        return Errc::bad_address;
    case ENOMEM:
        return Errc::out_of_memory;
    case E2BIG:
        return Errc::buffer_too_small;
    case ENOTTY:
    case EINVAL:
        break;
    default:
        return Errc::unexpected;
    }
    // Linux answers an unknown request with ENOTTY on a VM or a foreign descriptor and with EINVAL on
    // /dev/kvm.
    if (found != wanted) {
        switch (found) {
        case DescriptorKind::system:
            return Errc::system_fd_given;
        case DescriptorKind::vm:
            return Errc::vm_fd_given;
        case DescriptorKind::vcpu:
            return Errc::vcpu_fd_given;
        case DescriptorKind::not_open:
            return Errc::bad_descriptor;
        case DescriptorKind::not_kvm:
            return Errc::not_a_kvm_descriptor;
        case DescriptorKind::unknown:
            break;
        }
    }
    return error_number == ENOTTY ? Errc::not_a_kvm_descriptor : Errc::refused;
}

Error classify(Operation operation, int raw_result, int error_number, const Context& context) noexcept {
    if (raw_result >= 0)
        error_number = 0; // somebody else's
    return {.code = raw_result < 0 ? cause_of(operation, error_number, context)
                    : raw_result > 0 && operation == Operation::set_nested_state ? Errc::entry_failed
                                                                                 : Errc::unexpected,
            .operation = operation,
            .effect = effect_of(operation, raw_result, error_number, context),
            .raw_result = raw_result,
            .error_number = error_number};
}

const std::error_category& error_category() noexcept {
    static const detail::CauseCategory<Errc, causes> category{"kvm.nested"};
    return category;
}

std::error_code make_error_code(Errc code) noexcept {
    return {static_cast<int>(code), error_category()};
}

} // namespace kvm::nested
