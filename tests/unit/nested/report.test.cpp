// SPDX-License-Identifier: MIT
//
// A state as text. The texts are written out: what a user reads is what is tested.
#include <algorithm>
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

using kvm::nested::FieldsShown;
using kvm::nested::ReportOptions;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

std::string text(std::span<const std::byte> state, const ReportOptions& options = {}) {
    std::string result;
    kvm::nested::describe(state, [&](std::string_view piece) noexcept { result += piece; }, options);
    return result;
}

constexpr ReportOptions first_screen{.fields = FieldsShown::none, .ranges = false};

std::size_t lines(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count(text, '\n'));
}
bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// clang-format off: text as it is printed
constexpr std::string_view vmx_l2_text = R"(VMX, L2 active, 4224 bytes
  flags           GUEST_MODE, RUN_PENDING
  VMXON region    0x1000
  vmcs12          0x2000, launched
  L2 is about to  begin: VMLAUNCH or VMRESUME was accepted; to inject: hardware exception, vector #PF, deliver error code 0x6
  L2              64-bit mode, CPL 0, RIP 0xffffffff81000123, RSP 0xffffc90000013f58, CR3 0xb000
  L2's memory     EPT: page walk 4 levels, memory type WB, accessed and dirty flags, root 0x9000; VPID 1; unrestricted guest
  last VM exit    EPT violation
  L1              goes on at the next VM exit: 64-bit mode, RIP 0xffffffff82000456, RSP 0xffffc90000100000, CR3 0xc000
  guest memory    7 pages in 7 ranges

header (4 of 8 not zero)
  +0x000   flags                          0x3                 GUEST_MODE, RUN_PENDING
  +0x004   size                           4224
  +0x008   hdr.vmx.vmxon_pa               0x1000
  +0x010   hdr.vmx.vmcs12_pa              0x2000

vmcs12: what it begins with (2 of 3 not zero)
  +0x000   hdr                            0x11e57ed0          revision 0x11e57ed0
  +0x008   launch_state                   0x1                 launched

vmcs12: L1's controls over L2 (16 of 45 not zero)
  0x2000   io_bitmap_a                    0x5000
  0x2002   io_bitmap_b                    0x6000
  0x2004   msr_bitmap                     0x7000
  0x2006   vm_exit_msr_store_addr         0xa010
  0x2012   virtual_apic_page_addr         0x8000
  0x201a   ept_pointer                    0x905e              page walk 4 levels, memory type WB, accessed and dirty flags, root 0x9000
  0x4000   pin_based_vm_exec_control      0x3f                external-interrupt exiting, NMI exiting, virtual NMIs
  0x4002   cpu_based_vm_exec_control      0xb5a1e9f2          HLT exiting, RDPMC exiting, CR3-load exiting, CR3-store exiting, use TPR shadow, MOV-DR exiting, unconditional I/O exiting, use MSR bitmaps, MONITOR exiting, activate secondary controls
  0x4004   exception_bitmap               0x60042             #DB, #UD, #AC, #MC
  0x400c   vm_exit_controls               0x3fefff            save debug controls, host address-space size, acknowledge interrupt on exit, save IA32_PAT, load IA32_PAT, save IA32_EFER, load IA32_EFER
  0x400e   vm_exit_msr_store_count        2
  0x4012   vm_entry_controls              0xd3ff              load debug controls, IA-32e mode guest, load IA32_PAT, load IA32_EFER
  0x4016   vm_entry_intr_info_field       0x80000b0e          valid, hardware exception, vector #PF, deliver error code
  0x4018   vm_entry_exception_error_code  0x6
  0x401e   secondary_vm_exec_control      0xaa                enable EPT, enable RDTSCP, enable VPID, unrestricted guest
  0x0000   virtual_processor_id           1

