// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "host.hpp"
#include "output.hpp"

#include "../kvm/linux_kvm.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <fstream>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

import kvm.nested.json;
import kvm.vcpu;

namespace kvm::tool {
namespace {

struct Named {
    std::uint32_t number;
    std::string_view name;
};

constexpr auto capabilities = std::to_array<Named>({
    {KVM_CAP_EXCEPTION_PAYLOAD, "exception payload (a pending #PF or #DB travels whole)"},
    {218, "triple fault event (a triple fault that L1 intercepts travels)"}, // KVM_CAP_X86_TRIPLE_FAULT_EVENT
    {KVM_CAP_HYPERV_ENLIGHTENED_VMCS, "enlightened VMCS"},
    {KVM_CAP_X86_SMM, "system-management mode"},
});

/// Linux, Documentation/virt/kvm/api.rst, KVM_CAP_DISABLE_QUIRKS2.
constexpr auto quirks = std::to_array<Named>({
    {0, "LINT0_REENABLED"},
    {1, "CD_NW_CLEARED"},
    {2, "LAPIC_MMIO_HOLE"},
    {3, "OUT_7E_INC_RIP"},
    {4, "MISC_ENABLE_NO_MWAIT"},
    {5, "FIX_HYPERCALL_INSN"},
    {6, "MWAIT_NEVER_UD_FAULTS"},
    {7, "SLOT_ZAP_ALL"},
    {8, "STUFF_FEATURE_MSRS"},
    {9, "IGNORE_GUEST_PAT"},
    {10, "VMCS12_ALLOW_FREEZE_IN_SMM"},
    {11, "NESTED_SVM_SHARED_PAT"},
});

/// /dev/kvm, open.
class System {
  public:
    explicit System(const std::string& path) : fd_{::open(path.c_str(), O_RDWR | O_CLOEXEC)} {}
    System(const System&) = delete;
    System& operator=(const System&) = delete;
    ~System() {
        if (fd_ >= 0)
            ::close(fd_);
    }
    int get() const { return fd_; }

    std::uint64_t extension(std::uint32_t capability) const {
        const int answer = ::ioctl(fd_, KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability));
        return answer < 0 ? 0 : static_cast<std::uint64_t>(answer);
    }

    /// A feature MSR; none where KVM has none of that number.
    std::optional<std::uint64_t> feature_msr(std::uint32_t index) const {
        struct {
            kvm_msrs head;
            kvm_msr_entry entry;
        } block{};
        block.head.nmsrs = 1;
        block.entry.index = index;
        if (::ioctl(fd_, KVM_GET_MSRS, &block) != 1)
            return std::nullopt;
        return block.entry.data;
    }

    /// EDX of a leaf of KVM_GET_SUPPORTED_CPUID.
    std::uint32_t supported_edx(std::uint32_t function) const {
        struct {
            kvm_cpuid2 head;
            kvm_cpuid_entry2 entries[256];
        } block{};
        block.head.nent = 256;
        if (::ioctl(fd_, KVM_GET_SUPPORTED_CPUID, &block) != 0)
            return 0;
        for (const auto& entry : std::span{block.entries}.first(std::min(block.head.nent, 256u)))
            if (entry.function == function)
                return entry.edx;
        return 0;
    }

