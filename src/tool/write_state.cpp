// SPDX-License-Identifier: MIT
#include "write_state.hpp"

#include "output.hpp"

#include <cstring>
#include <format>
#include <unistd.h>

import kvm.vcpu;

namespace kvm::tool {

int write_state(const std::string& path, Bytes state) {
    if (path == "-") {
        if (::isatty(STDOUT_FILENO) != 0)
            return complain("standard output", {"a raw state is nothing for a terminal", std::nullopt,
                                                "name a file with -o, or send it through a pipe"});
        Output out;
        out << std::string_view{reinterpret_cast<const char*>(state.data()), state.size()};
        return out.flush(fine);
    }
    if (const auto written = vcpu::write_file(path, state); !written) {
        const std::string reason = std::strerror(written.error().error_number);
        if (written.error().cause == vcpu::Errc::file_not_synced)
            return complain(path, {"written, but its folder could not be synced: " + reason, std::nullopt,
                                   "the file is whole; sync its file system before you rely on it"});
        return complain(path, {reason, std::nullopt, "name another file with -o; nothing was written"});
    }
    tell(std::format("kvm-nested: wrote {}: {}\n", path, summary(state).view()));
    return fine;
}

} // namespace kvm::tool
