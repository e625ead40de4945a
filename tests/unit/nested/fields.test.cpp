// SPDX-License-Identifier: MIT
//
// The tables of fields: complete, in order, and right about what a page holds. The images are held
// against them in src/kvm/nested/images.cpp; here are the facts by hand.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Field;
using kvm::nested::FieldGroup;
using kvm::nested::OnSet;
using kvm::nested::ValueKind;
using kvm::nested::VmcsWidth;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

constexpr std::array tables = {kvm::nested::vmcs12_fields, kvm::nested::vmcb12_fields};

consteval bool leaves_no_gap(std::span<const Field> fields) {
    std::size_t end = 0;
    for (const auto& field : fields) {
        if (field.offset != end || field.size == 0)
            return false;
        end = field.end();
    }
    return end == 4096;
}
static_assert(leaves_no_gap(kvm::nested::vmcs12_fields) && leaves_no_gap(kvm::nested::vmcb12_fields));

consteval bool numbers_are_aligned(std::span<const Field> fields) {
    return std::ranges::all_of(
        fields, [](const Field& field) { return !field.is_number() || field.offset % field.size == 0; });
}
static_assert(numbers_are_aligned(kvm::nested::vmcs12_fields)
              && numbers_are_aligned(kvm::nested::vmcb12_fields));

// Looked up at compile time, in each of the three ways. A wrong name in fields()["..."] does not compile.
static_assert(kvm::nested::find_vmcs12_field("guest_rip")->offset == 544);
static_assert(kvm::nested::find_vmcs12_field(0x681e)->name == "guest_rip");
static_assert(kvm::nested::find_vmcs12_field(0x2000)->name == "io_bitmap_a");
static_assert(kvm::nested::find_vmcs12_field(0x2001)->name == "io_bitmap_a"); // its high half
static_assert(kvm::nested::find_vmcs12_field(0x0000)->name == "virtual_processor_id");
static_assert(kvm::nested::find_vmcs12_field(0x681f) == nullptr); // natural width has no high half
static_assert(kvm::nested::find_vmcs12_field(kvm::nested::no_encoding) == nullptr);
static_assert(kvm::nested::find_vmcs12_field("guest_ri") == nullptr
              && kvm::nested::find_vmcs12_field("") == nullptr);
static_assert(kvm::nested::find_vmcb12_field("rip")->offset == 0x578);
static_assert(kvm::nested::find_vmcb12_field(0x578)->name == "rip"
              && kvm::nested::find_vmcb12_field(0x57f)->name == "rip");
static_assert(kvm::nested::find_vmcb12_field(4096) == nullptr);
static_assert(kvm::nested::find_vmcb12_field("cs.attrib")->size == 2);
static_assert(kvm::nested::vmcs_width(0x0812) == VmcsWidth::bits_16
              && kvm::nested::vmcs_width(0x6820) == VmcsWidth::natural);

struct Fact {
    std::string_view name;
    std::size_t offset;
    std::size_t size;
    std::uint32_t encoding;
};

