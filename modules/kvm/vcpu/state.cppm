// SPDX-License-Identifier: MIT
//
// VcpuState: everything of a vCPU that must travel with its nested state.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>
export module kvm.vcpu:state;
import kvm.nested;
import :uapi;
import :prepare;

export namespace kvm::vcpu {

/// A whole vCPU as a value. WholeVcpu::save() makes it, WholeVcpu::restore() takes it, encode() and
/// parse_vcpu() turn it into bytes and back. While L2 is active the registers here are L2's, and L1's are in
/// `nested`.
struct VcpuState {
    VendorId vendor{};
    Requirements requirements; ///< what the VM must have on; see Requirements
    std::vector<uapi::CpuidEntry> cpuid;
    std::vector<uapi::Msr> feature_msrs; ///< capabilities: what the vCPU's CPUID does not tell
    std::vector<uapi::Msr> msrs;
    std::uint32_t tsc_khz = 0; ///< 0: not known
    uapi::Sregs2 sregs{};
    uapi::Regs regs{};
    std::vector<std::byte> xsave; ///< uapi::xsave_size bytes or more
    uapi::Xcrs xcrs{};            ///< count 0 where the vCPU has no XSAVE
    uapi::DebugRegs debugregs{};
    uapi::VcpuEvents events{};
    uapi::MpState mp_state{};
    std::optional<uapi::Lapic> lapic; ///< none where the interrupt controller is not in the kernel
    NestedStateBuffer nested;

    bool operator==(const VcpuState&) const = default;
};

/// The groups of a VcpuState, by the numbers that the file form has for them.
enum class SectionType : std::uint32_t {
    cpuid = 1,
    feature_msrs,
    msrs,
    tsc_khz,
    sregs2,
    regs,
    xsave,
    xcrs,
    debugregs,
    vcpu_events,
    mp_state,
    lapic,
    nested_state,
};

/// The first group that no vCPU can have: more CPUID entries or MSRs than KVM takes, an XSAVE area that is
/// missing or too large, more XCRs than there is room for, no nested state. None: all is well.
std::optional<SectionType> malformed_group(const VcpuState& state) noexcept;

} // namespace kvm::vcpu
