// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <expected>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::VendorId;
using kvm::vcpu::Errc;
using kvm::vcpu::Operation;
using kvm::vcpu::Step;
using kvm::vcpu::VcpuState;
using unit::busy;
using unit::FakeKvm;
using unit::whole;
namespace request = unit::request;
namespace cap = unit::cap;

std::vector<std::uint32_t> indices(const std::vector<kvm::vcpu::uapi::Msr>& msrs) {
    std::vector<std::uint32_t> result;
    for (const auto& msr : msrs)
        result.push_back(msr.index);
    return result;
}

TEST_CASE("saving takes every group as the vCPU has it") {
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        auto fake = busy(vendor);
        const auto state = whole(fake).save();
        REQUIRE(state.has_value());
        CHECK(state->vendor == vendor);
        CHECK(state->requirements == kvm::vcpu::Requirements{});
        CHECK(state->regs == fake.regs);
        CHECK(state->sregs == fake.sregs);
        CHECK(state->debugregs == fake.debugregs);
        CHECK(state->events == fake.events);
        CHECK(state->mp_state == fake.mp_state);
        CHECK(state->xcrs == fake.xcrs);
        CHECK(state->lapic == fake.lapic);
        CHECK(state->cpuid == fake.cpuid);
        CHECK(state->tsc_khz == 2'000'000);
        CHECK(state->xsave.size() == 4096);
        CHECK(std::ranges::equal(state->xsave, std::span{fake.xsave}.first(4096)));
        CHECK(std::ranges::equal(state->nested.bytes(), fake.nested));
    }
}

TEST_CASE("saving completes the pending I/O before it reads anything, and leaves immediate_exit as it was") {
    for (const auto before : {std::uint8_t{0}, std::uint8_t{1}}) {
        auto fake = busy(VendorId::svm);
        fake.page.immediate_exit = before;
        REQUIRE(whole(fake).save().has_value());
        CHECK(fake.calls.front().request == request::run);
        CHECK(std::ranges::count(fake.calls, request::run, &unit::FakeKvm::Call::request) == 1);
        CHECK(fake.page.immediate_exit == before);
    }
}

TEST_CASE("a kick that comes while I/O is completed is there afterwards") {
    for (const auto before : {std::uint8_t{0}, std::uint8_t{1}}) {
        auto fake = busy(VendorId::svm);
        fake.page.immediate_exit = before;
        fake.runs = {{.error_number = EINTR, .kicked = true}};
        REQUIRE(whole(fake).save().has_value());
        CHECK(fake.page.immediate_exit == 1);
    }
}

TEST_CASE("an exit that comes up while I/O is completed has to be handled first") {
    auto fake = busy(VendorId::svm);
    fake.runs = {{.exit_reason = 6}}; // KVM_EXIT_MMIO: the other half of an access that straddles
    const auto state = whole(fake).save();
    REQUIRE_FALSE(state.has_value());
    CHECK(state.error().cause == Errc::exit_pending);
    CHECK(state.error().step == Step::pending_io);
    CHECK(state.error().detail.value == 6);
    CHECK(fake.page.immediate_exit == 0);
    CHECK(whole(fake).save().has_value());
}

TEST_CASE("a vCPU that waits for its SIPI can be saved") {
    auto fake = busy(VendorId::svm);
    fake.runs = {{.error_number = EAGAIN}};
    CHECK(whole(fake).save().has_value());
}

TEST_CASE("saving without a capability that must be on says which") {
    for (const auto& [flag, number] :
         {std::pair{0x10u, cap::exception_payload}, std::pair{0x20u, cap::triple_fault_event}}) {
        auto fake = busy(VendorId::svm);
        fake.events_flags &= ~flag;
        const auto state = whole(fake).save();
        REQUIRE_FALSE(state.has_value());
        CHECK(state.error().cause == Errc::not_prepared);
        CHECK(state.error().detail == kvm::vcpu::capability(number));
    }
}

