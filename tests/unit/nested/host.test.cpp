// SPDX-License-Identifier: MIT
//
// Host::probe(): which hosts are accepted, and why the others are not.
#include <cerrno>
#include <cstdint>
#include <expected>
#include <optional>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Any;
using kvm::nested::Errc;
using kvm::nested::Host;
using kvm::nested::IoctlResult;
using kvm::nested::Svm;
using kvm::nested::SystemFd;
using kvm::nested::VendorId;
using kvm::nested::Vmx;
using unit::FakeKvm;

template <class V>
std::optional<kvm::nested::Error> probe(FakeKvm& kernel, int fd = unit::system_fd) {
    const auto host = Host<V>::probe(SystemFd{fd}, kernel);
    return host ? std::nullopt : std::optional{host.error()};
}

/// The cause with which all three kinds of host are refused.
Errc refusal(FakeKvm kernel, int fd = unit::system_fd) {
    const auto any = probe<Any>(kernel, fd);
    const auto vmx = probe<Vmx>(kernel, fd);
    const auto svm = probe<Svm>(kernel, fd);
    REQUIRE(any.has_value());
    REQUIRE(vmx.has_value());
    REQUIRE(svm.has_value());
    CHECK(*any == *vmx);
    CHECK(*any == *svm);
    CHECK(any->operation == kvm::nested::Operation::probe);
    CHECK(any->effect == kvm::nested::Effect::unchanged);
    return any->code;
}

TEST_CASE("a host is what its capacity and its CPUID agree on") {
    for (const int generation : {6, 7}) {
        FakeKvm intel, amd;
        intel.vendor = VendorId::vmx;
        intel.generation = amd.generation = generation;
        CHECK_FALSE(probe<Vmx>(intel).has_value());
        CHECK_FALSE(probe<Svm>(amd).has_value());
        CHECK(Host<Any>::probe(SystemFd{unit::system_fd}, intel)->vendor() == VendorId::vmx);
        CHECK(Host<Any>::probe(SystemFd{unit::system_fd}, amd)->vendor() == VendorId::svm);
        CHECK(probe<Svm>(intel).value().code == Errc::wrong_vendor);
        CHECK(probe<Vmx>(amd).value().code == Errc::wrong_vendor);
        CHECK(amd.gets() + amd.sets() + intel.gets() + intel.sets() == 0); // a probe touches no vCPU
    }
}

TEST_CASE("a host that proves a vendor at compile time proves it at run time") {
    FakeKvm kernel;
    const Host<Any> host = unit::host<Svm>(kernel);
    CHECK(host.vendor() == VendorId::svm);
    CHECK(host.narrow<Svm>().has_value());
    CHECK(host.narrow<Vmx>().error().code == Errc::wrong_vendor);
    CHECK(host.narrow<Vmx>().error().operation == kvm::nested::Operation::narrow);
}

TEST_CASE("nesting off is told from a kernel without nested state, on both generations") {
    FakeKvm kernel;
    kernel.nesting = false;
    for (const auto vendor : {VendorId::vmx, VendorId::svm})
        for (const int generation : {6, 7}) { // 6: capacity without a CPUID bit; 7: no capacity
            kernel.vendor = vendor;
            kernel.generation = generation;
            CHECK(refusal(kernel) == Errc::nesting_off);
        }
    kernel.generation = 4;
    CHECK(refusal(kernel) == Errc::not_supported);
}

TEST_CASE("a capacity that is not exactly a vendor's is refused, and told") {
    for (const int capacity : {1, 127, 128, 4223, 4225, 8319, 8321, 12416, 0x7fffffff}) {
        FakeKvm kernel;
        kernel.capacity = capacity;
        CHECK(refusal(kernel) == Errc::capacity_unknown);
        CHECK(probe<Any>(kernel)->detail == static_cast<std::uint64_t>(capacity));
    }
}

