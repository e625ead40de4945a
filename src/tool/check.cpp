// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "host.hpp"
#include "output.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <format>
#include <string_view>
#include <system_error>

namespace kvm::tool {
namespace {

constexpr std::size_t most_listed = 3; ///< findings that may fail, before they become one line
constexpr std::size_t enough_text = 1 << 16;

/// What came of one state.
enum class Verdict : std::uint8_t { takes, may_fail, fails };

/// The files behind each name: of a folder all in it, in order.
std::vector<std::string> files_of(const std::vector<std::string>& names, int& status) {
    namespace fs = std::filesystem;
    std::vector<std::string> files;
    for (const auto& name : names) {
        std::error_code error;
        if (name == "-" || !fs::is_directory(name, error)) {
            files.push_back(name);
            continue;
        }
        const auto begin = static_cast<std::ptrdiff_t>(files.size());
        auto entry = fs::recursive_directory_iterator{name, error};
        for (; !error && entry != fs::recursive_directory_iterator{}; entry.increment(error))
            if (std::error_code ignored; entry->is_regular_file(ignored))
                files.push_back(entry->path().string());
        if (error)
            status = complain(name, {error.message(), std::nullopt, "see who may read the folder"});
        if (files.size() == static_cast<std::size_t>(begin))
            status = complain(name, {"there is no file in the folder", std::nullopt,
                                     "name the folder in which the states are"});
        std::ranges::sort(files.begin() + begin, files.end());
    }
    return files;
}

/// Answers for one state after the other, and for all of them.
class Checker {
  public:
    Checker(const Check& arguments, const ChosenHost& host) : arguments_{arguments}, host_{host} {}

    void operator()(const StateOfFile& what);
    int finish(int status);

  private:
    /// The vCPU that the state meets.
    Destination destination_of(const FoundState& state) {
        return state.on_host ? state.on_host(host_.destination) : host_.destination;
    }
    /// The host's record says what a vCPU there could at most be; how much of it the guest gets is known only
    /// of inputs that bring a CPUID.
    static bool brings_cpuid(const FoundState& state) {
        return state.on_host && !state.on_host(Destination{}).guest.empty();
    }
    Verdict answer(Output& out, const StateOfFile& what);
    void show_refused(Output& out, const RefusedMsr& refused, const FoundState& state);
    void show_lost_svm_features(Output& out, const Destination& vcpu, const FoundState& state);
    static void show(Output& out, const Finding& finding, std::string_view text);
    void show_unknown(Output& out, const Findings& findings);
    void say(Output& out, std::string_view what, std::string_view text) {
        out << std::format("  {:10}{}\n", what, text);
    }

