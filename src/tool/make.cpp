// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"
#include "write_state.hpp"

namespace kvm::tool {

int run(const Make& arguments) {
    const auto contents = states_of(arguments.file, std::nullopt);
    if (!contents)
        return in_trouble;
    if (contents->format != "JSON of kvm-nested")
        return complain(arguments.file,
                        {"this is not JSON of kvm-nested, but " + contents->format, std::nullopt,
                         "kvm-nested extract writes a state that is there already"});
    return write_state(arguments.output, contents->states.front().bytes);
}

} // namespace kvm::tool
