// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

#include "../causes.hpp"
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

constexpr std::array causes = std::to_array<nested::detail::CauseRow<Errc>>({
    {Errc::not_prepared, "not_prepared", "a capability that must be on before the guest runs is off",
     "call prepare() when the VM is created"},
    {Errc::requirement_not_offered, "requirement_not_offered",
     "this host cannot enable what the state requires", "restore on a host that offers it",
     std::errc::function_not_supported},
    {Errc::requirement_differs, "requirement_differs",
     "the state was saved with another setting of a capability than this VM has",
     "prepare() the VM with the requirements of the state", std::errc::invalid_argument},
    {Errc::exit_pending, "exit_pending",
     "completing the last exit brought another one, which user space has to handle",
     "handle the exit in the run page, run on, and save then"},
    {Errc::no_vcpu_group, "no_vcpu_group", "a group of registers is missing, or is one that no vCPU can have",
     "save the vCPU again"},
    {Errc::xsave_too_large, "xsave_too_large",
     "the XSAVE area of the state has more in it than this VM has room for",
     "ask for the permission to use the same XSAVE features (ARCH_REQ_XCOMP_GUEST_PERM) before the first "
     "vCPU, "
     "or restore on a host that has them",
     std::errc::function_not_supported},

    {Errc::not_our_file, "not_our_file", "this is not a saved vCPU", "pass a file that kvm.vcpu wrote"},
    {Errc::unknown_file_version, "unknown_file_version",
     "the file has a version that this library does not know",
     "read it with the version of the library that wrote it"},
    {Errc::damaged_file, "damaged_file", "a checksum does not fit: the file is damaged",
     "copy the file again"},
    {Errc::unknown_mandatory_section, "unknown_mandatory_section",
     "the file has a section that must be understood and is not known", "use a newer kvm.vcpu"},
    {Errc::repeated_section, "repeated_section", "the file has the same section twice",
     "save the vCPU again"},
    {Errc::malformed_section, "malformed_section", "a section does not have the form that its type demands",
     "save the vCPU again"},
    {Errc::missing_section, "missing_section", "a mandatory section is missing", "save the vCPU again"},
    {Errc::file_system, "file_system", "the file could not be read or written", "", std::errc::io_error},
    {Errc::file_not_synced, "file_not_synced",
     "the new file is in its place, but its folder could not be synced to the disk", "sync the file system",
     std::errc::io_error},
});

static_assert(nested::detail::complete_and_in_order(causes, Errc::file_not_synced));

constexpr std::array operations = std::to_array<std::string_view>(
    {"prepare", "save", "restore", "abandon", "enable_capabilities", "first_run", "capture", "file"});
static_assert(operations.size() == static_cast<std::size_t>(Operation::file));

/// Names of numbers that an Error shows.
struct Name {
    std::uint64_t number;
    std::string_view name;
};

/// Those that are not the GET or SET of a group.
constexpr std::array requests = std::to_array<Name>({
    {uapi::request::run, "KVM_RUN"},
    {uapi::request::enable_cap, "KVM_ENABLE_CAP"},
    {uapi::request::check_extension, "KVM_CHECK_EXTENSION"},
    {uapi::request::get_msr_index_list, "KVM_GET_MSR_INDEX_LIST"},
    {uapi::request::get_reg_list, "KVM_GET_REG_LIST"},
    {uapi::request::get_msr_feature_index_list, "KVM_GET_MSR_FEATURE_INDEX_LIST"},
    {uapi::request::get_xsave, "KVM_GET_XSAVE"},
    {uapi::request::get_clock, "KVM_GET_CLOCK"},
    {uapi::request::set_clock, "KVM_SET_CLOCK"},
    {uapi::request::get_irqchip, "KVM_GET_IRQCHIP"},
    {uapi::request::set_irqchip, "KVM_SET_IRQCHIP"},
    {uapi::request::get_pit2, "KVM_GET_PIT2"},
    {uapi::request::set_pit2, "KVM_SET_PIT2"},
});

