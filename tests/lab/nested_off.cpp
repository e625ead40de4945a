// SPDX-License-Identifier: MIT
//
// What a host looks like that has nesting switched off. To be run with --module-option nested=0.
//
// Up to Linux 6.12 such a KVM still names a capacity and answers both ioctls, and only CPUID tells; 7.x has
// capacity 0 and refuses both.
#include "support/svm.hpp"

namespace {

using lab::must;

const machine::Machine& machine_without_nesting() {
    static const machine::Machine machine = must(machine::Machine::create());
    return machine;
}

/// KVM_CAP_NESTED_STATE.
int capacity() {
    return ::ioctl(machine_without_nesting().system_fd(), KVM_CHECK_EXTENSION, KVM_CAP_NESTED_STATE);
}

lab::Bytes header(std::uint16_t flags, std::uint32_t size) {
    lab::Bytes bytes(lab::svm::state_size);
    lab::store<std::uint16_t>(bytes, lab::flags_at, flags);
    lab::store<std::uint16_t>(bytes, lab::format_at, 1);
    lab::store<std::uint32_t>(bytes, lab::size_at, size);
    return bytes;
}

} // namespace

TEST_CASE("probing says that nesting is off, whichever way this kernel shows it") {
    const kvm::SystemFd system{machine_without_nesting().system_fd()};
    std::println("note: with nested=0 this kernel's capacity is {}", capacity());
    CHECK((capacity() == 0 || capacity() == 4224));

    const auto svm = kvm::Host<kvm::Svm>::probe(system);
    REQUIRE_FALSE(svm);
    CHECK(svm.error().code == kvm::Errc::nesting_off);
    const auto vmx = kvm::Host<kvm::Vmx>::probe(system);
    REQUIRE_FALSE(vmx);
    CHECK(vmx.error().code == kvm::Errc::nesting_off);
    const auto any = kvm::Host<kvm::Any>::probe(system);
    REQUIRE_FALSE(any);
    CHECK(any.error().code == kvm::Errc::nesting_off);
}

TEST_CASE(
    "both ioctls work for what is outside L2 where there is a capacity, and neither where there is none") {
    const int fd = machine_without_nesting().vcpu_fd();
    const bool works = capacity() != 0;

    auto buffer = header(0, lab::svm::state_size);
    const auto got = lab::raw_get(fd, buffer.data());
    CHECK(got.value == (works ? 0 : -1));
    if (works) {
        CHECK(lab::load<std::uint16_t>(buffer, lab::flags_at) == kvm::uapi::state_flag::gif_set);
        CHECK(lab::load<std::uint32_t>(buffer, lab::size_at) == lab::header_size);
    } else {
        CHECK(got.error_number == EINVAL);
        const auto error = kvm::classify(kvm::Operation::get_nested_state, got.value, got.error_number,
                                         {.descriptor = kvm::DescriptorKind::vcpu});
        CHECK(error.code == kvm::Errc::nesting_off);
        CHECK(error.effect == kvm::Effect::unchanged);
    }

    struct Row {
        std::uint16_t flags;
        std::uint32_t size;
        bool accepted; ///< where the ioctl works
    };
    for (const auto& [flags, size, accepted] :
         {Row{0x100, 128, true}, Row{0x101, 4224, false}, Row{0x001, 4224, false}}) {
        CAPTURE(flags);
        const auto state = header(flags, size);
        const auto set = lab::raw_set(fd, state.data());
        CHECK(set.value == (works && accepted ? 0 : -1));
        if (set.value == 0)
            continue;
        CHECK(set.error_number == EINVAL);
        const auto found = works ? lab::read_back(fd) : lab::Bytes{};
        const auto error = kvm::classify(kvm::Operation::set_nested_state, set.value, set.error_number,
                                         {.descriptor = kvm::DescriptorKind::vcpu,
                                          .attempted = state,
                                          .found = found,
                                          .nesting_off = !works});
        CHECK(error.code == (works ? kvm::Errc::refused : kvm::Errc::nesting_off));
        CHECK(error.effect == kvm::Effect::unchanged);
    }
}

TEST_CASE("L1 cannot switch SVM on") {
    const auto& machine = machine_without_nesting();
    must(guests::start(machine, guests::phases(guests::Vendor::svm), {}));
    lab::run_to(machine, guests::Phase::svm_off);
    CHECK(must(machine.run()) == machine::Exit{machine::Shutdown{}}); // #GP, and there is no IDT
}
