// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
module kvm.vcpu;

namespace kvm::vcpu {
namespace {

struct MsrName {
    std::uint32_t index;
    std::string_view name;
};

/// What a move between hosts is seen to lose most, and what KVM makes up itself. The capability MSRs of VMX
/// and IA32_FEATURE_CONTROL are in nested::capability_layouts.
constexpr std::array names = std::to_array<MsrName>({
    {0x10, "IA32_TIME_STAMP_COUNTER"},
    {0x1b, "IA32_APIC_BASE"},
    {0x34, "MSR_SMI_COUNT"},
    {0x3b, "IA32_TSC_ADJUST"},
    {0x48, "IA32_SPEC_CTRL"},
    {0x8b, "IA32_BIOS_SIGN_ID"},
    {0xce, "MSR_PLATFORM_INFO"},
    {0xe1, "IA32_UMWAIT_CONTROL"},
    {0x10a, "IA32_ARCH_CAPABILITIES"},
    {0x140, "MSR_MISC_FEATURES_ENABLES"},
    {0x174, "IA32_SYSENTER_CS"},
    {0x175, "IA32_SYSENTER_ESP"},
    {0x176, "IA32_SYSENTER_EIP"},
    {0x179, "IA32_MCG_CAP"},
    {0x17a, "IA32_MCG_STATUS"},
    {0x17b, "IA32_MCG_CTL"},
    {0x1a0, "IA32_MISC_ENABLE"},
    {0x1c4, "IA32_XFD"},
    {0x1c5, "IA32_XFD_ERR"},
    {0x277, "IA32_PAT"},
    {0x345, "IA32_PERF_CAPABILITIES"},
    {0x38d, "IA32_FIXED_CTR_CTRL"},
    {0x38f, "IA32_PERF_GLOBAL_CTRL"},
    {0x4d0, "IA32_MCG_EXT_CTL"},
    {0x570, "IA32_RTIT_CTL"},
    {0x6a0, "IA32_U_CET"},
    {0x6a2, "IA32_S_CET"},
    {0x6e0, "IA32_TSC_DEADLINE"},
    {0xd90, "IA32_BNDCFGS"},
    {0xda0, "IA32_XSS"},
    {0x4000'0000, "HV_X64_MSR_GUEST_OS_ID"},
    {0x4000'0001, "HV_X64_MSR_HYPERCALL"},
    {0x4000'0002, "HV_X64_MSR_VP_INDEX"},
    {0x4000'0010, "HV_X64_MSR_VP_RUNTIME"},
    {0x4000'0020, "HV_X64_MSR_TIME_REF_COUNT"},
    {0x4000'0021, "HV_X64_MSR_REFERENCE_TSC"},
    {0x4000'0073, "HV_X64_MSR_VP_ASSIST_PAGE"},
    {0x4000'0080, "HV_X64_MSR_SCONTROL"},
    {0x4000'0118, "HV_X64_MSR_TSC_INVARIANT_CONTROL"},
    {0x4b56'4d00, "MSR_KVM_WALL_CLOCK_NEW"},
    {0x4b56'4d01, "MSR_KVM_SYSTEM_TIME_NEW"},
    {0x4b56'4d02, "MSR_KVM_ASYNC_PF_EN"},
    {0x4b56'4d03, "MSR_KVM_STEAL_TIME"},
    {0x4b56'4d04, "MSR_KVM_PV_EOI_EN"},
    {0x4b56'4d05, "MSR_KVM_POLL_CONTROL"},
    {0x4b56'4d06, "MSR_KVM_ASYNC_PF_INT"},
    {0x4b56'4d07, "MSR_KVM_ASYNC_PF_ACK"},
    {0xc000'0080, "EFER"},
    {0xc000'0081, "STAR"},
    {0xc000'0082, "LSTAR"},
    {0xc000'0083, "CSTAR"},
    {0xc000'0084, "SFMASK"},
    {0xc000'0100, "FS_BASE"},
    {0xc000'0101, "GS_BASE"},
    {0xc000'0102, "KERNEL_GS_BASE"},
    {0xc000'0103, "TSC_AUX"},
    {0xc000'0104, "TSC_RATIO"},
    {0xc001'0015, "HWCR"},
    {0xc001'0117, "VM_HSAVE_PA"},
    {0xc001'011f, "VIRT_SPEC_CTRL"},
    {0xc001'1029, "DE_CFG"},
});
static_assert(std::ranges::is_sorted(names, {}, &MsrName::index));

} // namespace

std::string_view msr_name(std::uint32_t index) noexcept {
    if (const auto* capability = nested::find_capability(index);
        capability != nullptr && capability->vendor == nested::VendorId::vmx)
        return capability->name;
    const auto found = std::ranges::lower_bound(names, index, {}, &MsrName::index);
    if (found != names.end() && found->index == index)
        return found->name;
    for (const auto& msrs : unlisted_msrs)
        if (index >= msrs.first && index <= msrs.last && (index - msrs.first) % msrs.stride == 0)
            return msrs.name;
    return {};
}

} // namespace kvm::vcpu
