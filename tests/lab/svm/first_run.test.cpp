// SPDX-License-Identifier: MIT
//
// The verdict of the first KVM_RUN after a restore: only then does KVM map the pages that a nested state
// refers to, and it has no errno for a failure.
#include <csignal>
#include <ctime>

#include "support/migration.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using kvm::vcpu::FirstRun;
using lab::must;
using lab::Vm;

constexpr std::uint64_t without_memory = std::uint64_t{1} << 30;

machine::Exit progress(std::uint32_t round) {
    return machine::PortOut{guests::port::progress, 4, round};
}

kvm::nested::NestedStateBuffer edited(const kvm::nested::NestedStateBuffer& state,
                                      std::initializer_list<std::pair<std::size_t, std::uint64_t>> words) {
    lab::Bytes bytes{state.bytes().begin(), state.bytes().end()};
    for (const auto& [offset, value] : words)
        lab::store<std::uint64_t>(bytes, lab::header_size + offset, value);
    return must(kvm::nested::NestedStateBuffer::parse(bytes));
}

/// L1 intercepts MSRs by a map that lies where there is no memory. KVM_SET_NESTED_STATE takes it.
kvm::vcpu::VcpuState with_msr_map_without_memory(const kvm::vcpu::VcpuState& good) {
    constexpr std::size_t intercepts = 0x008, msrpm_base_pa = 0x048;
    constexpr std::uint64_t msr_prot = std::uint64_t{1} << (32 + 28); // word 3 (offset 0xc), bit 28
    const auto before =
        lab::load<std::uint64_t>(good.nested.bytes(), lab::header_size + intercepts) | msr_prot;
    auto state = good;
    state.nested = edited(good.nested, {{intercepts, before}, {msrpm_base_pa, without_memory}});
    return state;
}

/// L2 has 32-bit PAE paging with its page-directory pointers where there is no memory, and SREGS2 does not
/// say what they are, so that the first KVM_RUN has to load them.
kvm::vcpu::VcpuState with_pdptrs_without_memory(const kvm::vcpu::VcpuState& good) {
    constexpr std::uint64_t efer_lme_lma = 0x500;
    auto state = good;
    state.sregs.efer &= ~efer_lme_lma;
    state.sregs.cs.l = 0;
    state.sregs.cs.db = 1;
    state.sregs.cr3 = without_memory;
    state.sregs.flags = 0;
    return state;
}

void put(const Vm& vm, const lab::Saved& saved, const kvm::vcpu::VcpuState& state) {
    must(vm.whole().abandon());
    lab::put_memory(vm, saved.memory);
    lab::check_report(must(vm.whole().restore(state)));
    CHECK(vm.whole().nested().verify_nested_state(state.nested)); // reading back notices nothing
}

/// While this lives, a signal is pending that interrupts each KVM_RUN of the vCPU, and nothing else.
class PendingSignal {
  public:
    explicit PendingSignal(const machine::Machine& machine) : vcpu_fd_{machine.vcpu_fd()} {
        sigemptyset(&signals_);
        sigaddset(&signals_, SIGUSR1);
        ::sigprocmask(SIG_BLOCK, &signals_, nullptr);
        struct {
            std::uint32_t size = 8; // of the kernel's sigset_t
            std::array<std::uint8_t, 8> none_blocked{};
        } mask;
        lab::must_ioctl(vcpu_fd_, KVM_SET_SIGNAL_MASK, &mask, "KVM_SET_SIGNAL_MASK");
        ::raise(SIGUSR1);
    }
    PendingSignal(const PendingSignal&) = delete;
    PendingSignal& operator=(const PendingSignal&) = delete;
    ~PendingSignal() {
        const timespec at_once{};
        ::sigtimedwait(&signals_, nullptr, &at_once);
        lab::must_ioctl(vcpu_fd_, KVM_SET_SIGNAL_MASK, nullptr, "KVM_SET_SIGNAL_MASK");
    }

  private:
    int vcpu_fd_;
    sigset_t signals_;
};

} // namespace

