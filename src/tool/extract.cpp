// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"
#include "write_state.hpp"

#include <format>
#include <memory>

namespace kvm::tool {
namespace {

struct Extract {
    std::string file;
    std::optional<unsigned> vcpu;
    std::string output;
};

int extract(const Extract& arguments) {
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
    return write_state(arguments.output, state.bytes);
}

} // namespace

void add_extract(CLI::App& program, Command& chosen) {
    auto* command = program.add_subcommand(
        "extract", "write the raw state of one vCPU, as KVM_SET_NESTED_STATE takes it");
    auto arguments = std::make_shared<Extract>();
    command->add_option("FILE", arguments->file, "an input; - is standard input")->type_name("")->required();
    add_vcpu_option(*command, arguments->vcpu);
    command
        ->add_option("-o,--output", arguments->output,
                     "where to; - is standard output. A file gets mode 0600")
        ->type_name("RAW")
        ->required();
    command->footer("Example:\n  kvm-nested extract --vcpu 1 -o vcpu1.state migration-stream");
    command->callback([arguments, &chosen] { chosen = [arguments] { return extract(*arguments); }; });
}

} // namespace kvm::tool
