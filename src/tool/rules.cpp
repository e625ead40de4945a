// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"
#include "vmstate.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <format>

namespace kvm::tool {
namespace {

std::string text_of(const KernelVersion& version) {
    constexpr std::uint16_t any = 0xffff;
    return version.patch == any ? std::format("{}.{}.x", version.major, version.minor)
           : version.patch == 0 ? std::format("{}.{}", version.major, version.minor)
                                : std::format("{}.{}.{}", version.major, version.minor, version.patch);
}

/// "up to 6.1.x", "6.12.118 to 6.12.x and from 7.3 on".
std::string text_of(std::span<const Kernels> ranges) {
    std::string text;
    for (const auto& [from, to] : ranges) {
        const bool open = to.major == 0xffff, begins = from == KernelVersion{};
        text += std::format("{}{}", text.empty() ? "" : " and ",
                            begins && open ? "all"
                            : begins       ? "up to " + text_of(to)
                            : open         ? std::format("from {} on", text_of(from))
                                           : std::format("{} to {}", text_of(from), text_of(to)));
    }
    return text;
}

/// Upper case, as the ids are.
std::string id_of(std::string_view text) {
    std::string id{text};
    std::ranges::transform(id, id.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return id;
}

void show(Output& out, const RuleInfo& rule) {
    const auto row = [&](std::string_view what, std::string_view text) {
        out << std::format("  {:12}{}\n", what, text);
    };
    const bool common = std::ranges::all_of(std::array{VendorId::vmx, VendorId::svm}, [&](VendorId vendor) {
        return std::ranges::contains(rules(vendor), rule.id, &RuleInfo::id);
    });
    out.heading(std::format("{} ({}): {}", rule.id, common ? "VMX and SVM" : name(rule.vendor), rule.holds));
    row("if not", rule.certainty == Certainty::silent
                      ? "KVM takes the state without a word, and the vCPU is not what it says"
                      : std::format("KVM_SET_NESTED_STATE comes back with {}", name(rule.answer)));
    if (rule.certainty != Certainty::silent)
        row("then", description(rule.keeps));
    row("looks at", rule.fields.empty() ? "nothing in the state" : rule.fields);
    if (const auto needs = description(rule.needs); !needs.view().empty())
        row("depends on", needs);
    row("kernels", rule.applies.without.empty() ? "all" : text_of(rule.applies.with));
    if (!rule.applies.without.empty())
        row("", std::format("not {}; of any other it is not known", text_of(rule.applies.without)));
    row("manual", rule.manual.empty() ? "none: it is KVM's own" : manual_of(rule));
    if (!rule.advice.empty())
        row("next", rule.advice);
}

} // namespace

std::string manual_of(const RuleInfo& rule) {
    if (rule.manual.empty())
        return {};
    return std::format("{} section {}", rule.vendor == VendorId::vmx ? "Intel SDM Vol. 3" : "AMD APM Vol. 2",
                       rule.manual);
}

int run(const Rules& arguments) {
    Output out;
    if (!arguments.ids.empty()) {
        int status = fine;
        for (const auto& text : arguments.ids) {
            if (const auto* rule = find_rule(id_of(text)))
                show(out, *rule);
            else
                status = complain(printable(text), {"there is no such rule", std::nullopt,
                                                    "kvm-nested rules names all of them"});
        }
        return out.flush(status);
    }
    std::size_t count = 0;
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        out.heading(
            std::format("{}{}, in the order in which KVM asks", count == 0 ? "" : "\n", name(vendor)));
        for (const auto& rule : rules(vendor)) {
            if (find_rule(rule.id) != &rule) // common, and said already
                continue;
            out << std::format("  {:5}{:11}{}\n", rule.id,
                               rule.certainty == Certainty::silent ? "silent"
                               : rule.answer == Answer::positive   ? "returns 2"
                                                                   : name(rule.answer),
                               rule.holds);
            ++count;
        }
    }
    out << std::format(
        "\n{} rules; kvm-nested rules ID says more of one. X1 to X5 and P1 KVM asks first on SVM, too.\n",
        count);
    return out.flush(fine);
}

} // namespace kvm::tool
