// SPDX-License-Identifier: MIT
//
// What asking costs beside what it saves: check() of a state with L2 active, and KVM_SET_NESTED_STATE of it.
// Printed, not judged: under Bochs the TSC counts instructions, elsewhere it counts time.
#include "conditions.hpp"

#include <x86intrin.h>

namespace {

/// The least of many, in ticks of the TSC.
template <class Function>
std::uint64_t least(Function&& function) {
    std::uint64_t least = ~std::uint64_t{0};
    for (int i = 0; i < 200; ++i) {
        const auto before = __rdtsc();
        function();
        least = std::min<std::uint64_t>(least, __rdtsc() - before);
    }
    return least;
}

} // namespace

TEST_CASE("what check() takes beside the ioctl") {
    const auto& conditions = rules::conditions();
    const auto& on = conditions[0];
    const auto& state = on.good[0];
    std::size_t found = 0;
    const auto asking = least([&] { found += kvm::nested::check(state, on.to).size(); });
    const auto first = least([&] { found += kvm::nested::first_refusal(state, on.to).has_value() ? 1 : 0; });
    on.reset();
    const auto setting = least([&] { CHECK(lab::raw_set(on.fd(), state.data()).value == 0); });
    on.reset();
    CHECK(found == 0);
    std::println("count: of KVM_SET_NESTED_STATE, {} ticks, check() takes {} ({:.1f} %), first_refusal() {} "
                 "({:.1f} %)",
                 setting, asking, 100.0 * static_cast<double>(asking) / static_cast<double>(setting), first,
                 100.0 * static_cast<double>(first) / static_cast<double>(setting));
}
