// SPDX-License-Identifier: MIT
//
// Compiling is the test: our layouts, flags and numbers against the kernel's own header. The test suite
// compiles this unit against the headers of every kernel generation it knows.
module;
#include <cstddef>

#include "../linux_kvm.hpp"
module kvm.nested;

namespace kvm::nested::uapi {

// Layouts.
static_assert(sizeof(kvm_nested_state) == sizeof(StateHeader));
static_assert(offsetof(kvm_nested_state, flags) == offsetof(StateHeader, flags));
static_assert(offsetof(kvm_nested_state, format) == offsetof(StateHeader, format));
static_assert(offsetof(kvm_nested_state, size) == offsetof(StateHeader, size));
static_assert(offsetof(kvm_nested_state, hdr) == offsetof(StateHeader, vendor));
static_assert(offsetof(kvm_nested_state, data) == header_size);
static_assert(sizeof(kvm_nested_state::hdr) == sizeof(StateHeader::vendor));

static_assert(offsetof(kvm_vmx_nested_state_hdr, vmxon_pa) == offsetof(VmxHeader, vmxon_pa));
static_assert(offsetof(kvm_vmx_nested_state_hdr, vmcs12_pa) == offsetof(VmxHeader, vmcs12_pa));
static_assert(offsetof(kvm_vmx_nested_state_hdr, smm) == offsetof(VmxHeader, smm_flags));
static_assert(offsetof(kvm_vmx_nested_state_hdr, flags) == offsetof(VmxHeader, flags));
static_assert(offsetof(kvm_vmx_nested_state_hdr, preemption_timer_deadline)
              == offsetof(VmxHeader, preemption_timer_deadline));
static_assert(sizeof(kvm_vmx_nested_state_hdr) <= sizeof(VmxHeader));

static_assert(offsetof(kvm_svm_nested_state_hdr, vmcb_pa) == offsetof(SvmHeader, vmcb12_pa));
static_assert(sizeof(kvm_svm_nested_state_hdr) <= sizeof(SvmHeader));

template <class Header>
consteval bool gpat_fits() {
    if constexpr (requires { &Header::gpat; }) // Linux 7.x
        return offsetof(Header, gpat) == offsetof(SvmHeader, gpat)
               && sizeof(Header::gpat) == sizeof(SvmHeader::gpat);
    else
        return true;
}
static_assert(gpat_fits<kvm_svm_nested_state_hdr>());

static_assert(sizeof(kvm_vmx_nested_state_data) == 2 * page_size);
static_assert(sizeof(kvm_svm_nested_state_data) == page_size);
static_assert(KVM_STATE_NESTED_VMX_VMCS_SIZE == page_size && KVM_STATE_NESTED_SVM_VMCB_SIZE == page_size);

static_assert(sizeof(kvm_cpuid_entry2) == sizeof(CpuidEntry));
static_assert(offsetof(kvm_cpuid_entry2, function) == offsetof(CpuidEntry, function));
static_assert(offsetof(kvm_cpuid_entry2, index) == offsetof(CpuidEntry, index));
static_assert(offsetof(kvm_cpuid_entry2, flags) == offsetof(CpuidEntry, flags));
static_assert(offsetof(kvm_cpuid_entry2, eax) == offsetof(CpuidEntry, eax));
static_assert(offsetof(kvm_cpuid_entry2, edx) == offsetof(CpuidEntry, edx));
static_assert(sizeof(kvm_cpuid2) == 8);

// Flags.
static_assert(KVM_STATE_NESTED_FORMAT_VMX == state_format::vmx
              && KVM_STATE_NESTED_FORMAT_SVM == state_format::svm);
static_assert(KVM_STATE_NESTED_GUEST_MODE == state_flag::guest_mode);
static_assert(KVM_STATE_NESTED_RUN_PENDING == state_flag::run_pending);
static_assert(KVM_STATE_NESTED_EVMCS == state_flag::evmcs);
static_assert(KVM_STATE_NESTED_MTF_PENDING == state_flag::mtf_pending);
static_assert(KVM_STATE_NESTED_GIF_SET == state_flag::gif_set);
static_assert(KVM_STATE_NESTED_SMM_GUEST_MODE == smm_flag::guest_mode);
static_assert(KVM_STATE_NESTED_SMM_VMXON == smm_flag::vmxon);
static_assert(KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE == vmx_flag::preemption_timer_deadline);

// Numbers.
static_assert(KVM_GET_API_VERSION == request::get_api_version);
static_assert(KVM_CHECK_EXTENSION == request::check_extension);
static_assert(KVM_GET_SUPPORTED_CPUID == request::get_supported_cpuid);
static_assert(KVM_GET_TSC_KHZ == request::get_tsc_khz);
static_assert(KVM_GET_SUPPORTED_HV_CPUID == request::get_supported_hv_cpuid);
static_assert(KVM_GET_NESTED_STATE == request::get_nested_state);
static_assert(KVM_SET_NESTED_STATE == request::set_nested_state);
static_assert(KVM_CAP_NESTED_STATE == cap_nested_state);
#ifdef KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT
static_assert(KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT == quirk_nested_svm_shared_pat);
#endif

} // namespace kvm::nested::uapi
