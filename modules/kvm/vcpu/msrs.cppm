// SPDX-License-Identifier: MIT
//
// Model-specific registers: which of them KVM serves without listing them, and in which order they go back.
//
// KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST are not all that KVM_GET_MSRS reads and
// KVM_SET_MSRS keeps. What they leave out stands here, as Linux 6.1.192, 6.12.118 and 7.3.4 have it;
// tests/lab/msr_scan asks the kernel at hand. An index that a list has is never asked for twice.
//
// Not here, since it travels otherwise or is no state: the x2APIC range and Hyper-V's EOI, ICR, TPR and EOM
// (in the local APIC's page; writing them sends interrupts), APIC_BASE and EFER (KVM_SET_SREGS2), commands
// such as PRED_CMD (they act on the host's processor), full-width aliases of counters, constants. Not to be
// had at all: the phase of a periodic synthetic timer, and Intel's LBR stack, which KVM reads only while the
// host's perf event for it is active.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <vector>
export module kvm.vcpu:msrs;
import kvm.nested;
import :uapi;
import :error;
import :prepare;

export namespace kvm::vcpu {

/// Where KVM has an MSR that it does not list.
enum class MsrCondition : std::uint8_t {
    always,
    svm,                     ///< kvm-amd
    sgx_launch_control,      ///< VMX; CPUID.07H:ECX[30]
    tsx_control,             ///< VMX; IA32_ARCH_CAPABILITIES[7]
    machine_check_bank,      ///< four MSRs a bank, as many banks as IA32_MCG_CAP[7:0] says
    corrected_machine_check, ///< one MSR a bank, with IA32_MCG_CAP[10]
    os_visible_workaround,   ///< CPUID.80000001H:ECX[9]
    hyperv_synic,            ///< Requirements::hyperv_synic
};

/// MSRs that KVM serves and does not list.
struct UnlistedMsrs {
    std::uint32_t first, last;
    std::uint32_t stride;
    std::string_view name; ///< of one, or what all of them are
    MsrCondition condition;
    std::string_view reason; ///< what a guest loses without them
};

/// A guest finds them again only if whoever saves asks for them.
inline constexpr std::array unlisted_msrs = std::to_array<UnlistedMsrs>({
    {0x8c, 0x8f, 1, "IA32_SGXLEPUBKEYHASH", MsrCondition::sgx_launch_control,
     "the key whose enclaves may be launched"},
    {0x122, 0x122, 1, "IA32_TSX_CTRL", MsrCondition::tsx_control,
     "whether transactions are off; not listed by 6.1"},
    {0x1d9, 0x1d9, 1, "IA32_DEBUGCTL", MsrCondition::always, "branch tracing; not listed by 6.1"},
    {0x1db, 0x1de, 1, "last branch and interrupt", MsrCondition::svm,
     "where the last branch went; not listed by 6.1, which reads them and lets nobody write them"},
    {0x200, 0x20f, 1, "IA32_MTRR_PHYSBASE/PHYSMASK", MsrCondition::always, "memory types"},
    {0x250, 0x250, 1, "IA32_MTRR_FIX64K", MsrCondition::always, "memory types"},
    {0x258, 0x259, 1, "IA32_MTRR_FIX16K", MsrCondition::always, "memory types"},
    {0x268, 0x26f, 1, "IA32_MTRR_FIX4K", MsrCondition::always, "memory types"},
    {0x2ff, 0x2ff, 1, "IA32_MTRR_DEF_TYPE", MsrCondition::always, "whether the MTRRs are on"},
    {0x280, 0x29f, 1, "IA32_MCi_CTL2", MsrCondition::corrected_machine_check,
     "whether corrected machine checks interrupt"},
    {0x400, 0x47f, 1, "IA32_MCi_CTL/STATUS/ADDR/MISC", MsrCondition::machine_check_bank,
     "machine checks that were logged"},
    {0xc001'0114, 0xc001'0114, 1, "VM_CR", MsrCondition::svm, "whether SVM is disabled and locked"},
    {0xc001'0140, 0xc001'0141, 1, "OSVW", MsrCondition::os_visible_workaround,
     "which errata the guest works around"},
    {0x4000'0081, 0x4000'0083, 1, "HV_X64_MSR_SVERSION/SIEFP/SIMP", MsrCondition::hyperv_synic,
     "the pages for messages and events"},
    {0x4000'0090, 0x4000'009f, 1, "HV_X64_MSR_SINT", MsrCondition::hyperv_synic,
     "the vectors of synthetic interrupts"},
    {0x4000'00b1, 0x4000'00b7, 2, "HV_X64_MSR_STIMER_COUNT", MsrCondition::hyperv_synic,
     "when a synthetic timer fires"},
    {0x4000'00b0, 0x4000'00b6, 2, "HV_X64_MSR_STIMER_CONFIG", MsrCondition::hyperv_synic,
     "whether a synthetic timer runs"},
});

/// What decides the conditions. All of it is known when the MSRs are read.
struct MsrConditions {
    VendorId vendor{};
    std::span<const uapi::CpuidEntry> cpuid = {};
    std::uint64_t machine_check_capabilities = 0; ///< IA32_MCG_CAP
    std::uint64_t architecture_capabilities = 0;  ///< IA32_ARCH_CAPABILITIES; 0 where there is none
    HypervSynic synic = HypervSynic::off;
};

/// Whether a vCPU with these conditions has that one of `msrs`.
constexpr bool applies(const UnlistedMsrs& msrs, std::uint32_t index, const MsrConditions& given) noexcept {
    const auto ecx = [&](std::uint32_t function, unsigned bit) {
        for (const auto& entry : given.cpuid)
            if (entry.function == function && entry.index == 0)
                return (entry.ecx >> bit & 1) != 0;
        return false;
    };
    const auto banks = given.machine_check_capabilities & 0xff;
    switch (msrs.condition) {
    case MsrCondition::always:
        return true;
    case MsrCondition::svm:
        return given.vendor == VendorId::svm;
    case MsrCondition::sgx_launch_control:
        return given.vendor == VendorId::vmx && ecx(7, 30);
    case MsrCondition::tsx_control:
        return given.vendor == VendorId::vmx && (given.architecture_capabilities >> 7 & 1) != 0;
    case MsrCondition::machine_check_bank:
        return (index - msrs.first) / 4 < banks;
    case MsrCondition::corrected_machine_check:
        return (given.machine_check_capabilities >> 10 & 1) != 0 && index - msrs.first < banks;
    case MsrCondition::os_visible_workaround:
        return ecx(0x8000'0001, 9);
    case MsrCondition::hyperv_synic:
        return given.synic != HypervSynic::off;
    }
    return false;
}

/// When an MSR is written among the others.
enum class MsrOrder : std::uint8_t {
    any,
    /// What switches on what the others set up: MTRR_DEF_TYPE; RTIT_CTL, while whose TraceEn is set the rest
    /// of Intel PT is refused; a synthetic timer's CONFIG, whose COUNT stops the timer.
    switches_on,
    /// IA32_TSC_DEADLINE is armed when it is written, against the TSC of then.
    deadline,
};

constexpr MsrOrder msr_order(std::uint32_t index) noexcept {
    if (index == uapi::msr::tsc_deadline)
        return MsrOrder::deadline;
    const bool timer_config = index >= 0x4000'00b0 && index <= 0x4000'00b6 && index % 2 == 0;
    return timer_config || index == 0x2ff || index == 0x570 ? MsrOrder::switches_on : MsrOrder::any;
}

/// The name that the manuals have for an MSR, or that KVM has for one of its own. Empty: not known here.
std::string_view msr_name(std::uint32_t index) noexcept;

/// What this host's KVM lists. Asked for once by who saves more than once: it is the same for all vCPUs.
class MsrLists {
  public:
    /// KVM_GET_MSR_FEATURE_INDEX_LIST and KVM_GET_MSR_INDEX_LIST.
    [[nodiscard]] static std::expected<MsrLists, Error> ask(SystemFd system, IoctlRef ioctl = system_call);

    std::span<const std::uint32_t> features() const noexcept { return features_; }
    /// What the first list does not have already.
    std::span<const std::uint32_t> others() const noexcept { return others_; }

  private:
    std::vector<std::uint32_t> features_, others_;
};

} // namespace kvm::vcpu

namespace kvm::vcpu::detail {

consteval bool unlisted_msrs_are_disjoint() {
    for (std::size_t i = 0; i < unlisted_msrs.size(); ++i) {
        const auto& a = unlisted_msrs[i];
        if (a.first > a.last || a.stride == 0 || (a.last - a.first) % a.stride != 0 || a.reason.empty())
            return false;
        for (std::size_t j = 0; j < i; ++j) {
            const auto& b = unlisted_msrs[j];
            for (auto index = a.first; index <= a.last; index += a.stride)
                if (index >= b.first && index <= b.last && (index - b.first) % b.stride == 0)
                    return false;
        }
    }
    return true;
}
static_assert(unlisted_msrs_are_disjoint());

} // namespace kvm::vcpu::detail
