// SPDX-License-Identifier: MIT
//
// check() and KVM_SET_NESTED_STATE, asked the same: good states with one to three changes, set on vCPUs in
// many situations. What check() is sure of has to be so: taken or refused, with that errno or return value,
// and what the vCPU then has. After each failure there is a way back: cleared, the vCPU takes a good state
// and has it; and a guest whose L2 such a failure hit runs on once its vCPU is restored.
#include "options.hpp"

#include "ask.hpp"

namespace {

using kvm::nested::Certainty, kvm::nested::Finding, kvm::nested::Findings;
using lab::Bytes;
using rules::answer_text, rules::ask, rules::Case, rules::check, rules::Condition, rules::is, rules::Places,
    rules::Random, rules::Said, rules::where, rules::wrongly_kept;

Case make(std::uint64_t number, std::span<const Condition> conditions, const Places& places) {
    Random random{rules::options.seed, number};
    // Half of them on the first, plain one.
    const auto& on = random.one_in(2) ? conditions[0] : conditions[random.below(conditions.size())];
    const auto& base = on.good[random.below(on.good.size())];
    Case made{&on, random.one_in(4) ? &on.good[random.below(on.good.size())] : nullptr, base};
    const auto changes = random.below(16);
    for (std::uint64_t i = 0; i < (changes == 0 ? 0 : changes < 11 ? 1 : changes < 14 ? 2 : 3); ++i)
        rules::change(random, made.state, places, on.good, on.maxphyaddr);
    return made;
}

/// What check() cannot know though all of the vCPU is told: L2's IA32_DEBUGCTL, bit 11, needs LBRs.
bool may_be_unknown(const Finding& finding) {
    return finding.rule->id == "G4" && finding.missing == kvm::nested::Needs::performance_counters;
}

/// The first that is not silent: what KVM comes to first.
const Finding* first_that_counts(const Findings& findings) {
    const auto found = std::ranges::find_if(
        findings, [](const Finding& finding) { return finding.certainty != Certainty::silent; });
    return found == findings.end() ? nullptr : found;
}

/// What is wrong between the two; empty: nothing.
std::string disagreement(const Case& one, const Findings& findings, const Said& said) {
    // Behind what KVM refuses, nobody asks: a vCPU without VMX has no capability MSRs.
    for (const auto& finding : findings) {
        if (finding.certainty == Certainty::fails)
            break;
        if (finding.certainty == Certainty::may_fail && !may_be_unknown(finding))
            return "check() does not know what it was told";
    }
    const auto* first = first_that_counts(findings);
    if (first == nullptr)
        return said.result.value == 0 ? "" : "check() finds nothing, and the kernel refuses";
    const auto* refusal = findings.refusal();
    if (refusal == nullptr) // may fail
        return said.result.value == 0 || is(said.result, first->rule->answer)
                   ? ""
                   : "refused in a way that no rule has";
    if (said.result.value == 0)
        return "the kernel takes it";
    // Where one before it may fail, KVM may have stopped there: then it has that one's answer and keeps.
    std::string wrong;
    for (const auto* stopped : {first, refusal}) {
        wrong = !is(said.result, stopped->rule->answer) ? "another answer"
                                                        : wrongly_kept(stopped->rule->keeps, one, said);
        if (wrong.empty())
            break;
    }
    return wrong;
}

/// Takes back what is not needed to disagree.
Case shrunk(Case one, const Places& places) {
    const Bytes* nearest = nullptr;
    std::size_t least = ~std::size_t{0};
    for (const auto& good : one.on->good) {
        std::size_t different = 0;
        for (const auto& place : places.all)
            different += rules::get(good, place) != rules::get(one.state, place) ? 1 : 0;
        if (different < least) {
            least = different;
            nearest = &good;
        }
    }
    for (const auto& place : places.all) {
        const auto value = rules::get(one.state, place), original = rules::get(*nearest, place);
        if (value == original)
            continue;
        auto without = one;
        rules::put(without.state, place, original);
        if (!disagreement(without, check(without), ask(without)).empty())
            one = std::move(without);
    }
    return one;
}

void tell(std::uint64_t number, const Case& one, const Places& places) {
    const auto findings = check(one);
    const auto said = ask(one);
    std::println("case {} on \"{}\"{}: the kernel: {}", number, one.on->name,
                 one.start != nullptr ? ", with a state before" : "", answer_text(said.result));
    for (const auto& good : one.on->good) {
        std::size_t different = 0;
        for (const auto& place : places.all)
            different += rules::get(good, place) != rules::get(one.state, place) ? 1 : 0;
        if (different > 4)
            continue;
        std::println("  good state {} but for:", &good - one.on->good.data());
        for (const auto& place : places.all)
            if (const auto value = rules::get(one.state, place); value != rules::get(good, place))
                std::println("    {:<30} {:#x}, was {:#x}", place.field->name, value,
                             rules::get(good, place));
        break;
    }
    for (const auto& finding : findings)
        std::println("  {}: {}", name(finding.certainty), finding.message().view());
    const auto after = where(said.after), before = where(said.before);
    std::println("  before: flags {:#x} {:#x} {:#x}; after: flags {:#x} {:#x} {:#x} smm {:#x}", before.flags,
                 before.vmxon, before.vmcs12, after.flags, after.vmxon, after.vmcs12, after.smm_flags);
}

/// From a failure to a good state.
class WayBack {
  public:
    explicit WayBack(std::span<const Condition> conditions) {
        for (const auto& condition : conditions)
            for (const auto& state : condition.good) {
                condition.reset();
                if (lab::raw_set(condition.fd(), state.data()).value != 0)
                    continue; // not on this vCPU
                good_.insert_or_assign(
                    &condition, Good{&state, lab::must(lab::nested(condition.machine()).nested_state())});
                if (go(condition).empty()) // else a timer runs in it, whose deadline is another one each time
                    break;
            }
    }