TEST_CASE("a capacity and a CPUID that disagree are refused") {
    FakeKvm intel;
    intel.vendor = VendorId::vmx;
    intel.capacity = 4224;
    CHECK(refusal(intel) == Errc::vendor_unclear);
    FakeKvm amd;
    amd.capacity = 8320;
    CHECK(refusal(amd) == Errc::vendor_unclear);
    FakeKvm both;
    both.vmx_bit = both.svm_bit = 1;
    CHECK(refusal(both) == Errc::vendor_unclear);
}

TEST_CASE("a probe with another descriptor says which kind it is") {
    CHECK(refusal(FakeKvm{}, unit::vm_fd) == Errc::vm_fd_given);
    CHECK(refusal(FakeKvm{}, unit::vcpu_fd) == Errc::vcpu_fd_given);
    CHECK(refusal(FakeKvm{}, unit::file_fd) == Errc::not_a_kvm_descriptor);
    CHECK(refusal(FakeKvm{}, unit::closed_fd) == Errc::bad_descriptor);
    CHECK(refusal(FakeKvm{}, unit::foreign_fd) == Errc::other_process_or_dead_vm);
}

TEST_CASE("a CPUID that cannot be had is an error of its own, with its errno") {
    struct Row {
        IoctlResult result;
        Errc code;
    };
    for (const auto& row : {Row{{-1, ENOMEM}, Errc::out_of_memory}, Row{{-1, E2BIG}, Errc::buffer_too_small},
                            Row{{-1, EFAULT}, Errc::bad_address}, Row{{-1, EPERM}, Errc::unexpected},
                            Row{{1, EINVAL}, Errc::unexpected}}) {
        FakeKvm kernel;
        kernel.cpuid_result = row.result;
        CHECK(refusal(kernel) == row.code);
        CHECK(probe<Any>(kernel)->raw_result == row.result.value);
        CHECK(probe<Any>(kernel)->error_number == (row.result.value < 0 ? row.result.error_number : 0));
    }
}

TEST_CASE("a CPUID without the leaves that matter offers nothing") {
    FakeKvm kernel;
    kernel.cpuid_result =
        IoctlResult{0, 0}; // "success", and the table is untouched: no entry is trusted blindly
    kernel.no_cpuid_bits = true;
    FakeKvm without;
    without.no_cpuid_bits = true;
    CHECK(refusal(without) == Errc::nesting_off);
}

TEST_CASE("any callable will do as the kernel, a plain function too") {
    struct Local {
        static IoctlResult refuse(int, unsigned long, void*) noexcept { return {-1, EACCES}; }
    };
    constexpr auto function = &Local::refuse;
    const auto host = Host<Svm>::probe(SystemFd{3}, function);
    CHECK(host.error().code == Errc::unexpected);
    CHECK(host.error().error_number == EACCES);
    const auto lambda = [](int, unsigned long, void*) noexcept { return IoctlResult{-1, EBADF}; };
    CHECK(Host<Svm>::probe(SystemFd{3}, lambda).error().code == Errc::bad_descriptor);
}

TEST_CASE("without a seam the system call answers") {
    CHECK(Host<Any>::probe(SystemFd{-1}).error().code == Errc::bad_descriptor);
    CHECK(Host<Any>::probe(SystemFd{-1}).error().error_number == EBADF);
}

TEST_CASE("a descriptor is told by what it answers") {
    FakeKvm kernel;
    using enum kvm::nested::DescriptorKind;
    CHECK(kvm::nested::descriptor_kind(kernel, unit::system_fd) == system);
    CHECK(kvm::nested::descriptor_kind(kernel, unit::vm_fd) == vm);
    CHECK(kvm::nested::descriptor_kind(kernel, unit::vcpu_fd) == vcpu);
    CHECK(kvm::nested::descriptor_kind(kernel, unit::file_fd) == not_kvm);
    CHECK(kvm::nested::descriptor_kind(kernel, unit::closed_fd) == not_open);
    CHECK(kvm::nested::descriptor_kind(kernel, unit::foreign_fd) == unknown);
}

} // namespace
