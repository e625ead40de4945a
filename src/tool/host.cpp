// SPDX-License-Identifier: MIT
#include "host.hpp"
#include "input.hpp"

#include <fcntl.h>
#include <format>
#include <unistd.h>

import kvm.nested.json;
import kvm.vcpu;

namespace kvm::tool {
namespace {

/// Where two hosts differ in what KVM_SET_MSRS looks at, whether it refuses.
bool is_refused(const CapabilityDifference& what) {
    namespace msr = vmx::msr;
    const auto index = what.layout->index;
    if (!can_be_set(*what.layout) || index == msr::vmcs_enum) // KVM takes any
        return false;
    if (what.holder != Holder::neither)
        return what.holder == Holder::a;
    if (index != msr::basic)
        return true;
    const auto first = what.bits.first;
    return first == bits(bit_layout::vmx_basic, "VMCS revision").first
           || (first == bits(bit_layout::vmx_basic, "VMCS region size").first && what.b > what.a);
}

} // namespace

std::expected<Destination, Trouble> read_host(const std::string& path) {
    const auto text = read_text(path, {"this is too large for a record of a host", std::nullopt,
                                       "kvm-nested probe --json writes one of a few kilobytes"});
    if (!text)
        return std::unexpected{text.error()};
    auto host = destination_from_json(*text);
    if (host)
        return *std::move(host);
    const auto& error = host.error();
    const bool syntax = error.cause == JsonError::Cause::syntax;
    return std::unexpected{Trouble{
        syntax ? "this is not JSON" : error.message(), syntax ? std::optional{error.offset} : std::nullopt,
        error.cause == JsonError::Cause::version
            ? "write the record with a kvm-nested of this version, or use a newer one here"
            : "kvm-nested probe --json writes the record of a host"}};
}

std::optional<Destination> this_host(const std::string& device) {
    const int fd = ::open(device.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return std::nullopt;
    const auto host = vcpu::capture_host(SystemFd{fd});
    ::close(fd);
    return host ? std::optional{*host} : std::nullopt;
}

std::expected<ChosenHost, Trouble> choose_host(const std::string& on) {
    if (on.empty()) {
        // A host that nests no guests is nobody's destination.
        auto host = this_host();
        return host && host->vendor ? ChosenHost{*std::move(host), "this host"} : ChosenHost{};
    }
    auto host = read_host(on);
    if (!host)
        return std::unexpected{host.error()};
    return ChosenHost{*std::move(host), on};
}

bool can_be_set(const CapabilityLayout& layout) {
    namespace msr = vmx::msr;
    return layout.vendor == VendorId::vmx && layout.true_index == 0 && layout.index >= msr::basic
           && layout.index != msr::cr0_fixed1 && layout.index != msr::cr4_fixed1
           && layout.index != msr::tertiary_controls && layout.index != msr::secondary_exit_controls;
}

std::vector<RefusedMsr> refused_msrs(const vmx::Capabilities& wanted, const vmx::Capabilities& offered) {
    std::vector<RefusedMsr> all;
    capability_difference(wanted, offered, [&](const CapabilityDifference& what) noexcept {
        if (!is_refused(what))
            return;
        if (all.empty() || all.back().layout != what.layout)
            all.push_back({.layout = what.layout,
                           .wanted = *wanted[what.layout->index],
                           .offered = *offered[what.layout->index],
                           .reasons = {}});
        all.back().reasons.push_back(what);
    });
    return all;
}

std::string describe_reason(const CapabilityDifference& reason) {
    std::string text;
    describe(reason, [&](std::string_view piece) noexcept { text += piece; },
             {.a = "the guest", .b = "the host"});
    // Who and which MSR is said around it.
    for (int i = 0; i < 2; ++i)
        if (const auto end = text.find("  "); end != text.npos)
            text.erase(0, end + 2);
    if (const auto end = text.find("  "); end != text.npos)
        text.replace(end, 2, " (") += ')';
    return text;
}

} // namespace kvm::tool
