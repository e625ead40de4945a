// SPDX-License-Identifier: MIT
//
// Vcpu: the two ioctls through a seam, with a kernel that may answer anything.
#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Any;
using kvm::nested::DescriptorKind;
using kvm::nested::Effect;
using kvm::nested::Errc;
using kvm::nested::IoctlRef;
using kvm::nested::IoctlResult;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Operation;
using kvm::nested::Phase;
using kvm::nested::Svm;
using kvm::nested::Vcpu;
using kvm::nested::VcpuFd;
using kvm::nested::VendorId;
using kvm::nested::Vmx;
using unit::Bytes;
using unit::FakeKvm;
using unit::SvmBlob;
using unit::VmxBlob;

/// A vCPU of the fake kernel.
template <class V>
Vcpu<V, IoctlRef> vcpu_of(FakeKvm& kernel, int fd = unit::vcpu_fd) {
    if constexpr (std::same_as<V, Any>) {
        const auto host = kernel.vendor == VendorId::vmx ? kvm::nested::Host<Any>{unit::host<Vmx>(kernel)}
                                                         : kvm::nested::Host<Any>{unit::host<Svm>(kernel)};
        return Vcpu{host, VcpuFd{fd}, IoctlRef{kernel}};
    } else {
        return Vcpu{unit::host<V>(kernel), VcpuFd{fd}, IoctlRef{kernel}};
    }
}

/// A kernel of the vendor, a vCPU that holds `held`.
struct Machine {
    FakeKvm kernel;

    explicit Machine(VendorId vendor, Bytes held = {}) {
        kernel.vendor = vendor;
        kernel.held = std::move(held);
    }
};

/// Calls `test` for each kind of Vcpu, with a machine of a vendor that it can have.
template <class Test>
void with_each_kind(Test test) {
    test.template operator()<Vmx>(VendorId::vmx);
    test.template operator()<Svm>(VendorId::svm);
    test.template operator()<Any>(VendorId::vmx);
    test.template operator()<Any>(VendorId::svm);
}

template <class V>
constexpr std::uint32_t capacity_of = V::capacity;

const Bytes vmx_l2 = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
const Bytes svm_l2 = SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224};

const Bytes& l2_of(VendorId vendor) {
    return vendor == VendorId::vmx ? vmx_l2 : svm_l2;
}

TEST_CASE("GET by value returns what the vCPU holds, in one ioctl that names the full capacity") {
    for (const auto& sample : unit::samples())
        with_each_kind([&]<class V>(VendorId vendor) {
            if (vendor != sample.vendor)
                return;
            CAPTURE(sample.name);
            Machine machine{vendor, sample.bytes};
            const auto vcpu = vcpu_of<V>(machine.kernel);
            const auto state = vcpu.nested_state();
            REQUIRE(state.has_value());
            CHECK(std::ranges::equal(state->bytes(), sample.bytes));
            CHECK(state->phase() == sample.phase);
            REQUIRE(machine.kernel.calls.size() == 1);
            CHECK(machine.kernel.calls[0].size == capacity_of<V>);
            CHECK(machine.kernel.calls[0].fd == unit::vcpu_fd);
        });
}

TEST_CASE("GET in place arms the object on every call, whatever it held before") {
    with_each_kind([]<class V>(VendorId vendor) {
        Machine machine{vendor};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        typename Vcpu<V>::State state;
        for (const auto& sample : unit::samples()) {
            if (sample.vendor != vendor)
                continue;
            CAPTURE(sample.name);
            machine.kernel.held = sample.bytes;
            REQUIRE(vcpu.nested_state(state).has_value());
            CHECK(std::ranges::equal(state.bytes(), sample.bytes));
            CHECK(machine.kernel.calls.back().size == capacity_of<V>);
        }
        machine.kernel.get_result = IoctlResult{-1, EFAULT};
        CHECK_FALSE(vcpu.nested_state(state).has_value());
        machine.kernel.get_result.reset();
        machine.kernel.calls.clear();
        CHECK(vcpu.nested_state(state).has_value());
        CHECK(machine.kernel.calls[0].size == capacity_of<V>);
    });
}

