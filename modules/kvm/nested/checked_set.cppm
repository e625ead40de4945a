// SPDX-License-Identifier: MIT
//
// Setting a state after asking: the vCPU is touched only if nothing is known to fail, and a refusal that
// nobody foresaw comes with the rule that KVM stopped at and the way back.
module;
#include <expected>
#include <optional>
#include <span>
export module kvm.nested:checked_set;
import :vendor;
import :text;
import :error;
import :effect;
import :ioctl;
import :vcpu;
import :destination;
import :rule;
import :check;

export namespace kvm::nested {

/// Why checked_set() has not set a state.
struct NotSet {
    /// KVM's refusal; none: check() foresaw one, and the vCPU has not been touched.
    std::optional<Error> error = {};
    /// The rule that KVM stops at, or has stopped at; none where no rule that is known explains the refusal.
    Explanation why = {};

    /// What the vCPU has now.
    constexpr Effect effect() const noexcept { return error ? error->effect : Effect::unchanged; }
    /// In a line: what was refused, by which rule, what the vCPU has now, and the way back.
    inline Text<2048> message() const noexcept {
        Text<2048> text;
        if (!error) {
            const auto& rule = *why.latest;
            text << "not tried: KVM would stop at " << rule.message();
            if (!rule.rule->advice.empty())
                text << ". Next: " << rule.rule->advice;
            return text;
        }
        text << error->message() << " " << why.message();
        if (error->effect != Effect::unchanged)
            text << ". The way back: clear_nested_state(), then set a state that check() finds nothing in";
        return text;
    }
};

/// KVM_SET_NESTED_STATE of `state`, unless a rule surely refuses it on `destination`. What may fail is tried.
///
///     if (const auto set = checked_set(vcpu, state, to); !set)
///         log(set.error().message());
///
/// @param destination what `vcpu` is: WholeVcpu::capture() of kvm.vcpu fills it
template <VendorOrAny V, class Ioctl>
[[nodiscard]] inline std::expected<void, NotSet> checked_set(const Vcpu<V, Ioctl>& vcpu,
                                                             const typename Vcpu<V, Ioctl>::State& state,
                                                             const Destination& destination) noexcept {
    const auto bytes = state.bytes();
    const auto findings = check(bytes, destination);
    if (const auto* refusal = findings.refusal())
        return std::unexpected(NotSet{.why = {.rule = *refusal, .latest = *refusal}});
    if (const auto set = vcpu.set_nested_state(state); !set)
        return std::unexpected(NotSet{.error = set.error(), .why = explain(bytes, destination, set.error())});
    return {};
}

} // namespace kvm::nested
