// SPDX-License-Identifier: MIT
//
// A scenario: a guest whose L1 and L2 tell user space by port writes how they fare. What it tells
// undisturbed, it must tell when it moves to a new virtual machine at every exit, and not when the move
// forgets something.
//
// The values that a guest writes must come out right only if all of what the scenario is about has survived:
// the comparison is of nothing else.
//
//     const lab::Scenario scenario{.image = IMAGE(vmx_shadow)};
//     const auto journey = lab::check_survives(scenario, "0x10:1 0x10:5 0x21:0x7 HLT");
//     CHECK(journey.at(guests::port::phase, 5).phase() == kvm::nested::Phase::vmx_l2_active);
//     CHECK(lab::told_without(scenario, kvm::vcpu::Step::nested_state, guests::port::phase, 5) != ...);
//
// Include it last, like migration.hpp, which it includes.
#pragma once

#include "guests/images.hpp"
#include "migration.hpp"

namespace lab {

struct Scenario {
    guests::Image image;
    guests::Parameters parameters = {};
    machine::Options machine = {};
    kvm::vcpu::Requirements requirements = {};
    /// Once, in the first virtual machine, before the guest's first instruction.
    std::function<void(const Vm&)> arrange = {};
    /// At each exit, after any migration and before the guest goes on: what a device would do, KVM_SMI for
    /// example.
    std::function<void(const Vm&, const machine::PortOut&)> act = {};
};

/// Follows a guest, and makes of what it tells one line: "0x10:5 0x21:0x7 HLT". Port and value of each write,
/// and at the end what was no port write.
class Telling {
  public:
    void add(const machine::PortOut& out) { append(std::format("{:#x}:{:#x}", out.port, out.value)); }
    void end(const std::string& how) { append(how); }
    [[nodiscard]] const std::string& line() const { return line_; }

  private:
    void append(const std::string& word) {
        if (!line_.empty())
            line_ += ' ';
        line_ += word;
    }
    std::string line_;
};

/// KVM shows user space each write of a guest to its SynIC's control MSRs, and expects nothing of it.
inline bool is_synic_notice(const machine::Result<machine::Exit>& exit) {
    return exit == machine::Exit{machine::OtherExit{KVM_EXIT_HYPERV}};
}

/// Runs to the next exit. A port write is answered; anything else ends the telling.
inline std::optional<machine::PortOut> next_write(const Vm& vm, Telling& telling,
                                                  std::chrono::microseconds limit = patience) {
    auto exit = vm.machine.run(limit);
    while (is_synic_notice(exit))
        exit = vm.machine.run(limit);
    if (!exit) {
        telling.end(exit.error().message());
        return std::nullopt;
    }
    if (const auto* out = std::get_if<machine::PortOut>(&*exit)) {
        telling.add(*out);
        return *out;
    }
    telling.end(machine::describe(*exit));
    return std::nullopt;
}

/// A guest that writes more than this is taken for one that has lost its way.
inline constexpr int most_writes = 200;

inline Vm start(const Scenario& scenario) {
    auto vm = prepared_vm(scenario.machine, scenario.requirements);
    must(guests::start(vm.machine, scenario.image, scenario.parameters));
    if (scenario.arrange)
        scenario.arrange(vm);
    return vm;
}

/// From the next exit to the end, without a migration.
inline void follow(const Scenario& scenario, const Vm& vm, Telling& telling,
                   std::chrono::microseconds limit = patience) {
    for (int i = 0; i < most_writes; ++i) {
        const auto out = next_write(vm, telling, limit);
        if (!out)
            return;
        if (scenario.act)
            scenario.act(vm, *out);
    }
    telling.end("and so on");
}

inline std::string told_undisturbed(const Scenario& scenario) {
    const auto vm = start(scenario);
    Telling telling;
    follow(scenario, vm, telling);
    return telling.line();
}

/// Where a guest that moves at every exit has come by.
struct Journey {
    struct Stop {
        machine::PortOut out;
        Saved saved;
    };
    std::vector<Stop> stops;
    std::string told;

