// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

#include <format>
#include <utility>

namespace kvm::tool {
namespace {

std::size_t list(Output& out, const FoundState& state) {
    std::size_t count = 0;
    guest_ranges(state.bytes, [&](const GuestRange& range) noexcept {
        if (count++ == 0)
            out << std::format("{:>18}  {:>6}  {:>5}  {:16}  {}\n", "address", "bytes", "pages", "KVM",
                               "what is there");
        out << std::format("{:#018x}  {:6}  {:5}  {:16}  {}\n", range.address, range.size, range.pages(),
                           name(range.access), name(range.role));
    });
    return count;
}

} // namespace

int run(const Pages& arguments) {
    Output out;
    bool first = true;
    const int status = for_each_state(arguments.files, arguments.vcpu, [&](const StateOfFile& what) {
        if (!std::exchange(first, false))
            out << "\n";
        out.heading(title(what));
        if (list(out, what.state) == 0)
            out << (what.state.refused() ? "nothing can be said of it\n"
                                         : "no guest memory is referred to\n");
        return complain_if_refused(what, "kvm-nested show FILE shows its fields as they were found");
    });
    return out.flush(status);
}

} // namespace kvm::tool