  private:
    int fd_;
};

/// "nested" of the vendor's module, where sysfs shows it.
std::string module_says(VendorId vendor) {
    const auto* module = vendor == VendorId::vmx ? "kvm_intel" : "kvm_amd";
    std::ifstream file{std::format("/sys/module/{}/parameters/nested", module)};
    std::string value;
    return file >> value ? std::format("{}, nested={}", module, value) : module;
}

/// What a bit means that is set in a capability.
std::string_view what_set_means(CapabilityForm form) {
    return form == CapabilityForm::features    ? ""
           : form == CapabilityForm::must_be_1 ? "must be 1: "
                                               : "may be 1: ";
}

void show_vmx(Output& out, const System& system) {
    out.heading("VMX capability MSRs that a vCPU gets by default");
    for (const auto& layout : capability_layouts) {
        // The TRUE ones say more than those that they complete, and the lock bit of 3aH is not a capability.
        if (!vmx::Capabilities::has_place_for(layout.index) || layout.true_index != 0)
            continue;
        if (const auto value = system.feature_msr(layout.index)) {
            out << std::format("  {:#x} {:30} {:#018x}\n        {}", layout.index, layout.name, *value,
                               what_set_means(layout.form));
            explain(*layout.bit_layout, layout.form == CapabilityForm::controls ? *value >> 32 : *value,
                    [&](std::string_view piece) noexcept { out << piece; });
            out << "\n";
        }
    }
}

void show_svm(Output& out, const System& system) {
    out.heading("SVM features that a vCPU can have (CPUID 8000000a EDX)");
    const auto edx = system.supported_edx(svm::Capabilities::function);
    out << std::format("  {:#010x}\n", edx);
    for (const auto& bits : bit_layout::svm_feature_bits)
        if (bits.of(edx) != 0)
            out << std::format("  {:2} {}\n", bits.first, bits.name);
}

void show_switches(Output& out, const System& system) {
    out.heading("what else a migration needs");
    for (const auto& [number, name] : capabilities)
        out << std::format("  {:10} {}\n", system.extension(number) != 0 ? "offered" : "missing", name);
    const auto known = system.extension(213); // KVM_CAP_DISABLE_QUIRKS2
    out.heading("quirks that can be disabled; source and destination must agree");
    for (const auto& [bit, name] : quirks)
        if ((known >> bit & 1) != 0)
            out << std::format("  {:2} {}\n", bit, name);
    if (known >> quirks.size() != 0)
        out << std::format("  {:#x} unknown to this program\n", known >> quirks.size() << quirks.size());
}

Trouble cannot_open(int error_number) {
    const auto* next = error_number == EACCES
                           ? "join the group that owns it (mostly kvm), or be root"
                           : "load kvm_intel or kvm_amd; that needs virtualization, switched on in the "
                             "firmware or given by the cloud's machine type";
    return {std::strerror(error_number), std::nullopt, next};
}

std::string name_of(const std::optional<VendorId>& vendor) {
    return vendor ? std::string{name(*vendor)} : "an unknown vendor";
}
std::string text_of(const KernelVersion& kernel) {
    return std::format("{}.{}.{}", kernel.major, kernel.minor, kernel.patch);
}

/// What either of two hosts has and the other lacks.
int compare(const Destination& other, const std::string& file, const Destination& here) {
    Output out;
    bool lacks = false; // this one, something
    const auto row = [&](std::string_view text) { out << std::format("  {}\n", text); };
    const auto difference = [&](std::string_view text, bool here_lacks) {
        row(text);
        lacks = lacks || here_lacks;
    };
    out.heading(std::format("{} (there) and this host (here)", file));
    if (other.vendor != here.vendor)
        difference(std::format("there {}, here {}: no nested state of the one is taken by the other",
                               name_of(other.vendor), name_of(here.vendor)),
                   true);
    if (other.kernel && here.kernel && other.kernel != here.kernel)
        row(std::format("there Linux {}, here {}: rules differ (kvm-nested rules)", text_of(*other.kernel),
                        text_of(*here.kernel)));
    if (other.nested && here.nested && other.nested != here.nested)
        difference(std::format("{} only  nested guests", *other.nested ? "there" : "here"), *other.nested);
    if (other.maxphyaddr && here.maxphyaddr && other.maxphyaddr != here.maxphyaddr)
        difference(std::format("there MAXPHYADDR {}, here {}", *other.maxphyaddr, *here.maxphyaddr),
                   *other.maxphyaddr > *here.maxphyaddr);
    for (std::size_t i = 0; i < feature_count; ++i) {
        const auto feature = static_cast<Feature>(i);
        const auto a = other.host[feature], b = here.host[feature];
        if (a != b && a != Known::unknown && b != Known::unknown)
            difference(std::format("{} only  CPUID  {}", a == Known::yes ? "there" : "here", name(feature)),
                       a == Known::yes);
    }
    const auto each = [&](const CapabilityDifference& what) noexcept {
        std::string text;
        describe(what, [&](std::string_view piece) noexcept { text += piece; }, {.a = "there", .b = "here"});
        difference(text, what.holder != Holder::b);
    };
    capability_difference(other.vmx, here.vmx, each);
    capability_difference(other.svm, here.svm, each);
    out.heading(lacks ? "there is what this host lacks: a guest that uses it does not come up here"
                      : "this host has all that is known of there");
    return out.flush(lacks ? differs : fine);
}

/// Why a host has no nested states, where KVM itself only says that there are none.
std::string why_none(const System& system, Errc code) {
    if (code != Errc::nesting_off)
        return std::string{description(code)};
    const auto host = vcpu::capture_host(SystemFd{system.get()});
    const bool any = std::ranges::any_of(std::array{VendorId::vmx, VendorId::svm},
                                         [](VendorId vendor) { return module_says(vendor).contains('='); });
    if (any || (host && host->vendor))
        return std::string{description(code)};
    return "this KVM runs without VMX and without SVM, so no guest of it can nest: neither kvm_intel nor "
           "kvm_amd is loaded, and it offers no feature of theirs";
}

} // namespace

