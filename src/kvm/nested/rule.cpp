// SPDX-License-Identifier: MIT
module;
#include <array>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string_view>
module kvm.nested;

namespace kvm::nested {

std::string_view name(Certainty certainty) noexcept {
    switch (certainty) {
    case Certainty::fails:
        return "fails";
    case Certainty::may_fail:
        return "may fail";
    case Certainty::silent:
        return "silent";
    }
    return "?";
}

std::string_view name(Answer answer) noexcept {
    switch (answer) {
    case Answer::einval:
        return "EINVAL";
    case Answer::efault:
        return "EFAULT";
    case Answer::enomem:
        return "ENOMEM";
    case Answer::positive:
        return "the return value 2";
    case Answer::success:
        return "success";
    }
    return "?";
}

std::string_view description(Keeps keeps) noexcept {
    switch (keeps) {
    case Keeps::unchanged:
        return "the vCPU's nested state is unchanged";
    case Keeps::not_in_vmx_operation:
        return "the vCPU has left VMX operation";
    case Keeps::vmxon:
        return "the vCPU is in VMX operation without a current VMCS";
    case Keeps::current_vmcs:
        return "the vCPU is in VMX operation with the new addresses, L2 not active";
    case Keeps::overwritten:
        return "the vCPU is in VMX operation, L2 not active, and L1's control registers are L2's";
    case Keeps::l2_active:
        return "the vCPU has the new state, L2 active";
    }
    return "?";
}

Text<768> description(Needs needs) noexcept {
    constexpr auto descriptions = std::to_array<std::string_view>({
        "the kernel's version",
        "whether the host nests guests",
        "the guest's MAXPHYADDR",
        "the guest's CPUID",
        "what KVM supports on the host",
        "the VMX capability MSRs",
        "whether the vCPU is in SMM",
        "the vCPU's control registers",
        "whether enlightened VMCSs are enabled on the vCPU",
        "which quirks are disabled",
        "whether the host uses nested paging",
        "the vCPU's performance counters and LBRs",
        "guest memory",
        "what lies behind the state in the caller's memory",
        "the kernel's memory",
        "the destination's vendor",
    });
    Text<768> text;
    for (std::size_t i = 0; i < descriptions.size(); ++i)
        if ((static_cast<unsigned>(needs) >> i & 1) != 0)
            text << (text.view().empty() ? "" : ", ") << descriptions[i];
    return text;
}

std::optional<KernelVersion> kernel_version(std::string_view release) noexcept {
    KernelVersion version;
    const auto* end = release.data() + release.size();
    const auto major = std::from_chars(release.data(), end, version.major);
    if (major.ec != std::errc{} || major.ptr == end || *major.ptr != '.')
        return std::nullopt;
    const auto minor = std::from_chars(major.ptr + 1, end, version.minor);
    if (minor.ec != std::errc{})
        return std::nullopt;
    if (minor.ptr != end && *minor.ptr == '.')
        static_cast<void>(std::from_chars(minor.ptr + 1, end, version.patch)); // "7.3-rc1" has none
    return version;
}

} // namespace kvm::nested
