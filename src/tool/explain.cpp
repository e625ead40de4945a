// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "host.hpp"
#include "input.hpp"
#include "messages.hpp"
#include "output.hpp"
#include "vmstate.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <format>
#include <string_view>
#include <sys/stat.h>

import kvm.vcpu;

namespace kvm::tool {
namespace {

struct NamedErrno {
    std::string_view name;
    int number;
};
/// What KVM_SET_NESTED_STATE can come back with, and what people take it for.
constexpr auto errnos = std::to_array<NamedErrno>({{"EINVAL", EINVAL},
                                                   {"EFAULT", EFAULT},
                                                   {"ENOMEM", ENOMEM},
                                                   {"E2BIG", E2BIG},
                                                   {"ENOTTY", ENOTTY},
                                                   {"EPERM", EPERM},
                                                   {"EBUSY", EBUSY},
                                                   {"EIO", EIO},
                                                   {"EINTR", EINTR},
                                                   {"EBADF", EBADF}});

/// "EINVAL", "22", "-22".
std::optional<int> errno_of(std::string_view text) {
    for (const auto& [name, number] : errnos)
        if (text == name)
            return number;
    if (text.starts_with('-'))
        text.remove_prefix(1);
    int number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc{} && end == text.data() + text.size() && number > 0 ? std::optional{number}
                                                                                  : std::nullopt;
}

/// "0x48f", "1167".
std::optional<std::uint64_t> number_of(std::string_view text) {
    const bool hex = text.starts_with("0x") || text.starts_with("0X");
    if (hex)
        text.remove_prefix(2);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, hex ? 16 : 10);
    return error == std::errc{} && end == text.data() + text.size() ? std::optional{number} : std::nullopt;
}

std::string name_of_msr(std::uint64_t index) {
    if (index > 0xffff'ffff)
        return "no MSR: their numbers have 32 bits";
    const auto number = static_cast<std::uint32_t>(index);
    if (const auto* layout = find_capability(number); layout != nullptr && layout->vendor == VendorId::vmx)
        return std::string{layout->name};
    const auto name = vcpu::msr_name(number);
    return name.empty() ? "an MSR that has no name here" : std::string{name};
}
const CapabilityLayout* capability_msr(std::uint64_t index) {
    const auto* layout = index > 0xffff'ffff ? nullptr : find_capability(static_cast<std::uint32_t>(index));
    return layout != nullptr && layout->vendor == VendorId::vmx ? layout : nullptr;
}

void say(Output& out, std::string_view what, std::string_view text) {
    out << std::format("  {:10}{}\n", what, text);
}

// --- an errno and a state

int explain_error(const Explain& arguments) {
    Error error{Errc::refused, Operation::set_nested_state};
    std::string title_of_error;
    if (arguments.raw_result) {
        error.raw_result = *arguments.raw_result;
        if (*arguments.raw_result < 0)
            error.error_number = -*arguments.raw_result;
        title_of_error = std::format("the return value {}", *arguments.raw_result);
    } else {
        const auto number = errno_of(arguments.error_name);
        if (!number)
            return complain(
                printable(arguments.error_name),
                {"this is no errno", std::nullopt, "name it as errno(3) does (EINVAL), or its number"});
        error.error_number = *number;
        error.raw_result = -1;
        title_of_error = std::format("errno {} ({})", *number, std::strerror(*number));
    }
    if (arguments.words.size() != 1)
        return complain("explain", {"an error is explained by the state that was refused", std::nullopt,
                                    "kvm-nested explain --errno EINVAL FILE"});
    const auto host = choose_host(arguments.on);
    if (!host)
        return complain(arguments.on, host.error());
    Output out;
    bool all_known = true;
    const int status = for_each_state(arguments.words, arguments.vcpu, [&](const StateOfFile& what) {
        if (what.state.bytes.empty())
            return fine;
        const auto to = what.state.on_host ? what.state.on_host(host->destination) : host->destination;
        const auto explanation = explain(what.state.bytes, to, error);
        out.heading(title(what));
        say(out, "error", std::format("KVM_SET_NESTED_STATE came back with {}", title_of_error));
        say(out, "because", explanation.message().view());
        if (explanation.sure())
            say(out, "now", description(explanation.rule->rule->keeps));
        say(out, "verdict",
            !explanation.rule ? "it is not known here"
            : explanation.sure()
                ? std::format("{} is the reason", explanation.rule->rule->id)
                : std::format("{} is the first that can be the reason{}; kvm-nested check{} "
                              "FILE names the others",
                              explanation.rule->rule->id,
                              explanation.latest ? std::format(", {} the last", explanation.latest->rule->id)
                                                 : std::string{},
                              arguments.on.empty() ? " --on HOST.json" : " --on " + arguments.on));
        all_known = all_known && explanation.rule.has_value();
        return fine;
    });
    return out.flush(std::max(status, all_known ? fine : differs));
}

// --- an MSR

/// What a capability MSR's value is: of a known host what it refuses of it, else every bit.
/// @return what to do, as far as the host is known; else nothing
std::string show_capability(Output& out, const CapabilityLayout& layout, std::uint64_t value,
                            const ChosenHost& host, bool every_bit) {
    const auto offered = host.destination.vmx[layout.index];
    if (!offered || every_bit)
        describe(layout, value, out.sink());
    if (!can_be_set(layout) && vmx::Capabilities::has_place_for(layout.index))
        return "nobody can set it: KVM works it out itself, of the TRUE MSRs and CPUID, or does not have it; "
               "leave it out";
    if (!offered)
        return {};
    vmx::Capabilities wanted;
    wanted.set(layout.index, value);
    const auto refused = refused_msrs(wanted, host.destination.vmx);
    std::string names;
    if (!refused.empty())
        for (const auto& reason : refused.front().reasons) {
            say(out, "refused", describe_reason(reason));
            if (reason.feature != nullptr && reason.setting != AllowedSetting::must_be_1)
                names += std::format(",-{}", reason.feature->qemu);
        }
    say(out, "verdict",
        std::format("{} offers {:#x}, and {}", host.name, *offered,
                    refused.empty() ? "takes this value unless L1 is in VMX operation"
                                    : "its KVM refuses this value"));
    if (refused.empty())
        return "see whether the record is that of the host where it failed, and whether L1 was in VMX "
               "operation";
    return std::format(
        "take it from the guest before it starts{}, or go to a host that has it; a guest that runs "
        "cannot lose it",
        names.empty() ? "" : std::format(" (QEMU: -cpu ...{})", names));
}

int explain_msr(const Explain& arguments) {
    const auto index = number_of(arguments.words[0]);
    const auto value = arguments.words.size() > 1 ? number_of(arguments.words[1]) : std::nullopt;
    if (!index || arguments.words.size() > 2 || (arguments.words.size() == 2 && !value))
        return complain("explain", {"an MSR is a number, with its value as another", std::nullopt,
                                    "kvm-nested explain 0x48f 0xffffff00036dfb"});
    const auto host = choose_host(arguments.on);
    if (!host)
        return complain(arguments.on, host.error());
    Output out;
    const auto* layout = capability_msr(*index);
    if (layout == nullptr || !value)
        out.heading(std::format("{:#x} {}{}", *index, name_of_msr(*index),
                                layout == nullptr ? "" : std::format(" (Intel SDM {})", layout->section)));
    if (layout == nullptr)
        say(out, "known", "it is no capability MSR of VMX, and its bits are not named here");
    else if (value)
        if (const auto next = show_capability(out, *layout, *value, *host, true); !next.empty())
            say(out, "next", next);
    return out.flush(
        capability_msr(*index) != nullptr
                || vcpu::msr_name(static_cast<std::uint32_t>(std::min<std::uint64_t>(*index, 0xffff'ffff)))
                           .size()
                       != 0
            ? fine
            : differs);
}

// --- a message

/// The arguments, or what comes on standard input, or a log that is named.
std::expected<std::string, Trouble> message_of(const std::vector<std::string>& words) {
    struct stat status;
    const bool named = words.size() == 1 && ::stat(words[0].c_str(), &status) == 0 && S_ISREG(status.st_mode);
    if (words.empty() || (words.size() == 1 && words[0] == "-") || named)
        return read_text(named ? words[0] : "-", {"more than 1 MiB is no message", std::nullopt,
                                                  "pass the lines around the error alone"});
    std::string text;
    for (const auto& word : words)
        (text += text.empty() ? "" : " ") += word;
    return text;
}

/// A feature that is not one of nesting: whether rules ask for it all the same.
std::string describe_processor_feature(const std::string& name, const ChosenHost& host) {
    const auto bit = std::ranges::find(feature_bits, name, &FeatureBit::name);
    if (bit == feature_bits.end())
        return std::format("{}: no feature of nested virtualization is called so", name);
    const auto there = host.destination.host[bit->feature];
    constexpr std::array registers{"EAX", "EBX", "ECX", "EDX"};
    return std::format("{}: CPUID.{:X}H:{}[bit {}]{}", name, bit->function,
                       registers[static_cast<std::size_t>(bit->in)], bit->bit,
                       there == Known::unknown
                           ? ""
                           : std::format("; {} {} it", host.name, there == Known::yes ? "has" : "lacks"));
}

void show_features(Output& out, const FoundMessage& found, const ChosenHost& host) {
    for (const auto& words : found.words)
        for (const auto& [feature, name, contradicts] : features_in(words)) {
            if (feature == nullptr) {
                say(out, "feature", describe_processor_feature(name, host));
                continue;
            }
            const auto* layout = find_capability(feature->index);
            std::string text = std::format(
                "{}: {} of {}{}", name, manual_name(*feature), layout->name,
                layout->vendor == VendorId::vmx ? std::format(" ({:#x})", layout->index) : std::string{});
            if (contradicts)
                text += "; the message gives another place than this name has";
            const auto there = layout->vendor == VendorId::vmx ? has_feature(host.destination.vmx, *feature)
                                                               : has_feature(host.destination.svm, *feature);
            if (there)
                text += std::format("; {} {} it", host.name, *there ? "has" : "lacks");
            say(out, "feature", text);
        }
}

int explain_message(const Explain& arguments) {
    const auto text = message_of(arguments.words);
    if (!text)
        return complain("the message", text.error());
    const auto host = choose_host(arguments.on);
    if (!host)
        return complain(arguments.on, host.error());
    Output out;
    const auto all = find_messages(*text);
    if (all.empty()) {
        out << "No message in this is known here, and nothing is guessed.\n";
        say(out, "next",
            "with the state at hand: kvm-nested check --on HOST.json FILE; with an errno: kvm-nested "
            "explain --errno EINVAL FILE");
        return out.flush(differs);
    }
    for (const auto& found : all) {
        const auto& message = *found.message;
        out.heading(std::format("{} ({})", found.line, message.from));
        say(out, "known", message.known);
        std::string next;
        if (!found.numbers.empty() && message.words.contains("MSR {x}")) {
            const auto index = found.numbers[0];
            const auto* layout = capability_msr(index);
            if (layout == nullptr)
                say(out, "MSR",
                    std::format("{:#x} is {}; not one of nested virtualization", index, name_of_msr(index)));
            else
                say(out, "MSR",
                    std::format(
                        "{:#x} is {}, a capability MSR of VMX. KVM refuses a value that asks for what the "
                        "host does not offer, and any value while L1 is in VMX operation; from 6.12 on, "
                        "another value once the vCPU has run, too",
                        index, layout->name));
            if (layout != nullptr && found.numbers.size() > 1)
                next = show_capability(out, *layout, found.numbers[1], *host, false);
        }
        if (message.words.contains("features: {r}") || message.words.contains("feature: {r}"))
            show_features(out, found, *host);
        say(out, "next", next.empty() ? message.next : std::string_view{next});
        out << "\n";
    }
    out.heading(std::format("{} {} known here", all.size(), all.size() == 1 ? "message is" : "messages are"));
    return out.flush(fine);
}

} // namespace

int run(const Explain& arguments) {
    if (!arguments.error_name.empty() || arguments.raw_result)
        return explain_error(arguments);
    if (!arguments.words.empty() && number_of(arguments.words[0]))
        return explain_msr(arguments);
    return explain_message(arguments);
}

} // namespace kvm::tool