vmcs12: L2's state (guest) (11 of 65 not zero)
  0x2800   vmcs_link_pointer              0xffffffffffffffff  none
  0x2804   guest_ia32_pat                 0x7040600070406     WB WT UC- UC WB WT UC- UC
  0x2806   guest_ia32_efer                0xd01               SCE, LME, LMA, NXE
  0x6800   guest_cr0                      0x80050033          PE, MP, ET, NE, WP, AM, PG
  0x6802   guest_cr3                      0xb000
  0x6804   guest_cr4                      0x2620              PAE, OSFXSR, OSXMMEXCPT, VMXE
  0x681c   guest_rsp                      0xffffc90000013f58
  0x681e   guest_rip                      0xffffffff81000123
  0x6820   guest_rflags                   0x246               PF, ZF, IF
  0x4816   guest_cs_ar_bytes              0xa09b              type 0xb, S, P, L, G
  0x0802   guest_cs_selector              0x10

vmcs12: L1's state, for the next VM exit (host) (4 of 26 not zero)
  0x6c00   host_cr0                       0x80050033          PE, MP, ET, NE, WP, AM, PG
  0x6c02   host_cr3                       0xc000
  0x6c14   host_rsp                       0xffffc90000100000
  0x6c16   host_rip                       0xffffffff82000456

vmcs12: the last VM exit (read-only) (1 of 11 not zero)
  0x4402   vm_exit_reason                 0x30                EPT violation

guest memory that the state refers to
  0x1000                    4096 bytes  not accessed      VMXON region
  0x2000                    4096 bytes  written           vmcs12
  0x7000                    4096 bytes  read              MSR bitmap
  0x8000                    4096 bytes  read and written  virtual-APIC page
  0xa010                    32 bytes    read and written  VM-exit MSR-store area
  0x9000                    4096 bytes  read and written  EPT root
  0xc000                    4096 bytes  read and written  root of L1's page table
)";

constexpr std::string_view svm_l2_first_screen = R"(SVM, L2 active, 4224 bytes
  flags           GUEST_MODE, GIF_SET
  vmcb12          0x3000
  GIF             set
  L2 is about to  go on
  L2's memory     nested paging, root 0x17000; ASID 1
  intercepts      13; I/O by permission map; MSRs by permission map; exceptions #DB, #PF
  last #VMEXIT    CPUID
  L1              goes on at the next #VMEXIT: 64-bit mode, RIP 0x86b2, RSP 0x9000, CR3 0x1a000
  L2's registers  are not in a nested state: KVM_GET_REGS, KVM_GET_SREGS2
  guest memory    8 pages in 5 ranges
)";

constexpr std::string_view vmx_l2_redacted_first_screen = R"(VMX, L2 active, 4224 bytes
  flags           GUEST_MODE, RUN_PENDING
  VMXON region    masked, page-aligned
  vmcs12          masked, page-aligned, launched
  L2 is about to  begin: VMLAUNCH or VMRESUME was accepted; to inject: hardware exception, vector #PF, deliver error code 0x6
  L2              64-bit mode, CPL 0, RIP masked, RSP masked, CR3 masked
  L2's memory     EPT: page walk 4 levels, memory type WB, accessed and dirty flags; VPID 1; unrestricted guest
  last VM exit    EPT violation
  L1              goes on at the next VM exit: 64-bit mode, RIP masked, RSP masked, CR3 masked
  guest memory    7 pages in 7 ranges
)";
// clang-format on

TEST_CASE("a VMX state with L2 active is described field by field") {
    CHECK(text(unit::vmx_l2()) == vmx_l2_text);
}

TEST_CASE("the first screen says in about ten lines what an SVM state is") {
    CHECK(text(unit::svm_l2(), first_screen) == svm_l2_first_screen);
}

TEST_CASE("redacting keeps the structure and masks addresses and registers") {
    auto options = first_screen;
    options.redact = true;
    CHECK(text(unit::vmx_l2(), options) == vmx_l2_redacted_first_screen);
}

