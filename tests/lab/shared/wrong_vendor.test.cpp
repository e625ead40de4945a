// SPDX-License-Identifier: MIT
//
// A state of the other vendor: refused by the types where they know, by the library before it touches
// anything, and by the kernel.
#include "support/migration.hpp"

namespace {

using lab::must;

/// What a vCPU of the other vendor may have sent.
kvm::nested::NestedStateBuffer foreign_state() {
    constexpr std::uint64_t vmxon_pa = 0x1000;
    if (lab::is_vmx())
        return kvm::nested::NestedState<kvm::nested::Svm>::gif_clear();
    return kvm::nested::NestedState<kvm::nested::Vmx>::vmxon_only(vmxon_pa);
}

constexpr kvm::nested::VendorId other(kvm::nested::VendorId vendor) {
    return vendor == kvm::nested::VendorId::vmx ? kvm::nested::VendorId::svm : kvm::nested::VendorId::vmx;
}

/// Counts what reaches the kernel.
struct Counting {
    int* calls;

    kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) const noexcept {
        ++*calls;
        return kvm::nested::system_call(fd, request, argument);
    }
};

} // namespace

TEST_CASE("a state of the other vendor is refused by the library before anything is touched") {
    const auto vm = lab::migrate_guest_at(3, guests::nested_paging);
    lab::complete_io(vm.machine);
    const auto foreign = foreign_state();
    REQUIRE(foreign.vendor() == other(lab::host().vendor()));

    int calls = 0;
    const kvm::nested::Vcpu vcpu{lab::host(), kvm::nested::VcpuFd{vm.machine.vcpu_fd()}, Counting{&calls}};
    const auto set = vcpu.set_nested_state(foreign);
    REQUIRE_FALSE(set);
    CHECK(set.error().code == kvm::nested::Errc::wrong_vendor);
    CHECK(set.error().effect == kvm::nested::Effect::unchanged);
    CHECK(calls == 0);
    const auto verified = vcpu.verify_nested_state(foreign);
    REQUIRE_FALSE(verified);
    CHECK(calls <= 1);

    auto saved = lab::save(vm);
    saved.state.nested = foreign;
    const auto mixed = vm.whole().restore(saved.state); // a vCPU of this host, with that state
    REQUIRE_FALSE(mixed);
    CHECK(mixed.error().cause == kvm::nested::Errc::wrong_vendor);
    saved.state.vendor = other(lab::host().vendor());
    const auto restored = vm.whole().restore(saved.state); // a vCPU of the other vendor's host
    REQUIRE_FALSE(restored);
    CHECK(restored.error().cause == kvm::nested::Errc::wrong_vendor);

    lab::check_goes_on(vm, 4); // L2 has not noticed
}

TEST_CASE("a file of the other vendor's vCPU is read, and refused by the vCPU it is to be restored to") {
    const auto vm = lab::migrate_guest_at(3, guests::nested_paging);
    auto saved = lab::save(vm);
    saved.state.vendor = other(lab::host().vendor());
    saved.state.nested = foreign_state();
    const lab::Saved foreign{lab::to_file(saved.state, vm.machine.memory())};
    const auto restored = vm.whole().restore(foreign.state);
    REQUIRE_FALSE(restored);
    CHECK(restored.error().cause == kvm::nested::Errc::wrong_vendor);
    CHECK(restored.error().effect == kvm::nested::Effect::unchanged);
    lab::check_goes_on(vm, 4);
}

TEST_CASE("the proof of the other vendor cannot be had on this host") {
    const machine::Descriptor system{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    const auto code =
        lab::is_vmx()
            ? kvm::nested::Host<kvm::nested::Svm>::probe(kvm::nested::SystemFd{system.get()}).error().code
            : kvm::nested::Host<kvm::nested::Vmx>::probe(kvm::nested::SystemFd{system.get()}).error().code;
    CHECK(code == kvm::nested::Errc::wrong_vendor);
}

TEST_CASE("the kernel refuses a state of the other vendor, and classify says what is left") {
    const auto vm = lab::migrate_guest_at(3, guests::nested_paging);
    lab::complete_io(vm.machine);
    const int fd = vm.machine.vcpu_fd();
    const auto before = lab::read_back(fd);
    const auto foreign = foreign_state();
    const auto set = lab::raw_set(fd, foreign.bytes().data());
    CHECK(set.value == -1);
    CHECK(lab::errno_name(set.error_number) == "EINVAL");
    CHECK(lab::read_back(fd) == before);
    const auto error = kvm::nested::classify(
        kvm::nested::Operation::set_nested_state, set.value, set.error_number,
        {.descriptor = kvm::nested::DescriptorKind::vcpu, .attempted = foreign.bytes(), .found = before});
    CHECK(error.code == kvm::nested::Errc::refused);
    CHECK(error.effect == kvm::nested::Effect::unchanged);
    lab::check_goes_on(vm, 4);
}
