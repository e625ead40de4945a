// SPDX-License-Identifier: MIT
//
// kvm-nested: looks into nested states, wherever they are kept.
#include "commands.hpp"
#include "output.hpp"

#include <exception>

int main(int argc, char** argv) {
    using namespace kvm::tool;
    CLI::App program{
        "Looks into the nested state of KVM's vCPUs: which vendor, which phase, every field by its name."};
    program.name("kvm-nested");
    program.set_version_flag("--version", "kvm-nested " KVM_NESTED_VERSION);
    program.require_subcommand(1);
    program.footer("Inputs are raw bytes of KVM_GET_NESTED_STATE, kvm.vcpu files, QEMU migration streams, "
                   "libvirt save images,\n"
                   "the state.json of Cloud Hypervisor snapshots, and JSON of show --json.\n\n"
                   "Example:\n  kvm-nested show failed-migration.state\n\n"
                   "kvm-nested COMMAND --help says more; so does the manual page kvm-nested(1).");
    Command chosen;
    add_show(program, chosen);
    add_diff(program, chosen);
    add_pages(program, chosen);
    add_extract(program, chosen);
    add_make(program, chosen);
    add_probe(program, chosen);
    try {
        program.parse(argc, argv);
        return chosen();
    } catch (const CLI::ParseError& error) {
        return program.exit(error) == 0 ? fine : in_trouble;
    } catch (const std::exception& error) { // out of memory, say
        return complain("trouble", {error.what(), std::nullopt, {}});
    }
}