constexpr std::array capabilities = std::to_array<Name>({
    {uapi::cap::irqchip, "KVM_CAP_IRQCHIP"},
    {uapi::cap::pit2, "KVM_CAP_PIT2"},
    {uapi::cap::hyperv_synic, "KVM_CAP_HYPERV_SYNIC"},
    {uapi::cap::x2apic_api, "KVM_CAP_X2APIC_API"},
    {uapi::cap::hyperv_synic2, "KVM_CAP_HYPERV_SYNIC2"},
    {uapi::cap::apic_bus_cycles_ns, "KVM_CAP_X86_APIC_BUS_CYCLES_NS"},
    {uapi::cap::enlightened_vmcs, "KVM_CAP_HYPERV_ENLIGHTENED_VMCS"},
    {uapi::cap::exception_payload, "KVM_CAP_EXCEPTION_PAYLOAD"},
    {uapi::cap::xsave2, "KVM_CAP_XSAVE2"},
    {uapi::cap::disable_quirks2, "KVM_CAP_DISABLE_QUIRKS2"},
    {uapi::cap::triple_fault_event, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"},
});

template <std::size_t N>
std::string_view find(const std::array<Name, N>& names, std::uint64_t number) noexcept {
    const auto found = std::ranges::find(names, number, &Name::number);
    return found != names.end() ? found->name : "";
}

std::string_view request_name(std::uint32_t request) noexcept {
    for (const auto& row : detail::rows) {
        if (!row.is_group())
            continue;
        if (row.group.get.number == request)
            return row.group.get.name;
        if (row.group.set.number == request)
            return row.group.set.name;
    }
    return find(requests, request);
}

template <std::size_t Capacity>
void print(Text<Capacity>& text, const Detail& detail) {
    const auto named = [&](std::string_view what, std::string_view name) {
        text << "; " << what;
        if (!name.empty()) {
            text << name;
        } else {
            text << "number ";
            text.decimal(static_cast<std::int64_t>(detail.value));
        }
    };
    switch (detail.kind) {
    case Detail::Kind::none:
    case Detail::Kind::vmx_offset:
    case Detail::Kind::svm_offset:
    case Detail::Kind::bytes:
        if (const auto about = describe_detail(static_cast<DetailKind>(detail.kind), detail.value);
            !about.view().empty())
            text << "; " << about;
        break;
    case Detail::Kind::capability:
        named("capability ", find(capabilities, detail.value));
        break;
    case Detail::Kind::group:
        named("group ", name(static_cast<Step>(detail.value)));
        break;
    case Detail::Kind::msr:
        text << "; MSR ";
        text.hexadecimal(detail.value);
        if (const auto known = msr_name(static_cast<std::uint32_t>(detail.value)); !known.empty())
            text << " (" << known << ")";
        break;
    case Detail::Kind::exit_reason:
        text << "; exit reason ";
        text.decimal(static_cast<std::int64_t>(detail.value));
        break;
    case Detail::Kind::file_offset:
        text << "; at byte ";
        text.decimal(static_cast<std::int64_t>(detail.value)) << " of the file";
        break;
    case Detail::Kind::section:
        text << "; section type ";
        text.hexadecimal(detail.value);
        break;
    case Detail::Kind::answer:
        text << "; it answered ";
        text.decimal(static_cast<std::int64_t>(detail.value));
        break;
    }
}

/// The lower floor speaks to a caller who makes the single steps; here the library has made them.
std::string_view next_step_of(const Error& error) noexcept {
    if (const auto own = error.cause.own())
        return next_step(*own);
    const auto lower = *error.cause.lower();
    const auto operation = error.operation.own();
    if (!operation || (lower != nested::Errc::refused && lower != nested::Errc::not_equivalent))
        return next_step(lower);
    switch (*operation) {
    case Operation::prepare:
        return "call prepare() when the VM is created, before its vCPUs";
    case Operation::enable_capabilities:
        return "call it for a new vCPU, with the interrupt controller in the kernel";
    case Operation::restore:
        return "this host does not take the state as it was saved: compare its kernel, its CPU and the VM's "
               "capabilities with those where it was saved";
    default:
        return next_step(nested::Errc::unexpected);
    }
}

} // namespace

std::string_view name(Errc code) noexcept {
    return nested::detail::row_of(causes, code).name;
}

std::string_view description(Errc code) noexcept {
    return nested::detail::row_of(causes, code).description;
}

std::string_view next_step(Errc code) noexcept {
    return nested::detail::row_of(causes, code).next_step;
}

std::string_view name(Operation operation) noexcept {
    return nested::detail::name_of(operations, operation);
}

std::string_view name(Cause cause) noexcept {
    const auto own = cause.own();
    return own ? name(*own) : name(*cause.lower());
}

std::string_view description(Cause cause) noexcept {
    const auto own = cause.own();
    return own ? description(*own) : description(*cause.lower());
}

std::string_view name(Called operation) noexcept {
    const auto own = operation.own();
    return own ? name(*own) : name(*operation.lower());
}

Text<512> Error::message() const noexcept {
    Text<512> text;
    text << name(operation);
    if (step)
        text << ", step " << name(*step);
    if (const auto ioctl = request_name(request); !ioctl.empty() && ioctl != name(operation))
        text << ", " << ioctl;
    text << ": " << description(cause);
    nested::detail::print_outcome(text, raw_result, error_number, errno_name(error_number));
    print(text, detail);
    if (effect != Effect::unchanged || operation == Operation::restore)
        text << "; " << nested::description(effect);
    if (const auto next = next_step_of(*this); !next.empty())
        text << ". Next: " << next;
    return text;
}

const std::error_category& error_category() noexcept {
    static const nested::detail::CauseCategory<Errc, causes> category{"kvm.vcpu"};
    return category;
}

std::error_code make_error_code(Errc code) noexcept {
    return {static_cast<int>(code), error_category()};
}

std::error_code make_error_code(Cause cause) noexcept {
    const auto own = cause.own();
    return own ? make_error_code(*own) : nested::make_error_code(*cause.lower());
}

} // namespace kvm::vcpu
