// SPDX-License-Identifier: MIT
//
// Each phase that a vCPU with SVM can be in, saved from a real one and put into another.
#include "support/svm.hpp"

#include "support/capture.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using guests::Phase;
using lab::must;

/// A machine whose vCPU has never run and has no state of a guest: where a state is restored to.
machine::Machine destination() {
    return must(machine::Machine::create());
}

/// What a saved state is expected to be.
struct Expected {
    kvm::nested::Phase phase;
    std::uint16_t flags;
    std::size_t size;
    std::uint64_t vmcb12_pa;
};

constexpr std::uint16_t guest_mode = kvm::nested::uapi::state_flag::guest_mode;
constexpr std::uint16_t gif_set = kvm::nested::uapi::state_flag::gif_set;
constexpr Expected outside_gif_set{kvm::nested::Phase::svm_outside_l2_gif_set, gif_set, 128, 0};
constexpr Expected outside_gif_clear{kvm::nested::Phase::svm_outside_l2_gif_clear, 0, 128, 0};
constexpr Expected l2_active{kvm::nested::Phase::svm_l2_active, guest_mode | gif_set, 4224,
                             guests::vmcb12_address};

/// The same through every way there is to read a state.
void check_saved(const machine::Machine& machine, const Expected& expected) {
    const auto by_value = must(lab::svm::nested(machine).nested_state());
    CHECK(by_value.phase() == expected.phase);
    CHECK(by_value.flags() == expected.flags);
    CHECK(by_value.bytes().size() == expected.size);
    CHECK(by_value.header().format == kvm::nested::Svm::format);
    CHECK(by_value.header().vendor[0] == expected.vmcb12_pa);
    CHECK(std::ranges::equal(by_value.bytes(), lab::read_back(machine.vcpu_fd())));

    lab::svm::State in_place;
    CHECK(lab::svm::nested(machine).nested_state(in_place));
    CHECK(in_place == by_value);

    const auto host =
        must(kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{machine.system_fd()}));
    CHECK(host.vendor() == kvm::nested::VendorId::svm);
    const kvm::nested::Vcpu vcpu{host, kvm::nested::VcpuFd{machine.vcpu_fd()}};
    const auto unified = must(vcpu.nested_state());
    CHECK(unified.phase() == expected.phase);
    CHECK(unified.vendor() == kvm::nested::VendorId::svm);
    CHECK(std::ranges::equal(unified.bytes(), by_value.bytes()));
    CHECK(must(unified.to<kvm::nested::Svm>()) == by_value);
    CHECK(vcpu.verify_nested_state(unified));
    CHECK(must(lab::svm::State::parse(by_value.bytes())) == by_value);
}

/// Saves from `machine`, restores into a fresh one and looks at what that holds.
void check_restored_elsewhere(const machine::Machine& machine, const Expected& expected) {
    const auto saved = must(lab::svm::nested(machine).nested_state());
    const auto other = destination();
    lab::set_sregs(other, lab::get_sregs(machine)); // brings EFER.SVME, without which GIF cannot be clear
    const auto vcpu = lab::svm::nested(other);
    CHECK(vcpu.set_nested_state(saved));
    CHECK(vcpu.verify_nested_state(saved));
    check_saved(other, expected);
}

} // namespace

TEST_CASE("a fresh vCPU is outside L2 with GIF set, with and without CPUID") {
    for (const bool cpuid : {true, false}) {
        CAPTURE(cpuid);
        check_saved(must(machine::Machine::create({.supported_cpuid = cpuid})), outside_gif_set);
    }
}

TEST_CASE("every phase is saved as what it is, and is the same after a restore into a fresh vCPU") {
    struct Step {
        Phase phase;
        Expected expected;
    };
    constexpr std::array steps = std::to_array<Step>({
        {Phase::svm_off, outside_gif_set},
        {Phase::svm_on, outside_gif_set},
        {Phase::gif_clear, outside_gif_clear},
        {Phase::gif_set, outside_gif_set},
        {Phase::l2, l2_active},
        {Phase::exited, outside_gif_clear},
        {Phase::exited_gif, outside_gif_set},
    });
    const auto machine = must(machine::Machine::create());
    must(guests::start(machine, guests::phases(guests::Vendor::svm), {.flags = guests::nested_paging}));
    for (const auto& [phase, expected] : steps) {
        CAPTURE(std::to_underlying(phase));
        lab::run_to(machine, phase);
        check_saved(machine, expected);
        check_restored_elsewhere(machine, expected);
    }
}

