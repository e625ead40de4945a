// SPDX-License-Identifier: MIT
//
// Every step of restore_order that is a vCPU's, left out of a restore: it must show. A step whose loss a
// restore of the migrate guest into a new virtual machine does not show has a scenario of its own; what even
// that does not show is printed with the reason.
#include "support/migration.hpp"

namespace {

using kvm::vcpu::Step;
using lab::must;
using lab::StepSet;
using lab::Vm;

constexpr std::uint32_t saved_round = 3;

// --- what became of it

constexpr const char* nothing = ""; // everything went right
constexpr auto patience = std::chrono::seconds{1};

/// Restores without some steps, runs the guest to its end, and tells in words what was wrong; "" if nothing.
std::string restored_without(StepSet left_out, const Vm& vm, const kvm::vcpu::VcpuState& state,
                             std::uint32_t next, unsigned vcpu = 0) {
    if (const auto report = lab::restore_without(left_out, vm, state, vcpu); !report)
        return lab::refusal(report.error());
    return lab::what_is_wrong(lab::follow(vm.machine, vcpu, patience), next, lab::migrate_rounds);
}

// --- scenarios

/// In the middle of L2, into a new virtual machine.
std::string into_new_vm(StepSet left_out, std::uint64_t flags) {
    const auto saved = lab::save(lab::migrate_guest_at(saved_round, flags));
    const auto vm = lab::bare_vm();
    if (!left_out.contains(Step::memory))
        lab::put_memory(vm, saved.memory);
    return restored_without(left_out, vm, saved.state, saved_round + 1);
}

/// Into a virtual machine whose VMM says that it has switched the capabilities on, and has not.
std::string into_unprepared_vm(StepSet left_out, std::uint64_t flags) {
    const auto saved = lab::save(lab::migrate_guest_at(saved_round, flags));
    const Vm vm{must(machine::Machine::create({.supported_cpuid = false})),
                kvm::vcpu::already_prepared(saved.state.requirements)};
    lab::put_memory(vm, saved.memory);
    // That is what the step is there to find, before anything is touched.
    const auto result = restored_without(left_out, vm, saved.state, saved_round + 1);
    return result == "capabilities is not_prepared" ? nothing : result;
}

/// Back to the instruction at which the vCPU has an exit pending: a vCPU that was interrupted just before its
/// OUT, and has executed it since. KVM would complete the OUT of then by skipping the one of now.
std::string back_to_the_pending_out(StepSet left_out, std::uint64_t flags) {
    const auto vm = lab::migrate_guest_at(saved_round, flags);
    kvm_regs before_out = {};
    kvm_vcpu_events no_exception_yet = {};
    const auto no_single_step_yet =
        must(vm.whole().nested().nested_state()); // VMX keeps it in the vmcs12, too
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_GET_REGS, &before_out, "KVM_GET_REGS");
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_GET_VCPU_EVENTS, &no_exception_yet, "KVM_GET_VCPU_EVENTS");
    auto saved = lab::save(vm);
    std::memcpy(&saved.state.regs, &before_out, sizeof before_out);
    std::memcpy(&saved.state.events, &no_exception_yet, sizeof no_exception_yet);
    saved.state.nested = no_single_step_yet;

    lab::restore(vm, saved);
    if (must(vm.machine.run()) != machine::Exit{machine::PortOut{guests::port::progress, 4, saved_round}})
        lab::give_up("L2 does not repeat its OUT");
    lab::put_memory(vm, saved.memory);
    return restored_without(left_out, vm, saved.state, saved_round); // the exit is pending
}