TEST_CASE("the state says what was really on, whatever was promised") {
    auto fake = busy(VendorId::vmx);
    fake.nested = unit::l2_active(VendorId::vmx, kvm::nested::uapi::state_flag::evmcs);
    auto state = whole(fake, {.exception_payload = false, .triple_fault_event = false}).save();
    REQUIRE(state.has_value());
    CHECK(state->requirements == kvm::vcpu::Requirements{.enlightened_vmcs = true});
    fake.events_flags = 0x0d;
    state =
        whole(fake, {.exception_payload = false, .triple_fault_event = false, .disabled_quirks = 3}).save();
    REQUIRE(state.has_value());
    CHECK_FALSE(state->requirements.exception_payload);
    CHECK_FALSE(state->requirements.triple_fault_event);
    CHECK(state->requirements.disabled_quirks == 3);
}

TEST_CASE("each failing ioctl gives an error with its step") {
    const std::pair<unsigned long, Step> rows[] = {
        {request::run, Step::pending_io},
        {request::get_mp_state, Step::mp_state},
        {request::get_vcpu_events, Step::events},
        {request::get_regs, Step::regs},
        {request::get_sregs2, Step::sregs},
        {request::check_extension, Step::xsave},
        {request::get_xsave, Step::xsave},
        {request::get_xcrs, Step::xcrs},
        {request::get_debugregs, Step::debugregs},
        {request::get_lapic, Step::lapic},
        {request::get_cpuid2, Step::cpuid},
        {request::get_nested_state, Step::nested_state},
        {request::get_tsc_khz, Step::tsc},
        {request::get_device_attr, Step::tsc_offset},
        {request::get_msr_feature_index_list, Step::feature_msrs},
        {request::get_msr_index_list, Step::feature_msrs},
        {request::get_msrs, Step::feature_msrs},
    };
    for (const auto& [failing, step] : rows) {
        CAPTURE(name(step));
        for (const auto& [number, code] : {std::pair{ENOMEM, kvm::nested::Errc::out_of_memory},
                                           std::pair{EFAULT, kvm::nested::Errc::bad_address},
                                           std::pair{EIO, kvm::nested::Errc::other_process_or_dead_vm}}) {
            auto fake = busy(VendorId::svm);
            const auto vcpu = whole(fake);
            fake.failure = {.request = failing, .error_number = number};
            const auto state = vcpu.save();
            REQUIRE_FALSE(state.has_value());
            CHECK(state.error().operation == Operation::save);
            CHECK(state.error().step == step);
            CHECK(state.error().request == failing);
            CHECK(state.error().cause == code);
            CHECK(state.error().error_number == number);
        }
    }
}

TEST_CASE("the wrong descriptor is said to be one, whichever ioctl meets it first") {
    auto fake = busy(VendorId::svm);
    const auto host = kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{3}, fake);
    const auto with = [&](int system, int vm, int vcpu) {
        return kvm::vcpu::WholeVcpu{*host,
                                    kvm::vcpu::already_prepared({}),
                                    kvm::nested::SystemFd{system},
                                    kvm::nested::VmFd{vm},
                                    kvm::nested::VcpuFd{vcpu},
                                    &fake.page,
                                    fake}
            .save()
            .error()
            .cause;
    };
    CHECK(with(3, 4, 4) == kvm::nested::Errc::vm_fd_given);
    CHECK(with(3, 4, 3) == kvm::nested::Errc::system_fd_given);
    CHECK(with(3, 5, 5) == kvm::nested::Errc::vcpu_fd_given);
    CHECK(with(4, 4, 5) == kvm::nested::Errc::vm_fd_given);
    CHECK(with(5, 4, 5) == kvm::nested::Errc::vcpu_fd_given);
    CHECK(with(99, 4, 5) == kvm::nested::Errc::bad_descriptor);
}

bool has(const VcpuState& state, std::uint32_t index) {
    return std::ranges::contains(state.msrs, index, &kvm::vcpu::uapi::Msr::index);
}

