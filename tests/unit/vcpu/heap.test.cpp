// SPDX-License-Identifier: MIT
//
// What a save asks of the heap. Every new of this program is counted.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {
std::size_t allocations = 0;

void* allocate(std::size_t bytes) {
    ++allocations;
    if (void* memory = std::malloc(bytes))
        return memory;
    std::abort();
}
void* allocate(std::size_t bytes, std::align_val_t alignment) {
    ++allocations;
    const auto align = static_cast<std::size_t>(alignment);
    if (void* memory = std::aligned_alloc(align, (bytes + align - 1) / align * align))
        return memory;
    std::abort();
}
} // namespace

// Every form of new and delete ends in one of these.
void* operator new(std::size_t bytes) {
    return allocate(bytes);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return allocate(bytes, alignment);
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}

namespace {

using kvm::nested::VendorId;
using unit::FakeKvm;

/// A vCPU with something in every group, with all that KVM serves, that does not allocate by itself.
FakeKvm quiet(VendorId vendor, unsigned seed) {
    auto fake = unit::busy(vendor, seed);
    fake.serve_unlisted_msrs();
    fake.one_regs = {{0x2030'0003'0000'0000, seed}};
    return fake;
}

TEST_CASE("the second save into the same state allocates nothing") {
    const std::uint32_t more[] = {0x1234, 0x1235};
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        auto first = quiet(vendor, 1), second = quiet(vendor, 2);
        first.msr[0x1234] = second.msr[0x1234] = 5;
        second.unreadable = {0x277}; // one MSR less
        const auto lists = kvm::vcpu::MsrLists::ask(kvm::nested::SystemFd{FakeKvm::system}, first);
        REQUIRE(lists.has_value());
        const kvm::vcpu::SaveOptions options{.lists = &*lists, .more_msrs = more};
        const auto one = unit::whole(first), other = unit::whole(second);
        first.calls.reserve(100);
        second.calls.reserve(100);
        kvm::vcpu::VcpuState state;

        auto before = allocations;
        REQUIRE(one.save(state, options).has_value());
        const auto at_first = allocations - before;
        CHECK(at_first > 0); // it is counted at all

        before = allocations;
        const bool saved_again = one.save(state, options).has_value();
        const bool saved_another = other.save(state, options).has_value();
        const auto afterwards = allocations - before;
        CHECK(saved_again);
        CHECK(saved_another);
        CHECK(afterwards == 0);
        CHECK(state == *other.save(options));
    }
}

} // namespace
