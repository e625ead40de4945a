// SPDX-License-Identifier: MIT
//
// kvm-nested: looks into nested states, wherever they are kept. Here is what can be said on its command line.
#include "commands.hpp"
#include "output.hpp"

#include <CLI/CLI.hpp>
#include <charconv>
#include <exception>
#include <functional>
#include <memory>

namespace {

using namespace kvm::tool;

/// The program's command line, and what it has chosen.
class CommandLine {
  public:
    CommandLine() {
        program_.name("kvm-nested");
        program_.set_version_flag("--version", "kvm-nested " KVM_NESTED_VERSION);
        program_.require_subcommand(1);
        program_.footer("Inputs are raw bytes of KVM_GET_NESTED_STATE, kvm.vcpu files, QEMU migration "
                        "streams, libvirt save\n"
                        "images, the state.json of Cloud Hypervisor snapshots, and JSON of show --json; - is "
                        "standard input.\n\n"
                        "Example:\n  kvm-nested show failed-migration.state\n\n"
                        "kvm-nested COMMAND --help says more; so does the manual page kvm-nested(1).");
        add_show();
        add_diff();
        add_pages();
        add_extract();
        add_make();
        add_check();
        add_explain();
        add_rules();
        add_probe();
    }

    /// Runs what was asked for.
    int run(int argc, char** argv) {
        try {
            program_.parse(argc, argv);
            return chosen_();
        } catch (const CLI::ParseError& error) {
            return program_.exit(error) == 0 ? fine : in_trouble; // help and version are errors to CLI11
        }
    }

  private:
    /// A command whose arguments are a `Request`, which run() takes.
    template <class Request>
    CLI::App& add(const char* name, const char* description, const char* footer,
                  std::shared_ptr<Request> request) {
        auto* command = program_.add_subcommand(name, description);
        command->footer(footer);
        command->callback([this, request] { chosen_ = [request] { return kvm::tool::run(*request); }; });
        return *command;
    }
    static void add_input(CLI::App& command, std::string& file) {
        command.add_option("FILE", file, "an input")->type_name("")->required();
    }
    static void add_inputs(CLI::App& command, std::vector<std::string>& files) {
        command.add_option("FILE", files, "one input or more")->type_name("")->required();
    }
    static void add_vcpu(CLI::App& command, std::optional<unsigned>& vcpu) {
        command
            .add_option_function<std::string>(
                "--vcpu",
                [&vcpu](const std::string& text) { // decimal, whatever it begins with
                    const auto* end = text.data() + text.size();
                    const auto [read_to, error] = std::from_chars(text.data(), end, vcpu.emplace());
                    if (error != std::errc{} || read_to != end)
                        throw CLI::ValidationError{"--vcpu", "'" + text + "' is no number of a vCPU"};
                },
                "only that vCPU, as the input counts them")
            ->type_name("N");
    }
    static void add_redact(CLI::App& command, bool& redact) {
        command.add_flag("--redact", redact, "mask addresses and registers, for a bug report");
    }
    static void add_output(CLI::App& command, std::string& path) {
        command.add_option("-o,--output", path, "where to; - is standard output. A file gets mode 0600")
            ->type_name("RAW")
            ->required();
    }

