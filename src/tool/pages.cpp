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
    int status = fine;
    bool first = true;
    for (const auto& file : arguments.files) {
        const auto contents = states_of(file, arguments.vcpu);
        if (!contents) {
            status = in_trouble;
            continue;
        }
        for (const auto& state : contents->states) {
            if (!std::exchange(first, false))
                out << "\n";
            out.heading(title(file, *contents, state));
            if (list(out, state) == 0)
                out << "no guest memory is referred to\n";
        }
    }
    return out.flush(status);
}

} // namespace kvm::tool