TEST_CASE("JSON carries the state of every phase of SVM, captured") {
    const auto machine = must(machine::Machine::create());
    must(guests::start(machine, guests::phases(guests::Vendor::svm), {.flags = guests::nested_paging}));
    for (const auto& [place, phase] : std::to_array<std::pair<const char*, Phase>>({
             {"svme-off", Phase::svm_off},
             {"gif-clear", Phase::gif_clear},
             {"gif-set", Phase::gif_set},
             {"l2", Phase::l2},
         })) {
        lab::run_to(machine, phase);
        lab::complete_io(machine);
        lab::capture(place, machine);
    }
    const auto without_nested_paging = lab::svm::machine_at(Phase::l2, 0);
    lab::complete_io(without_nested_paging);
    lab::capture("l2-without-nested-paging", without_nested_paging);
}

TEST_CASE("GIF cleared by CLGI survives, and STGI is seen again") {
    const auto source = lab::svm::machine_at(Phase::gif_clear);
    const auto saved = must(lab::svm::nested(source).nested_state());
    CHECK(saved == lab::svm::State::gif_clear());
    CHECK(saved.visit([](const auto& view) {
        if constexpr (requires { view.gif(); })
            return !view.gif();
        return false;
    }));

    const auto other = destination();
    lab::set_sregs(other, lab::get_sregs(source));
    CHECK(lab::svm::nested(other).set_nested_state(saved));
    CHECK(lab::load<std::uint16_t>(lab::read_back(other.vcpu_fd()), lab::flags_at) == 0);

    lab::run_to(source, Phase::gif_set);
    CHECK(must(lab::svm::nested(source).nested_state()) == lab::svm::State::not_in_nested_operation());
}

TEST_CASE("the views of an active L2 show L1's vmcb12 controls and what #VMEXIT will return to") {
    for (const std::uint64_t flags : {guests::nested_paging, std::uint64_t{0}}) {
        CAPTURE(flags);
        const auto machine = lab::svm::machine_at(Phase::l2, flags);
        const auto saved = must(lab::svm::nested(machine).nested_state());
        const bool seen = saved.visit(kvm::nested::overloaded{
            [&](const kvm::nested::svm::L2Active& l2) {
                CHECK(l2.gif());
                CHECK_FALSE(l2.run_pending());
                CHECK(l2.vmcb12_pa() == guests::vmcb12_address);
                CHECK(l2.gpat() == 0);

                // The controls: what L1 wrote to its VMCB, which still lies in its memory.
                const auto vmcb12 = machine.memory().subspan(guests::vmcb12_address);
                const std::span<const std::byte> control = l2.control_area();
                for (const std::size_t word : {0x00u, 0x04u, 0x08u, 0x0cu, 0x10u}) {
                    CAPTURE(word);
                    CHECK(lab::load<std::uint32_t>(control, word)
                          == lab::load<std::uint32_t>(vmcb12, word)); // intercepts
                }
                CHECK((lab::load<std::uint32_t>(control, 0x010) & 3) == 3); // VMRUN and VMMCALL
                for (const std::size_t field : {0x040u, 0x048u, 0x0b0u}) {  // IOPM, MSRPM, N_CR3
                    CAPTURE(field);
                    CHECK(lab::load<std::uint64_t>(control, field)
                          == lab::load<std::uint64_t>(vmcb12, field));
                }
                CHECK(lab::load<std::uint32_t>(control, 0x058) == 1); // ASID
                CHECK(lab::load<std::uint64_t>(control, 0x090) == (flags & guests::nested_paging));
                CHECK(lab::load<std::uint64_t>(control, 0x0b0) == (flags != 0 ? guests::nested_cr3 : 0));

                // The save area: L1, as it will go on behind VMRUN.
                const std::span<const std::byte> l1 = l2.l1_save_area();
                const auto field = [&](std::size_t offset) {
                    return lab::load<std::uint64_t>(l1, offset - kvm::nested::uapi::vmcb_control_size);
                };
                const auto rip = field(0x578);
                const auto image = guests::phases(guests::Vendor::svm);
                REQUIRE(rip > guests::image_address + 3);
                REQUIRE(rip < guests::image_address + image.size());
                constexpr std::array vmrun{std::byte{0x0f}, std::byte{0x01}, std::byte{0xd8}};
                CHECK(std::ranges::equal(machine.memory().subspan(rip - 3, 3), vmrun));
                CHECK(field(0x5d8) == guests::l1_stack);       // RSP: svm_phases pushes nothing
                CHECK(field(0x5f8) == guests::vmcb12_address); // RAX: VMRUN's operand
                CHECK(field(0x550) == guests::l1_cr3);
                CHECK((field(0x4d0) & 0x1000) != 0); // EFER.SVME
                return true;
            },
            [](const auto&) { return false; },
        });
        CHECK(seen);
    }
}

