// SPDX-License-Identifier: MIT
//
// What may be left out of a comparison, held against the real kernel field by field: a state that differs
// from another in one field is set and read back. Where the library tells the two apart, what is read back
// has to be equivalent to what was set, or verify_nested_state() would accuse a restore that is right. Where
// it does not although L1 runs, the kernel must have dropped the value, or a difference would go unseen.
#include "support/get.hpp"

namespace {

using kvm::nested::Field;
using kvm::nested::NestedStateBuffer;
using lab::must;

/// A field of a page of the state. The same field of two pages is two places.
struct Place {
    const Field* field;
    std::size_t offset; ///< in the state
};

std::vector<Place> places_in(const NestedStateBuffer& state) {
    std::vector<Place> places;
    const auto add = [&](const auto& fields, std::size_t page) {
        for (const auto& field : fields)
            if (page + field.offset + field.size <= state.size())
                places.push_back({&field, page + field.offset});
    };
    if (!lab::is_vmx()) {
        add(kvm::nested::vmcb12_fields, lab::header_size);
    } else {
        add(kvm::nested::vmcs12_fields, lab::header_size);
        add(kvm::nested::vmcs12_fields, lab::header_size + kvm::nested::uapi::page_size);
    }
    return places;
}

/// The same state with other values in the one field, of which a vCPU may take some.
std::vector<NestedStateBuffer> with_other_values(const NestedStateBuffer& state, const Place& place) {
    const auto last = place.field->size - 1u;
    const std::pair<std::size_t, std::uint8_t> flips[] = {
        {0, 0x01}, {0, 0x10}, {last / 2, 0x10}, {last, 0x01}};
    std::vector<NestedStateBuffer> states;
    for (const auto& [byte, bits] : flips) {
        lab::Bytes bytes{state.bytes().begin(), state.bytes().end()};
        bytes[place.offset + byte] ^= std::byte{bits};
        if (const auto changed = NestedStateBuffer::parse(bytes))
            states.push_back(*changed);
    }
    return states;
}

bool takes(const machine::Machine& machine, const NestedStateBuffer& state) {
    return lab::raw_set(machine.vcpu_fd(), state.bytes().data()).value == 0;
}

/// With L2 active KVM takes them from what other ioctls have set before: KVM_SET_SREGS2, DEBUGREGS,
/// VCPU_EVENTS and MP_STATE, which a restore does and this test does not.
bool travels_elsewhere_too(const Field& field) {
    static constexpr std::string_view names[] = {"guest_ia32_efer", "guest_dr7",
                                                 "guest_interruptibility_info", "guest_activity_state"};
    return std::ranges::contains(names, field.name);
}

struct Findings {
    std::string accused; ///< right, and not equivalent
    std::string unseen;  ///< kept by the kernel, and equivalent to what is not the same
    int told_apart = 0, ignored = 0, refused = 0;
};

/// What the vCPU makes of other values in one field.
void look_at(const machine::Machine& machine, const NestedStateBuffer& state, const Place& place,
             Findings& found) {
    enum { refused, ignored, rewritten, told_apart } outcome = refused;
    for (const auto& changed : with_other_values(state, place)) {
        if (!takes(machine, changed))
            continue;
        const auto after = must(lab::nested(machine).nested_state());
        if (kvm::nested::equivalent(changed, state)) {
            outcome = ignored;
            const bool kept = std::ranges::equal(after.bytes(), changed.bytes());
            if (kept && state.phase() != lab::l2_active())
                found.unseen += std::format(" {}@{}", place.field->name, place.offset);
            break;
        }
        outcome = kvm::nested::equivalent(after, changed) ? told_apart : rewritten;
        if (outcome == told_apart)
            break;
    }
    // Of a field that only newer kernels know, a kernel may really lose the value.
    const bool excused = place.field->first_seen != kvm::nested::FirstSeen::linux_6_1
                         || (state.phase() == lab::l2_active() && travels_elsewhere_too(*place.field));
    if (outcome == rewritten && !excused)
        found.accused += std::format(" {}@{}", place.field->name, place.offset);
    found.refused += outcome == refused;
    found.ignored += outcome == ignored;
    found.told_apart += outcome == told_apart;
}

Findings findings(const machine::Machine& machine, const NestedStateBuffer& state) {
    Findings found;
    for (const auto& place : places_in(state))
        look_at(machine, state, place, found);
    return found;
}

/// Where the phases guest comes by with a page in its state.
std::span<const guests::Phase> phases_with_a_page() {
    using enum guests::Phase;
    static constexpr std::array vmx{vmcs_written, l2, exited};
    static constexpr std::array svm{l2};
    if (lab::is_vmx())
        return vmx;
    return svm;
}

machine::Machine machine_at(guests::Phase phase) {
    auto machine = must(machine::Machine::create());
    const auto vendor = lab::is_vmx() ? guests::Vendor::vmx : guests::Vendor::svm;
    must(guests::start(machine, guests::phases(vendor), {.flags = guests::nested_paging}));
    lab::run_to(machine, phase);
    lab::complete_io(machine);
    return machine;
}

} // namespace

TEST_CASE("a comparison leaves out what this kernel drops, and with L1 running nothing else") {
    for (const auto phase : phases_with_a_page()) {
        CAPTURE(std::to_underlying(phase));
        const auto machine = machine_at(phase);
        const auto found = findings(machine, must(lab::nested(machine).nested_state()));
        std::println("  phase {:#x}: {} fields tell states apart, {} do not, {} cannot be set",
                     std::to_underlying(phase), found.told_apart, found.ignored, found.refused);
        CHECK(found.accused == "");
        CHECK(found.unseen == "");
        CHECK(found.told_apart > found.refused);
    }
}

TEST_CASE("with L1 running two states that differ in the exit information are different"
          * doctest::test_suite("vmx")) {
    for (const auto phase : {guests::Phase::vmcs_written, guests::Phase::exited}) {
        const auto machine = machine_at(phase);
        const auto vcpu = lab::nested(machine);
        const auto state = must(vcpu.nested_state());
        for (const auto& place : places_in(state)) {
            if (place.field->group != kvm::nested::FieldGroup::read_only || place.offset >= 4224)
                continue;
            CAPTURE(place.field->name);
            const auto changed = with_other_values(state, place).front();
            REQUIRE(takes(machine, changed));
            CHECK(vcpu.verify_nested_state(changed).has_value());
            CHECK_FALSE(kvm::nested::equivalent(changed, state));
            const auto verdict = vcpu.verify_nested_state(state);
            REQUIRE_FALSE(verdict);
            CHECK(verdict.error().code == kvm::nested::Errc::not_equivalent);
            std::string_view named;
            const auto count = kvm::nested::difference(
                changed, state,
                [&](const kvm::nested::Difference& difference) noexcept { named = difference.field->name; });
            CHECK(count == 1);
            CHECK(named == place.field->name);
        }
    }
}