/// The migrate guest, saved outside L2 after its first VM entry, onto a vCPU in another guest's L2. That
/// other L1 has no GDT, no IDT and another CR4.
std::string from_l1_onto_l2(StepSet left_out, std::uint64_t flags) {
    constexpr std::uint32_t many = 2000; // rounds, so that the timer hits L1 in one of them
    const auto source = lab::started(lab::migrate_guest(), {.flags = flags, .rounds = many});
    std::uint32_t reported = 0;
    for (int i = 0;; ++i) {
        const auto exit = must(source.machine.run(std::chrono::microseconds{1 + i * 7 % 150}));
        if (const auto* progress = lab::on_port(exit, guests::port::progress))
            reported = progress->value;
        else if (exit != machine::Exit{machine::Interrupted{}})
            lab::give_up("on the way to an interruption in L1: " + machine::describe(exit));
        else if (reported != 0 && must(source.whole().nested().nested_state()).phase() != lab::l2_active())
            break;
    }
    // From here on only a few rounds more.
    auto saved = lab::save(source);
    const std::uint64_t rounds = reported + 2;
    lab::store<std::uint64_t>(source.machine.memory(),
                              guests::parameters_address + offsetof(guests::Parameters, rounds), rounds);

    const auto vm = lab::started(lab::phases_guest(), {.flags = flags});
    lab::run_to(vm.machine, guests::Phase::l2);
    std::ranges::copy(source.machine.memory().first(lab::used_memory), vm.machine.memory().begin());
    if (const auto report = lab::restore_without(left_out, vm, saved.state); !report)
        return lab::refusal(report.error());
    return lab::what_is_wrong(lab::follow(vm.machine, 0, patience), reported + 1,
                              static_cast<std::uint32_t>(rounds));
}

/// The second vCPU of a virtual machine that has its APICs in the kernel, L1 in x2APIC mode.
std::string second_vcpu_with_apic(StepSet left_out, std::uint64_t flags) {
    const machine::Options options{.vcpus = 2, .kernel_apic = true};
    constexpr unsigned second = 1;
    const auto source = lab::prepared_vm(options);
    kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
    lab::must_ioctl(source.machine.vcpu_fd(second), KVM_SET_MP_STATE, &runnable, "KVM_SET_MP_STATE");
    must(guests::start(source.machine, lab::migrate_guest(),
                       {.flags = flags | guests::use_apic, .rounds = lab::migrate_rounds}, second));
    const auto first = must(source.machine.run(lab::patience, second));
    if (lab::on_port(first, guests::port::progress) == nullptr)
        lab::give_up("on the second vCPU: " + machine::describe(first));
    const auto saved = lab::save(source, second);

    auto bare = options;
    bare.supported_cpuid = false;
    const auto vm = lab::prepared_vm(bare);
    lab::put_memory(vm, saved.memory);
    return restored_without(left_out, vm, saved.state, 2, second);
}

/// A TSC of twice the host's frequency. The guest does not measure it: looked at from outside.
std::string faster_tsc(StepSet left_out, std::uint64_t flags) {
    const auto source = lab::started(lab::migrate_guest(), {.flags = flags, .rounds = lab::migrate_rounds});
    const int khz = ::ioctl(source.machine.vcpu_fd(), KVM_GET_TSC_KHZ, 0);
    lab::must_ioctl(source.machine.vcpu_fd(), KVM_SET_TSC_KHZ, 2L * khz, "KVM_SET_TSC_KHZ");
    must(source.machine.run());
    const auto saved = lab::save(source);

    const auto vm = lab::bare_vm();
    lab::put_memory(vm, saved.memory);
    if (const auto report = lab::restore_without(left_out, vm, saved.state); !report)
        return lab::refusal(report.error());
    if (::ioctl(vm.machine.vcpu_fd(), KVM_GET_TSC_KHZ, 0) != 2 * khz)
        return "the TSC has another frequency";
    return lab::what_is_wrong(lab::follow(vm.machine), 2, lab::migrate_rounds);
}

// --- the table

using Scenario = std::string(StepSet left_out, std::uint64_t flags);

/// What may become of it; kernels differ.
using Seen = std::array<const char*, 2>;

struct Row {
    Step step;
    Scenario* scenario;
    Seen svm;
    Seen vmx;
    const char* why = nullptr; ///< nothing is seen

    [[nodiscard]] const Seen& seen() const { return lab::is_vmx() ? vmx : svm; }
};

constexpr Row row(Step step, Scenario* scenario, Seen seen) {
    return {step, scenario, seen, seen};
}