    /// The first write of `value` to `port`.
    [[nodiscard]] const Stop& stop(std::uint16_t port, std::uint32_t value) const {
        for (const auto& stop : stops)
            if (stop.out.port == port && stop.out.value == value)
                return stop;
        give_up(std::format("the guest never wrote {:#x} to port {:#x}; it told {}", value, port, told));
    }
    /// The nested state that was saved there.
    [[nodiscard]] const kvm::nested::NestedStateBuffer& at(std::uint16_t port, std::uint32_t value) const {
        return stop(port, value).saved.state.nested;
    }
};

/// A virtual machine to restore to.
inline Vm destination(const Scenario& scenario, const Saved& saved) {
    return bare_vm(scenario.machine, saved.state.requirements);
}

inline Vm moved(const Scenario& scenario, const Saved& saved) {
    auto vm = destination(scenario, saved);
    restore(vm, saved);
    return vm;
}

/// Moves to a new virtual machine at each of its exits.
inline Journey migrated_at_every_exit(const Scenario& scenario) {
    auto vm = start(scenario);
    Telling telling;
    Journey journey;
    for (int i = 0; i < most_writes; ++i) {
        const auto out = next_write(vm, telling);
        if (!out)
            break;
        auto saved = save(vm);
        vm = moved(scenario, saved);
        journey.stops.push_back({*out, std::move(saved)});
        if (scenario.act)
            scenario.act(vm, *out);
    }
    journey.told = telling.line();
    return journey;
}

/// A guest right after its first write of `value` to `port`, and what it told up to there.
struct Reached {
    Vm vm;
    Telling telling;
};

inline Reached run_until(const Scenario& scenario, std::uint16_t port, std::uint32_t value) {
    Reached reached{start(scenario), {}};
    for (int i = 0; i < most_writes; ++i) {
        const auto out = next_write(reached.vm, reached.telling);
        if (!out)
            break;
        if (out->port == port && out->value == value)
            return reached;
        if (scenario.act)
            scenario.act(reached.vm, *out);
    }
    give_up(std::format("the guest never wrote {:#x} to port {:#x}; it told {}", value, port,
                        reached.telling.line()));
}

/// The whole claim: undisturbed and with a migration at every exit the guest tells `expected`.
inline Journey check_survives(const Scenario& scenario, const std::string& expected) {
    CHECK(told_undisturbed(scenario) == expected);
    auto journey = migrated_at_every_exit(scenario);
    CHECK(journey.told == expected);
    return journey;
}

/// The negative control: moves once, at the first write of `value` to `port`, without some steps of the
/// restore. What the guest tells from its beginning; or which step refused what it was given.
inline std::string told_without(const Scenario& scenario, StepSet left_out, std::uint16_t port,
                                std::uint32_t value) {
    auto [source, telling] = run_until(scenario, port, value);
    const auto saved = save(source);
    const auto vm = destination(scenario, saved);
    if (!left_out.contains(kvm::vcpu::Step::memory))
        put_memory(vm, saved.memory);
    if (const auto report = restore_without(left_out, vm, saved.state); !report) {
        telling.end(refusal(report.error()));
        return telling.line();
    }
    if (scenario.act)
        scenario.act(vm, {.port = port, .size = 4, .value = value});
    follow(scenario, vm, telling);
    return telling.line();
}

/// A guest interrupted at a point that no exit shows, and what it had told by then.
struct Caught {
    Saved saved;
    Telling telling;
};

/// Interrupts the guest by a timer, starting it anew each time, until it is saved in a state that satisfies
/// `wanted`. None after so many attempts. The time until the interruption grows from 20 us on by steps that
/// fit the guest's length.
template <class Wanted>
std::optional<Caught> caught(const Scenario& scenario, Wanted&& wanted, int attempts = 300,
                             std::chrono::microseconds step = std::chrono::microseconds{7}) {
    auto vm = start(scenario);
    Telling telling;
    for (int i = 0; i < attempts; ++i) {
        const auto exit = must(vm.machine.run(std::chrono::microseconds{20} + i % 60 * step));
        if (const auto* out = std::get_if<machine::PortOut>(&exit)) {
            telling.add(*out);
            if (scenario.act)
                scenario.act(vm, *out);
        } else if (!std::holds_alternative<machine::Interrupted>(exit)) {
            vm = start(scenario); // it has come to its end
            telling = {};
        } else if (wanted(must(nested(vm.machine).nested_state()))) {
            return Caught{save(vm), telling};
        }
    }
    return std::nullopt;
}

/// What a guest that was caught tells on the whole, having moved there.
inline std::string told_after(const Scenario& scenario, const Caught& caught,
                              std::chrono::microseconds limit = patience) {
    const auto vm = moved(scenario, caught.saved);
    auto telling = caught.telling;
    follow(scenario, vm, telling, limit);
    return telling.line();
}

} // namespace lab
