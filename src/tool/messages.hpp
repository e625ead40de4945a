// SPDX-License-Identifier: MIT
//
// What QEMU, libvirt, Cloud Hypervisor and Firecracker say when a vCPU does not come up, recognised in
// whatever people paste. One table; a message that only resembles one in it is not taken for it.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

import kvm.nested;

namespace kvm::tool {

/// A message that is known.
struct Message {
    /// What is looked for in a line: "{x}" is a hexadecimal number, "{w}" a word, "{r}" the rest of the line.
    std::string_view words;
    std::string_view from; ///< who says so
    std::string_view known;
    std::string_view next;
    /// It says so little that it counts only where no other is found.
    bool weak = false;
};

/// One that was found.
struct FoundMessage {
    const Message* message;
    std::string line; ///< where it was, printable
    std::vector<std::uint64_t> numbers;
    std::vector<std::string> words; ///< of {w} and {r}, printable
};

/// All that are in `text`, in its order, each once. `text` may be anything, in several lines, with CR LF.
std::vector<FoundMessage> find_messages(std::string_view text);

/// All that are known, for tests and for who wants to see them.
std::vector<const Message*> known_messages();

/// A feature that a message names: "MSR(48BH).vmx-rdseed-exit [bit 16]", "vmx-ept-execonly".
struct NamedFeature {
    const nested::FeatureName* feature; ///< null: no feature of nesting is called so
    std::string name;                   ///< as it was written, printable
    /// The message gives another MSR or bit than the name has here.
    bool contradicts = false;
};
/// Those in the rest of a message that lists some.
std::vector<NamedFeature> features_in(std::string_view text);

} // namespace kvm::tool