TEST_CASE("every phase has a first screen of its own") {
    CHECK(text(VmxBlob{}.bytes())
          == "VMX, not in VMX operation, 128 bytes\n"
             "  L1              has not executed VMXON, or has executed VMXOFF\n"
             "\nheader (3 of 8 not zero)\n"
             "  +0x004   size                           128\n"
             "  +0x008   hdr.vmx.vmxon_pa               0xffffffffffffffff  none\n"
             "  +0x010   hdr.vmx.vmcs12_pa              0xffffffffffffffff  none\n");
    CHECK(text(VmxBlob{.vmxon_pa = 0x1000}.bytes(), first_screen)
          == "VMX, VMXON, no current VMCS, 128 bytes\n"
             "  VMXON region    0x1000\n"
             "  vmcs12          none: L1 has loaded no VMCS with VMPTRLD\n"
             "  guest memory    1 page in 1 range\n");
    CHECK(text(SvmBlob{.flags = 0}.bytes(), first_screen)
          == "SVM, outside L2, GIF clear, 128 bytes\n"
             "  L1              runs, or nesting is unused, or an SMI came from L2: the state does not tell "
             "which\n"
             "  GIF             clear: interrupts, NMIs and SMIs are held off\n");
    std::vector<std::string> seen;
    for (const auto& sample : unit::samples()) {
        CAPTURE(sample.name);
        const auto screen = text(sample.bytes, first_screen);
        CHECK(screen.starts_with(sample.vendor == kvm::nested::VendorId::vmx ? "VMX, " : "SVM, "));
        CHECK(contains(screen.substr(0, screen.find('\n')), kvm::nested::name(sample.phase)));
        CHECK(lines(screen) <= 12);
        seen.push_back(screen);
    }
    std::ranges::sort(seen);
    CHECK(std::ranges::adjacent_find(seen) == seen.end());
}

TEST_CASE("an event that is still to be injected is told, and one that was injected is not") {
    auto state = unit::vmx_l2();
    CHECK(contains(text(state, first_screen), "to inject: hardware exception, vector #PF"));
    unit::put(state, 0, std::uint16_t{1}); // without RUN_PENDING
    CHECK_FALSE(contains(text(state, first_screen), "to inject"));
    CHECK(contains(text(unit::with_fields(unit::svm_l2(), {{"event_inj", 0x80000202}}), first_screen),
                   "to inject: NMI, vector NMI"));
}

TEST_CASE("the save area of an SVM state is labelled L1's, and what is not restored stands apart") {
    const auto all = text(unit::svm_l2());
    const auto restored =
        all.find("\nsave area: L1's state, for the next #VMEXIT; not L2's (10 of 42 not zero)\n");
    const auto stale =
        all.find("\nsave area: what KVM does not restore and may report stale (1 of 29 not zero)\n");
    REQUIRE(restored != std::string::npos);
    REQUIRE(stale != std::string::npos);
    CHECK(restored < all.find("  +0x578   rip                            0x86b2\n"));
    CHECK(all.find("  +0x578   rip ") < stale);
    CHECK(stale < all.find("  +0x448   fs.base                        0x1234000\n"));
}

TEST_CASE("with all fields shown every name is there once") {
    for (const auto& state : {unit::vmx_l2(), unit::svm_l2()}) {
        const auto all = text(state, {.fields = FieldsShown::all, .ranges = false});
        const bool vmx = unit::take<std::uint16_t>(state, 2) == 0;
        const auto fields = all.substr(all.find("\n\n", all.find("size  ")));
        for (const auto& field : vmx ? kvm::nested::vmcs12_fields : kvm::nested::vmcb12_fields) {
            CAPTURE(field.name);
            std::size_t count = 0;
            const std::string name = " " + std::string{field.name};
            for (auto at = fields.find(name); at != std::string::npos; at = fields.find(name, at + 1)) {
                const auto next = fields[at + name.size()];
                count += next == ' ' || next == ',' || next == '\n';
            }
            CHECK(count >= 1);
        }
        for (std::size_t begin = 0, end; (end = all.find('\n', begin)) != std::string::npos; begin = end + 1)
            CHECK((end == begin || all[end - 1] != ' ')); // no blanks at the end of a line
    }
}

