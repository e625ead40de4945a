// SPDX-License-Identifier: MIT
//
// The one case in which nobody made L1 for the test: a stock Linux with its own KVM, which runs its own L2,
// moves from virtual machine to virtual machine while both work.
//
//     L0  this program and KVM (LinuxVm)
//     L1  Linux, a distribution's kernel, with kvm-amd or kvm-intel; its init runs l1.cpp
//     L2  checksum.S
//
// L2 and L1 report checksums in which everything they ever had in memory and registers is mixed. What they
// report after any number of migrations has to be what they report undisturbed, and that what C++ computes.
//
//   lab-linux-l1 KERNEL INITRD ROUNDS WORDS when-booted|while-booting [DOCTEST-OPTION...]    WORDS: more of
//   them for L1's command line lab-linux-l1 continue FILE REPORTS [without-nested-state]      used by the
//   tests: a process that has only a file
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "../support/verdict.hpp"
#include "linux_vm.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <format>
#include <fstream>
#include <map>
#include <optional>
#include <print>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../support/leave_out.hpp"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using linux_l1::LinuxVm;
using linux_l1::Report;
using std::chrono::microseconds;

constexpr std::size_t memory_size = std::size_t{160} << 20;

/// For a report, or a word on the console: far more than it takes, even where everything is emulated.
constexpr auto patience = 120s;
/// For a guest that is expected to be lost.
constexpr auto patience_with_the_lost = 10s;

// The first line is for any Linux on this machine; the others shorten its boot, as tests/lab/README.md tells.
constexpr std::string_view linux_words =
    "console=ttyS0 earlyprintk=serial,ttyS0 loglevel=5 panic=-1 reboot=t rdinit=/init pci=off "
    "mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests random.trust_cpu=on audit=0 "
    "initcall_blacklist=init_kprobe_trace,trace_eval_init,load_system_certificate_list,jent_mod_init,init_"
    "evm";

/// From the command line.
struct Inputs {
    std::string kernel, initrd;
    std::uint64_t rounds = 0;
    std::string command_line;
    bool while_booting = false; ///< whether to move already then
} inputs;

// --- what must not fail

using lab::give_up;