TEST_CASE("fields of a vmcs12 are where Linux 6.1 to 7.3 have them, under the encodings of the SDM") {
    for (const auto& fact : {Fact{"hdr", 0, 4, kvm::nested::no_encoding},
                             Fact{"launch_state", 8, 4, kvm::nested::no_encoding},
                             Fact{"ept_pointer", 120, 8, 0x201a},
                             Fact{"vmcs_link_pointer", 176, 8, 0x2800},
                             Fact{"pml_address", 312, 8, 0x200e},
                             Fact{"tsc_multiplier", 328, 8, 0x2032},
                             Fact{"cr0_guest_host_mask", 344, 8, 0x6000},
                             Fact{"exit_qualification", 408, 8, 0x6400},
                             Fact{"guest_cr3", 432, 8, 0x6802},
                             Fact{"host_rip", 672, 8, 0x6c16},
                             Fact{"host_s_cet", 680, 8, 0x6c18},
                             Fact{"guest_ssp_tbl", 720, 8, 0x682c},
                             Fact{"pin_based_vm_exec_control", 744, 4, 0x4000},
                             Fact{"secondary_vm_exec_control", 804, 4, 0x401e},
                             Fact{"vm_exit_reason", 812, 4, 0x4402},
                             Fact{"guest_tr_ar_bytes", 908, 4, 0x4822},
                             Fact{"vmx_preemption_timer_value", 928, 4, 0x482e},
                             Fact{"virtual_processor_id", 960, 2, 0x0000},
                             Fact{"guest_cs_selector", 966, 2, 0x0802},
                             Fact{"guest_pml_index", 996, 2, 0x0812}}) {
        CAPTURE(fact.name);
        const auto* field = kvm::nested::find_vmcs12_field(fact.name);
        REQUIRE(field != nullptr);
        CHECK(field->offset == fact.offset);
        CHECK(field->size == fact.size);
        CHECK(field->encoding == fact.encoding);
    }
}

TEST_CASE("a vmcs12 has 147 fields with an encoding, and as many of each width and group as the kernel") {
    std::array<std::size_t, 4> widths{};
    std::array<std::size_t, 7> groups{};
    std::size_t new_in_7 = 0;
    for (const auto& field : kvm::nested::vmcs12_fields) {
        if (field.encoding == kvm::nested::no_encoding)
            continue;
        ++widths[static_cast<std::size_t>(kvm::nested::vmcs_width(field.encoding))];
        ++groups[static_cast<std::size_t>(field.group)];
        new_in_7 += field.first_seen == kvm::nested::FirstSeen::linux_7;
    }
    CHECK(widths == std::array<std::size_t, 4>{19, 37, 47, 44});
    CHECK(groups[static_cast<std::size_t>(FieldGroup::control)] == 45);
    CHECK(groups[static_cast<std::size_t>(FieldGroup::l2_guest)] == 65);
    CHECK(groups[static_cast<std::size_t>(FieldGroup::l1_host)] == 26);
    CHECK(groups[static_cast<std::size_t>(FieldGroup::read_only)] == 11);
    CHECK(new_in_7 == 6); // CET
    CHECK(kvm::nested::vmcs12_fields.back().offset == 998);
}

TEST_CASE("fields of a VMCB are where the APM has them; L1's save area begins at 400h") {
    for (const auto& fact : {Fact{"intercepts[0]", 0x000, 4, 0}, Fact{"intercepts[5]", 0x014, 4, 0},
                             Fact{"iopm_base_pa", 0x040, 8, 0},  Fact{"asid", 0x058, 4, 0},
                             Fact{"int_ctl", 0x060, 4, 0},       Fact{"exit_code", 0x070, 8, 0},
                             Fact{"misc_ctl", 0x090, 8, 0},      Fact{"event_inj", 0x0a8, 4, 0},
                             Fact{"nested_cr3", 0x0b0, 8, 0},    Fact{"next_rip", 0x0c8, 8, 0},
                             Fact{"es.selector", 0x400, 2, 0},   Fact{"cs.base", 0x418, 8, 0},
                             Fact{"tr.limit", 0x494, 4, 0},      Fact{"cpl", 0x4cb, 1, 0},
                             Fact{"efer", 0x4d0, 8, 0},          Fact{"cr3", 0x550, 8, 0},
                             Fact{"rsp", 0x5d8, 8, 0},           Fact{"rax", 0x5f8, 8, 0},
                             Fact{"cr2", 0x640, 8, 0},           Fact{"spec_ctrl", 0x6e0, 8, 0},
                             Fact{"tail", 0x6e8, 2328, 0}}) {
        CAPTURE(fact.name);
        const auto* field = kvm::nested::find_vmcb12_field(fact.name);
        REQUIRE(field != nullptr);
        CHECK(field->offset == fact.offset);
        CHECK(field->size == fact.size);
        CHECK(field->encoding == kvm::nested::no_encoding);
    }
    for (const auto& field : kvm::nested::vmcb12_fields) {
        CAPTURE(field.name);
        if (field.group == FieldGroup::reserved)
            continue;
        CHECK(field.group == (field.offset < 0x400 ? FieldGroup::control : FieldGroup::l1_save));
    }
}