TEST_CASE("bytes in reserved places and undefined bits are told, not hidden") {
    CHECK_FALSE(contains(text(unit::vmx_l2()), "unusual"));
    auto state = unit::with_fields(unit::vmx_l2(), {{"pin_based_vm_exec_control", 0x80000016}});
    state[128 + 345 - 8] = std::byte{0xab}; // padding64
    state[128 + 998] = std::byte{0xcd};     // behind the vmcs12
    state[128 + 4095] = std::byte{0xef};
    const auto all = text(state);
    CHECK(contains(all,
                   "  unusual         3 bytes in reserved places not zero; 1 field with undefined bits\n"));
    CHECK(contains(
        all, "padding64                      1 of 8 bytes not zero, from byte 1 on: ab 00 00 00 00 00 00\n"));
    CHECK(contains(all, "vmcs12: behind its 998 bytes, which KVM drops (1 of 1 not zero)\n"));
    CHECK(contains(all, "tail                           2 of 3098 bytes not zero, from byte 0 on: cd 00"));
    CHECK(contains(all, "pin_based_vm_exec_control      0x80000016          undefined bits 0x80000000\n"));
    const auto masked = text(state, {.redact = true});
    CHECK(contains(masked, "tail                           2 of 3098 bytes not zero, from byte 0\n"));
    CHECK(contains(masked, "pin_based_vm_exec_control      0x16                undefined bits\n"));

    auto header = VmxBlob{.vmxon_pa = 0x1000}.bytes();
    header[127] = std::byte{1};
    CHECK(contains(text(header), "header: reserved (1 of 2 not zero)\n"));
}

TEST_CASE("a shadow vmcs12 is shown next to the vmcs12") {
    auto bytes = VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320}.bytes();
    std::fill(bytes.begin() + 128, bytes.end(), std::byte{0});
    unit::put(bytes, 128, unit::revision);
    unit::put(bytes, 128 + 4096, unit::revision | 0x80000000);
    unit::put(bytes, 128 + 4096 + 544, std::uint64_t{0x4242});
    const auto all = text(bytes);
    CHECK(contains(all, "revision 0x11e57ed0, shadow VMCS\n"));
    CHECK(contains(all, "shadow vmcs12: guest (1 of 65 not zero)\n"
                        "  0x681e   guest_rip                      0x4242\n"));
}

TEST_CASE("bytes that are no state are described by what is wrong with them") {
    CHECK(text({}) == "no nested state: 0 bytes, and the header takes 128\n");
    const auto state = unit::vmx_l2();
    CHECK(text(std::span{state}.first(4000), first_screen)
              .starts_with("VMX, not a state that a vCPU can be in: "));
    Bytes foreign = VmxBlob{};
    unit::put(foreign, 2, std::uint16_t{9});
    CHECK(text(foreign).starts_with("unknown vendor, not a state that a vCPU can be in: "));
    for (const auto& sample : unit::samples())
        for (std::size_t length = 0; length < sample.bytes.size(); length += 61)
            CHECK_FALSE(text(std::span{sample.bytes}.first(length), {.fields = FieldsShown::all}).empty());
    CHECK_FALSE(text(Bytes(100000, std::byte{0xff}), {.fields = FieldsShown::all}).empty());
    CHECK_FALSE(text(Bytes(100000), {.fields = FieldsShown::all}).empty());
}

