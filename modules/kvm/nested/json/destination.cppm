// SPDX-License-Identifier: MIT
//
// A Destination as JSON: what a host says of itself, sent to where the states are, so that whether they will
// restore there is answered before anything is moved.
module;
#include <expected>
#include <string>
#include <string_view>
export module kvm.nested.json:destination;
import kvm.nested;
import :error;

export namespace kvm::nested {

/// One object: the version of this form, and what is known. What is not known is left out. Guest memory is
/// not written.
///
///     {
///       "kvm.nested.destination": 1,
///       "vendor": "VMX",
///       "kernel": "6.12.118",
///       "nested": true,
///       "maxphyaddr": 46,
///       "guest": {
///         "xsave": true,
///         ...
///       },
///       "vmx": {
///         "0x480": "0xda050011e57ed0",
///         ...
///       },
///       "efer": "0xd01"
///     }
std::string to_json(const Destination& destination);

/// Takes what to_json() writes. Only the version must be there; all else that is not there is not known, as
/// in a record of an older program that did not ask for it. A newer version is refused as such, whatever else
/// the text has. Within a version no key is skipped: one that is not known is an error, for a rule that went
/// by half of a record would answer wrongly.
[[nodiscard]] std::expected<Destination, JsonError> destination_from_json(std::string_view text);

} // namespace kvm::nested