TEST_CASE("SET hands over exactly the state, and a round trip changes nothing") {
    for (const auto& sample : unit::samples())
        with_each_kind([&]<class V>(VendorId vendor) {
            if (vendor != sample.vendor)
                return;
            CAPTURE(sample.name);
            Machine machine{vendor};
            const auto vcpu = vcpu_of<V>(machine.kernel);
            const auto state = Vcpu<V>::State::parse(sample.bytes);
            REQUIRE(state.has_value());
            CHECK(vcpu.set_nested_state(*state).has_value());
            CHECK(machine.kernel.calls.size() == 1);
            CHECK(machine.kernel.held == sample.bytes);
            CHECK(vcpu.verify_nested_state(*state).has_value());
            const auto again = vcpu.nested_state();
            REQUIRE(again.has_value());
            CHECK(*again == *state);
        });
}

TEST_CASE("clear takes the vCPU out of nested operation with one call") {
    with_each_kind([]<class V>(VendorId vendor) {
        Machine machine{vendor, l2_of(vendor)};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        CHECK(vcpu.clear_nested_state().has_value());
        CHECK(machine.kernel.calls.size() == 1);
        CHECK(machine.kernel.held == (vendor == VendorId::vmx ? VmxBlob{}.bytes() : SvmBlob{}.bytes()));
    });
}

TEST_CASE("verify finds the first byte that differs, and overlooks what KVM rewrites") {
    with_each_kind([]<class V>(VendorId vendor) {
        Machine machine{vendor, l2_of(vendor)};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        const auto state = Vcpu<V>::State::parse(l2_of(vendor));
        REQUIRE(state.has_value());

        const std::size_t ignored = vendor == VendorId::vmx ? 128 + 2000 : 128 + 0x560;
        machine.kernel.held[ignored] ^= std::byte{0xff};
        CHECK(vcpu.verify_nested_state(*state).has_value());

        machine.kernel.held[136] ^= std::byte{0xff};
        const auto verified = vcpu.verify_nested_state(*state);
        REQUIRE_FALSE(verified.has_value());
        CHECK(verified.error().code == Errc::not_equivalent);
        CHECK(verified.error().operation == Operation::verify);
        CHECK(verified.error().detail == 136);

        machine.kernel.held = vendor == VendorId::vmx ? VmxBlob{}.bytes() : SvmBlob{}.bytes();
        CHECK(vcpu.verify_nested_state(*state).error().code == Errc::not_equivalent);
        machine.kernel.get_result = IoctlResult{-1, EIO};
        CHECK(vcpu.verify_nested_state(*state).error().code == Errc::other_process_or_dead_vm);
    });
}

TEST_CASE("a vCPU whose vendor was found at run time refuses the other vendor's state without an ioctl") {
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        const auto other = vendor == VendorId::vmx ? VendorId::svm : VendorId::vmx;
        Machine machine{vendor};
        const auto vcpu = vcpu_of<Any>(machine.kernel);
        const auto set = vcpu.set_nested_state(*NestedStateBuffer::parse(l2_of(other)));
        REQUIRE_FALSE(set.has_value());
        CHECK(set.error().code == Errc::wrong_vendor);
        CHECK(set.error().operation == Operation::set_nested_state);
        CHECK(set.error().effect == Effect::unchanged);
        CHECK(vcpu.set_nested_state(NestedStateBuffer{}).error().code == Errc::no_state);
        CHECK(machine.kernel.calls.empty());
    }
}

// --- failures

struct ErrnoRow {
    int error_number;
    Errc code; ///< of GET and of SET
};
constexpr std::array errnos = {
    ErrnoRow{EIO, Errc::other_process_or_dead_vm},
    ErrnoRow{EINTR, Errc::interrupted},
    ErrnoRow{EFAULT, Errc::bad_address},
    ErrnoRow{ENOMEM, Errc::out_of_memory},
    ErrnoRow{E2BIG, Errc::buffer_too_small},
    ErrnoRow{EPERM, Errc::unexpected},
    ErrnoRow{EBUSY, Errc::unexpected},
    ErrnoRow{ENOSYS, Errc::unexpected},
    ErrnoRow{0, Errc::unexpected},
    ErrnoRow{4242, Errc::unexpected},
    ErrnoRow{EBADF, Errc::bad_descriptor},
    ErrnoRow{ENOTTY, Errc::not_a_kvm_descriptor},
};