TEST_CASE("what KVM serves and does not list is saved where the vCPU has it") {
    auto fake = busy(VendorId::svm);
    fake.serve_unlisted_msrs();
    fake.machine_checks = 3;
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK(state->feature_msrs.back().index == 0x179);
    CHECK(state->feature_msrs.back().value == 3);
    for (const std::uint32_t index :
         {0x1d9u, 0x200u, 0x20fu, 0x250u, 0x26fu, 0x2ffu, 0x400u, 0x40bu, 0xc0010114u})
        CHECK(has(*state, index));
    for (const std::uint32_t index : {0x40cu, 0x280u, 0x8cu, 0x122u, 0xc0010140u, 0x40000090u, 0x400000b1u})
        CHECK_FALSE(has(*state, index));

    SUBCASE("with corrected machine checks each bank has one more") {
        fake.machine_checks = 3 | 1 << 10;
        const auto with = whole(fake).save();
        CHECK(has(*with, 0x282));
        CHECK_FALSE(has(*with, 0x283));
    }
    SUBCASE("CPUID decides about OSVW") {
        fake.cpuid = {{.function = 0x80000001,
                       .index = 0,
                       .flags = 0,
                       .eax = 0,
                       .ebx = 0,
                       .ecx = 1u << 9,
                       .edx = 0,
                       .padding = {}}};
        CHECK(has(*whole(fake).save(), 0xc0010141));
    }
    SUBCASE("VMX has none of SVM's") {
        auto vmx = busy(VendorId::vmx);
        vmx.serve_unlisted_msrs();
        CHECK_FALSE(has(*whole(vmx).save(), 0xc0010114));
    }
    SUBCASE("what is listed is not asked for twice") {
        fake.msr_list.push_back(0x200);
        const auto again = whole(fake).save();
        CHECK(std::ranges::count(again->msrs, 0x200u, &kvm::vcpu::uapi::Msr::index) == 1);
    }
    SUBCASE("what can be read and not be written, and holds nothing, is left out") {
        for (std::uint32_t index = 0x1db; index <= 0x1de; ++index)
            fake.msr[index] = index == 0x1dc ? 7 : 0;
        const auto again = whole(fake).save();
        CHECK_FALSE(has(*again, 0x1db));
        CHECK(has(*again, 0x1dc));
    }
}

TEST_CASE("the SynIC's MSRs need its requirement, and a vCPU that uses it without is not saved in half") {
    auto fake = busy(VendorId::svm);
    fake.serve_unlisted_msrs();
    fake.msr_list.push_back(0x40000080);
    fake.msr[0x40000080] = 0;
    CHECK(whole(fake).save().has_value());
    fake.msr[0x40000080] = 1;
    const auto refused = whole(fake).save();
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().cause == kvm::vcpu::Errc::not_prepared);
    CHECK(refused.error().detail == kvm::vcpu::capability(cap::hyperv_synic2));

    const auto state = whole(fake, {.hyperv_synic = kvm::vcpu::HypervSynic::synic2}).save();
    REQUIRE(state.has_value());
    const auto at = [&](std::uint32_t index) {
        return std::ranges::find(state->msrs, index, &kvm::vcpu::uapi::Msr::index) - state->msrs.begin();
    };
    for (const std::uint32_t timer : {0u, 2u, 4u, 6u})
        CHECK(at(0x400000b1 + timer) < at(0x400000b0 + timer)); // the count before the configuration
    CHECK(has(*state, 0x4000009f));
}

TEST_CASE("MSRs of the caller's are saved, once each, and left out if they cannot be read") {
    auto fake = busy(VendorId::svm);
    fake.serve_unlisted_msrs();
    fake.msr[0x1234] = 5;
    fake.unreadable.insert(0x1235);
    const std::array<std::uint32_t, 4> more{0x1234, 0x1235, 0x1234, 0x200};
    const auto state = whole(fake).save({.more_msrs = more});
    REQUIRE(state.has_value());
    CHECK(std::ranges::count(state->msrs, 0x1234u, &kvm::vcpu::uapi::Msr::index) == 1);
    CHECK(std::ranges::count(state->msrs, 0x200u, &kvm::vcpu::uapi::Msr::index) == 1);
    CHECK_FALSE(has(*state, 0x1235));
}

