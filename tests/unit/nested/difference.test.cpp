// SPDX-License-Identifier: MIT
//
// What differs between two states, as values and as text.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Difference;
using kvm::nested::DifferenceOptions;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

std::string text(const Bytes& a, const Bytes& b, const DifferenceOptions& options = {}) {
    std::string result;
    const auto count =
        kvm::nested::difference(a, b, [&](std::string_view piece) noexcept { result += piece; }, options);
    std::size_t lines = 0;
    for (const char c : result)
        lines += c == '\n';
    CHECK(lines == count);
    return result;
}

std::size_t count(const Bytes& a, const Bytes& b, const DifferenceOptions& options = {}) {
    return kvm::nested::difference(a, b, [](const Difference&) noexcept {}, options);
}

Bytes changed(Bytes state, std::initializer_list<unit::Entry> entries) {
    const bool vmx = unit::take<std::uint16_t>(state, 2) == 0;
    for (const auto& entry : entries) {
        const auto* field =
            vmx ? kvm::nested::find_vmcs12_field(entry.field) : kvm::nested::find_vmcb12_field(entry.field);
        std::memcpy(state.data() + 128 + field->offset, &entry.value, field->size);
    }
    return state;
}

TEST_CASE("a difference names the field, both values and what changed in them") {
    const auto vmx = unit::vmx_l2();
    CHECK(text(vmx, changed(vmx, {{"guest_cr0", 0x80050031},
                                  {"guest_rip", 0x1000},
                                  {"vm_entry_intr_info_field", 0x80000b0d},
                                  {"host_cr4", 0x20},
                                  {"launch_state", 0},
                                  {"vm_exit_msr_store_count", 3},
                                  {"guest_activity_state", 1}}))
          == "vmcs12 launch_state: 0x1 -> 0x0  launched -> clear\n"
             "vmcs12 guest_cr0: 0x80050033 -> 0x80050031  -MP\n"
             "vmcs12 guest_rip: 0xffffffff81000123 -> 0x1000\n"
             "vmcs12 host_cr4: 0x0 -> 0x20  +PAE  (L1's)\n"
             "vmcs12 vm_exit_msr_store_count: 2 -> 3\n"
             "vmcs12 vm_entry_intr_info_field: 0x80000b0e -> 0x80000b0d  vector #PF -> vector #GP\n"
             "vmcs12 guest_activity_state: 0x0 -> 0x1  active -> HLT\n");
    const auto svm = unit::svm_l2();
    CHECK(text(svm, changed(svm, {{"intercepts[0]", 0x11}, {"nested_cr3", 0x18000}, {"rip", 0x86b5}}))
          == "VMCB intercepts[0]: 0x10018 -> 0x11  -read CR3, +read CR0, -write CR0\n"
             "VMCB nested_cr3: 0x17000 -> 0x18000\n"
             "VMCB rip: 0x86b2 -> 0x86b5  (L1's)\n");
    CHECK(text(VmxBlob{.vmxon_pa = 0x1000}, VmxBlob{.vmxon_pa = 0x5000})
          == "hdr.vmx.vmxon_pa: 0x1000 -> 0x5000\n");
}

TEST_CASE("what KVM may rewrite is no difference unless it is asked for") {
    const auto vmx = unit::vmx_l2();
    const auto other = changed(vmx, {{"vm_exit_reason", 10}, {"vmx_preemption_timer_value", 7}});
    CHECK(text(vmx, other).empty());
    CHECK(text(vmx, other, {.ignored_too = true})
          == "vmcs12 vm_exit_reason: 0x30 -> 0xa  EPT violation -> CPUID\n"
             "vmcs12 vmx_preemption_timer_value: 0x0 -> 0x7\n");
    const auto svm = unit::svm_l2();
    CHECK(text(svm, changed(svm, {{"exit_code", 0x81}, {"tr.base", 5}, {"dr6", 0xffff0ff0}})).empty());
    CHECK(text(svm, changed(svm, {{"exit_code", 0x81}}), {.ignored_too = true})
          == "VMCB exit_code: 0x72 -> 0x81  CPUID -> VMMCALL\n");
}

