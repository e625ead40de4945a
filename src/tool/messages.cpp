// SPDX-License-Identifier: MIT
#include "messages.hpp"

#include "vmstate.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <iterator>

namespace kvm::tool {
namespace {

constexpr std::string_view save_it =
    "save the vCPU's state on the source and ask beforehand: kvm-nested check --on HOST.json FILE";
constexpr std::string_view probe_it = "on the destination: kvm-nested probe --json > HOST.json; then: "
                                      "kvm-nested explain --on HOST.json and this "
                                      "message again";

constexpr std::string_view fewer_msrs =
    "KVM_SET_MSRS has written fewer MSRs than QEMU gave it, since KVM refused one, and QEMU ends. Which one "
    "stands in the line \"failed to set MSR\" before it.";

constexpr auto table = std::to_array<Message>({
    {.words = "failed to set MSR {x} to {x}",
     .from = "QEMU",
     .known =
         "KVM_SET_MSRS came back before this MSR was written: KVM refused the value. QEMU stops at once.",
     .next = probe_it},
    {.words = "failed to get MSR {x}",
     .from = "QEMU",
     .known = "KVM_GET_MSRS came back before this MSR was read: this KVM does not have it for this vCPU.",
     .next = "run a processor model that does not ask for it, or a kernel that has it"},
    {.words = "kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed",
     .from = "QEMU",
     .known = fewer_msrs,
     .next = "paste that line, too"},
    {.words = "kvm_buf_set_msrs: Assertion ret == cpu->kvm_msr_buf->nmsrs failed",
     .from = "QEMU",
     .known = fewer_msrs,
     .next = "paste that line, too"},
    {.words = "host doesn't support requested feature: {r}",
     .from = "QEMU",
     .known = "the processor model asks for a feature that KVM does not offer on this host. Without "
              "\"enforce\" the guest starts without it; a vCPU that was saved with it does not come up.",
     .next = "run the source without it as well, or go to a host that has it; kvm-nested probe --against "
             "HOST.json tells what two hosts do not share"},
    {.words = "guest CPU doesn't match specification: missing features: {r}",
     .from = "libvirt",
     .known = "the guest was started with features that KVM does not offer on this host, and libvirt does "
              "not go on without them.",
     .next = "disable them in the domain on the source (<feature policy='disable' .../>), or go to a host "
             "that has them; kvm-nested probe --against HOST.json tells what two hosts do not share"},
    {.words = "Host CPU does not provide required features: {r}",
     .from = "libvirt",
     .known = "the domain requires features that KVM does not offer on this host.",
     .next = "disable them in the domain (<feature policy='disable' .../>), or go to a host that has them"},
    {.words = "Failed to put registers after {w}: Invalid argument",
     .from = "QEMU",
     .known = "one of the ioctls that fill a vCPU came back with EINVAL: special registers, MSRs, the nested "
              "state, events. QEMU does not say which.",
     .next = "newer QEMU names the ioctl; strace -f -e trace=ioctl on it does, too. If it is "
             "KVM_SET_NESTED_STATE: kvm-nested explain --errno EINVAL --on HOST.json FILE"},
    {.words = "Failed to set nested state",
     .from = "QEMU",
     .known = "KVM_SET_NESTED_STATE failed. Some eighty rules on VMX and thirty on SVM lead there, and the "
              "errno is the same for nearly all.",
     .next = "kvm-nested explain --errno EINVAL --on HOST.json FILE says which of them it was; kvm-nested "
             "probe --json on the destination writes HOST.json"},
    {.words = "Failed to set special registers",
     .from = "QEMU or Cloud Hypervisor",
     .known =
         "KVM_SET_SREGS failed, before the nested state was set: a bit of CR0, CR4 or EFER that the vCPU's "
         "CPUID or this host does not have, or an address above MAXPHYADDR. Newer kernels check more.",
     .next = save_it},
    {.words = "error while loading state for instance {x} of device 'cpu'",
     .from = "QEMU",
     .known = "a vCPU's section of the stream was not taken: it does not fit this machine type or processor "
              "model, or KVM refused what it says. The line does not say which; the number is the vCPU's.",
     .next = "look at the lines before it. The stream itself can be looked into: kvm-nested check --on "
             "HOST.json STREAM"},
    {.words = "load of migration failed: Invalid argument",
     .from = "QEMU",
     .known = "the incoming migration ended with EINVAL. This is the last line of any such failure, and says "
              "nothing of the cause.",
     .next = "paste the lines before it, too"},
    {.words = "Could not set the vCPU state",
     .from = "Cloud Hypervisor",
     .known = "an ioctl that fills a vCPU failed while a snapshot or a migration was restored. What follows "
              "in the message names it.",
     .next = "kvm-nested check --on HOST.json state.json"},
    {.words = "Detected faulty MSR {x} while setting MSRs",
     .from = "Cloud Hypervisor",
     .known =
         "KVM_SET_MSRS came back at this MSR: KVM refused its value. Cloud Hypervisor goes on without it.",
     .next = "kvm-nested check --on HOST.json state.json says what the vCPU had and what the host offers"},
    {.words = "Failed to set Msr entries",
     .from = "Cloud Hypervisor",
     .known = "KVM_SET_MSRS failed as a whole, which is not about a value: a refused value ends it early, "
              "without an error.",
     .next = "look at the errno that follows in the message"},
    {.words = "Failed to set all KVM MSRs for this vCPU. Only a partial write was done.",
     .from = "Firecracker",
     .known = "KVM_SET_MSRS has written fewer MSRs than it was given, since KVM refused one. Firecracker "
              "does not say which.",
     .next = "compare the hosts: kvm-nested probe --json on the one, kvm-nested probe --against HOST.json on "
             "the other"},
    {.words = "Failed to set KVM vcpu sregs: {r}",
     .from = "Firecracker",
     .known = "KVM_SET_SREGS failed: a bit of CR0, CR4 or EFER that the vCPU's CPUID or this host does not "
              "have, or an address above MAXPHYADDR.",
     .next = "compare the hosts: kvm-nested probe --json on the one, kvm-nested probe --against HOST.json on "
             "the other"},
    {.words = "Invalid argument (os error 22)",
     .from = "a program in Rust",
     .known = "a system call came back with EINVAL. rust-vmm's errors say so and nothing else of an ioctl.",
     .next = "find out which ioctl it was: strace -f -e trace=ioctl. If it was KVM_SET_NESTED_STATE: "
             "kvm-nested explain --errno EINVAL FILE",
     .weak = true},
});

/// A line for a person: not too long, and nothing in it that a terminal would obey.
std::string shown(std::string_view line) {
    constexpr std::size_t most = 200;
    std::string text{line.substr(0, most)};
    std::ranges::replace_if(text, [](char c) { return c < ' ' || c > '~'; }, '?');
    return line.size() > most ? text + "..." : text;
}

bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// Reads "0x48f" or "48f" off the front of `text`.
std::optional<std::uint64_t> take_number(std::string_view& text) {
    auto digits = text;
    if (digits.starts_with("0x") || digits.starts_with("0X"))
        digits.remove_prefix(2);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number, 16);
    if (error != std::errc{})
        return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (!text.empty() && is_word(text.front()))
        return std::nullopt;
    return number;
}

/// Whether `line` goes on as `words` do, from its beginning.
bool matches(std::string_view line, std::string_view words, FoundMessage& found) {
    while (!words.empty()) {
        if (!words.starts_with('{')) {
            const auto literal = words.substr(0, words.find('{'));
            if (!line.starts_with(literal))
                return false;
            line.remove_prefix(literal.size());
            words.remove_prefix(literal.size());
            continue;
        }
        const auto kind = words[1];
        words.remove_prefix(3);
        if (kind == 'x') {
            const auto number = take_number(line);
            if (!number)
                return false;
            found.numbers.push_back(*number);
        } else {
            const auto end =
                kind == 'r'
                    ? line.size()
                    : static_cast<std::size_t>(std::ranges::find_if_not(line, is_word) - line.begin());
            if (end == 0)
                return false;
            found.words.emplace_back(line.substr(0, end));
            line.remove_prefix(end);
        }
    }
    return line.empty() || !is_word(line.front());
}

/// The first place in the line where the message is, as words of its own.
std::optional<FoundMessage> find_in(std::string_view line, const Message& message) {
    const auto first = message.words.substr(0, message.words.find('{'));
    for (auto at = line.find(first); at != line.npos; at = line.find(first, at + 1)) {
        if (at != 0 && is_word(line[at - 1]))
            continue;
        FoundMessage found{.message = &message, .line = {}, .numbers = {}, .words = {}};
        if (matches(line.substr(at), message.words, found)) {
            found.line = shown(line.substr(at));
            return found;
        }
    }
    return std::nullopt;
}

} // namespace