TEST_CASE("what switches on comes behind what is set up, and the TSC deadline comes last") {
    auto fake = busy(VendorId::vmx);
    fake.serve_unlisted_msrs();
    fake.msr[0x560] = fake.msr[0x570] = 0;
    fake.msr_list.insert(fake.msr_list.begin(), {0x570, 0x560});
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    const auto all = indices(state->msrs);
    CHECK(all.back() == 0x6e0);
    CHECK(std::ranges::find(all, 0x560u) < std::ranges::find(all, 0x570u));
    CHECK(std::ranges::find(all, 0x26fu) < std::ranges::find(all, 0x2ffu));
    CHECK(std::ranges::is_sorted(all, {}, kvm::vcpu::msr_order));
}

TEST_CASE("with known lists a save asks for what it needs, and little else") {
    auto fake = busy(VendorId::svm);
    fake.serve_unlisted_msrs();
    const auto lists = kvm::vcpu::MsrLists::ask(kvm::nested::SystemFd{FakeKvm::system}, fake);
    REQUIRE(lists.has_value());
    fake.calls.clear();
    VcpuState state;
    REQUIRE(whole(fake).save(state, {.lists = &*lists}).has_value());
    // KVM_RUN, one ioctl for each of the 15 groups, and the size of the XSAVE area.
    CHECK(fake.calls.size() == 17);
    CHECK(state == *whole(fake).save());
}

TEST_CASE("a state of an earlier save is overwritten, and is none after an error") {
    auto fake = busy(VendorId::svm), other = busy(VendorId::svm, 2);
    VcpuState state;
    REQUIRE(whole(fake).save(state).has_value());
    REQUIRE(whole(other).save(state).has_value());
    CHECK(state == *whole(other).save());
    other.failure = {request::get_xcrs};
    CHECK_FALSE(whole(other).save(state).has_value());
    CHECK(state.nested.is_empty());
}

TEST_CASE("reading MSRs goes on behind those that the vCPU does not let one read") {
    auto fake = busy(VendorId::vmx);
    fake.unreadable = {0x480, 0x489, 0x8b, 0x10, 0x277, 0x4b564d06};
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK(indices(state->feature_msrs)
          == std::vector<std::uint32_t>{0x481, 0x482, 0x483, 0x484, 0x485, 0x487, 0x48d, 0x179});
    CHECK(indices(state->msrs) == std::vector<std::uint32_t>{0x3a, 0xc0010117, 0x6e0});
    for (const auto& msr : state->msrs)
        CHECK(msr.value == fake.msr[msr.index]);
}

TEST_CASE("an MSR of both lists is a feature MSR, and the TSC deadline comes last") {
    auto fake = busy(VendorId::vmx);
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    auto features = fake.feature_list;
    features.push_back(0x179); // IA32_MCG_CAP, which KVM does not list
    CHECK(indices(state->feature_msrs) == features);
    CHECK(indices(state->msrs)
          == std::vector<std::uint32_t>{0x10, 0x3a, 0x277, 0xc0010117, 0x4b564d06, 0x6e0});
}

TEST_CASE("more MSRs than KVM takes at once are read in parts") {
    auto fake = busy(VendorId::svm);
    fake.msr_list.clear();
    for (std::uint32_t i = 0; i < 1000; ++i) {
        fake.msr_list.push_back(0x1000 + i);
        fake.msr[0x1000 + i] = i * i;
        if (i % 127 == 0)
            fake.unreadable.insert(0x1000 + i);
    }
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK(state->msrs.size() == 1000 - fake.unreadable.size());
    for (const auto& msr : state->msrs)
        if (msr.index >= 0x1000 && msr.index < 0x1000 + 1000)
            CHECK(msr.value == std::uint64_t{msr.index - 0x1000} * (msr.index - 0x1000));
}

TEST_CASE("the CPUID entries of a kernel that does not count them are those that it has written") {
    auto fake = busy(VendorId::svm);
    fake.keeps_cpuid_count = true;
    for (const std::size_t count : {0u, 3u, 256u}) {
        fake.cpuid.resize(count);
        const auto state = whole(fake).save();
        REQUIRE(state.has_value());
        CHECK(state->cpuid == fake.cpuid);
    }
}