template <class T>
T must(machine::Result<T> result) {
    if (!result)
        give_up(result.error().message());
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class T>
T must(std::expected<T, kvm::nested::Error> result) {
    if (!result)
        give_up(std::string{result.error().message().view()});
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class T>
T must(std::expected<T, kvm::vcpu::Error> result) {
    if (!result)
        give_up(std::string{result.error().message().view()});
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class... Arguments>
void say(std::format_string<Arguments...> text, Arguments&&... arguments) {
    std::println("{}", std::format(text, std::forward<Arguments>(arguments)...));
    std::fflush(stdout);
}

std::vector<std::byte> contents(const std::string& path) {
    std::ifstream file{path, std::ios::binary | std::ios::ate};
    if (!file)
        give_up(path + " cannot be read. Next: name it to tests/lab/run with --file");
    std::vector<std::byte> bytes(static_cast<std::size_t>(file.tellg()));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return bytes;
}

// --- virtual machines

/// A machine and the proof that its vCPU can be saved whole.
struct Vm {
    LinuxVm linux;
    kvm::vcpu::Prepared prepared;

    [[nodiscard]] kvm::vcpu::WholeVcpu whole(kvm::nested::IoctlRef ioctl = kvm::nested::system_call) const {
        const kvm::nested::SystemFd system{linux.system_fd()};
        return {must(kvm::nested::Host<kvm::nested::Any>::probe(system)),
                prepared,
                system,
                kvm::nested::VmFd{linux.vm_fd()},
                kvm::nested::VcpuFd{linux.vcpu_fd()},
                &linux.run_page(),
                ioctl};
    }
    [[nodiscard]] kvm::vcpu::WholeVm whole_vm() const {
        return {prepared, kvm::nested::SystemFd{linux.system_fd()}, kvm::nested::VmFd{linux.vm_fd()}};
    }
};

Vm make_vm(linux_l1::Memory memory, const kvm::vcpu::Requirements& requirements = {}) {
    auto vm = must(LinuxVm::create(std::move(memory)));
    const auto prepared = must(kvm::vcpu::prepare(kvm::nested::SystemFd{vm.system_fd()},
                                                  kvm::nested::VmFd{vm.vm_fd()}, requirements));
    return {std::move(vm), prepared};
}

Vm booting_vm() {
    auto vm = make_vm(must(linux_l1::make_memory(memory_size)));
    must(vm.linux.boot(contents(inputs.kernel), contents(inputs.initrd),
                       std::format("{} {}", linux_words, inputs.command_line)));
    return vm;
}

/// A saved machine, but for its memory.
struct Saved {
    kvm::vcpu::VmState vm;
    kvm::vcpu::VcpuState vcpu;
    linux_l1::Serial serial;
};

Saved save(const Vm& vm) {
    auto vm_state = must(vm.whole_vm().save(vm.whole().descriptor()));
    return {std::move(vm_state), must(vm.whole().save()), vm.linux.serial()};
}

void restore(Vm& vm, const Saved& saved, lab::StepSet left_out = {}) {
    lab::LeavingOut seam{left_out, saved.vcpu};
    const std::array vcpus{vm.whole(seam)};
    const auto reports =
        must(vm.whole_vm().restore(saved.vm, vcpus, {&saved.vcpu, 1}, kvm::vcpu::Downtime::hidden));
    const auto& report = reports.front();
    for (const auto& msr : report.refused_msrs)
        if (!msr.harmless())
            give_up(std::format("KVM does not take MSR {:#x} = {:#x} back", msr.index, msr.wanted));
    if (!report.complete())
        give_up("KVM does not take the derived MSRs or the TSC back");
    vm.linux.set_serial(saved.serial);
    if (!report.preemption_timer_was_over && !left_out.contains(kvm::vcpu::Step::nested_state))
        must(vm.whole().nested().verify_nested_state(saved.vcpu.nested));
}

/// The first run after a restore, with the library's verdict on it.
linux_l1::Event first_run(Vm& vm, microseconds limit) {
    const auto whole = vm.whole();
    return must(vm.linux.run(limit, [&] {
        const auto verdict = must(whole.first_run());
        if (verdict != kvm::vcpu::FirstRun::ran && verdict != kvm::vcpu::FirstRun::not_yet)
            give_up(std::format("the first KVM_RUN after a restore: {}", kvm::vcpu::name(verdict)));
        return verdict == kvm::vcpu::FirstRun::ran;
    }));
}

// --- what the guest tells

/// Follows a guest to its end and collects what it reports.
struct Story {
    std::vector<Report> reports;
    std::string end; ///< why there is no more; "" while there is
    std::string console;
    Clock::time_point last_news = Clock::now(), last_progress = Clock::now();

    /// Takes what came of a run.
    void take(const linux_l1::Event& event, const std::string& said, std::chrono::seconds limit) {
        const auto now = Clock::now();
        console += said;
        if (!said.empty())
            last_news = now;
        if (const auto* const report = std::get_if<Report>(&event)) {
            reports.push_back(*report);
            last_news = now;
            if (report->what == REPORT_END)
                end = "L1 says that it is done";
        } else if (const auto* const ended = std::get_if<linux_l1::Ended>(&event))
            end = ended->why;
        else if (now - last_news > limit)
            end = std::format("not a word within {}", limit);
    }

    /// Every five seconds.
    void show_progress(std::size_t migrations) {
        if (const auto now = Clock::now(); now - last_progress >= 5s) {
            last_progress = now;
            say("  {} reports, {} migrations", reports.size(), migrations);
        }
    }
};

Story run_undisturbed(Vm& vm, std::chrono::seconds limit, bool restored) {
    Story story;
    bool entered = !restored;
    while (story.end.empty()) {
        const auto event = entered ? must(vm.linux.run(1s)) : first_run(vm, 1s);
        entered = true;
        story.take(event, vm.linux.take_console(), limit);
        story.show_progress(0);
    }
    return story;
}

/// L1 has said nothing before its end. Only for a machine that has not moved until then.
void check_booted(const Story& story) {
    if (story.reports.empty())
        lab::lost_in_boot(std::format("{}. Its console says:\n{}", story.end,
                                      story.console.empty() ? "nothing" : story.console));
}

/// The reports are what they have to be; otherwise the console may tell why.
void check_reports(const Story& story, std::span<const Report> expected) {
    const bool as_expected = std::ranges::equal(story.reports, expected);
    CHECK(as_expected);
    if (as_expected)
        return;
    const auto [reported, wanted] = std::ranges::mismatch(story.reports, expected);
    say("  {} of {} reports are right; then: {}", wanted - expected.begin(), expected.size(),
        reported == story.reports.end() ? story.end
                                        : std::format("{:#x}, {:#x}", reported->what, reported->value));
    say("  the console of L1 says:\n{}", story.console.empty() ? "nothing" : story.console);
}

// --- files

constexpr std::uint32_t serial_section = kvm::vcpu::callers_section;
/// The number of a piece of memory is a part of its section's type. Pieces without a bit set are left out.
constexpr std::uint32_t first_memory_section = kvm::vcpu::callers_section | 1;
constexpr std::size_t piece_size = std::size_t{256} << 10;

bool is_zero(std::span<const std::byte> bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{}; });
}

std::vector<kvm::vcpu::Section> sections_of(const linux_l1::Serial& serial,
                                            std::span<const std::byte> memory) {
    std::vector<kvm::vcpu::Section> sections{{serial_section, std::as_bytes(std::span{&serial, 1})}};
    for (std::size_t piece = 0; piece < memory.size() / piece_size; ++piece)
        if (const auto bytes = memory.subspan(piece * piece_size, piece_size); !is_zero(bytes))
            sections.push_back({first_memory_section + static_cast<std::uint32_t>(piece), bytes});
    return sections;
}

void write_to(const char* path, const Saved& saved, const Vm& vm) {
    const auto& memory = *vm.linux.memory();
    const auto sections = sections_of(saved.serial, {memory.data(), memory.size()});
    must(kvm::vcpu::write_file(path, saved.vm, {&saved.vcpu, 1}, sections));
    say("  written to {}: {} of {} pieces of memory", path, sections.size() - 1, memory.size() / piece_size);
}

/// A machine that has nothing of the one in the file but what is in the file.
Vm vm_from(const char* path, lab::StepSet left_out) {
    const auto file = must(kvm::vcpu::read_file(path));
    const auto parsed = must(kvm::vcpu::parse_vm(file));
    Saved saved{parsed.vm.value(), parsed.vcpus.front(), {}};
    const auto memory = must(linux_l1::make_memory(memory_size));
    for (const auto& section : parsed.sections)
        if (section.type == serial_section)
            std::memcpy(&saved.serial, section.bytes.data(), sizeof saved.serial);
        else
            std::ranges::copy(section.bytes,
                              memory->data() + (section.type - first_memory_section) * piece_size);
    auto vm = make_vm(memory, saved.vcpu.requirements);
    restore(vm, saved, left_out);
    return vm;
}

// --- migrations

/// When the next migration is due. After each migration L1 and L2 have to get going again, so two rounds of
/// L2 have to be reported first. The time between them is the measure of how fast this host is. Of three
/// migrations the first comes when L2 reports by itself, so that it certainly is active. The second is timed
/// for the middle of a round, which mostly is L2's; but where timers are late, as in Bochs, they come
/// together with L1's own, and find L1. The third comes shortly after a report, which finds the ways between
/// L2, L1 and user space.
class Schedule {
  public:
    void reported(const Report& report) {
        const auto now = Clock::now();
        if (report.what == REPORT_L2 && rounds_ >= 2 && number_ % 3 == 0)
            due_ = now;
        if (report.what != REPORT_ROUND)
            return;
        if (++rounds_ == 2 && number_ % 3 != 0)
            due_ = now + (number_ % 3 == 1 ? middle_of(now - last_) : shortly());
        last_ = now;
    }
    [[nodiscard]] microseconds remaining() const {
        if (!due_)
            return 1s;
        return std::max(std::chrono::floor<microseconds>(*due_ - Clock::now()), microseconds{1});
    }
    [[nodiscard]] bool due() const { return due_ && Clock::now() >= *due_; }
    void moved() {
        ++number_;
        rounds_ = 0;
        due_.reset();
    }

  private:
    [[nodiscard]] Clock::duration middle_of(Clock::duration time) const {
        return time * (30 + number_ * 17 % 50) / 100;
    }
    [[nodiscard]] Clock::duration shortly() const { return microseconds{20 + number_ * 37 % 1500}; }

    unsigned number_ = 0, rounds_ = 0;
    Clock::time_point last_;
    std::optional<Clock::time_point> due_;
};

/// How often the vCPU was where, by what its nested state says.
class Phases {
  public:
    void count(const kvm::nested::NestedStateBuffer& nested) {
        ++counts_[name_of(nested)];
        ++total_;
        l2_ += is_l2(nested);
    }
    static bool is_l2(const kvm::nested::NestedStateBuffer& nested) {
        return (nested.flags() & kvm::nested::uapi::state_flag::guest_mode) != 0;
    }
    [[nodiscard]] unsigned total() const { return total_; }
    [[nodiscard]] unsigned l2() const { return l2_; }
    [[nodiscard]] std::string text() const {
        std::string text;
        for (const auto& [name, count] : counts_)
            text += std::format("{}{} {}", text.empty() ? "" : ", ", name, count);
        return text;
    }

  private:
    static std::string name_of(const kvm::nested::NestedStateBuffer& nested) {
        const bool pending = (nested.flags() & kvm::nested::uapi::state_flag::run_pending) != 0;
        return std::string{kvm::nested::name(nested.phase())} + (pending ? " with RUN_PENDING" : "");
    }

    std::map<std::string, unsigned> counts_;
    unsigned total_ = 0, l2_ = 0;
};

/// What the tests leave for each other: the first one boots, the second one migrates and saves, the others go
/// on with that file.
struct Left {
    std::vector<Report> reference;
    std::size_t reports_before_file = 0;
} left;

constexpr const char* file_path = "/tmp/linux_l1.vcpu";

/// Migrations while L1 and L2 work: until there are as many as are wanted, and as many of them in L2. A busy
/// host may bring L2 to its end before; so many there must be then.
constexpr unsigned wanted = 48, wanted_in_l2 = 16, least = 24, least_in_l2 = 6;

/// A Linux that is moved to a new machine whenever the schedule says so, from its first instruction on.
class Wanderer {
  public:
    Story wander() {
        bool entered = true;
        while (story_.end.empty()) {
            const auto limit = next_limit();
            const auto event = entered ? must(vm_.linux.run(limit)) : first_run(vm_, limit);
            entered = true;
            story_.take(event, vm_.linux.take_console(), patience);
            if (const auto* const report = std::get_if<Report>(&event))
                schedule_.reported(*report);
            if (story_.end.empty() && due(event)) {
                move();
                entered = false;
            }
            story_.show_progress(phases_.total() + while_booting_.total());
        }
        return story_;
    }

    [[nodiscard]] const Phases& phases() const { return phases_; }
    [[nodiscard]] const Phases& while_booting() const { return while_booting_; }

  private:
    [[nodiscard]] bool booting() const { return story_.reports.empty(); }
    [[nodiscard]] bool enough_moves() const {
        return phases_.total() >= wanted && phases_.l2() >= wanted_in_l2 && left.reports_before_file != 0;
    }
    [[nodiscard]] microseconds next_limit() {
        return booting()        ? (inputs.while_booting ? boot_slice_ : 1s)
               : enough_moves() ? 1s
                                : schedule_.remaining();
    }
    [[nodiscard]] bool due(const linux_l1::Event& event) const {
        if (booting())
            return inputs.while_booting && std::holds_alternative<linux_l1::Interrupted>(event);
        return !enough_moves() && schedule_.due();
    }

    void move() {
        const auto saved = save(vm_);
        (booting() ? while_booting_ : phases_).count(saved.vcpu.nested);
        if (left.reports_before_file == 0 && story_.reports.size() > left.reference.size() / 4
            && Phases::is_l2(saved.vcpu.nested)) {
            write_to(file_path, saved, vm_);
            left.reports_before_file = story_.reports.size();
        }
        // On one host there is no need to copy the memory: the new machine gets the mapping. The file form,
        // used once, shows that nothing depends on that.
        auto next = make_vm(vm_.linux.memory(), saved.vcpu.requirements);
        restore(next, saved);
        vm_ = std::move(next);
        schedule_.moved();
        boot_slice_ = std::min(boot_slice_ * 6 / 5, microseconds{2s});
    }

    Vm vm_ = booting_vm();
    Story story_;
    Schedule schedule_;
    Phases phases_, while_booting_;
    microseconds boot_slice_ = 10ms; ///< longer each time: nobody knows how long the boot takes here
};

// --- a process of its own

/// The other half of the file tests. Writes what the guest reports to the file REPORTS.
int continue_from(const char* path, const char* reports, bool without_nested_state) {
    auto vm =
        vm_from(path, without_nested_state ? lab::StepSet{kvm::vcpu::Step::nested_state} : lab::StepSet{});
    const auto story = run_undisturbed(
        vm, without_nested_state ? patience_with_the_lost : std::chrono::seconds{patience}, true);
    std::ofstream{reports, std::ios::binary}.write(
        reinterpret_cast<const char*>(story.reports.data()),
        static_cast<std::streamsize>(story.reports.size() * sizeof(Report)));
    say("  this process has read {}, its guest has made {} reports; the end: {}", path, story.reports.size(),
        story.end);
    return 0;
}

/// What a new process sees of the guest in the file.
Story story_of_process(const char* mode) {
    constexpr const char* reports = "/tmp/linux_l1.reports";
    ::unlink(reports);
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
        ::execl("/proc/self/exe", "lab-linux-l1", "continue", file_path, reports, mode, nullptr);
        ::_exit(127);
    }
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) < 0)
        give_up("fork");
    Story story;
    story.end = std::format("the process ended with wait status {:#x}", status);
    if (status == 0) {
        const auto bytes = contents(reports);
        story.reports.resize(bytes.size() / sizeof(Report));
        std::memcpy(story.reports.data(), bytes.data(), bytes.size());
    }
    return story;
}

