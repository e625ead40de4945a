// SPDX-License-Identifier: MIT
//
// What a host looks like that has nesting switched off. To be run with --module-option nested=0.
//
// Up to Linux 6.12 such a KVM still names a capacity and answers both ioctls, and only CPUID tells; 7.x has
// capacity 0 and refuses both.
#include "guests/images.hpp"
#include "support/set_table.hpp"
#include "support/vmx.hpp"

#include <sys/utsname.h>

namespace {

using lab::must;

/// lab::is_vmx() asks a Host, which there is none of here.
bool vmx_module() {
    return ::access("/sys/module/kvm_intel", F_OK) == 0;
}

const machine::Machine& machine_without_nesting() {
    static const machine::Machine machine = must(machine::Machine::create());
    return machine;
}

/// KVM_CAP_NESTED_STATE.
int capacity() {
    return ::ioctl(machine_without_nesting().system_fd(), KVM_CHECK_EXTENSION, KVM_CAP_NESTED_STATE);
}

/// Whether KVM_GET_SUPPORTED_CPUID has the vendor's bit.
bool cpuid_offers_nesting() {
    bool offered = false;
    lab::set_cpuid(machine_without_nesting(), [&](const kvm_cpuid_entry2& entry) {
        if (entry.function == (vmx_module() ? 1u : 0x8000'0001u))
            offered = (entry.ecx & (vmx_module() ? 1u << 5 : 1u << 2)) != 0;
    });
    return offered;
}

/// A state of zeros but for what is given; `address` goes where VMX has both addresses and SVM the vmcb12's.
lab::Bytes state(std::uint16_t flags, std::uint32_t size, std::uint64_t address) {
    lab::Bytes bytes(kvm::nested::Any::capacity);
    lab::store<std::uint16_t>(bytes, lab::flags_at, flags);
    lab::store<std::uint16_t>(bytes, lab::format_at, vmx_module() ? 0 : 1);
    lab::store<std::uint32_t>(bytes, lab::size_at, size);
    lab::store<std::uint64_t>(bytes, 8, address);
    if (vmx_module())
        lab::store<std::uint64_t>(bytes, lab::vmx::vmcs12_at, ~0ull);
    return bytes;
}

struct Row {
    std::uint16_t flags;
    std::uint32_t size;
    std::uint64_t address;
    bool accepted; ///< where the ioctl works
};
constexpr std::array svm_rows{
    Row{0x100, 128, 0, true}, // outside L2, GIF set
    Row{0x101, 4224, 0x3000, false},
    Row{0x001, 4224, 0x3000, false},
};
constexpr std::array vmx_rows{
    Row{0, 128, ~0ull, true}, // outside VMX operation
    Row{0, 4224, ~0ull, true},
    Row{0, 128, 0x1000, false}, // VMXON
    Row{1, 4224, 0x1000, false},
};

} // namespace

TEST_CASE("probing says that nesting is off, whichever way this kernel shows it") {
    const kvm::nested::SystemFd system{machine_without_nesting().system_fd()};
    std::println("note: with nested=0 this kernel's capacity is {}", capacity());
    CHECK((capacity() == 0 || capacity() == (vmx_module() ? 8320 : 4224)));
    CHECK_FALSE(cpuid_offers_nesting());

    const auto svm = kvm::nested::Host<kvm::nested::Svm>::probe(system);
    REQUIRE_FALSE(svm);
    CHECK(svm.error().code == kvm::nested::Errc::nesting_off);
    const auto vmx = kvm::nested::Host<kvm::nested::Vmx>::probe(system);
    REQUIRE_FALSE(vmx);
    CHECK(vmx.error().code == kvm::nested::Errc::nesting_off);
    const auto any = kvm::nested::Host<kvm::nested::Any>::probe(system);
    REQUIRE_FALSE(any);
    CHECK(any.error().code == kvm::nested::Errc::nesting_off);
}

TEST_CASE(
    "both ioctls work for what is outside L2 where there is a capacity, and neither where there is none") {
    const int fd = machine_without_nesting().vcpu_fd();
    const bool works = capacity() != 0;
    const std::span<const Row> rows = vmx_module() ? std::span<const Row>{vmx_rows} : svm_rows;

    auto buffer = state(0, kvm::nested::Any::capacity, 0);
    const auto got = lab::raw_get(fd, buffer.data());
    CHECK(got.value == (works ? 0 : -1));
    if (works) {
        buffer.resize(lab::header_size);
        auto outside = state(rows[0].flags, lab::header_size, rows[0].address);
        outside.resize(lab::header_size);
        CHECK(buffer == outside);
    } else {
        CHECK(got.error_number == EINVAL);
        const auto error =
            kvm::nested::classify(kvm::nested::Operation::get_nested_state, got.value, got.error_number,
                                  {.descriptor = kvm::nested::DescriptorKind::vcpu});
        CHECK(error.code == kvm::nested::Errc::nesting_off);
        CHECK(error.effect == kvm::nested::Effect::unchanged);
    }

    utsname system = {};
    REQUIRE(::uname(&system) == 0);
    const kvm::nested::Destination to{.vendor = vmx_module() ? kvm::nested::VendorId::vmx
                                                             : kvm::nested::VendorId::svm,
                                      .kernel = kvm::nested::kernel_version(system.release),
                                      .nested = works};
    for (const auto& [flags, size, address, accepted] : rows) {
        CAPTURE(flags);
        CAPTURE(size);
        CAPTURE(address);
        const auto attempted = state(flags, size, address);
        const auto set = lab::raw_set(fd, attempted.data());
        // X1, on both sides: only this kernel asks whether there is a capacity.
        const auto first = kvm::nested::first_refusal(attempted, to);
        CHECK((first && first->rule->id == "X1" && first->certainty == kvm::nested::Certainty::fails)
              == !works);
        CHECK(set.value == (works && accepted ? 0 : -1));
        if (set.value == 0)
            continue;
        CHECK(set.error_number == EINVAL);
        const auto found = works ? lab::read_back(fd) : lab::Bytes{};
        const auto error =
            kvm::nested::classify(kvm::nested::Operation::set_nested_state, set.value, set.error_number,
                                  {.descriptor = kvm::nested::DescriptorKind::vcpu,
                                   .attempted = attempted,
                                   .found = found,
                                   .nesting_off = !works});
        CHECK(error.code == (works ? kvm::nested::Errc::refused : kvm::nested::Errc::nesting_off));
        CHECK(error.effect == kvm::nested::Effect::unchanged);
    }
}

TEST_CASE("L1 cannot switch virtualization on") {
    const auto vendor = vmx_module() ? guests::Vendor::vmx : guests::Vendor::svm;
    const auto& machine = machine_without_nesting();
    must(guests::start(machine, guests::phases(vendor), {}));
    lab::run_to(machine, guests::phase_order(vendor).front());
    // SVM: #GP at WRMSR of EFER.SVME. VMX: #GP at CR4.VMXE, or at IA32_FEATURE_CONTROL before. There is no
    // IDT.
    CHECK(must(machine.run()) == machine::Exit{machine::Shutdown{}});
}

TEST_SUITE_BEGIN("vmx");

TEST_CASE(
    "without VMX, VMXON is an undefined instruction and CR4.VMXE a reserved bit, for L1 and for user space") {
    constexpr std::uint32_t undefined_instruction = 6, general_protection = 13;
    constexpr std::uint64_t cr4_vmxe = 1u << 13;
    const auto& machine = machine_without_nesting();
    must(guests::start(machine, IMAGE(vmx_nested_off)));
    for (const auto exception : {undefined_instruction, general_protection})
        CHECK(must(machine.run()) == machine::Exit{machine::PortOut{guests::port::phase, 4, exception}});

    auto sregs = lab::get_sregs(machine);
    CHECK((sregs.cr4 & cr4_vmxe) == 0);
    sregs.cr4 |= cr4_vmxe;
    const auto set = kvm::nested::system_call(machine.vcpu_fd(), KVM_SET_SREGS2, &sregs);
    CHECK(set.value == -1);
    CHECK(set.error_number == EINVAL);
}

TEST_SUITE_END();
