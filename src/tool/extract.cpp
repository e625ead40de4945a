// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"
#include "write_state.hpp"

#include <format>

namespace kvm::tool {

int run(const Extract& arguments) {
    const auto contents = states_of(arguments.file, arguments.vcpu);
    if (!contents)
        return in_trouble;
    if (contents->states.size() != 1)
        return complain(arguments.file,
                        {std::format("there are {} vCPUs in it", contents->states.size()), std::nullopt,
                         "choose one with --vcpu; kvm-nested show --brief FILE lists them"});
    const auto& state = contents->states.front();
    if (state.bytes.empty())
        return complain(arguments.file, {std::format("vCPU {} has no nested state", state.vcpu), std::nullopt,
                                         "kvm-nested show --brief FILE tells which vCPUs have one"});
    if (!arguments.as_is
        && complain_if_refused({arguments.file, *contents, state},
                               "nothing was written, since KVM_SET_NESTED_STATE would refuse it; --as-is "
                               "writes the bytes as they were found")
               != fine)
        return in_trouble;
    return write_state(arguments.output, state.bytes);
}

} // namespace kvm::tool
