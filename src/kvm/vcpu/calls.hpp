// SPDX-License-Identifier: MIT
//
// The ioctls of a vCPU as kvm.vcpu makes them, each with its Error. Internal: included by implementation
// units, behind `module kvm.vcpu;`, with <array>, <cstddef>, <cstdint>, <expected>, <optional>, <span>,
// <vector> before.
#pragma once

namespace kvm::vcpu::detail {

/// The kernel's argument of KVM_GET_CPUID2, KVM_SET_CPUID2 and KVM_GET_SUPPORTED_CPUID.
struct CpuidBlock {
    std::uint32_t count;
    std::uint32_t padding;
    std::array<uapi::CpuidEntry, uapi::cpuid_limit> entries; // not initialised
};

/// The descriptors and the run page of one vCPU. All of this library that asks the kernel goes through it.
struct VcpuCalls {
    Operation operation; ///< what the caller called
    SystemFd system;
    VmFd vm;
    VcpuFd vcpu;
    std::byte* run_page;
    IoctlRef ioctl;

    /// An ioctl on the vCPU whose only success is 0.
    [[nodiscard]] Result call(unsigned long request, void* argument) const;
    /// KVM_SET_*, which only read: they need no copy.
    [[nodiscard]] Result set(unsigned long request, const void* argument) const;

    // What a failed ioctl means, by the descriptor it was on.
    Error vcpu_failed(unsigned long request, IoctlResult result) const;
    Error vm_failed(unsigned long request, IoctlResult result) const;
    Error system_failed(unsigned long request, IoctlResult result) const;

    std::unexpected<Error> fail(Cause cause, Detail detail = {}) const;
    /// An answer that no kernel gives.
    std::unexpected<Error> absurd(unsigned long request, std::uint64_t answer) const;

    /// Bytes that KVM_GET_XSAVE2 writes and KVM_SET_XSAVE reads.
    [[nodiscard]] std::expected<std::size_t, Error> xsave_size() const;

    /// The indices that KVM_GET_MSR_INDEX_LIST or KVM_GET_MSR_FEATURE_INDEX_LIST gives.
    [[nodiscard]] std::expected<std::vector<std::uint32_t>, Error> msr_list(unsigned long request) const;
    /// Reads the values of `msrs`. Those that the vCPU does not let one read are taken out.
    [[nodiscard]] Result read_msrs(std::vector<uapi::Msr>& msrs) const;
    /// KVM_GET_SUPPORTED_CPUID.
    [[nodiscard]] std::expected<std::vector<uapi::CpuidEntry>, Error> supported_cpuid() const;
    /// A feature MSR of the host; none where KVM has none of that number.
    std::optional<std::uint64_t> feature_msr(std::uint32_t index) const;
    /// L1's TSC, as the vCPU has it now.
    [[nodiscard]] std::expected<std::uint64_t, Error> read_tsc() const;
    /// Writes what the vCPU takes. Answers the positions of what it refused.
    [[nodiscard]] std::expected<std::vector<std::size_t>, Error>
    write_msrs(std::span<const uapi::Msr> msrs) const;

    /// KVM_RUN with immediate_exit: ends the instruction whose I/O user space has handled. A kick (somebody
    /// writes 1 to immediate_exit) that was there before or comes meanwhile is there afterwards.
    /// @return Errc::exit_pending: that brought another exit
    [[nodiscard]] Result complete_io() const;

    // The run page, which the kernel writes behind the compiler's back.
    std::uint8_t immediate_exit() const noexcept;
    /// Where it is `from`: one step for whoever else writes it.
    void exchange_immediate_exit(std::uint8_t from, std::uint8_t to) const noexcept;
    std::uint32_t run_word(std::size_t offset) const noexcept;
    void run_word(std::size_t offset, std::uint32_t value) const noexcept;
};

struct Saving {
    const VcpuCalls& calls;
    Host<Any> host;
    const Requirements& promised;
    VcpuState& state;
    const SaveOptions& options;
    const MsrLists& lists;
};

struct Restoring {
    const VcpuCalls& calls;
    Host<Any> host;
    const VcpuState& state;
    RestoreReport& report;
    const TscShift* shift; ///< nullptr: the vCPU is restored alone

    inline Vcpu<Any, IoctlRef> nested() const noexcept { return {host, calls.vcpu, calls.ioctl}; }
};

/// KVM_VCPU_TSC_OFFSET; none where the kernel does not have it.
[[nodiscard]] std::expected<std::optional<std::uint64_t>, Error> read_tsc_offset(const VcpuCalls& calls);

} // namespace kvm::vcpu::detail