TEST_CASE("a large XSAVE area is read whole") {
    auto fake = busy(VendorId::svm);
    fake.offered[cap::xsave2] = 11008; // with AMX
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK(fake.called(request::get_xsave2));
    CHECK(std::ranges::equal(state->xsave, std::span{fake.xsave}.first(11008)));
}

TEST_CASE("what KVM leaves of a large XSAVE area is zero, whatever an earlier save had there") {
    auto large = busy(VendorId::svm), small = busy(VendorId::svm, 2);
    large.offered[cap::xsave2] = small.offered[cap::xsave2] = 11008;
    small.xsave_area = 4096; // no AMX in its CPUID
    VcpuState state;
    REQUIRE(whole(large).save(state).has_value());
    REQUIRE(whole(small).save(state).has_value());
    REQUIRE(state.xsave.size() == 11008);
    CHECK(std::ranges::equal(std::span{state.xsave}.first(4096), std::span{small.xsave}.first(4096)));
    CHECK(std::ranges::all_of(std::span{state.xsave}.subspan(4096),
                              [](std::byte byte) { return byte == std::byte{}; }));
}

TEST_CASE("without KVM_CAP_XSAVE2 the XSAVE area has 4096 bytes") {
    auto fake = busy(VendorId::svm);
    fake.offered.erase(cap::xsave2);
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK(state->xsave.size() == 4096);
    CHECK_FALSE(fake.called(request::get_xsave2));
}

TEST_CASE("sizes and counts that no kernel gives are refused") {
    const auto error_of = [](auto spoil) {
        auto fake = busy(VendorId::svm);
        const auto vcpu = whole(fake);
        spoil(fake);
        const auto state = vcpu.save();
        REQUIRE_FALSE(state.has_value());
        return state.error();
    };
    for (const int size : {1, 4095, 65537, 0x7fffffff}) {
        const auto error = error_of([=](auto& fake) { fake.offered[cap::xsave2] = size; });
        CHECK(error.cause == kvm::nested::Errc::unexpected);
        CHECK(error.step == Step::xsave);
        CHECK(error.detail.value == static_cast<unsigned>(size));
    }
    for (const std::uint32_t count : {4097u, 0xffffffffu}) {
        const auto error = error_of([=](auto& fake) { fake.claimed_msr_list = count; });
        CHECK(error.cause == kvm::nested::Errc::unexpected);
        CHECK(error.step == Step::feature_msrs);
    }
    for (const std::uint32_t count : {257u, 0xffffffffu})
        CHECK(error_of([=](auto& fake) { fake.claimed_cpuid = count; }).step == Step::cpuid);
    for (const std::uint32_t count : {17u, 0xffffffffu})
        CHECK(error_of([=](auto& fake) { fake.claimed_xcrs = count; }).step == Step::xcrs);
    for (const int count : {256, 0x7fffffff})
        CHECK(error_of([=](auto& fake) { fake.claimed_msrs = count; }).step == Step::feature_msrs);
    CHECK(error_of([](auto& fake) { fake.msr_list.resize(5000); }).detail.value == 5000);
}

TEST_CASE("an ioctl that succeeds with another number than 0 has not succeeded") {
    auto fake = busy(VendorId::svm);
    const auto vcpu = whole(fake);
    fake.failure = {.request = request::get_regs, .value = 3};
    const auto state = vcpu.save();
    REQUIRE_FALSE(state.has_value());
    CHECK(state.error().cause == kvm::nested::Errc::unexpected);
    CHECK(state.error().raw_result == 3);
}

TEST_CASE("a nested state of the other vendor is refused") {
    auto fake = busy(VendorId::vmx);
    fake.nested = unit::l2_active(VendorId::svm);
    const auto state = whole(fake).save();
    REQUIRE_FALSE(state.has_value());
    CHECK(state.error().cause == kvm::nested::Errc::wrong_vendor);
    CHECK(state.error().step == Step::nested_state);
}

TEST_CASE("without an in-kernel APIC there is none in the state") {
    auto fake = busy(VendorId::svm);
    fake.lapic.reset();
    const auto state = whole(fake).save();
    REQUIRE(state.has_value());
    CHECK_FALSE(state->lapic.has_value());
}

} // namespace
