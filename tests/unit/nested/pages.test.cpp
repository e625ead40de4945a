// SPDX-License-Identifier: MIT
//
// The guest memory that a state refers to: exactly what its controls make live.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::GuestRange;
using enum kvm::nested::PageRole;
using enum kvm::nested::PageAccess;
using kvm::nested::PageRole;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

std::vector<GuestRange> ranges(const Bytes& state) {
    std::vector<GuestRange> result;
    kvm::nested::guest_ranges(state, [&](const GuestRange& range) noexcept { result.push_back(range); });
    return result;
}

bool refers_to(const Bytes& state, const GuestRange& wanted) {
    return std::ranges::any_of(ranges(state), [&](const GuestRange& range) {
        return range.address == wanted.address && range.size == wanted.size && range.role == wanted.role
               && range.access == wanted.access;
    });
}
std::size_t count(const Bytes& state, PageRole role) {
    return static_cast<std::size_t>(std::ranges::count(ranges(state), role, &GuestRange::role));
}

Bytes vmx(std::initializer_list<unit::Entry> entries) {
    return unit::with_fields(VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320},
                             entries);
}
constexpr std::uint64_t with_secondary = 1u << 31;

TEST_CASE("without L2 a state refers to the VMXON region and the vmcs12 at most") {
    CHECK(ranges(VmxBlob{}).empty());
    CHECK(ranges(SvmBlob{}).empty());
    CHECK(ranges(SvmBlob{.flags = 0}).empty());
    const auto vmxon = ranges(VmxBlob{.vmxon_pa = 0x1000});
    REQUIRE(vmxon.size() == 1);
    CHECK(refers_to(VmxBlob{.vmxon_pa = 0x1000}, {0x1000, 4096, vmxon_region, none}));
    const VmxBlob current{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224};
    CHECK(ranges(current).size() == 2);
    CHECK(refers_to(current, {0x2000, 4096, vmcs12, writes}));
    CHECK(ranges(VmxBlob{.flags = 4, .vmxon_pa = 0x1000, .size = 4224}).size() == 1); // enlightened
    CHECK(ranges(Bytes(77)).empty());
}

struct Case {
    std::string_view what;
    std::initializer_list<unit::Entry> controls;
    GuestRange range;
};

TEST_CASE("each control makes its own pages live, and no others") {
    const Case cases[] = {
        {"I/O bitmap A",
         {{"cpu_based_vm_exec_control", 1u << 25}, {"io_bitmap_a", 0x5000}},
         {0x5000, 4096, io_bitmap_a, reads}},
        {"I/O bitmap B",
         {{"cpu_based_vm_exec_control", 1u << 25}, {"io_bitmap_b", 0x6000}},
         {0x6000, 4096, io_bitmap_b, reads}},
        {"MSR bitmap",
         {{"cpu_based_vm_exec_control", 1u << 28}, {"msr_bitmap", 0x7000}},
         {0x7000, 4096, msr_bitmap, reads}},
        {"virtual APIC",
         {{"cpu_based_vm_exec_control", 1u << 21}, {"virtual_apic_page_addr", 0x8000}},
         {0x8000, 4096, virtual_apic, reads_and_writes}},
        {"APIC access",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 0},
          {"apic_access_addr", 0x9000}},
         {0x9000, 4096, apic_access, none}},
        {"posted interrupts",
         {{"pin_based_vm_exec_control", 1u << 7}, {"posted_intr_desc_addr", 0xa040}},
         {0xa040, 64, posted_interrupts, reads_and_writes}},
        {"EPT",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 1},
          {"ept_pointer", 0xb01e}},
         {0xb000, 4096, ept_root, reads}},
        {"EPT with A/D flags",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 1},
          {"ept_pointer", 0xb05e}},
         {0xb000, 4096, ept_root, reads_and_writes}},
        {"PML",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 17},
          {"pml_address", 0xc000}},
         {0xc000, 4096, page_modification_log, writes}},
        {"VMREAD bitmap",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 14},
          {"vmread_bitmap", 0xd000}},
         {0xd000, 4096, vmread_bitmap, reads}},
        {"VMWRITE bitmap",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 14},
          {"vmwrite_bitmap", 0xe000}},
         {0xe000, 4096, vmwrite_bitmap, reads}},
        {"shadow VMCS",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 14},
          {"vmcs_link_pointer", 0xf000}},
         {0xf000, 4096, shadow_vmcs, reads_and_writes}},
        {"EPTP list",
         {{"cpu_based_vm_exec_control", with_secondary},
          {"secondary_vm_exec_control", 1u << 13},
          {"vm_function_control", 1},
          {"eptp_list_address", 0x10000}},
         {0x10000, 4096, eptp_list, reads}},
        {"exit MSR store",
         {{"vm_exit_msr_store_count", 300}, {"vm_exit_msr_store_addr", 0x11ff0}},
         {0x11ff0, 4800, exit_msr_store, reads_and_writes}},
        {"exit MSR load",
         {{"vm_exit_msr_load_count", 1}, {"vm_exit_msr_load_addr", 0x12000}},
         {0x12000, 16, exit_msr_load, reads}},
        {"entry MSR load",
         {{"vm_entry_msr_load_count", 2}, {"vm_entry_msr_load_addr", 0x13000}},
         {0x13000, 32, entry_msr_load, reads}},
        {"L2's page table",
         {{"guest_cr0", 0x80000001}, {"guest_cr3", 0x14018}},
         {0x14000, 4096, l2_page_table, reads_and_writes}},
        {"L1's page table", {{"host_cr3", 0x15003}}, {0x15000, 4096, l1_page_table, reads_and_writes}},
    };
    for (const auto& each : cases) {
        CAPTURE(each.what);
        CHECK(refers_to(vmx(each.controls), each.range));
        CHECK(count(vmx(each.controls), each.range.role) == 1);
        // The same addresses with every control off: a range must not come from its address alone.
        auto bytes = vmx(each.controls);
        if (each.range.role == l1_page_table)
            continue;
        for (const auto* word :
             {"pin_based_vm_exec_control", "cpu_based_vm_exec_control", "vm_exit_msr_store_count",
              "vm_exit_msr_load_count", "vm_entry_msr_load_count", "guest_cr0"})
            unit::put(bytes, 128u + kvm::nested::find_vmcs12_field(word)->offset, std::uint32_t{0});
        CHECK(count(bytes, each.range.role) == 0);
    }
}

