// SPDX-License-Identifier: MIT
module;
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

template <class Case, std::size_t Count>
consteval std::array<RuleInfo, Count> catalogue_of(const std::array<Rule<Case>, Count>& rows) {
    std::array<RuleInfo, Count> all{};
    for (std::size_t i = 0; i < Count; ++i)
        all[i] = {rows[i].id,     Case::vendor,    rows[i].holds,  rows[i].fields,
                  rows[i].needs,  rows[i].keeps,   rows[i].manual, rows[i].certainty,
                  rows[i].answer, rows[i].applies, rows[i].advice};
    return all;
}
constexpr auto vmx_catalogue = catalogue_of(vmx_rules);
constexpr auto svm_catalogue = catalogue_of(svm_rules);

/// Each field of each rule is one that there is.
consteval bool names_fields(std::span<const RuleInfo> rows, VendorId vendor) {
    for (const auto& row : rows)
        for (auto rest = row.fields; !rest.empty();) {
            const auto comma = rest.find(", ");
            const auto name = rest.substr(0, comma);
            rest = comma == rest.npos ? std::string_view{} : rest.substr(comma + 2);
            bool found = false;
            for (const auto& part : parts_of(vendor))
                for (const auto& field : part.fields)
                    found = found || field.name == name;
            if (!found)
                return false;
        }
    return true;
}
static_assert(names_fields(vmx_catalogue, VendorId::vmx) && names_fields(svm_catalogue, VendorId::svm));

consteval bool ids_are_unique(std::span<const RuleInfo> rows) {
    for (std::size_t i = 0; i < rows.size(); ++i)
        for (std::size_t j = i + 1; j < rows.size(); ++j)
            if (rows[i].id == rows[j].id)
                return false;
    return true;
}
static_assert(ids_are_unique(vmx_catalogue) && ids_are_unique(svm_catalogue));

/// The value that a finding shows. A rule about the vCPU alone has none.
std::uint64_t value_at(VendorId vendor, const StateCase& c, const RuleInfo& rule,
                       std::uint16_t offset) noexcept {
    if (rule.fields.empty())
        return 0;
    const auto at = field_at(vendor, offset);
    if (at.field == nullptr)
        return 0;
    if (at.part == Part::header)
        return read(std::as_bytes(std::span{&c.header(), 1}), *at.field);
    const auto begin = begin_of(at.part) - uapi::header_size;
    return begin + at.field->end() > c.payload().size() ? 0 : read(c.payload().subspan(begin), *at.field);
}

/// Asks each rule that is reached; `found` answers whether to go on.
template <class Case, std::size_t Count, class Found>
void ask_all(const std::array<Rule<Case>, Count>& rows, std::span<const RuleInfo> catalogue, const Case& c,
             Found found) noexcept {
    const auto& kernel = c.to().kernel;
    for (std::size_t i = 0; i < Count; ++i) {
        const auto& row = rows[i];
        if (!c.reaches(row.reached))
            continue;
        const auto applies = row.applies.in(kernel);
        if (applies == Known::no)
            continue;
        const auto judgement = if_known(applies, Needs::kernel, row.judge(c));
        if (judgement.outcome == Judgement::Outcome::holds)
            continue;
        const bool violated = judgement.outcome == Judgement::Outcome::violated;
        // What does not fail where it is violated cannot fail where nobody knows, and is no news there.
        if (!violated && row.certainty == Certainty::silent)
            continue;
        const Finding finding{.rule = &catalogue[i],
                              .certainty = violated ? row.certainty : Certainty::may_fail,
                              .offset = judgement.offset,
                              .missing = judgement.missing,
                              .value = value_at(Case::vendor, c, catalogue[i], judgement.offset),
                              .bits = judgement.bits};
        if (!found(finding))
            return;
        if (violated && row.is_last)
            return;
    }
}