TEST_CASE("one field is told with its place, what KVM does with it, and its value") {
    const auto told = [](const Bytes& state, std::string_view name, bool redact = false) {
        std::string result;
        kvm::nested::describe_field(state, name, [&](std::string_view piece) noexcept { result += piece; },
                                    {.redact = redact});
        return result;
    };
    CHECK(told(unit::vmx_l2(), "guest_cr0")
          == "vmcs12 guest_cr0 (L2 guest)\n"
             "  place                offset 0x1a8, 8 bytes; VMCS encoding 0x6800, natural-width\n"
             "  KVM_SET_NESTED_STATE checks and uses it\n"
             "  value                0x80050033  PE, MP, ET, NE, WP, AM, PG\n");
    CHECK(told(unit::vmx_l2(), "guest_ssp")
          == "vmcs12 guest_ssp (L2 guest)\n"
             "  place                offset 0x2c8, 8 bytes; VMCS encoding 0x682a, natural-width\n"
             "  KVM_SET_NESTED_STATE checks and uses it (kept and not used up to 6.12)\n"
             "  since                Linux 7.x (not in 6.12)\n"
             "  value                0x0\n");
    CHECK(told(unit::svm_l2(), "rip", true)
          == "VMCB rip (L1 save area)\n"
             "  place                offset 0x578, 8 bytes\n"
             "  KVM_SET_NESTED_STATE uses it\n"
             "  value                masked\n");
    CHECK(told(unit::vmx_l2(), "hdr.vmx.vmcs12_pa").starts_with("header hdr.vmx.vmcs12_pa (header)\n"));
    CHECK(told(unit::vmx_l2(), "rip").empty());
    CHECK(kvm::nested::describe_field(
              VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320}.bytes(), "guest_rip",
              [](std::string_view) noexcept {})
          == 2);
}

/// Every field of every part set to a pattern of its own that no other text contains.
template <class Pattern>
Bytes filled(Bytes state, Pattern pattern) {
    for (const auto& part : kvm::nested::PartsOfState{state})
        for (const auto& field : part.fields)
            if (part.part != kvm::nested::Part::header && field.name != "hdr")
                for (std::size_t i = 0; i < field.size; i += 8) {
                    const std::uint64_t value = pattern();
                    std::memcpy(state.data() + part.begin + field.offset + i, &value,
                                std::min<std::size_t>(8, field.size - i));
                }
    return state;
}

std::string hex(std::uint64_t value) {
    kvm::nested::Text<20> text;
    text.hexadecimal(value);
    return std::string{text.view()};
}

TEST_CASE("redacting leaks no value that it masks") {
    const Bytes states[] = {
        VmxBlob{.flags = 0xb,
                .vmxon_pa = 0xdeadbeef1000,
                .vmcs12_pa = 0xdeadbeef2000,
                .vmx_flags = 1,
                .deadline = 0xdeadbeef3123,
                .size = 8320},
        SvmBlob{.flags = 0x103, .vmcb12_pa = 0xdeadbeef4000, .gpat = 0xdeadbeef, .size = 4224},
    };
    std::uint64_t seed = 88172645463325252;
    const auto random = [&seed] {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        return seed | 0xf000'f000'f000'f000; // no pattern is short
    };
    std::size_t masked_fields = 0;
    for (int round = 0; round < 10; ++round)
        for (const auto& empty : states) {
            const auto state = filled(empty, random);
            const auto open = text(state, {.fields = FieldsShown::all});
            const auto redacted = text(state, {.fields = FieldsShown::all, .redact = true});
            CHECK_FALSE(contains(redacted, "deadbeef"));
            CHECK(lines(redacted) == lines(open));
            for (const auto& part : kvm::nested::PartsOfState{state})
                for (const auto& field : part.fields) {
                    using Kind = kvm::nested::ValueKind;
                    const auto kind = field.bit_layout->kind;
                    const bool is_kept = kind == Kind::number || kind == Kind::mask;
                    // Of four bytes all can be named bits, which are kept.
                    const bool is_masked =
                        field.size == 8 ? !is_kept : field.size == 4 && kind == Kind::value;
                    if (!field.is_number() || !is_masked || part.part == kvm::nested::Part::header)
                        continue;
                    const auto number = hex(read(part.bytes, field));
                    CAPTURE(field.name);
                    REQUIRE(contains(open, number));
                    REQUIRE_FALSE(contains(redacted, number));
                    ++masked_fields;
                }
            CHECK_FALSE(contains(redacted, " on: ")); // bytes of reserved places
        }
    CHECK(masked_fields > 2000);
}