    void add_show() {
        const auto request = std::make_shared<Show>();
        auto& command = add(
            "show", "what a nested state is, and its fields by name",
            "Example:\n  kvm-nested show --field guest_cr3 --field exit_qualification failed.state", request);
        add_inputs(command, request->files);
        add_vcpu(command, request->vcpu);
        command.add_flag("--brief", request->brief, "the first screen alone");
        command.add_flag("--all", request->all, "name the fields that are zero, too");
        command.add_option("--field", request->fields, "all about that field; may be repeated")
            ->type_name("NAME")
            ->allow_extra_args(false);
        command.add_flag("--json", request->json, "as JSON, which make turns back into the same state");
        add_redact(command, request->redact);
    }
    void add_diff() {
        const auto request = std::make_shared<Diff>();
        auto& command = add("diff", "which fields differ between two states, with both values",
                            "Exit status: 0 if they are the same, 1 if they differ, 2 in trouble.\n\n"
                            "Example:\n  kvm-nested diff yesterday.state today.state",
                            request);
        command.add_option("A", request->a, "an input")->type_name("")->required();
        command.add_option("B", request->b, "another one")->type_name("")->required();
        add_vcpu(command, request->vcpu);
        command.add_flag(
            "--all", request->all,
            "count what KVM may rewrite between saving and restoring, too: clean bits, padding and the like");
        command.add_flag("-q,--quiet", request->quiet, "only the exit status");
        add_redact(command, request->redact);
    }
    void add_pages() {
        const auto request = std::make_shared<Pages>();
        auto& command = add("pages", "the guest memory that a state refers to, and what KVM does with it",
                            "None of this memory is in a nested state: it has to be carried with it. KVM "
                            "writes to it behind\n"
                            "the back of who tracks dirty pages by other means than KVM's own.\n\n"
                            "Example:\n  kvm-nested pages l2.state",
                            request);
        add_inputs(command, request->files);
        add_vcpu(command, request->vcpu);
    }
    void add_extract() {
        const auto request = std::make_shared<Extract>();
        auto& command =
            add("extract", "write the raw state of one vCPU, as KVM_SET_NESTED_STATE takes it",
                "Example:\n  kvm-nested extract --vcpu 1 -o vcpu1.state migration-stream", request);
        add_input(command, request->file);
        add_vcpu(command, request->vcpu);
        add_output(command, request->output);
        command.add_flag("--as-is", request->as_is, "write a state that no vCPU can be in, too");
    }
    void add_make() {
        const auto request = std::make_shared<Make>();
        auto& command = add(
            "make", "make a raw state from JSON",
            "What the JSON leaves out is zero, but the addresses of the header (none) and the revision of a\n"
            "vmcs12. So a vmcs12 with L2 active wants \"vmcs_link_pointer\": \"0xffffffffffffffff\".\n\n"
            "Example:\n  kvm-nested show --json good.state > state.json   # and edit it\n"
            "  kvm-nested make -o changed.state state.json",
            request);
        add_input(command, request->file);
        add_output(command, request->output);
    }
    void add_probe() {
        const auto request = std::make_shared<Probe>();
        auto& command =
            add("probe", "what this host's KVM offers for nested guests",
                "Exit status: 0 if nested states can be saved here, 1 if not, 2 in trouble. With "
                "--against 1, too, if\n"
                "the other host has something that this one lacks.\n\n"
                "Example:\n  kvm-nested probe\n"
                "  kvm-nested probe --json > HOST.json   # and on the other host: probe --against "
                "HOST.json",
                request);
        command.add_option("--device", request->device, "instead of /dev/kvm")->type_name("PATH");
        command.add_flag("--json", request->json, "the record of this host, for check --on");
        command
            .add_option("--against", request->against,
                        "the record of another host: what it has and this one lacks, and back")
            ->type_name("HOST")
            ->excludes("--json");
    }
    static void add_on(CLI::App& command, std::string& on) {
        command
            .add_option("--on", on,
                        "the record of the destination (there: probe --json); without it this host")
            ->type_name("HOST");
    }
    void add_check() {
        const auto request = std::make_shared<Check>();
        auto& command =
            add("check", "what KVM would say to a state on a host, before it is asked",
                "Where neither --on nor a KVM tells of a host, the bytes alone are judged. A folder is "
                "all files in it.\n"
                "Exit status: 0 if KVM takes all of them, 1 if it refuses one or may, 2 in trouble.\n\n"
                "Example:\n  kvm-nested check --on HOST.json saved/",
                request);
        add_inputs(command, request->files);
        add_on(command, request->on);
        add_vcpu(command, request->vcpu);
        command.add_flag("--all", request->all, "list each rule that may fail");
        command.add_flag("-q,--quiet", request->quiet, "only the exit status");
    }
    void add_rules() {
        const auto request = std::make_shared<Rules>();
        auto& command = add("rules", "the rules of KVM_SET_NESTED_STATE, in the order in which KVM asks",
                            "Example:\n  kvm-nested rules V6", request);
        command.add_option("ID", request->ids, "all about that rule; one or more")->type_name("");
    }
    void add_explain() {
        const auto request = std::make_shared<Explain>();
        auto& command = add("explain", "why it failed: a message, an errno with the state, or an MSR",
                            "A message is what QEMU, libvirt, Cloud Hypervisor or Firecracker said, with "
                            "whatever is around it; "
                            "without\nan argument it comes on standard input.\n"
                            "Exit status: 0 if it is known here, 1 if not, 2 in trouble.\n\n"
                            "Example:\n  kvm-nested explain --errno EINVAL --on HOST.json refused.state\n"
                            "  kvm-nested explain 0x48f 0xffffff00036dfb\n"
                            "  kvm-nested explain < qemu.log",
                            request);
        command
            .add_option("WORD", request->words,
                        "a message, a log, an MSR and its value; with an error the state")
            ->type_name("");
        command.add_option("--errno", request->error_name, "what KVM_SET_NESTED_STATE failed with")
            ->type_name("NAME");
        command.add_option("--result", request->raw_result, "what it returned, where that was no errno")
            ->type_name("N")
            ->excludes("--errno");
        add_on(command, request->on);
        add_vcpu(command, request->vcpu);
    }

    CLI::App program_{
        "Looks into the nested state of KVM's vCPUs: which vendor, which phase, every field by its name."};
    std::function<int()> chosen_;
};

} // namespace

int main(int argc, char** argv) {
    try {
        return CommandLine{}.run(argc, argv);
    } catch (const std::exception& error) { // no memory, say
        return complain("trouble",
                        {error.what(), std::nullopt, "report this, with the input if it may be seen"});
    }
}
