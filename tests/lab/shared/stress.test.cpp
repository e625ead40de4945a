// SPDX-License-Identifier: MIT
//
// Migration at points that nobody chose: a timer interrupts L1 and L2 anywhere, and the vCPU moves on at each
// interruption.
#include <map>

#include "support/migration.hpp"

namespace {

using lab::must;
using lab::Vm;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// Where the vCPU was, by what its nested state says.
class Classes {
  public:
    void count(const kvm::nested::NestedStateBuffer& state) {
        const bool pending = (state.flags() & kvm::nested::uapi::state_flag::run_pending) != 0;
        ++counts_[std::string{kvm::nested::name(state.phase())} + (pending ? " with RUN_PENDING" : "")];
        ++total_;
    }
    /// Whether each place was hit that the stress guest comes by all the time.
    [[nodiscard]] bool all() const { return counts_.size() >= (lab::is_vmx() ? 3 : 4); }
    [[nodiscard]] unsigned total() const { return total_; }
    [[nodiscard]] std::string text() const {
        std::string text;
        for (const auto& [place, count] : counts_)
            text += std::format("{}{} {}", text.empty() ? "" : "; ", place, count);
        return text;
    }

  private:
    std::map<std::string, unsigned> counts_;
    unsigned total_ = 0;
};

/// 50 to 450 us, each time another.
std::chrono::microseconds next_limit() {
    static unsigned number = 0;
    return std::chrono::microseconds{50 + (number++ * 37) % 401};
}

/// Runs the stress guest to its end, moving to what `next_vm` gives at each interruption, and checks the
/// counters.
template <class NextVm>
void migrate_at_every_interruption(const guests::Parameters& parameters, NextVm&& next_vm, Classes& classes) {
    const auto source = lab::started(lab::stress_guest(), parameters);
    const Vm* vm = &source;
    std::optional<std::uint32_t> l1_rounds;
    for (;;) {
        const auto exit = must(vm->machine.run(next_limit()));
        if (const auto* out = lab::on_port(exit, guests::port::l1_rounds))
            l1_rounds = out->value;
        else if (const auto* counted = lab::on_port(exit, guests::port::rounds)) {
            CHECK(l1_rounds == parameters.rounds);
            CHECK(counted->value == parameters.rounds * guests::stress_increments);
            return;
        } else if (exit != machine::Exit{machine::Interrupted{}})
            lab::give_up("the stress guest: " + machine::describe(exit));

        const auto saved = lab::save(*vm);
        classes.count(saved.state.nested);
        vm = &next_vm();
        lab::restore(*vm, saved);
    }
}

/// Again and again for a while, and no longer than until each class has been hit and `enough` migrations were
/// made. The while is one by the machine's clock, which Bochs (VMX) runs some ten times slower than ours.
template <class NextVm>
void stress(const char* where, const guests::Parameters& parameters, unsigned enough, NextVm&& next_vm) {
    const auto time = lab::is_vmx() ? 500ms : 4000ms;
    Classes classes;
    unsigned runs = 0;
    for (const auto end = Clock::now() + time;
         Clock::now() < end && !(classes.all() && classes.total() >= enough); ++runs)
        migrate_at_every_interruption(parameters, next_vm, classes);
    std::println("count: {} migrations into {}, nested paging {}, in {} runs: {}", classes.total(), where,
                 parameters.flags != 0 ? "on" : "off", runs, classes.text());
    CHECK(classes.total() > 0);
}

} // namespace

TEST_CASE("a guest moves to a new virtual machine at every interruption, and its counts are exact") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        std::optional<Vm> current;
        stress("new VMs", {.flags = flags, .rounds = 40}, 60,
               [&]() -> const Vm& { return current.emplace(lab::bare_vm()); });
    }
}

TEST_CASE(
    "a guest moves through three used virtual machines at every interruption, and its counts are exact") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const std::array pool{lab::bare_vm(), lab::bare_vm(), lab::bare_vm()};
        std::size_t turn = 0;
        stress("used VMs", {.flags = flags, .rounds = 300}, lab::is_vmx() ? 100 : 400,
               [&]() -> const Vm& { return pool[turn++ % pool.size()]; });
    }
}
