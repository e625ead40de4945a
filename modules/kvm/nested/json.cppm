// SPDX-License-Identifier: MIT
//
// import kvm.nested.json;  A nested state as JSON and back, for hand-made test cases and for other programs;
// and a Destination, so that the host that has a state can be asked what another host would say.
//
// A module and a library of its own: unlike kvm.nested it allocates. What reads JSON is behind it, so that a
// user needs nobody's headers.
module;
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
export module kvm.nested.json;
export import kvm.nested;
export import :error;
export import :destination;

export namespace kvm::nested {

struct JsonOptions {
    bool zeros = false;    ///< fields that are zero, too
    bool meanings = false; ///< each field as an object with its value and what it means
    bool redact = false;   ///< as ReportOptions::redact; from_json() does not take that back
};

/// One object: the version of this form, the vendor, and the parts of the state by the names of their fields.
/// Values are strings, since a JSON number does not hold 64 bits everywhere. What is not there is zero.
/// Of bytes that NestedState::parse() refuses it has "refused" with the reason and no "phase", and
/// from_json() does not take it: what is missing or too much in the bytes cannot be seen in the fields.
///
///     {
///       "kvm.nested": 1,
///       "vendor": "VMX",
///       "phase": "VMXON, no current VMCS",
///       "header": {
///         "flags": "0x0",
///         "hdr.vmx.vmxon_pa": "0x1000",
///         ...
///       },
///       "vmcs12": {
///         "hdr": "0x11e57ed0",
///         "guest_rip": "0x401000",
///         ...
std::string to_json(const NestedStateView& state, const JsonOptions& options = {});

/// Builds a state. Takes what to_json() writes, and what a person would write: decimal and hexadecimal
/// strings, unsigned JSON numbers up to 2^53 - 1, names in any order. The version and the vendor must be
/// there. Left out, the addresses of the header are "none", the revision of a vmcs12 is KVM's, and everything
/// else is zero; "phase" and "meaning" are for the reader and not looked at. The result is canonical, as
/// NestedState::parse() makes it.
[[nodiscard]] std::expected<NestedStateBuffer, JsonError> from_json(std::string_view text);

} // namespace kvm::nested