TEST_CASE("names are unique, and each finds its own field") {
    for (const auto& table : tables)
        for (const auto& field : table) {
            CAPTURE(field.name);
            CHECK(std::ranges::count(table, field.name, &Field::name) == 1);
            CHECK(!field.name.empty());
        }
    for (const auto& field : kvm::nested::vmcs12_fields)
        CHECK(kvm::nested::find_vmcs12_field(field.name) == &field);
    for (const auto& field : kvm::nested::vmcb12_fields) {
        CHECK(kvm::nested::find_vmcb12_field(field.name) == &field);
        CHECK(kvm::nested::find_vmcb12_field(std::size_t{field.offset}) == &field);
        CHECK(kvm::nested::find_vmcb12_field(field.end() - 1) == &field);
    }
}

TEST_CASE("comparing leaves out what is dropped, and beyond that what says why") {
    using kvm::nested::Ignore;
    for (const auto& table : tables)
        for (const auto& field : table) {
            CAPTURE(field.name);
            if (field.on_set == OnSet::ignores)
                CHECK(field.ignore == Ignore::always);
            else if (field.ignore != Ignore::never)
                CHECK_FALSE(field.note.empty());
        }
    for (const auto& field : kvm::nested::vmcs12_fields) {
        CAPTURE(field.name);
        const bool exit_information =
            field.group == FieldGroup::read_only && field.name != "vm_instruction_error";
        CHECK((field.ignore == Ignore::with_l2_active)
              == (exit_information || field.name == "vmx_preemption_timer_value"));
    }
}

TEST_CASE("the header's fields are where the layouts have them, and each byte of a state is in one field") {
    using kvm::nested::header_offset;
    static_assert(header_offset("flags") == 0 && header_offset("format") == 2 && header_offset("size") == 4);
    static_assert(header_offset("hdr.vmx.vmxon_pa") == 8 && header_offset("hdr.vmx.vmcs12_pa") == 16);
    static_assert(header_offset("hdr.vmx.smm.flags") == 24 && header_offset("hdr.vmx.flags") == 28);
    static_assert(header_offset("hdr.vmx.preemption_timer_deadline") == 32);
    static_assert(header_offset("hdr.svm.vmcb_pa") == 8 && header_offset("hdr.svm.gpat") == 16);
    for (const auto vendor : {kvm::nested::VendorId::vmx, kvm::nested::VendorId::svm}) {
        std::size_t last = 0;
        for (const auto& part : kvm::nested::parts_of(vendor)) {
            CHECK(part.begin == last);
            for (const auto& field : part.fields) {
                CHECK(part.begin + field.offset == last);
                last = part.begin + field.end();
                CHECK(kvm::nested::field_at(vendor, last - 1).field == &field);
                CHECK(kvm::nested::field_at(vendor, last - 1).part == part.part);
            }
        }
        CHECK(last == kvm::nested::capacity(vendor));
        CHECK(kvm::nested::field_at(vendor, last).field == nullptr);
    }
}

TEST_CASE("groups and what KVM does have names") {
    for (int i = 0; i <= static_cast<int>(FieldGroup::reserved); ++i)
        CHECK(kvm::nested::name(static_cast<FieldGroup>(i)) != "?");
    CHECK(kvm::nested::name(FieldGroup::l1_save) == "L1 save area");
    CHECK(kvm::nested::name(OnSet::checks_and_uses) == "checks and uses");
    CHECK(kvm::nested::name(static_cast<OnSet>(77)) == "?");
}

