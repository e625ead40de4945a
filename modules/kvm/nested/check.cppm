// SPDX-License-Identifier: MIT
//
// Asking the rules: which of them a state breaks on a destination, before KVM is asked, and which of them KVM
// has stopped at, afterwards.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:check;
import :uapi;
import :vendor;
import :field;
import :parts;
import :text;
import :error;
import :effect;
import :destination;
import :rule;
import :state_case;
import :vmx_rules;
import :svm_rules;

export namespace kvm::nested {

/// A rule without what it is asked about: a row of the catalogue.
struct RuleInfo {
    std::string_view id;
    VendorId vendor; ///< of the table that it is in; X rules are in both
    std::string_view holds;
    std::string_view fields;
    Needs needs;
    Keeps keeps;
    std::string_view manual;
    Certainty certainty;
    Answer answer;
    Applies applies;
    std::string_view advice;
};

/// All rules of a vendor, in the kernel's order.
std::span<const RuleInfo> rules(VendorId vendor) noexcept;
/// The rule of that id; null if there is none. X rules are found in VMX's table.
const RuleInfo* find_rule(std::string_view id) noexcept;

/// A rule that a state breaks, or may break.
struct Finding {
    const RuleInfo* rule;
    Certainty certainty;
    std::uint16_t offset; ///< of the field in the state; 0 also where the rule is about the vCPU alone
    Needs missing;        ///< may_fail: what is not known
    std::uint64_t value;  ///< of the field
    std::uint64_t bits;   ///< the bits of it that are wrong; 0: the value as a whole

    /// Rule, field, value, what was expected and what is not known, in a line.
    Text<512> message() const noexcept;
};

/// What check() found, in the kernel's order. No heap: there is room for one finding of each rule.
class Findings {
  public:
    static constexpr std::size_t capacity = vmx_rules.size() > svm_rules.size() ? vmx_rules.size()
                                                                                : svm_rules.size();

    constexpr void add(const Finding& finding) noexcept { all_[count_++] = finding; }
    constexpr const Finding* begin() const noexcept { return all_.data(); }
    constexpr const Finding* end() const noexcept { return all_.data() + count_; }
    constexpr std::size_t size() const noexcept { return count_; }
    constexpr bool empty() const noexcept { return count_ == 0; }
    constexpr const Finding& operator[](std::size_t index) const noexcept { return all_[index]; }

    /// The first one that surely fails: KVM stops there, or at one before that may fail.
    constexpr const Finding* refusal() const noexcept { return first(Certainty::fails); }
    constexpr const Finding* first(Certainty certainty) const noexcept {
        for (const auto& finding : *this)
            if (finding.certainty == certainty)
                return &finding;
        return nullptr;
    }
    /// fails: KVM refuses the state. may_fail: nobody can tell. None: KVM takes it.
    constexpr std::optional<Certainty> verdict() const noexcept {
        if (refusal() != nullptr)
            return Certainty::fails;
        return first(Certainty::may_fail) != nullptr ? std::optional{Certainty::may_fail} : std::nullopt;
    }

  private:
    std::array<Finding, capacity> all_; // not initialized: the first count_ are
    std::size_t count_ = 0;
};

/// What KVM_SET_NESTED_STATE would say to these bytes on `destination`: every rule that they break or may
/// break. The bytes need not be a state that parse() takes; none behind them is looked at, and `size` in the
/// header may say more or less than there are.
Findings check(std::span<const std::byte> state, const Destination& destination) noexcept;

/// The first finding alone, which is where KVM stops: one that surely fails, or one that may.
std::optional<Finding> first_refusal(std::span<const std::byte> state,
                                     const Destination& destination) noexcept;

/// Why KVM_SET_NESTED_STATE has refused a state.
struct Explanation {
    std::optional<Finding> rule = {};   ///< the first that KVM can have stopped at
    std::optional<Finding> latest = {}; ///< the one that it cannot have come past; that may be the first

    /// It was `rule`: that surely fails, and none before it may.
    constexpr bool sure() const noexcept { return rule && rule->certainty == Certainty::fails; }
    /// In a line; where no rule fits, that, and how to see what the kernel says itself.
    Text<1280> message() const noexcept;
};

/// @param error of a KVM_SET_NESTED_STATE of `state` on a vCPU that `destination` describes
Explanation explain(std::span<const std::byte> state, const Destination& destination,
                    const Error& error) noexcept;

} // namespace kvm::nested
