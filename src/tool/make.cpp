// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"
#include "write_state.hpp"

#include <memory>

namespace kvm::tool {
namespace {

struct Make {
    std::string file;
    std::string output;
};

int make(const Make& arguments) {
    const auto contents = states_of(arguments.file, std::nullopt);
    if (!contents)
        return in_trouble;
    if (contents->format != "JSON of kvm-nested")
        return complain(arguments.file,
                        {"this is not JSON of kvm-nested, but " + contents->format, std::nullopt,
                         "kvm-nested extract writes a state that is there already"});
    return write_state(arguments.output, contents->states.front().bytes);
}

} // namespace

void add_make(CLI::App& program, Command& chosen) {
    auto* command = program.add_subcommand("make", "make a raw state from JSON");
    auto arguments = std::make_shared<Make>();
    command->add_option("FILE", arguments->file, "JSON as show --json prints it; - is standard input")
        ->type_name("")
        ->required();
    command
        ->add_option("-o,--output", arguments->output,
                     "where to; - is standard output. A file gets mode 0600")
        ->type_name("RAW")
        ->required();
    command->footer("What the JSON leaves out is zero, but the addresses of the header (none) and the "
                    "revision of a vmcs12.\n"
                    "So a vmcs12 with L2 active wants \"vmcs_link_pointer\": \"0xffffffffffffffff\".\n\n"
                    "Example:\n  kvm-nested show --json good.state | sed 's/\"guest_rip\": .*/\"guest_rip\": "
                    "\"0x1000\",/' |\n"
                    "    kvm-nested make -o changed.state -");
    command->callback([arguments, &chosen] { chosen = [arguments] { return make(*arguments); }; });
}

} // namespace kvm::tool
