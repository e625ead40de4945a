// SPDX-License-Identifier: MIT
//
// Two vCPUs of one virtual machine, each with an L1 and an L2 of its own: saved together into one file, and
// restored together. The guests are the migrate guest and the same once more, 1 MiB higher
// (guests/second_vcpu.inc), so that all checks of both hold only if neither got anything of the other.
#include "support/migration.hpp"

#include "guests/images.hpp"

namespace lab {
guests::Image second_migrate_guest() {
    return is_vmx() ? IMAGE(vmx_migrate_second) : IMAGE(svm_migrate_second);
}
} // namespace lab

namespace {

using lab::must;
using lab::Vm;

constexpr unsigned vcpus = 2;
constexpr std::size_t second_place = 0x100000;
constexpr std::size_t used_memory = second_place + lab::used_memory;
constexpr machine::Options two_vcpus{.vcpus = vcpus};

Vm started(std::uint64_t flags) {
    auto vm = lab::prepared_vm(two_vcpus);
    const guests::Parameters parameters{.flags = flags, .rounds = lab::migrate_rounds};
    // In the order that lets the first vCPU's image stay where start() puts it.
    must(guests::start(vm.machine, lab::migrate_guest(), parameters, 1));
    must(guests::start(vm.machine, lab::migrate_guest(), parameters, 0));
    must(vm.machine.load(second_place + guests::image_address, lab::second_migrate_guest()));
    must(
        vm.machine.load(second_place + guests::parameters_address, std::as_bytes(std::span{&parameters, 1})));
    must(
        vm.machine.start_long_mode(second_place + guests::image_address, second_place + guests::l1_stack, 1));
    return vm;
}

/// The VM and both vCPUs before the memory, since saving completes their I/O, which may write to it.
lab::Bytes saved_together(const Vm& vm) {
    const auto vm_state = must(vm.whole_vm().save(vm.whole(0).descriptor()));
    const std::array states{must(vm.whole(0).save()), must(vm.whole(1).save())};
    const kvm::vcpu::Section memory{lab::memory_section, vm.machine.memory().first(used_memory)};
    lab::Bytes file;
    const auto append = [&](std::span<const std::byte> bytes) -> std::expected<void, kvm::vcpu::Error> {
        file.insert(file.end(), bytes.begin(), bytes.end());
        return {};
    };
    must(kvm::vcpu::encode(vm_state, states, append, {&memory, 1}));
    CHECK(kvm::vcpu::encoded_size(vm_state, states, {&memory, 1}) == file.size());
    return file;
}

/// What is in such a file, memory as a part of its bytes.
struct Together {
    kvm::vcpu::ParsedVm parsed;
    std::vector<kvm::vcpu::VcpuState>& states = parsed.vcpus;
    std::span<const std::byte> memory;

    explicit Together(std::span<const std::byte> file) : parsed{must(kvm::vcpu::parse_vm(file))} {
        if (!parsed.vm || states.size() != vcpus || parsed.sections.size() != 1)
            lab::give_up("the file has not all of the VM");
        memory = parsed.sections.front().bytes;
    }
    Together(const Together&) = delete;
};

void restore(const Vm& vm, const Together& together) {
    lab::put_memory(vm, together.memory);
    const std::array whole{vm.whole(0), vm.whole(1)};
    for (const auto& report : must(vm.whole_vm().restore(*together.parsed.vm, whole, together.states,
                                                         kvm::vcpu::Downtime::visible)))
        lab::check_report(report);
    for (unsigned vcpu = 0; vcpu < vcpus; ++vcpu)
        CHECK(whole[vcpu].nested().verify_nested_state(together.states[vcpu].nested));
}

/// Runs one vCPU up to the report of this round, which has to be its next.
void run_to_round(const Vm& vm, unsigned vcpu, std::uint32_t round) {
    CHECK(must(vm.machine.run(lab::patience, vcpu))
          == machine::Exit{machine::PortOut{guests::port::progress, 4, round}});
}

std::string what_is_wrong(const Vm& vm, unsigned vcpu, std::uint32_t next) {
    return lab::what_is_wrong(lab::follow(vm.machine, vcpu), next, lab::migrate_rounds);
}

/// Both in L2, the second one round ahead.
Vm started_and_in_l2(std::uint64_t flags) {
    auto vm = started(flags);
    run_to_round(vm, 0, 1);
    run_to_round(vm, 1, 1);
    run_to_round(vm, 1, 2);
    return vm;
}

} // namespace

TEST_CASE("two vCPUs, each in an L2 of its own, move together at every round, and nothing is lost or mixed") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        auto vm = started_and_in_l2(flags);
        for (std::uint32_t round = 1;; ++round) {
            CAPTURE(round);
            const auto file = saved_together(vm);
            const Together together{file};
            for (const auto& state : together.states)
                CHECK((state.nested.flags() & kvm::nested::uapi::state_flag::guest_mode) != 0);
            CHECK(together.states[0].nested != together.states[1].nested);
            vm = lab::bare_vm(two_vcpus);
            restore(vm, together);
            if (round + 1 == lab::migrate_rounds)
                break;
            run_to_round(vm, 0, round + 1);
            run_to_round(vm, 1, round + 2);
        }
        CHECK(what_is_wrong(vm, 1, lab::migrate_rounds + 1) == "");
        CHECK(what_is_wrong(vm, 0, lab::migrate_rounds) == "");
    }
}

TEST_CASE("two vCPUs that got each other's nested state both fail") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto file = saved_together(started_and_in_l2(flags));
        const Together together{file};
        std::swap(together.states[0].nested, together.states[1].nested);
        const auto vm = lab::bare_vm(two_vcpus);
        restore(vm, together); // nothing shows yet
        CHECK(what_is_wrong(vm, 0, 2) != "");
        CHECK(what_is_wrong(vm, 1, 3) != "");
    }
}

TEST_CASE("of two vCPUs only the one whose nested state was forgotten fails") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto file = saved_together(started_and_in_l2(flags));
        const Together together{file};
        const auto vm = lab::bare_vm(two_vcpus);
        lab::put_memory(vm, together.memory);
        must(vm.whole(0).restore(together.states[0]));
        must(lab::restore_without(kvm::vcpu::Step::nested_state, vm, together.states[1], 1));
        CHECK(what_is_wrong(vm, 0, 2) == "");
        CHECK(what_is_wrong(vm, 1, 3) == "L2's intercepted OUT comes to user space");
    }
}