std::span<const Report> reports_after_file() {
    return std::span{left.reference}.subspan(left.reports_before_file);
}

} // namespace

TEST_SUITE_BEGIN("linux");

TEST_CASE("a stock Linux as L1 runs its own L2, undisturbed, and reports what C++ computes") {
    auto vm = booting_vm();
    const auto story = run_undisturbed(vm, patience, false);
    check_booted(story);
    check_reports(story, linux_l1::expected_reports(inputs.rounds));
    left.reference = story.reports;
    say("note: {} reports from L1 and L2 to compare with", left.reference.size());
}

TEST_CASE("a stock Linux as L1 reports the same if it moves to a new virtual machine again and again") {
    if (left.reference.empty()) // the first test was left out
        left.reference = linux_l1::expected_reports(inputs.rounds);
    Wanderer wanderer;
    const auto story = wanderer.wander();
    if (!inputs.while_booting)
        check_booted(story);
    check_reports(story, left.reference);
    if (inputs.while_booting)
        say("count: {} migrations while L1 boots: {}", wanderer.while_booting().total(),
            wanderer.while_booting().text());
    say("count: {} migrations while L1 and L2 work: {}", wanderer.phases().total(), wanderer.phases().text());
    CHECK(wanderer.phases().total() >= least);
    CHECK(wanderer.phases().l2() >= least_in_l2);
}