    const Check& arguments_;
    const ChosenHost& host_;
    Output out_;
    std::size_t count_ = 0, without_ = 0, failing_ = 0, unclear_ = 0;
    std::size_t at_most_ = 0;     ///< of those that are taken: by a vCPU with all that the host offers
    bool said_something_ = false; ///< of a state that KVM takes
    bool broken_ = false;         ///< nobody takes what is written
};

/// The controls that the destination lacks, as QEMU takes them from a guest: ",-vmx-vmfunc". None where a
/// rule is about controls that do not fit each other.
std::string features_of(const Finding& finding) {
    if ((finding.rule->needs & Needs::capabilities) == Needs::bytes)
        return {};
    const auto* field = field_at(finding.rule->vendor, finding.offset).field;
    // The MSR that governs the field, of two the TRUE one.
    const auto layout = std::ranges::find_if(capability_layouts, [&](const CapabilityLayout& candidate) {
        return field != nullptr && candidate.form == CapabilityForm::controls && candidate.true_index == 0
               && candidate.bit_layout == field->bit_layout;
    });
    std::string names;
    if (layout != capability_layouts.end())
        for (unsigned bit = 0; bit < 32; ++bit)
            if ((finding.bits & finding.value) >> bit & 1)
                if (const auto* feature = find_feature(layout->index, bit); feature != nullptr)
                    names += std::format(",-{}", feature->qemu);
    return names;
}

void Checker::show(Output& out, const Finding& finding, std::string_view text) {
    out << std::format("  {:10}{}\n", name(finding.certainty), text);
    const auto& rule = *finding.rule;
    if (const auto manual = manual_of(rule); !manual.empty())
        out << std::format("  {:10}manual: {}\n", "", manual);
    const auto features = features_of(finding);
    if (!features.empty())
        out << std::format(
            "  {:10}next: take it from the guest before it starts (QEMU: -cpu ...{}), or go to a host "
            "that has it\n",
            "", features);
    else if (!rule.advice.empty())
        out << std::format("  {:10}next: {}\n", "", rule.advice);
    else if (!rule.fields.empty())
        out << std::format("  {:10}next: see what the field is: kvm-nested show --field {} FILE\n", "",
                           rule.fields.substr(0, rule.fields.find(", ")));
}

void Checker::show_refused(Output& out, const RefusedMsr& refused, const FoundState& state) {
    say(out, state.skips_refused_msrs ? "silent" : "fails",
        std::format("MSR {:#x} {}: the vCPU had {:#x}, and KVM_SET_MSRS refuses it where {:#x} is offered{}",
                    refused.layout->index, refused.layout->name, refused.wanted, refused.offered,
                    state.skips_refused_msrs ? "; the restore goes on, and L1 finds other capabilities"
                                             : ""));
    const FeatureName* named = nullptr;
    for (const auto& reason : refused.reasons) {
        const auto usage = state.bytes.empty() ? Usage::not_known : used_by(reason, state.bytes);
        out << std::format("  {:10}{}: {}\n", "", describe_reason(reason),
                           usage == Usage::uses           ? "this state uses it"
                           : usage == Usage::does_not_use ? "this state does not use it"
                                                          : "whether L1 uses it cannot be seen here");
        if (reason.feature != nullptr)
            named = reason.feature;
    }
    out << std::format(
        "  {:10}next: take it from the guest before it starts{}, or go to a host that has it\n", "",
        named == nullptr || named->qemu.empty() ? "" : std::format(" (QEMU: -cpu ...,-{})", named->qemu));
}

void Checker::show_lost_svm_features(Output& out, const Destination& vcpu, const FoundState& state) {
    capability_difference(vcpu.svm, host_.destination.svm, [&](const CapabilityDifference& what) noexcept {
        if (what.holder != Holder::a || what.bits.form != BitsForm::flag)
            return;
        const auto usage = state.bytes.empty() ? Usage::not_known : used_by(what, state.bytes);
        if (usage == Usage::does_not_use)
            return;
        say(out, "silent",
            std::format("{}: the guest's CPUID has it and the host does not{}", describe_reason(what),
                        usage == Usage::uses ? "; this state uses it" : ""));
    });
}

void Checker::show_unknown(Output& out, const Findings& findings) {
    auto missing = Needs::bytes;
    std::size_t count = 0;
    for (const auto& finding : findings)
        if (finding.certainty == Certainty::may_fail) {
            missing = missing | finding.missing;
            ++count;
        }
    if (count == 0)
        return;
    if (arguments_.all || count <= most_listed) {
        for (const auto& finding : findings)
            if (finding.certainty == Certainty::may_fail)
                show(out, finding, finding.message().view());
        return;
    }
    say(out, "may fail",
        std::format("{} rules, because this is not known: {}", count, description(missing).view()));
    out << std::format(
        "  {:10}next: {}--all lists them\n", "",
        host_.name.empty()
            ? "--on HOST.json tells what is known of the destination (there: kvm-nested probe --json); "
            : "");
}

Verdict Checker::answer(Output& out, const StateOfFile& what) {
    const auto& state = what.state;
    auto vcpu = destination_of(state);
    const auto refused = refused_msrs(vcpu.vmx, host_.destination.vmx);
    if (state.skips_refused_msrs)
        for (const auto& msr : refused)
            vcpu.vmx.set(msr.layout->index, msr.offered);
    const auto findings = check(state.bytes, vcpu);
    const bool msr_fails = !refused.empty() && !state.skips_refused_msrs;

    for (const auto& msr : refused)
        if (msr_fails)
            show_refused(out, msr, state);
    for (const auto& finding : findings)
        if (finding.certainty == Certainty::fails)
            show(out, finding, finding.message().view());
    show_unknown(out, findings);
    for (const auto& msr : refused)
        if (!msr_fails)
            show_refused(out, msr, state);
    for (const auto& finding : findings)
        if (finding.certainty == Certainty::silent)
            show(out, finding, finding.message().view());
    show_lost_svm_features(out, vcpu, state);

    if (msr_fails) {
        say(out, "verdict", "KVM refuses a capability MSR before the nested state is set");
        return Verdict::fails;
    }
    if (const auto* refusal = findings.refusal()) {
        const auto* unclear = findings.first(Certainty::may_fail);
        const bool sure = unclear == nullptr || unclear > refusal;
        say(out, "verdict",
            std::format("KVM refuses it at {}{}: {}; {}", refusal->rule->id, sure ? "" : " at the latest",
                        name(refusal->rule->answer), description(refusal->rule->keeps)));
        return Verdict::fails;
    }
    if (findings.first(Certainty::may_fail) != nullptr) {
        say(out, "verdict", "nothing that is known speaks against it, and not all is known");
        return Verdict::may_fail;
    }
    said_something_ = !out.text().empty();
    say(out, "verdict",
        brings_cpuid(state) ? "KVM takes it" : "KVM takes it on a vCPU that has all that the host offers");
    at_most_ += brings_cpuid(state) ? 0 : 1;
    return Verdict::takes;
}

void Checker::operator()(const StateOfFile& what) {
    ++count_;
    if (what.state.bytes.empty()) {
        ++without_;
        return;
    }
    Output part;
    said_something_ = false;
    const auto verdict = answer(part, what);
    failing_ += verdict == Verdict::fails ? 1 : 0;
    unclear_ += verdict == Verdict::may_fail ? 1 : 0;
    if (!arguments_.quiet && (verdict != Verdict::takes || said_something_)) {
        out_.heading(title(what));
        out_ << part.text();
    }
    if (out_.text().size() > enough_text && out_.flush(fine) != fine)
        broken_ = true;
}

int Checker::finish(int status) {
    const int answer = failing_ + unclear_ != 0 ? differs : fine;
    if (!arguments_.quiet) {
        const auto on = host_.name.empty() ? "by the bytes alone" : std::format("on {}", host_.name);
        out_.heading(std::format("{} {} {}: {} fail, {} may fail, {} taken{}{}", count_,
                                 count_ == 1 ? "state" : "states", on, failing_, unclear_,
                                 count_ - failing_ - unclear_ - without_,
                                 at_most_ == 0 ? "" : " by a vCPU that has all that the host offers",
                                 without_ == 0 ? "" : std::format(", {} vCPUs have none", without_)));
    }
    return out_.flush(broken_ ? in_trouble : std::max(status, answer));
}

} // namespace

int run(const Check& arguments) {
    const auto host = choose_host(arguments.on);
    if (!host)
        return complain(arguments.on, host.error());
    int status = fine;
    const auto files = files_of(arguments.files, status);
    Checker checker{arguments, *host};
    const int reading = for_each_state(files, arguments.vcpu, [&](const StateOfFile& what) {
        checker(what);
        return fine;
    });
    return checker.finish(std::max(status, reading));
}

} // namespace kvm::tool