/// A page in which every byte is another than its neighbours.
std::array<std::byte, 4096> page_of_everything() {
    std::array<std::byte, 4096> page{};
    for (std::size_t i = 0; i < page.size(); ++i)
        page[i] = static_cast<std::byte>(i * 7 + i / 256 * 13 + 1);
    return page;
}

TEST_CASE("a view reads every field as the image does, from a page that need not be aligned") {
    const auto page = page_of_everything();
    Bytes moved(4097);
    std::ranges::copy(page, moved.begin() + 1);
    const kvm::nested::Vmcs12Fields fields{std::span{moved}.subspan<1, 4096>()};
    kvm::nested::Vmcs12 image;
    std::memcpy(&image, page.data(), sizeof image);
    CHECK(fields["hdr"] == image.hdr);
    CHECK(fields["guest_rip"] == image.guest_rip);
    CHECK(fields["host_cr3"] == image.host_cr3);
    CHECK(fields["secondary_vm_exec_control"] == image.secondary_vm_exec_control);
    CHECK(fields["guest_pml_index"] == image.guest_pml_index);
    for (const auto [field, value] : fields) {
        CAPTURE(field->name);
        std::uint64_t expected = 0;
        std::memcpy(&expected, page.data() + field->offset, std::min<std::size_t>(field->size, 8));
        CHECK(value == expected);
        CHECK(fields[*field] == expected);
        CHECK(fields.bytes(*field).data() == moved.data() + 1 + field->offset);
        CHECK(fields.bytes(*field).size() == field->size);
    }
    CHECK(std::distance(fields.begin(), fields.end())
          == static_cast<std::ptrdiff_t>(kvm::nested::vmcs12_fields.size()));

    kvm::nested::Vmcb12 vmcb;
    std::memcpy(&vmcb, page.data(), sizeof vmcb);
    const kvm::nested::Vmcb12Fields vmcb_fields{page};
    CHECK(vmcb_fields["intercepts[4]"] == vmcb.intercepts[4]);
    CHECK(vmcb_fields["asid"] == vmcb.asid);
    CHECK(vmcb_fields["tlb_ctl"] == vmcb.tlb_ctl);
    CHECK(vmcb_fields["cs.attrib"] == vmcb.cs.attrib);
    CHECK(vmcb_fields["tr.base"] == vmcb.tr.base);
    CHECK(vmcb_fields["rip"] == vmcb.rip);
}

TEST_CASE("a value is read at compile time, too") {
    constexpr auto rip = [] {
        std::array<std::byte, 4096> page{};
        page[544] = std::byte{0x34};
        page[545] = std::byte{0x12};
        return kvm::nested::Vmcs12Fields{page}["guest_rip"];
    }();
    static_assert(rip == 0x1234);
}

TEST_CASE("the views of a phase lend its fields") {
    const auto vmx = kvm::nested::NestedState<kvm::nested::Vmx>::parse(
        VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320}.bytes());
    const auto svm = kvm::nested::NestedState<kvm::nested::Svm>::parse(
        SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224}.bytes());
    REQUIRE(vmx.has_value());
    REQUIRE(svm.has_value());
    bool seen = false;
    vmx->visit(kvm::nested::overloaded{[&](const kvm::nested::vmx::L2Active& l2) {
                                           seen = true;
                                           CHECK(l2.fields()["hdr"] == unit::revision);
                                           CHECK(l2.fields().page().data() == l2.vmcs12().data());
                                           REQUIRE(l2.shadow_fields().has_value());
                                           CHECK(l2.shadow_fields()->page().data()
                                                 == l2.shadow_vmcs12()->data());
                                       },
                                       [](const auto&) {}});
    CHECK(seen);
    seen = false;
    svm->visit(kvm::nested::overloaded{[&](const kvm::nested::svm::L2Active& l2) {
                                           seen = true;
                                           CHECK(l2.fields()["rip"]
                                                 == unit::take<std::uint64_t>(svm->bytes(), 128 + 0x578));
                                       },
                                       [](const auto&) {}});
    CHECK(seen);
}

} // namespace
