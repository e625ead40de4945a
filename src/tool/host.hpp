// SPDX-License-Identifier: MIT
//
// The host that a state is to go to: a record of it, or this one.
#pragma once
#include "reader.hpp"

#include <expected>
#include <optional>
#include <string>
#include <vector>

namespace kvm::tool {

/// A record that probe --json has written.
std::expected<Destination, Trouble> read_host(const std::string& path);

/// What the KVM of `device` says of itself; none if there is none, or it says nothing.
std::optional<Destination> this_host(const std::string& device = "/dev/kvm");

/// The host that --on names, else this one, else one of which nothing is known.
struct ChosenHost {
    Destination destination;
    std::string name; ///< for text: the file's, "this host"; empty if nothing is known
};
std::expected<ChosenHost, Trouble> choose_host(const std::string& on);

/// Whether a capability MSR can be set: KVM works some out itself, of the TRUE ones and CPUID.
bool can_be_set(const CapabilityLayout& layout);

/// A VMX capability MSR that KVM_SET_MSRS refuses on a host.
struct RefusedMsr {
    const CapabilityLayout* layout;
    std::uint64_t wanted, offered;
    std::vector<CapabilityDifference> reasons; ///< a is what is wanted, b the host
};

/// KVM takes a capability MSR whose value asks for nothing that the host lacks: of controls each that may be
/// 1 has to be one that may be 1 there, and what must be 1 there has to be 1. Numbers have to be the same, or
/// no greater. MSRs that are not known of both are left out, and so are those that nobody can set, since KVM
/// works them out itself.
std::vector<RefusedMsr> refused_msrs(const vmx::Capabilities& wanted, const vmx::Capabilities& offered);

/// "enable VM functions may be 1 (vmx-vmfunc)".
std::string describe_reason(const CapabilityDifference& reason);

} // namespace kvm::tool