TEST_CASE("there is a difference exactly if the states are not equivalent") {
    const auto all = unit::samples();
    for (const auto& a : all) {
        for (const auto& b : all) {
            CAPTURE(a.name);
            CAPTURE(b.name);
            CHECK((count(a.bytes, b.bytes) == 0) == !kvm::nested::first_difference(a.bytes, b.bytes));
        }
        for (std::size_t i = 0; i < a.bytes.size(); i += a.bytes.size() > 128 ? 37 : 1) {
            auto b = a.bytes;
            b[i] ^= std::byte{0x40};
            CAPTURE(i);
            REQUIRE((count(a.bytes, b) == 0) == !kvm::nested::first_difference(a.bytes, b));
            REQUIRE(count(a.bytes, b, {.ignored_too = true}) == 1);
        }
    }
}

TEST_CASE("states of two vendors differ in what both have") {
    CHECK(text(VmxBlob{}, SvmBlob{})
          == "flags: 0x0 -> 0x100  +GIF_SET\n"
             "format: 0x0 -> 0x1  VMX -> SVM\n");
}

TEST_CASE("a state with a payload differs from one without in its size") {
    CHECK(text(unit::svm_l2(), SvmBlob{}.bytes())
          == "flags: 0x101 -> 0x100  -GUEST_MODE\n"
             "size: 4224 -> 128\n"
             "hdr.svm.vmcb_pa: 0x3000 -> 0x0\n");
}

TEST_CASE("bytes that are no state differ or not, without a field") {
    CHECK(count({}, {}) == 0);
    CHECK(count({}, unit::vmx_l2()) == 1);
    CHECK(count(Bytes(64), Bytes(64)) == 0);
    auto longer = unit::vmx_l2();
    longer.resize(5000);
    CHECK(count(unit::vmx_l2(), longer) == 1);
}

// Found by tests/fuzz.
TEST_CASE("what is cut off in the middle of a payload differs, without a field") {
    auto a = unit::vmx_l2(), b = a;
    a.resize(1440);
    b.resize(1440);
    CHECK(kvm::nested::difference(a, b, [](const kvm::nested::Difference&) noexcept {}) == 0);
    b[1000] ^= std::byte{1};
    CHECK(kvm::nested::difference(
              a, b, [](const kvm::nested::Difference&) noexcept { FAIL_CHECK("no field is whole"); })
          == 1);
}

TEST_CASE("a redacted difference tells that values differ, and structure, but no value") {
    const auto vmx = unit::vmx_l2();
    CHECK(text(vmx,
               changed(vmx, {{"guest_rip", 0x1000},
                             {"io_bitmap_a", 0x5123},
                             {"guest_rflags", 0x247},
                             {"guest_cr0", 0x80050031},
                             {"ept_pointer", 0xa05e}}),
               {.redact = true})
          == "vmcs12 io_bitmap_a: masked, page-aligned -> masked, not page-aligned\n"
             "vmcs12 ept_pointer: 0x5e -> 0x5e  in masked bits\n"
             "vmcs12 guest_cr0: 0x80050033 -> 0x80050031  -MP\n"
             "vmcs12 guest_rip: masked -> masked\n"
             "vmcs12 guest_rflags: 0x202 -> 0x202  in masked bits\n");
}

TEST_CASE("a receiver gets the field and the bytes of both") {
    const auto a = unit::svm_l2();
    const auto b = changed(a, {{"asid", 9}});
    std::size_t seen = 0;
    const auto total = kvm::nested::difference(a, b, [&](const Difference& what) noexcept {
        ++seen;
        CHECK(what.part == kvm::nested::Part::vmcb);
        CHECK(what.field == kvm::nested::find_vmcb12_field("asid"));
        CHECK(unit::take<std::uint32_t>(what.a, 0) == 1);
        CHECK(unit::take<std::uint32_t>(what.b, 0) == 9);
    });
    CHECK(seen == 1);
    CHECK(total == 1);
    const auto state = kvm::nested::NestedState<kvm::nested::Svm>::parse(a),
               other = kvm::nested::NestedState<kvm::nested::Svm>::parse(b);
    REQUIRE((state.has_value() && other.has_value()));
    CHECK(difference(*state, *other, [](std::string_view) noexcept {}) == 1);
    CHECK(difference(kvm::nested::NestedStateBuffer{*state}, kvm::nested::NestedStateBuffer{*state},
                     [](const Difference&) noexcept {})
          == 0);
}

} // namespace
