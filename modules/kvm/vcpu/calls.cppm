// SPDX-License-Identifier: MIT
//
// The ioctls of a vCPU as WholeVcpu uses them, each with its Error. Nothing here is exported.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <vector>
export module kvm.vcpu:calls;
import kvm.nested;
import :uapi;

namespace kvm::vcpu::detail {

/// The descriptors and the run page of one vCPU. All members of this library that ask the kernel go through
/// it.
struct VcpuCalls {
    SystemFd system;
    VmFd vm;
    VcpuFd vcpu;
    std::byte* run_page;
    IoctlRef ioctl;

    /// An ioctl on the vCPU whose only success is 0.
    [[nodiscard]] std::expected<void, Error> call(Operation operation, unsigned long request,
                                                  void* argument) const;

    // What a failed ioctl means, by the descriptor it was on.
    Error vcpu_failed(Operation operation, IoctlResult result) const;
    Error vm_failed(Operation operation, IoctlResult result) const;
    Error system_failed(Operation operation, IoctlResult result) const;

    /// Bytes that KVM_GET_XSAVE2 writes and KVM_SET_XSAVE reads.
    [[nodiscard]] std::expected<std::size_t, Error> xsave_size() const;

    /// The indices that KVM_GET_MSR_INDEX_LIST or KVM_GET_MSR_FEATURE_INDEX_LIST gives.
    [[nodiscard]] std::expected<std::vector<std::uint32_t>, Error> msr_list(unsigned long request) const;
    /// Those of the MSRs that the vCPU lets one read, in the order of `indices`.
    [[nodiscard]] std::expected<std::vector<uapi::Msr>, Error>
    read_msrs(std::span<const std::uint32_t> indices) const;
    /// Writes what the vCPU takes. Answers the positions of what it refused.
    [[nodiscard]] std::expected<std::vector<std::size_t>, Error>
    write_msrs(std::span<const uapi::Msr> msrs) const;

    /// KVM_RUN with immediate_exit: ends the instruction whose I/O user space has handled.
    /// @return Errc::exit_pending: that brought another exit
    [[nodiscard]] std::expected<void, Error> complete_io() const;

    // The run page, which the kernel writes behind the compiler's back.
    std::uint8_t immediate_exit() const noexcept;
    void immediate_exit(std::uint8_t value) const noexcept;
    std::uint32_t run_word(std::size_t offset) const noexcept;
    void run_word(std::size_t offset, std::uint32_t value) const noexcept;
};

/// The kernel's variable-length argument of KVM_GET_CPUID2 and KVM_SET_CPUID2.
struct CpuidBlock {
    std::uint32_t count;
    std::uint32_t padding;
    std::array<uapi::CpuidEntry, uapi::cpuid_limit> entries; // not initialised
};

} // namespace kvm::vcpu::detail