TEST_CASE("clearing takes a vCPU out of L2, and clears GIF's absence, too") {
    const auto machine = lab::svm::machine_at(Phase::l2);
    const auto vcpu = lab::svm::nested(machine);
    CHECK(vcpu.clear_nested_state());
    check_saved(machine, outside_gif_set);
    CHECK(vcpu.set_nested_state(lab::svm::State::gif_clear()));
    check_saved(machine, outside_gif_clear);
    CHECK(vcpu.clear_nested_state());
    check_saved(machine, outside_gif_set);

    const auto host =
        must(kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{machine.system_fd()}));
    CHECK(vcpu.set_nested_state(lab::svm::State::gif_clear()));
    CHECK(kvm::nested::Vcpu{host, kvm::nested::VcpuFd{machine.vcpu_fd()}}.clear_nested_state());
    check_saved(machine, outside_gif_set);
}

TEST_CASE("a vCPU whose EFER.SVME is clear can be cleared, as often as one likes") {
    const auto machine = destination();
    for (int i = 0; i < 2; ++i)
        CHECK(lab::svm::nested(machine).clear_nested_state());
    check_saved(machine, outside_gif_set);
}

TEST_CASE("verifying succeeds on what was set and names the first difference on anything else") {
    const auto machine = lab::svm::machine_at(Phase::l2);
    const auto vcpu = lab::svm::nested(machine);
    const auto saved = must(vcpu.nested_state());
    CHECK(vcpu.verify_nested_state(saved));

    lab::Bytes bytes{saved.bytes().begin(), saved.bytes().end()};
    constexpr std::size_t asid = lab::header_size + 0x58;
    lab::store<std::uint32_t>(bytes, asid, 2);
    const auto other = must(lab::svm::State::parse(bytes));
    const auto verdict = vcpu.verify_nested_state(other);
    REQUIRE_FALSE(verdict);
    CHECK(verdict.error().code == kvm::nested::Errc::not_equivalent);
    CHECK(verdict.error().operation == kvm::nested::Operation::verify);
    CHECK(verdict.error().detail == asid);
    CHECK(verdict.error().effect == kvm::nested::Effect::unchanged);

    CHECK(vcpu.set_nested_state(other));
    CHECK(vcpu.verify_nested_state(other));
    const auto shorter = vcpu.verify_nested_state(lab::svm::State::not_in_nested_operation());
    REQUIRE_FALSE(shorter);
    CHECK(shorter.error().code == kvm::nested::Errc::not_equivalent);
    CHECK(shorter.error().detail == lab::flags_at); // GUEST_MODE
}

TEST_CASE("a refused SET leaves the vCPU as it was, in L2 and outside") {
    for (const Phase phase : {Phase::gif_clear, Phase::l2}) {
        CAPTURE(std::to_underlying(phase));
        const auto machine = lab::svm::machine_at(phase);
        const auto vcpu = lab::svm::nested(machine);
        const auto before = lab::read_back(machine.vcpu_fd());

        auto bytes = lab::read_back(lab::svm::shared_l2().vcpu_fd());
        lab::store<std::uint64_t>(bytes, lab::header_size + 0x558, 0); // L1's CR0 without PE and PG: S17
        const auto put = vcpu.set_nested_state(must(lab::svm::State::parse(bytes)));
        REQUIRE_FALSE(put);
        CHECK(put.error().code == kvm::nested::Errc::refused);
        CHECK(put.error().error_number == EINVAL);
        CHECK(put.error().raw_result == -1);
        CHECK(put.error().effect == kvm::nested::Effect::unchanged);
        CHECK(lab::read_back(machine.vcpu_fd()) == before);
    }
}

TEST_CASE("an L2 that was saved and set again goes on to the end") {
    const auto machine = lab::svm::machine_at(Phase::l2);
    lab::complete_io(machine);
    const auto vcpu = lab::svm::nested(machine);
    const auto saved = must(vcpu.nested_state());
    CHECK(vcpu.set_nested_state(saved));
    lab::run_to(machine, Phase::exited_gif);
    CHECK(must(machine.run()) == machine::Exit{machine::Halted{}});
}

TEST_CASE("the host is an SVM host and no VMX host") {
    const auto& machine = lab::svm::shared_l2();
    const auto vmx = kvm::nested::Host<kvm::nested::Vmx>::probe(kvm::nested::SystemFd{machine.system_fd()});
    REQUIRE_FALSE(vmx);
    CHECK(vmx.error().code == kvm::nested::Errc::wrong_vendor);

    struct Wrong {
        int fd;
        kvm::nested::Errc code;
    };
    for (const auto& [fd, code] : {Wrong{machine.vm_fd(), kvm::nested::Errc::vm_fd_given},
                                   Wrong{machine.vcpu_fd(), kvm::nested::Errc::vcpu_fd_given},
                                   Wrong{-1, kvm::nested::Errc::bad_descriptor}}) {
        CAPTURE(name(code));
        const auto probed = kvm::nested::Host<kvm::nested::Svm>::probe(kvm::nested::SystemFd{fd});
        REQUIRE_FALSE(probed);
        CHECK(probed.error().code == code);
    }
}

TEST_SUITE_END();