std::vector<FoundMessage> find_messages(std::string_view text) {
    std::vector<FoundMessage> all;
    while (!text.empty()) {
        auto line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        while (line.ends_with('\r') || line.ends_with(' '))
            line.remove_suffix(1);
        for (const auto& message : table)
            if (auto found = find_in(line, message);
                found && !std::ranges::any_of(all, [&](const FoundMessage& other) {
                    return other.message == found->message && other.numbers == found->numbers
                           && other.words == found->words;
                }))
                all.push_back(*std::move(found));
    }
    const auto is_weak = [](const FoundMessage& found) { return found.message->weak; };
    if (!std::ranges::all_of(all, is_weak))
        std::erase_if(all, is_weak);
    return all;
}

std::vector<const Message*> known_messages() {
    std::vector<const Message*> all;
    std::ranges::transform(table, std::back_inserter(all), [](const Message& message) { return &message; });
    return all;
}

std::vector<NamedFeature> features_in(std::string_view text) {
    const auto is_name = [](char c) { return is_word(c) || c == '-'; };
    std::vector<NamedFeature> all;
    // "MSR(48BH)." tells where the names behind it are; "[bit 16]" which bit the name before it is.
    std::optional<std::uint64_t> index;
    constexpr std::string_view msr = "MSR(", bit = "[bit ";
    while (!text.empty()) {
        if (text.starts_with(msr)) {
            text.remove_prefix(msr.size());
            std::uint64_t number = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
            if (error == std::errc{}) {
                index = number;
                text.remove_prefix(static_cast<std::size_t>(end - text.data()));
            }
            const auto dot = text.find('.');
            text.remove_prefix(dot == text.npos ? text.size() : dot + 1);
            continue;
        }
        if (text.starts_with(bit)) {
            text.remove_prefix(bit.size());
            unsigned number = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
            if (error == std::errc{} && !all.empty() && all.back().feature != nullptr)
                all.back().contradicts = all.back().contradicts || all.back().feature->bit != number;
            text.remove_prefix(static_cast<std::size_t>(end - text.data()));
            continue;
        }
        if (text.starts_with("CPUID")) { // "CPUID.8000000AH:EDX.npt", "CPUID[eax=8000000Ah].EDX.npt"
            index.reset();
            const auto dot = text.substr(0, text.find(' ')).rfind('.');
            text.remove_prefix(dot == text.npos ? std::min<std::size_t>(5, text.size()) : dot + 1);
            continue;
        }
        if (!is_name(text.front())) {
            text.remove_prefix(1);
            continue;
        }
        const auto size = static_cast<std::size_t>(std::ranges::find_if_not(text, is_name) - text.begin());
        const auto name = text.substr(0, size);
        text.remove_prefix(size);
        const nested::FeatureName* feature = nested::find_feature(name);
        for (const auto* other = feature; other != nullptr; other = nested::find_feature(name, other))
            if (index == other->index) // one name for two bits
                feature = other;
        all.push_back({.feature = feature,
                       .name = printable(name),
                       .contradicts = feature != nullptr && index && *index != feature->index});
        index.reset();
    }
    return all;
}

} // namespace kvm::tool