TEST_CASE("a value is explained by itself") {
    const auto told = [](const kvm::nested::BitLayout& layout, std::uint64_t value, bool redact = false) {
        std::string result;
        kvm::nested::explain(
            layout, value, [&](std::string_view piece) noexcept { result += piece; }, redact);
        return result;
    };
    namespace bit_layout = kvm::nested::bit_layout;
    CHECK(told(bit_layout::cr0, 0x80000011) == "PE, ET, PG");
    CHECK(told(bit_layout::cr0, 0) == "");
    CHECK(told(bit_layout::rflags, 0x3246) == "PF, ZF, IF, IOPL 3");
    CHECK(told(bit_layout::rflags, 0x3246, true) == "IF, IOPL 3");
    const auto copy = bit_layout::rflags;
    CHECK(told(copy, 0x3246, true) == "IF, IOPL 3");
    CHECK(told(bit_layout::rflags, 1u << 15) == "undefined bits 0x8000");
    CHECK(told(bit_layout::exit_reason, 0x80000021) == "VM-entry failure, invalid guest state");
    CHECK(told(bit_layout::exit_reason, 999) == "unknown 999");
    CHECK(told(bit_layout::svm_exit_code, 0x14) == "write of CR4");
    CHECK(told(bit_layout::svm_exit_code, 0x400) == "nested page fault");
    CHECK(told(bit_layout::svm_exit_code, 0x7777) == "");
    CHECK(told(bit_layout::cr_intercepts, 0x00110001) == "read CR0, write CR0, write CR4");
    CHECK(told(bit_layout::ept_pointer, 0x701e) == "page walk 4 levels, memory type WB, root 0x7000");
    CHECK(told(bit_layout::ept_pointer, 0x701e, true) == "page walk 4 levels, memory type WB");
    CHECK(told(bit_layout::svm_event, 0x80000020) == "valid, external interrupt, vector 32");
    CHECK(told(bit_layout::activity_state, 3) == "wait-for-SIPI");
    CHECK(told(bit_layout::pat, 0x0007040600070406) == "WB WT UC- UC WB WT UC- UC");
    CHECK(told(bit_layout::pat, 0x03) == "? UC UC UC UC UC UC UC");
    CHECK(told(bit_layout::address, ~0ull) == "none");
    CHECK(told(bit_layout::value, 5) == "");
}

std::size_t pieces = 0; // a function has no other place
void count_piece(std::string_view) noexcept {
    ++pieces;
}

TEST_CASE("a sink is a function, too") {
    kvm::nested::describe(kvm::nested::NestedState<kvm::nested::Svm>::gif_clear(), count_piece);
    kvm::nested::describe(kvm::nested::NestedState<kvm::nested::Svm>::gif_clear(), &count_piece);
    CHECK(pieces > 2);
}

TEST_CASE("states and buffers are described as their bytes are") {
    const auto state = kvm::nested::NestedState<kvm::nested::Svm>::parse(unit::svm_l2());
    REQUIRE(state.has_value());
    std::string of_state, of_buffer;
    describe(*state, [&](std::string_view piece) noexcept { of_state += piece; });
    describe(kvm::nested::NestedStateBuffer{*state},
             [&](std::string_view piece) noexcept { of_buffer += piece; });
    CHECK(of_state == text(unit::svm_l2()));
    CHECK(of_buffer == of_state);
}

} // namespace