TEST_CASE("a stock Linux as L1 goes on in another process, which has nothing but a file") {
    if (left.reports_before_file == 0)
        give_up("the test before this one has left no file");
    check_reports(story_of_process(nullptr), reports_after_file());
}

TEST_CASE("a stock Linux as L1 does not go on from the same file without the nested state") {
    if (left.reports_before_file == 0)
        give_up("the test before this one has left no file");
    const auto story = story_of_process("without-nested-state");
    CHECK(story.end.contains("status 0x0"));
    CHECK_FALSE(std::ranges::equal(story.reports, reports_after_file()));
    CHECK(std::ranges::none_of(story.reports,
                               [](const Report& report) { return report.what == REPORT_RESULT; }));
}

TEST_SUITE_END();

int main(int argc, char** argv) {
    const std::vector<std::string_view> arguments(argv, argv + argc);
    if (argc >= 4 && arguments[1] == "continue")
        return continue_from(argv[2], argv[3], argc == 5);
    if (argc >= 6)
        inputs = {.kernel = argv[1],
                  .initrd = argv[2],
                  .rounds = std::strtoull(argv[3], nullptr, 10),
                  .command_line = argv[4],
                  .while_booting = arguments[5] == "while-booting"};
    if (inputs.rounds < 2 * L1_LOOK_ROUNDS) {
        std::println(stderr,
                     "usage: {} KERNEL INITRD ROUNDS WORDS when-booted|while-booting [DOCTEST-OPTION...]",
                     argv[0]);
        return 2;
    }
    doctest::Context context{argc - 5, argv + 5};
    return context.run();
}
