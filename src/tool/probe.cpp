// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

#include "../kvm/linux_kvm.hpp"

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

namespace kvm::tool {
namespace {

struct Named {
    std::uint32_t number;
    std::string_view name;
};

/// AMD APM Vol. 3, CPUID Fn8000_000A EDX.
constexpr auto svm_features = std::to_array<Named>({
    {0, "nested paging"},
    {1, "LBR virtualization"},
    {2, "SVM lock"},
    {3, "next RIP saved"},
    {4, "TSC rate MSR"},
    {5, "VMCB clean bits"},
    {6, "flush by ASID"},
    {7, "decode assists"},
    {10, "PAUSE intercept filter"},
    {12, "PAUSE filter threshold"},
    {13, "AVIC"},
    {15, "virtual VMSAVE and VMLOAD"},
    {16, "virtual GIF"},
    {17, "guest mode execute trap"},
    {18, "x2AVIC"},
    {25, "virtual NMI"},
    {28, "SVME address check"},
});

/// Intel SDM Vol. 3, appendix A.
struct VmxCapability {
    std::uint32_t msr;
    std::string_view name;
    const BitLayout* allowed = nullptr; ///< of the bits that may be 1: the upper half of the MSR
};
constexpr auto vmx_capabilities = std::to_array<VmxCapability>({
    {0x480, "IA32_VMX_BASIC"},
    {0x485, "IA32_VMX_MISC"},
    {0x486, "IA32_VMX_CR0_FIXED0"},
    {0x487, "IA32_VMX_CR0_FIXED1"},
    {0x488, "IA32_VMX_CR4_FIXED0"},
    {0x489, "IA32_VMX_CR4_FIXED1"},
    {0x48a, "IA32_VMX_VMCS_ENUM"},
    {0x48b, "IA32_VMX_PROCBASED_CTLS2", &bit_layout::secondary},
    {0x48c, "IA32_VMX_EPT_VPID_CAP"},
    {0x48d, "IA32_VMX_TRUE_PINBASED_CTLS", &bit_layout::pin_based},
    {0x48e, "IA32_VMX_TRUE_PROCBASED_CTLS", &bit_layout::primary},
    {0x48f, "IA32_VMX_TRUE_EXIT_CTLS", &bit_layout::exit_controls},
    {0x490, "IA32_VMX_TRUE_ENTRY_CTLS", &bit_layout::entry_controls},
    {0x491, "IA32_VMX_VMFUNC"},
});

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

void show_vmx(Output& out, const System& system) {
    out.heading("VMX capability MSRs that a vCPU gets by default");
    for (const auto& capability : vmx_capabilities)
        if (const auto value = system.feature_msr(capability.msr)) {
            out << std::format("  {:#x} {:30} {:#018x}\n", capability.msr, capability.name, *value);
            if (capability.allowed != nullptr) {
                out << "        may be 1: ";
                explain(*capability.allowed, *value >> 32,
                        [&](std::string_view piece) noexcept { out << piece; });
                out << "\n";
            }
        }
}

void show_svm(Output& out, const System& system) {
    out.heading("SVM features that a vCPU can have (CPUID 8000000a EDX)");
    const auto edx = system.supported_edx(0x8000'000a);
    out << std::format("  {:#010x}\n", edx);
    for (const auto& [bit, name] : svm_features)
        if ((edx >> bit & 1) != 0)
            out << std::format("  {:2} {}\n", bit, name);
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

} // namespace

int run(const Probe& arguments) {
    const System system{arguments.device};
    if (system.get() < 0)
        return complain(arguments.device, cannot_open(errno));

    Output out;
    utsname kernel{}; // char arrays: as C strings, without what is behind their ends
    ::uname(&kernel);
    const auto host = Host<Any>::probe(SystemFd{system.get()});
    if (!host) {
        out.heading(std::format("Linux {}: no nested states here", static_cast<const char*>(kernel.release)));
        out << std::format("  {:10} {}\n", "why", description(host.error().code));
        for (const auto vendor : {VendorId::vmx, VendorId::svm})
            if (const auto says = module_says(vendor); says.contains('='))
                out << std::format("  {:10} {}\n", "module", says);
        const auto code = host.error().code;
        const bool an_answer = code == Errc::not_supported || code == Errc::nesting_off
                               || code == Errc::capacity_unknown || code == Errc::vendor_unclear;
        if (code == Errc::nesting_off)
            out << "  next       load the module with nested=1\n";
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
