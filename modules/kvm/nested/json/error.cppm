// SPDX-License-Identifier: MIT
//
// What is wrong with a text: the same for all that is read from JSON.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
export module kvm.nested.json:error;
import kvm.nested;

export namespace kvm::nested {

/// Why a text is not what it should be.
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

} // namespace kvm::nested
