// SPDX-License-Identifier: MIT
//
// The kernel's interface for nested state, in our own words: layouts, flags and ioctl numbers.
//
// No kernel header is included here, and none may be in any interface unit: it would clash with the
// <linux/kvm.h> that every VMM includes itself. src/kvm/nested/uapi.cpp holds all of this against the
// kernel's header at compile time, for each kernel generation that the tests know.
module;
#include <array>
#include <cstddef>
#include <cstdint>
export module kvm.nested:uapi;

export namespace kvm::nested::uapi {

/// Bytes of the header that every nested state begins with.
inline constexpr std::size_t header_size = 128;
/// Bytes of a payload page: a vmcs12, a shadow vmcs12 or a VMCB.
inline constexpr std::size_t page_size = 4096;
/// An address field that holds no address: all ones, not zero.
inline constexpr std::uint64_t no_address = ~std::uint64_t{0};

/// The first 128 bytes of a nested state (struct kvm_nested_state without its data), little-endian.
/// What the vendor's part means is told by VmxHeader and SvmHeader; std::bit_cast leads from one to the
/// other.
struct StateHeader {
    std::uint16_t flags;  ///< state_flag
    std::uint16_t format; ///< state_format
    std::uint32_t size;   ///< bytes in all; for GET on the way in: bytes the kernel may write
    std::array<std::uint64_t, 15> vendor;

    constexpr bool operator==(const StateHeader&) const = default;
};

/// Bytes 8 to 127 of a VMX state.
struct VmxHeader {
    std::uint64_t vmxon_pa; ///< guest physical address given to VMXON; no_address: not in VMX operation
    std::uint64_t
        vmcs12_pa; ///< guest physical address of the current vmcs12; no_address: none, or enlightened
    std::uint16_t smm_flags; ///< smm_flag
    std::uint16_t padding;
    std::uint32_t flags;                     ///< vmx_flag
    std::uint64_t preemption_timer_deadline; ///< unit: L1's TSC divided by 32
    std::array<std::uint64_t, 11> reserved;

    constexpr bool operator==(const VmxHeader&) const = default;
};

/// Bytes 8 to 127 of an SVM state.
struct SvmHeader {
    std::uint64_t vmcb12_pa; ///< guest physical address of the vmcb12 that L1 gave to VMRUN
    /// L2's PAT, where the quirk that lets L1 and L2 share one is disabled (Linux 7.x; padding before).
    std::uint64_t gpat;
    std::array<std::uint64_t, 13> reserved;

    constexpr bool operator==(const SvmHeader&) const = default;
};

static_assert(sizeof(StateHeader) == header_size);
static_assert(offsetof(StateHeader, vendor) == 8);
static_assert(sizeof(VmxHeader) == sizeof(StateHeader::vendor));
static_assert(sizeof(SvmHeader) == sizeof(StateHeader::vendor));

/// StateHeader::format.
namespace state_format {
inline constexpr std::uint16_t vmx = 0;
inline constexpr std::uint16_t svm = 1;
} // namespace state_format

/// StateHeader::flags.
namespace state_flag {
inline constexpr std::uint16_t guest_mode = 0x0001;  ///< L2 is active
inline constexpr std::uint16_t run_pending = 0x0002; ///< VM entry accepted, L2 has not executed yet
inline constexpr std::uint16_t evmcs = 0x0004;       ///< VMX: the VMCS is a Hyper-V enlightened one
inline constexpr std::uint16_t mtf_pending = 0x0008; ///< VMX: a monitor trap flag VM exit is pending
inline constexpr std::uint16_t gif_set = 0x0100;     ///< SVM: the global interrupt flag is set
inline constexpr std::uint16_t known = guest_mode | run_pending | evmcs | mtf_pending | gif_set;
} // namespace state_flag

/// VmxHeader::smm_flags.
namespace smm_flag {
inline constexpr std::uint16_t guest_mode = 0x0001; ///< the SMI came while L2 was active
inline constexpr std::uint16_t vmxon = 0x0002;      ///< L1 was in VMX operation when the SMI came
inline constexpr std::uint16_t known = guest_mode | vmxon;
} // namespace smm_flag

/// VmxHeader::flags.
namespace vmx_flag {
inline constexpr std::uint32_t preemption_timer_deadline = 0x0001;
inline constexpr std::uint32_t known = preemption_timer_deadline;
} // namespace vmx_flag

/// Bits 30:0 of the first word of every vmcs12 that KVM makes, the same in Linux 6.1 to 7.3. Bit 31 of that
/// word marks a shadow VMCS.
inline constexpr std::uint32_t vmcs12_revision = 0x11e57ed0;
/// Bytes at the start of a vmcs12 page that mean anything; KVM neither reads nor keeps the rest.
inline constexpr std::size_t vmcs12_size = 998;
/// Bytes of the VMCB control area, at the start of the page.
inline constexpr std::size_t vmcb_control_size = 1024;
/// Bytes of the VMCB save area that Linux 7.3 knows, directly behind the control area.
inline constexpr std::size_t vmcb_save_size = 744;

/// One entry of KVM_GET_SUPPORTED_CPUID (struct kvm_cpuid_entry2).
struct CpuidEntry {
    std::uint32_t function;
    std::uint32_t index;
    std::uint32_t flags;
    std::uint32_t eax;
    std::uint32_t ebx;
    std::uint32_t ecx;
    std::uint32_t edx;
    std::array<std::uint32_t, 3> padding;

    constexpr bool operator==(const CpuidEntry&) const = default;
};
static_assert(sizeof(CpuidEntry) == 40);

/// Numbers as Linux encodes them: direction, size of the argument, type, number.
namespace detail {
inline constexpr unsigned long kvm_type = 0xae;
consteval unsigned long io(unsigned long number) {
    return kvm_type << 8 | number;
}
consteval unsigned long iow(unsigned long number, unsigned long size) {
    return 1ul << 30 | size << 16 | io(number);
}
consteval unsigned long ior(unsigned long number, unsigned long size) {
    return 2ul << 30 | size << 16 | io(number);
}
consteval unsigned long iowr(unsigned long number, unsigned long size) {
    return 3ul << 30 | size << 16 | io(number);
}
} // namespace detail

/// Request numbers, for example for a seccomp filter. The comment names the descriptor each belongs to.
namespace request {
inline constexpr unsigned long get_api_version = detail::io(0x00);             ///< /dev/kvm
inline constexpr unsigned long check_extension = detail::io(0x03);             ///< /dev/kvm, VM
inline constexpr unsigned long get_supported_cpuid = detail::iowr(0x05, 8);    ///< /dev/kvm
inline constexpr unsigned long get_tsc_khz = detail::io(0xa3);                 ///< vCPU, VM
inline constexpr unsigned long get_supported_hv_cpuid = detail::iowr(0xc1, 8); ///< vCPU
inline constexpr unsigned long get_nested_state = detail::iowr(0xbe, 128);     ///< vCPU
inline constexpr unsigned long set_nested_state = detail::iow(0xbf, 128);      ///< vCPU
} // namespace request

/// KVM_CAP_NESTED_STATE: KVM_CHECK_EXTENSION answers with the bytes that the largest state takes.
inline constexpr unsigned long cap_nested_state = 157;
/// Linux 7.x: L1 and L2 share one PAT unless this quirk is disabled with KVM_CAP_DISABLE_QUIRKS2.
inline constexpr std::uint64_t quirk_nested_svm_shared_pat = 1u << 11;

} // namespace kvm::nested::uapi