TEST_CASE("every errno of GET becomes its cause, with the errno and without an effect") {
    with_each_kind([]<class V>(VendorId vendor) {
        for (const auto& row : errnos) {
            CAPTURE(row.error_number);
            Machine machine{vendor, l2_of(vendor)};
            const auto vcpu = vcpu_of<V>(machine.kernel);
            machine.kernel.get_result = IoctlResult{-1, row.error_number};
            typename Vcpu<V>::State state;
            for (const auto& error : {vcpu.nested_state().error(), vcpu.nested_state(state).error()}) {
                CHECK(error.code == row.code);
                CHECK(error.operation == Operation::get_nested_state);
                CHECK(error.raw_result == -1);
                CHECK(error.error_number == row.error_number);
                CHECK(error.effect == Effect::unchanged);
            }
        }
        // Linux 7.x with nested=0 refuses GET, which checks nothing else.
        Machine machine{vendor};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        machine.kernel.nesting = false;
        CHECK(vcpu.nested_state().error().code == Errc::nesting_off);
    });
}

TEST_CASE("every errno of SET becomes its cause, with the errno") {
    with_each_kind([]<class V>(VendorId vendor) {
        const auto state = Vcpu<V>::State::parse(l2_of(vendor));
        REQUIRE(state.has_value());
        for (const auto& row : errnos) {
            CAPTURE(row.error_number);
            Machine machine{vendor};
            const auto vcpu = vcpu_of<V>(machine.kernel);
            machine.kernel.set_result = IoctlResult{-1, row.error_number};
            const auto error = vcpu.set_nested_state(*state).error();
            CHECK(error.code == row.code);
            CHECK(error.operation == Operation::set_nested_state);
            CHECK(error.raw_result == -1);
            CHECK(error.error_number == row.error_number);
            CHECK(error.effect
                  == (row.error_number == ENOMEM && vendor == VendorId::vmx ? Effect::undetermined
                                                                            : Effect::unchanged));
        }
        Machine machine{vendor};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        machine.kernel.set_result = IoctlResult{-1, EINVAL};
        CHECK(vcpu.set_nested_state(*state).error().code == Errc::refused);
        CHECK(vcpu.clear_nested_state().error().code == Errc::refused);
        machine.kernel.set_result.reset();
        machine.kernel.nesting = false;
        CHECK(vcpu.set_nested_state(*state).error().code == Errc::nesting_off);
        CHECK(vcpu.set_nested_state(*state).error().effect == Effect::unchanged);
    });
}

TEST_CASE("a wrong descriptor is named, by GET and by SET") {
    struct Row {
        int fd;
        Errc code;
    };
    with_each_kind([]<class V>(VendorId vendor) {
        for (const auto& row :
             {Row{unit::system_fd, Errc::system_fd_given}, Row{unit::vm_fd, Errc::vm_fd_given},
              Row{unit::file_fd, Errc::not_a_kvm_descriptor}, Row{unit::closed_fd, Errc::bad_descriptor},
              Row{unit::foreign_fd, Errc::other_process_or_dead_vm}}) {
            Machine machine{vendor};
            const auto vcpu = vcpu_of<V>(machine.kernel, row.fd);
            CHECK(vcpu.nested_state().error().code == row.code);
            const auto set = vcpu.clear_nested_state();
            CHECK(set.error().code == row.code);
            CHECK(set.error().effect == Effect::unchanged);
        }
    });
}

TEST_CASE("SET that returns a positive number is a failure of its own, and errno is not consulted") {
    with_each_kind([]<class V>(VendorId vendor) {
        const auto state = Vcpu<V>::State::parse(l2_of(vendor));
        REQUIRE(state.has_value());
        std::optional<kvm::nested::Error> first;
        for (const int error_number : {0, EINVAL, EFAULT, ENOTTY, EBADF, EIO, EINTR, 4242}) {
            CAPTURE(error_number);
            Machine machine{vendor};
            const auto vcpu = vcpu_of<V>(machine.kernel);
            machine.kernel.set_result = IoctlResult{2, error_number};
            machine.kernel.held_after_set =
                Bytes{vendor == VendorId::vmx
                          ? VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}.bytes()
                          : SvmBlob{}.bytes()};
            const auto set = vcpu.set_nested_state(*state);
            REQUIRE_FALSE(set.has_value());
            CHECK(set.error().code == Errc::entry_failed);
            CHECK(set.error().raw_result == 2);
            CHECK(set.error().error_number == 0);
            CHECK(set.error().effect == Effect::nested_state_lost);
            if (!first)
                first = set.error();
            CHECK(*first == set.error());
        }
    });
}

TEST_CASE("GET that returns a positive number is a failure") {
    Machine machine{VendorId::svm};
    const auto vcpu = vcpu_of<Svm>(machine.kernel);
    machine.kernel.get_result = IoctlResult{1, EINVAL};
    CHECK(vcpu.nested_state().error().code == Errc::unexpected);
    CHECK(vcpu.nested_state().error().error_number == 0);
}

