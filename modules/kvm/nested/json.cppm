// SPDX-License-Identifier: MIT
//
// import kvm.nested.json;  A nested state as JSON and back, for hand-made test cases and for other programs.
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

/// Why there is no state.
struct JsonError {
    enum class Cause : std::uint8_t {
        syntax,        ///< not JSON
        shape,         ///< JSON, but not in the form that to_json() writes
        missing,       ///< what has to be there is not: the version, the vendor, the value of a field
        unknown_name,  ///< no part, no field and no member of a field is called so
        repeated_name, ///< a name that is there twice
        version,       ///< another version of this form
        other_vendor,  ///< a part, or a field of the header, that the state's vendor does not have
        rounded,   ///< a JSON number above 2^53 - 1: programs such as jq round it, so only a string will do
        bad_value, ///< no number, no hexadecimal digits, or more than the field holds
        no_state,  ///< written of bytes that are no nested state
        refused,   ///< a state that no vCPU can be in: see `refused`
    };
    Cause cause;
    std::string where;      ///< "vmcs12/guest_rip", printable; empty if it is nowhere in particular
    std::size_t offset = 0; ///< of a syntax error, in the text
    std::optional<Error> refused = std::nullopt;

    std::string message() const;
};

/// Builds a state. Takes what to_json() writes, and what a person would write: decimal and hexadecimal
/// strings, unsigned JSON numbers up to 2^53 - 1, names in any order. The version and the vendor must be
/// there. Left out, the addresses of the header are "none", the revision of a vmcs12 is KVM's, and everything
/// else is zero; "phase" and "meaning" are for the reader and not looked at. The result is canonical, as
/// NestedState::parse() makes it.
[[nodiscard]] std::expected<NestedStateBuffer, JsonError> from_json(std::string_view text);

} // namespace kvm::nested