TEST_CASE("secondary controls count only if the primary ones activate them") {
    const auto bytes = vmx({{"secondary_vm_exec_control", 0xffffffff}, {"ept_pointer", 0xb01e}});
    CHECK(count(bytes, ept_root) == 0);
    CHECK(count(bytes, page_modification_log) == 0);
}

TEST_CASE("a link pointer leads to a VMCS whose first word is read, or nowhere") {
    CHECK(refers_to(vmx({{"vmcs_link_pointer", 0xf000}}), {0xf000, 4, linked_vmcs, reads}));
    CHECK(count(vmx({{"vmcs_link_pointer", ~0ull}}), linked_vmcs) == 0);
    CHECK(count(vmx({{"vmcs_link_pointer", ~0ull},
                     {"cpu_based_vm_exec_control", with_secondary},
                     {"secondary_vm_exec_control", 1u << 14}}),
                shadow_vmcs)
          == 0);
}

TEST_CASE("an L2 that an SMI interrupted refers to the same memory") {
    auto smm = unit::vmx_l2();
    const auto active = ranges(smm).size();
    unit::put(smm, 0, std::uint16_t{0});
    unit::put(smm, 24, std::uint16_t{3});
    CHECK(ranges(smm).size() == active);
    unit::put(smm, 24, std::uint16_t{2}); // L1 was interrupted
    CHECK(ranges(smm).size() == 2);
}

TEST_CASE("an SVM state refers to the vmcb12, the permission maps and the tables that are in use") {
    const auto l2 = unit::svm_l2();
    CHECK(refers_to(l2, {0x3000, 4096, vmcb12, writes}));
    CHECK(refers_to(l2, {0x10000, 3 * 4096, iopm, reads}));
    CHECK(refers_to(l2, {0x14000, 2 * 4096, msrpm, reads}));
    CHECK(refers_to(l2, {0x17000, 4096, nested_cr3, reads_and_writes}));
    CHECK(refers_to(l2, {0x1a000, 4096, l1_page_table, reads_and_writes}));
    CHECK(ranges(l2).size() == 5);
    const auto bare = unit::with_fields(
        l2,
        {{"iopm_base_pa", 0x10000}, {"msrpm_base_pa", 0x14000}, {"nested_cr3", 0x17000}, {"cr3", 0x1a000}});
    CHECK(ranges(bare).size() == 2);
    // KVM drops the low bits of the maps.
    CHECK(refers_to(unit::with_fields(l2, {{"intercepts[3]", 1u << 28}, {"msrpm_base_pa", 0x14abc}}),
                    {0x14000, 2 * 4096, msrpm, reads}));
}

TEST_CASE("a range tells the pages that it touches") {
    static_assert(GuestRange{0x1000, 4096, vmcs12, writes}.pages() == 1);
    static_assert(GuestRange{0x1ff0, 16, exit_msr_load, reads}.pages() == 1);
    static_assert(GuestRange{0x1ff0, 32, exit_msr_load, reads}.pages() == 2);
    static_assert(GuestRange{0x1000, 0, exit_msr_load, reads}.pages() == 0);
    static_assert(GuestRange{0x10000, 3 * 4096, iopm, reads}.pages() == 3);
}

TEST_CASE("roles and accesses have names") {
    for (int role = 0; role <= static_cast<int>(l1_page_table); ++role)
        CHECK(kvm::nested::name(static_cast<PageRole>(role)) != "?");
    CHECK(kvm::nested::name(static_cast<PageRole>(99)) == "?");
    CHECK(kvm::nested::name(reads_and_writes) == "read and written");
    CHECK(kvm::nested::name(ept_root) == "EPT root");
}

} // namespace