TEST_CASE("after a failed GET in place the object is not in nested operation, a buffer empty") {
    const auto left = []<class V>(VendorId vendor) {
        Machine machine{vendor, l2_of(vendor)};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        auto state = *Vcpu<V>::State::parse(l2_of(vendor));
        machine.kernel.get_result = IoctlResult{-1, EFAULT};
        CHECK_FALSE(vcpu.nested_state(state).has_value());
        return state;
    };
    CHECK(left.template operator()<Vmx>(VendorId::vmx) == NestedState<Vmx>::not_in_nested_operation());
    CHECK(left.template operator()<Svm>(VendorId::svm) == NestedState<Svm>::not_in_nested_operation());
    CHECK(left.template operator()<Any>(VendorId::vmx).is_empty());
    CHECK(left.template operator()<Any>(VendorId::svm).is_empty());
}

TEST_CASE("nobody looks further on the succeeding path") {
    Machine machine{VendorId::svm};
    const auto vcpu = vcpu_of<Svm>(machine.kernel);
    CHECK(vcpu.clear_nested_state().has_value());
    CHECK(vcpu.nested_state().has_value());
    CHECK(machine.kernel.calls.size() == 2);
}

TEST_CASE("the failing path of SET asks GET once, with the full capacity, and never sets again") {
    with_each_kind([]<class V>(VendorId vendor) {
        Machine machine{vendor, l2_of(vendor)};
        const auto vcpu = vcpu_of<V>(machine.kernel);
        machine.kernel.set_result = IoctlResult{-1, EINVAL};
        CHECK_FALSE(vcpu.clear_nested_state().has_value());
        CHECK(machine.kernel.sets() == 1);
        CHECK(machine.kernel.gets() == 1);
        for (const auto& call : machine.kernel.calls)
            if (call.request == kvm::nested::uapi::request::get_nested_state)
                CHECK(call.size == 8320);
    });
}

// --- hostile answers

constexpr std::array<std::uint32_t, 12> hostile_sizes = {0,    1,    127,  129,  1126,       4223,
                                                         4225, 8319, 8321, 8192, 0x80000000, 0xffffffff};

/// `state` is as large as it is, whatever its header says.
template <class State>
void stays_within(const State& state) {
    const auto bytes = state.bytes();
    CHECK(bytes.size() <= sizeof(State));
    if (!bytes.empty())
        CHECK(static_cast<const void*>(bytes.data()) == static_cast<const void*>(&state));
    CHECK(state.phase() == Phase::unrecognised);
    CHECK(state.visit([](const auto& view) { return std::remove_cvref_t<decltype(view)>::phase; })
          == Phase::unrecognised);
    CHECK(state == State{state});
    CHECK(equivalent(state, state));
    CHECK_FALSE(kvm::nested::summary(state).view().empty());
}

TEST_CASE("bytes() never exceeds the object, whatever size the kernel answers") {
    with_each_kind([]<class V>(VendorId vendor) {
        for (const auto size : hostile_sizes)
            for (const auto& held : {l2_of(vendor), Bytes{}}) {
                CAPTURE(size);
                Machine machine{vendor, held};
                machine.kernel.size_after_get = size;
                const auto vcpu = vcpu_of<V>(machine.kernel);
                typename Vcpu<V>::State state; // all of it initialised, so that ASan and MSan have a say
                std::memset(static_cast<void*>(&state), 0, sizeof state);
                REQUIRE(vcpu.nested_state(state).has_value());
                stays_within(state);
                CHECK(state.header().size == size);

                // What follows from such a state must not go astray either.
                CHECK_FALSE(Vcpu<V>::State::parse(state.bytes()).has_value());
                static_cast<void>(
                    vcpu.verify_nested_state(state)); // compares what the kernel did not write, too
                machine.kernel.set_result = IoctlResult{-1, EINVAL};
                CHECK_FALSE(vcpu.set_nested_state(state).has_value());
            }
    });
}