    /// What went wrong; empty: nothing.
    [[nodiscard]] std::string go(const Condition& on) const {
        const auto found = good_.find(&on);
        if (found == good_.end())
            return "this vCPU takes no state";
        on.reset();
        if (lab::raw_set(on.fd(), found->second.state->data()).value != 0)
            return "the good state is refused";
        const auto verified = lab::nested(on.machine()).verify_nested_state(found->second.shown);
        return verified ? "" : std::string{verified.error().message().view()};
    }

  private:
    struct Good {
        const Bytes* state;
        kvm::nested::NestedStateBuffer shown; ///< by GET, where nothing had failed before
    };
    std::map<const Condition*, Good> good_;
};

/// A guest with a real L2, which runs on after a failure hit its vCPU.
class RealL2 {
  public:
    RealL2() : vm_{lab::started(lab::phases_guest(), {.flags = guests::nested_paging})}, saved_{in_l2(vm_)} {}

    void go_on_after(const Bytes& failing) {
        failed_ += lab::raw_set(vm_.machine.vcpu_fd(), failing.data()).value != 0 ? 1 : 0;
        lab::restore(vm_, saved_);
        lab::run_to(vm_.machine, guests::Phase::exited); // L2 has called L1
        ++tried_;
    }
    [[nodiscard]] std::uint64_t tried() const { return tried_; }
    [[nodiscard]] std::uint64_t failed() const { return failed_; }

  private:
    static lab::Saved in_l2(const lab::Vm& vm) {
        lab::run_to(vm.machine, guests::Phase::l2);
        return lab::save(vm);
    }

    lab::Vm vm_;
    lab::Saved saved_;
    std::uint64_t tried_ = 0, failed_ = 0;
};

struct Count {
    std::uint64_t first = 0, sole = 0, agreed = 0, disagreed = 0, may = 0;
};

} // namespace

TEST_CASE("what check() is sure of is what the kernel says, in as many cases as were asked for") {
    const auto& conditions = rules::conditions();
    const auto vendor = lab::host().vendor();
    const Places places{vendor};

    // Each good state is one: else nothing would be tried but its fault.
    for (const auto& good : conditions[0].good) {
        const Case one{&conditions[0], nullptr, good};
        const auto findings = check(one);
        for (const auto& finding : findings)
            std::println("good state {}: {}: {}", &good - conditions[0].good.data(), name(finding.certainty),
                         finding.message().view());
    }

    if (rules::options.only) {
        tell(*rules::options.only, make(*rules::options.only, conditions, places), places);
        return;
    }

    const WayBack way_back{conditions};
    RealL2 real_l2;
    std::map<std::string_view, Count> counts;
    std::uint64_t taken = 0, refused = 0, may_fail = 0, disagreed = 0, no_way_back = 0;
    for (std::uint64_t number = 0; number < rules::options.cases; ++number) {
        const auto one = make(number, conditions, places);
        const auto findings = check(one);
        const auto said = ask(one);
        const auto wrong = disagreement(one, findings, said);
        (said.result.value == 0 ? taken : refused) += 1;
        if (said.result.value != 0) {
            if (const auto trouble = way_back.go(*one.on); !trouble.empty() && ++no_way_back <= 20)
                std::println("NO WAY BACK after case {}, {}: {}", number, one.on->name, trouble);
            if (constexpr std::uint64_t sample = 500; refused % sample == 1)
                real_l2.go_on_after(one.state);
        }
        if (findings.verdict() == Certainty::may_fail)
            ++may_fail;
        if (const auto* first = first_that_counts(findings); first != nullptr) {
            auto& count = counts[first->rule->id];
            ++count.first;
            if (first->certainty == Certainty::may_fail)
                ++count.may;
            else if (findings.size() == 1 && wrong.empty())
                ++count.sole;
            ++(wrong.empty() ? count.agreed : count.disagreed);
        }
        if (!wrong.empty() && ++disagreed <= 20) {
            std::println("DISAGREE: {}", wrong);
            tell(number, shrunk(one, places), places);
        }
        if (rules::options.cases >= 100'000 && (number + 1) % 50'000 == 0) {
            std::println("... {} of {}, {} disagreements", number + 1, rules::options.cases, disagreed);
            std::fflush(stdout);
        }
    }
    std::println("rule     first    alone   agreed disagreed may fail");
    for (const auto& rule : kvm::nested::rules(vendor)) {
        const auto& count = counts[rule.id];
        std::println("{:<6} {:>7} {:>8} {:>8} {:>9} {:>8}{}", rule.id, count.first, count.sole, count.agreed,
                     count.disagreed, count.may, count.sole == 0 ? "  unproven: never the only one" : "");
    }
    std::println("count: check() and the kernel, {} cases: {} taken, {} refused, {} of them may fail; {} "
                 "disagreements",
                 rules::options.cases, taken, refused, may_fail, disagreed);
    std::println(
        "count: the way back, {} failures: {} without; L2 ran on after {} states, {} of them refused "
        "while it was active",
        refused, no_way_back, real_l2.tried(), real_l2.failed());
    CHECK(disagreed == 0);
    CHECK(no_way_back == 0);
}