TEST_CASE("the first run of a good state says that it ran, and the exit is the guest's") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto vm = lab::bare_vm();
        lab::restore(vm, saved);
        CHECK(must(vm.whole().first_run()) == FirstRun::ran);
        CHECK(vm.machine.last_exit() == progress(4));
        CHECK(must(vm.whole().first_run()) == FirstRun::ran); // of any run, not only of the first
        CHECK(vm.machine.last_exit() == progress(5));
        lab::check_goes_on(vm, 6);
    }
}

TEST_CASE("the first run outside L2 says that it ran") {
    auto source = lab::started(guests::phases(guests::Vendor::svm), {});
    lab::run_to(source.machine, guests::Phase::gif_clear);
    const auto saved = lab::save(source);
    const auto vm = lab::bare_vm();
    lab::restore(vm, saved);
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit()
          == machine::Exit{
              machine::PortOut{guests::port::phase, 4, std::to_underlying(guests::Phase::gif_set)}});
}

TEST_CASE(
    "the first run tells of an MSR bitmap without memory behind it, and a good state goes on after it") {
    for (const auto flags : lab::paging_modes) {
        CAPTURE(flags);
        const auto saved = lab::save(lab::migrate_guest_at(3, flags));
        const auto vm = lab::bare_vm();
        for (int attempt = 0; attempt < 2; ++attempt) { // into a fresh vCPU, and into one that has failed
            put(vm, saved, with_msr_map_without_memory(saved.state));
            CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);
            CHECK(vm.machine.last_exit() == machine::Exit{machine::InternalError{1, 0}});
        }
        lab::restore(vm, saved);
        CHECK(must(vm.whole().first_run()) == FirstRun::ran);
        CHECK(vm.machine.last_exit() == progress(4));
        lab::check_goes_on(vm, 5);
    }
}

TEST_CASE("the first run tells of page-directory pointers without memory, which kernels say in three ways") {
    const auto saved = lab::save(lab::migrate_guest_at(3, 0));
    const auto bad = with_pdptrs_without_memory(saved.state);

    // Into a vCPU whose last exit was an OUT: Linux 6.1 leaves that exit as it is.
    const auto vm = lab::migrate_guest_at(5, 0);
    put(vm, saved, bad);
    const auto first = must(vm.machine.run());
    if (first == progress(5))
        std::println(
            "note: page-directory pointers without memory: KVM_RUN leaves the exit reason of the last run");
    else
        std::println("note: page-directory pointers without memory: KVM_RUN says \"{}\"",
                     machine::describe(first));

    for (int attempt = 0; attempt < 2; ++attempt) {
        put(vm, saved, bad);
        CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);
    }
    lab::restore(vm, saved);
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit() == progress(4));
    lab::check_goes_on(vm, 5);
}

TEST_CASE("with immediate_exit the first run says that it was not yet, for a good state and for a bad one") {
    const auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    const auto vm = lab::bare_vm();
    const auto not_yet = [&] {
        vm.machine.run_page().immediate_exit = 1;
        CHECK(must(vm.whole().first_run()) == FirstRun::not_yet);
        CHECK(must(vm.whole().first_run()) == FirstRun::not_yet);
        vm.machine.run_page().immediate_exit = 0;
    };
    put(vm, saved, with_msr_map_without_memory(saved.state));
    not_yet();
    CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);

    lab::restore(vm, saved);
    not_yet();
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit() == progress(4));
    lab::check_goes_on(vm, 5);
}

TEST_CASE("a pending signal does not hide the verdict: KVM maps the pages before it looks for signals") {
    const auto saved = lab::save(lab::migrate_guest_at(3, guests::nested_paging));
    const auto vm = lab::bare_vm();
    {
        put(vm, saved, with_msr_map_without_memory(saved.state));
        const PendingSignal pending{vm.machine};
        CHECK(must(vm.whole().first_run()) == FirstRun::nested_pages_failed);
    }
    lab::restore(vm, saved);
    {
        const PendingSignal pending{vm.machine};
        CHECK(must(vm.whole().first_run()) == FirstRun::ran);
        CHECK(vm.machine.last_exit() == machine::Exit{machine::Interrupted{}});
        CHECK(must(vm.whole().save()).regs == saved.state.regs); // L2 has not moved
    }
    CHECK(must(vm.whole().first_run()) == FirstRun::ran);
    CHECK(vm.machine.last_exit() == progress(4));
    lab::check_goes_on(vm, 5);
}

TEST_SUITE_END();