TEST_CASE("a size of 128 with L2 active, and of 4224 without a vmcs12, is unrecognised") {
    Machine machine{VendorId::vmx, vmx_l2};
    machine.kernel.size_after_get = 128;
    CHECK(vcpu_of<Vmx>(machine.kernel).nested_state()->phase() == Phase::unrecognised);
    Machine off{VendorId::vmx, VmxBlob{.vmxon_pa = 0x1000}};
    off.kernel.size_after_get = 4224;
    CHECK(vcpu_of<Vmx>(off.kernel).nested_state()->phase() == Phase::unrecognised);
    Machine svm{VendorId::svm, svm_l2};
    svm.kernel.size_after_get = 128;
    CHECK(vcpu_of<Svm>(svm.kernel).nested_state()->phase() == Phase::unrecognised);
    svm.kernel.size_after_get = 8320; // VMX has such a size
    CHECK(vcpu_of<Svm>(svm.kernel).nested_state()->phase() == Phase::unrecognised);
    CHECK(vcpu_of<Any>(svm.kernel).nested_state()->phase() == Phase::unrecognised);
}

TEST_CASE(
    "a typed state that comes with the other vendor's format is unrecognised, not of the other vendor") {
    for (const std::uint16_t format :
         {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{2}, std::uint16_t{0xffff}}) {
        CAPTURE(format);
        if (format != 0) {
            Machine machine{VendorId::vmx, vmx_l2};
            machine.kernel.format_after_get = format;
            const auto state = vcpu_of<Vmx>(machine.kernel).nested_state();
            CHECK(state->phase() == Phase::unrecognised);
            CHECK(state->bytes().size() == 4224);
        }
        if (format != 1) {
            Machine machine{VendorId::svm, svm_l2};
            machine.kernel.format_after_get = format;
            const auto state = vcpu_of<Svm>(machine.kernel).nested_state();
            CHECK(state->phase() == Phase::unrecognised);
        }
    }
    Machine machine{VendorId::svm, svm_l2};
    machine.kernel.format_after_get = std::uint16_t{2};
    const auto buffer = vcpu_of<Any>(machine.kernel).nested_state();
    CHECK(buffer->phase() == Phase::unrecognised);
    CHECK_FALSE(buffer->vendor().has_value());
    CHECK(buffer->format().value_or(0) == 2);
    machine.kernel.format_after_get = std::uint16_t{0xffff};
    CHECK(vcpu_of<Any>(machine.kernel).nested_state()->is_empty());
}

TEST_CASE("widening and narrowing keep the header of a state that nobody recognises") {
    for (const auto size : hostile_sizes) {
        CAPTURE(size);
        Machine machine{VendorId::svm, SvmBlob{.flags = 0}};
        machine.kernel.size_after_get = size;
        const auto state = vcpu_of<Svm>(machine.kernel).nested_state();
        REQUIRE(state.has_value());
        const NestedStateBuffer wide = *state;
        CHECK(wide.header() == state->header());
        CHECK(wide.phase() == Phase::unrecognised);
        const auto narrow = wide.to<Svm>();
        REQUIRE(narrow.has_value());
        CHECK(narrow->header() == state->header());
    }
}

// KVM_GET_NESTED_STATE between the SET of an enlightened VMCS and its first run spoils the vmcs12, and the
// SET that failed may have come in between.
TEST_CASE("the diagnosis of a failed SET asks for no state where enlightened VMCSs are enabled") {
    FakeKvm kernel;
    kernel.vendor = VendorId::vmx;
    const kvm::nested::Vcpu vcpu{unit::host<Vmx>(kernel), kvm::nested::VcpuFd{unit::vcpu_fd},
                                 kvm::nested::IoctlRef{kernel}};
    const auto l2 = NestedState<Vmx>::parse(unit::vmx_l2());
    REQUIRE(l2.has_value());
    for (const int error_number : {EINVAL, EFAULT, ENOMEM}) {
        kernel.set_result = IoctlResult{-1, error_number};
        const auto fail = [&](std::optional<std::uint32_t> versions, const NestedState<Vmx>& state) {
            kernel.evmcs_versions = versions;
            kernel.calls.clear();
            const auto set = vcpu.set_nested_state(state);
            REQUIRE_FALSE(set.has_value());
            return set.error();
        };
        CHECK(fail(0x0101, *l2).effect == Effect::undetermined);
        CHECK(kernel.gets() == 0);
        CHECK(fail(0x0101, NestedState<Vmx>{}).effect == Effect::unchanged); // fails before the teardown
        CHECK(kernel.gets() == 0);
        // Hyper-V support without them, and no Hyper-V support: nothing to spoil.
        for (const auto versions : {std::optional<std::uint32_t>{0x80000}, std::optional<std::uint32_t>{}}) {
            static_cast<void>(fail(versions, *l2));
            CHECK(kernel.gets() == 1);
        }
    }
}

} // namespace
