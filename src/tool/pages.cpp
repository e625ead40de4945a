// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

#include <format>
#include <memory>
#include <utility>

namespace kvm::tool {
namespace {

struct Pages {
    std::vector<std::string> files;
    std::optional<unsigned> vcpu;
};

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

int pages(const Pages& arguments) {
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

} // namespace

void add_pages(CLI::App& program, Command& chosen) {
    auto* command =
        program.add_subcommand("pages", "the guest memory that a state refers to, and what KVM does with it");
    auto arguments = std::make_shared<Pages>();
    command->add_option("FILE", arguments->files, "inputs; - is standard input")->type_name("")->required();
    add_vcpu_option(*command, arguments->vcpu);
    command->footer("None of this memory is in a nested state: it has to be carried with it. KVM writes to "
                    "it behind the back\n"
                    "of who tracks dirty pages by other means than KVM's own.\n\n"
                    "Example:\n  kvm-nested pages l2.state");
    command->callback([arguments, &chosen] { chosen = [arguments] { return pages(*arguments); }; });
}

} // namespace kvm::tool