// Registers that differ between the vendors: on SVM EFER.SVME comes with SREGS2 and VM_HSAVE_PA with the
// MSRs, without which L2 cannot be entered at all; on VMX only what SREGS2 and the MSRs themselves carry is
// missed.
constexpr std::array rows = std::to_array<Row>({
    row(Step::capabilities, into_unprepared_vm, {"events is refused"}),
    {Step::pending_io, back_to_the_pending_out, {"L2 reports 4 instead of 3"}, {"l2_steps"}},
    {Step::clear_nested_state, from_l1_onto_l2, {"l1_rflags l1_tables"}, {"shutdown (triple fault)"}},
    row(Step::memory, into_new_vm, {"shutdown (triple fault)"}),
    row(Step::cpuid, into_new_vm, {"sregs is refused", "xcrs is refused"}),
    {Step::vcpu_capabilities,
     into_new_vm,
     {nothing},
     {nothing},
     "it has no enlightened VMCS: see vmx/evmcs.test.cpp"},
    row(Step::feature_msrs, into_new_vm, {"l2_patch_level"}),
    {Step::sregs, into_new_vm, {"nested_state is refused"}, {"l2_cr2"}},
    row(Step::tsc, faster_tsc, {"the TSC has another frequency"}),
    row(Step::lapic, second_vcpu_with_apic, {"l2_apic"}),
    {Step::msrs,
     into_new_vm,
     {"shutdown (triple fault)"},
     {"l2_msrs l2_tsc_aux l2_tsc l1_tsc l1_capabilities"}},
    {Step::one_regs,
     into_new_vm,
     {nothing},
     {nothing},
     "no processor here has shadow stacks: see tests/unit/vcpu/restore.test.cpp"},
    row(Step::xcrs, into_new_vm, {"l2_xcr0 l2_ymm"}),
    row(Step::xsave, into_new_vm, {"l2_xmm l2_ymm l2_x87"}),
    row(Step::debugregs, into_new_vm, {"l2_dr0_3 l2_dr7"}),
    {Step::regs,
     into_new_vm,
     {"L2 exits to L1 with code 0x7f"},
     {"l2_gprs l2_rounds l2_dr7 l2_steps l1_ioio"}},
    row(Step::events, into_new_vm, {"l2_steps"}),
    row(Step::mp_state, second_vcpu_with_apic,
        {"KVM_RUN: Resource temporarily unavailable (11)", "interrupted (time limit)"}),
    row(Step::nested_state, into_new_vm, {"L2's intercepted OUT comes to user space"}),
    {Step::first_run,
     into_new_vm,
     {nothing},
     {nothing},
     "it asks and changes nothing: see first_run.test.cpp"},
});

/// Of WholeVm, and what goes with it: vm.test.cpp shows their loss.
constexpr bool is_of_the_vm(Step step) {
    return step == Step::clock || step == Step::tsc_offset || step == Step::irqchips || step == Step::pit;
}

constexpr bool covers_restore_order() {
    auto row = rows.begin();
    for (const auto& ordered : kvm::vcpu::restore_order)
        if (!is_of_the_vm(ordered.step) && (row == rows.end() || (row++)->step != ordered.step))
            return false;
    return row == rows.end();
}
static_assert(covers_restore_order());

} // namespace

TEST_CASE("each scenario goes right when no step is left out") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        CHECK(into_new_vm({}, flags) == nothing);
        CHECK(into_unprepared_vm({}, flags) == nothing);
        CHECK(back_to_the_pending_out({}, flags) == nothing);
        CHECK(from_l1_onto_l2({}, flags) == nothing);
        CHECK(second_vcpu_with_apic({}, flags) == nothing);
        CHECK(faster_tsc({}, flags) == nothing);
    }
}

TEST_CASE("each step that is left out of a restore shows") {
    int seen = 0;
    for (const auto& row : rows) {
        const auto step = std::string{kvm::vcpu::name(row.step)};
        CAPTURE(step);
        std::array<std::string, lab::paging_modes.size()> results;
        std::ranges::transform(lab::paging_modes, results.begin(),
                               [&](std::uint64_t flags) { return row.scenario(row.step, flags); });
        for (const auto& result : results) {
            CAPTURE(result);
            CHECK(std::ranges::any_of(
                row.seen(), [&](const char* expected) { return expected != nullptr && result == expected; }));
        }
        if (row.why != nullptr)
            std::println("note: {}: this guest does not notice its loss ({})", step, row.why);
        else
            ++seen;
        const auto text = [](const std::string& result) { return result.empty() ? "all is well" : result; };
        std::println("  {} left out: {}{}", step, text(results[0]),
                     results[0] == results[1] ? "" : " | without nested paging: " + text(results[1]));
    }
    std::println("count: of a vCPU's {} restore steps the loss of {} shows", rows.size(), seen);
}