template <class Found>
void ask(std::span<const std::byte> bytes, const Destination& to, Found found) noexcept {
    if (bytes.size() < uapi::header_size) {
        found(Finding{.rule = find_rule("X2"),
                      .certainty = Certainty::may_fail,
                      .offset = 0,
                      .missing = Needs::caller_memory,
                      .value = 0,
                      .bits = 0});
        return;
    }
    uapi::StateHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    const auto payload = bytes.subspan(uapi::header_size);
    const auto vendor = to.vendor.value_or(vendor_of(header).value_or(VendorId::vmx));
    if (vendor == VendorId::vmx)
        ask_all(vmx_rules, vmx_catalogue, VmxCase{header, payload, to}, found);
    else
        ask_all(svm_rules, svm_catalogue, SvmCase{header, payload, to}, found);
}

bool fits(Answer answer, const Error& error) noexcept {
    if (error.raw_result > 0)
        return answer == Answer::positive;
    switch (error.error_number) {
    case EINVAL:
        return answer == Answer::einval;
    case EFAULT:
        return answer == Answer::efault;
    case ENOMEM:
        return answer == Answer::enomem;
    default:
        return false;
    }
}

} // namespace

std::span<const RuleInfo> rules(VendorId vendor) noexcept {
    if (vendor == VendorId::vmx)
        return vmx_catalogue;
    return svm_catalogue;
}

const RuleInfo* find_rule(std::string_view id) noexcept {
    for (const auto vendor : {VendorId::vmx, VendorId::svm})
        for (const auto& rule : rules(vendor))
            if (rule.id == id)
                return &rule;
    return nullptr;
}

Findings check(std::span<const std::byte> state, const Destination& destination) noexcept {
    Findings findings;
    ask(state, destination, [&](const Finding& finding) {
        findings.add(finding);
        return true;
    });
    return findings;
}

std::optional<Finding> first_refusal(std::span<const std::byte> state,
                                     const Destination& destination) noexcept {
    std::optional<Finding> first;
    ask(state, destination, [&](const Finding& finding) {
        if (finding.certainty == Certainty::silent)
            return true;
        first = finding;
        return false;
    });
    return first;
}

Explanation explain(std::span<const std::byte> state, const Destination& destination,
                    const Error& error) noexcept {
    Explanation explanation;
    ask(state, destination, [&](const Finding& finding) {
        if (finding.certainty == Certainty::silent || !fits(finding.rule->answer, error))
            return true;
        if (!explanation.rule)
            explanation.rule = finding;
        if (finding.certainty == Certainty::fails)
            explanation.latest = finding;
        return !explanation.latest;
    });
    return explanation;
}

Text<512> Finding::message() const noexcept {
    Text<512> text;
    text << rule->id << ": " << rule->holds;
    const auto at = rule->fields.empty() ? FieldOfState{} : field_at(rule->vendor, offset);
    if (at.field != nullptr) {
        text << "; " << at.field->name;
        if (at.part == Part::shadow_vmcs12)
            text << " of the " << nested::name(at.part);
        (text << " is ").hexadecimal(value);
        const auto* separator = bits != 0 ? " (" : "";
        auto unnamed = bits;
        for (const auto& named : at.field->bit_layout->bits)
            if ((bits & named.mask()) != 0 && named.form == BitsForm::flag) {
                text << separator << named.name << ((value & named.mask()) != 0 ? " is set" : " is clear");
                unnamed &= ~named.mask();
                separator = ", ";
            }
        if (unnamed != 0)
            (text << separator << "bits ").hexadecimal(unnamed);
        if (bits != 0)
            text << ")";
    }
    if (certainty == Certainty::may_fail)
        text << "; it may fail, because this is not known: " << description(missing);
    return text;
}

Text<1280> Explanation::message() const noexcept {
    Text<1280> text;
    if (!rule) {
        text << "no rule that is known explains it. Next: enable the kernel's trace event "
                "kvm:kvm_nested_vmenter_failed and try again: it names the check of the vmcs12 or VMCB that "
                "failed; failures of the header leave no trace";
        return text;
    }
    text << (sure() ? "KVM stopped at " : "KVM may have stopped at ") << rule->message();
    if (latest && !sure())
        text << "; and at the latest at " << latest->message();
    const auto& last = latest ? *latest : *rule;
    if (!last.rule->advice.empty())
        text << ". Next: " << last.rule->advice;
    return text;
}

} // namespace kvm::nested
