// SPDX-License-Identifier: MIT
//
// The commands of kvm-nested, a file for each: what a person asked for, and what answers it. Each run()
// returns the program's exit status.
#pragma once
#include "reader.hpp"

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvm::tool {

/// What states are, and their fields.
struct Show {
    std::vector<std::string> files;
    std::vector<std::string> fields;
    std::optional<unsigned> vcpu;
    bool brief = false; ///< the first screen alone
    bool all = false;   ///< name the fields that are zero, too
    bool json = false;
    bool redact = false;
};
int run(const Show& arguments);

/// Which fields differ. 0: none, 1: at least one.
struct Diff {
    std::string a, b;
    std::optional<unsigned> vcpu;
    bool all = false; ///< what KVM may rewrite counts, too
    bool redact = false;
    bool quiet = false;
};
int run(const Diff& arguments);

/// The guest memory that states refer to.
struct Pages {
    std::vector<std::string> files;
    std::optional<unsigned> vcpu;
};
int run(const Pages& arguments);

/// The raw state of one vCPU, to a file.
struct Extract {
    std::string file;
    std::optional<unsigned> vcpu;
    std::string output;
    bool as_is = false; ///< a state that no vCPU can be in, too
};
int run(const Extract& arguments);

/// A raw state from JSON.
struct Make {
    std::string file;
    std::string output;
};
int run(const Make& arguments);

/// What this host's KVM offers. 0: it nests, 1: it does not.
struct Probe {
    std::string device = "/dev/kvm";
    bool json = false;   ///< the record of it, for check --on
    std::string against; ///< the record of another host: what either has and the other lacks
};
int run(const Probe& arguments);

/// What KVM would say to states on a host. 0: it takes all of them, 1: it refuses one, or may.
struct Check {
    std::vector<std::string> files; ///< folders, too
    std::string on;                 ///< the record of a host; empty: this one
    std::optional<unsigned> vcpu;
    bool all = false; ///< list each rule that may fail
    bool quiet = false;
};
int run(const Check& arguments);

/// The rules of KVM_SET_NESTED_STATE, or all about some of them.
struct Rules {
    std::vector<std::string> ids;
};
int run(const Rules& arguments);

/// Why it failed: an errno with the state, an MSR, or a message as people paste it. 1: it is not known here.
struct Explain {
    std::vector<std::string> words; ///< a file where there is an error, an MSR and its value, or a message
    std::string error_name;         ///< of an errno
    std::optional<int> raw_result;  ///< what the ioctl came back with
    std::string on;                 ///< as for Check
    std::optional<unsigned> vcpu;
};
int run(const Explain& arguments);

// --- what several of them share
// ------------------------------------------------------------------------------------

/// The states of an input, or of one vCPU in it; complains where there are none.
std::optional<Contents> states_of(const std::string& path, std::optional<unsigned> vcpu);

/// One state of one input.
struct StateOfFile {
    const std::string& file;
    const Contents& contents;
    const FoundState& state;
};

/// Calls `answer` for each state of each input, and goes on with the next one after trouble.
/// @return fine, or in_trouble if there was any
int for_each_state(const std::vector<std::string>& files, std::optional<unsigned> vcpu,
                   const std::function<int(const StateOfFile&)>& answer);

/// Complains about a state that no vCPU can be in.
/// @return fine, or in_trouble if it is one
int complain_if_refused(const StateOfFile& what, std::string_view next_step);

/// "Intel SDM Vol. 3 section 27.2.1.1"; empty where a rule is KVM's own.
std::string manual_of(const RuleInfo& rule);

/// "FILE: vCPU 0, QEMU migration stream".
std::string title(const StateOfFile& what);

} // namespace kvm::tool