int run(const Probe& arguments) {
    const System system{arguments.device};
    if (system.get() < 0)
        return complain(arguments.device, cannot_open(errno));
    if (arguments.json || !arguments.against.empty()) {
        const auto here = this_host(arguments.device);
        if (!here)
            return complain(arguments.device, {"this is not /dev/kvm, or its KVM says nothing of itself",
                                               std::nullopt, "name the device of KVM"});
        if (arguments.json) {
            Output out;
            out << to_json(*here);
            return out.flush(here->nested.value_or(false) ? fine : differs);
        }
        const auto other = read_host(arguments.against);
        if (!other)
            return complain(arguments.against, other.error());
        return compare(*other, arguments.against, *here);
    }

    Output out;
    utsname kernel{}; // char arrays: as C strings, without what is behind their ends
    ::uname(&kernel);
    const auto host = Host<Any>::probe(SystemFd{system.get()});
    if (!host) {
        out.heading(std::format("Linux {}: no nested states here", static_cast<const char*>(kernel.release)));
        out << std::format("  {:10} {}\n", "why", why_none(system, host.error().code));
        for (const auto vendor : {VendorId::vmx, VendorId::svm})
            if (const auto says = module_says(vendor); says.contains('='))
                out << std::format("  {:10} {}\n", "module", says);
        const auto code = host.error().code;
        const bool an_answer = code == Errc::not_supported || code == Errc::nesting_off
                               || code == Errc::capacity_unknown || code == Errc::vendor_unclear;
        const bool without_a_vendor = why_none(system, code) != description(code);
        if (code == Errc::nesting_off)
            out << std::format("  next       {}\n",
                               without_a_vendor
                                   ? "load kvm_intel or kvm_amd; that needs virtualization, switched on "
                                     "in the firmware or given by the cloud's machine type"
                                   : "load the module with nested=1");
        return out.flush(an_answer ? differs : in_trouble);
    }
    out.heading(std::format("Linux {}: nested states of {}", static_cast<const char*>(kernel.release),
                            name(host->vendor())));
    out << std::format("  {:10} {}\n", "module", module_says(host->vendor()));
    out << std::format("  {:10} {} bytes (KVM_CAP_NESTED_STATE)\n", "capacity",
                       system.extension(KVM_CAP_NESTED_STATE));
    out << "\n";
    if (host->vendor() == VendorId::vmx)
        show_vmx(out, system);
    else
        show_svm(out, system);
    out << "\n";
    show_switches(out, system);
    return out.flush(fine);
}

} // namespace kvm::tool
