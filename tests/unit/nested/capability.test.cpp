// SPDX-License-Identifier: MIT
//
// What the bits of capabilities are called, by the manuals, by QEMU and by libvirt, and what a value says.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::AllowedSetting;
using kvm::nested::BitsForm;
using kvm::nested::capability_layouts;
using kvm::nested::CapabilityForm;
using kvm::nested::CapabilityLayout;
using kvm::nested::feature_names;
using kvm::nested::FeatureName;
using kvm::nested::find_capability;
using kvm::nested::find_feature;
using kvm::nested::manual_name;
using kvm::nested::setting_of;

// --- the tables

consteval bool layouts_are_sound() {
    for (const auto& layout : capability_layouts) {
        std::uint64_t seen = layout.bit_layout->always_ones;
        const unsigned width = layout.form == CapabilityForm::controls ? 32 : 64;
        for (const auto& bits : layout.bit_layout->bits) {
            if (bits.last >= width || (seen & bits.mask()) != 0 || bits.name.empty()
                || (bits.form == BitsForm::flag) != (bits.first == bits.last))
                return false;
            seen |= bits.mask();
        }
    }
    return true;
}
static_assert(layouts_are_sound());

// Every MSR from 480H to 493H, in its place.
static_assert(std::ranges::count_if(capability_layouts,
                                    [](const auto& layout) {
                                        return kvm::nested::vmx::Capabilities::has_place_for(layout.index);
                                    })
              == 0x493 - 0x480 + 1);

consteval bool manual_names_are_unique() {
    for (const auto& layout : capability_layouts)
        for (const auto& a : layout.bit_layout->bits)
            for (const auto& b : layout.bit_layout->bits)
                if (&a != &b && a.name == b.name)
                    return false;
    return true;
}
static_assert(manual_names_are_unique());

/// What libvirt calls a bit is unique; QEMU has one name twice.
consteval std::size_t doubled(std::string_view (*name)(const FeatureName&)) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < feature_names.size(); ++i)
        for (std::size_t j = 0; j < i; ++j)
            count += !name(feature_names[i]).empty() && name(feature_names[i]) == name(feature_names[j]);
    return count;
}
static_assert(doubled([](const FeatureName& feature) { return feature.libvirt(); }) == 0);
static_assert(doubled([](const FeatureName& feature) { return feature.qemu; }) == 1);

constexpr const FeatureName& feature(std::string_view name) {
    return *find_feature(name);
}

static_assert(find_capability(0x48f)->name == "IA32_VMX_TRUE_EXIT_CTLS");
static_assert(find_capability("IA32_VMX_MISC")->index == 0x485);
static_assert(find_capability(0x8000'000a)->name == "CPUID.8000000AH:EDX");
static_assert(find_capability(0x494) == nullptr && find_capability(0x47f) == nullptr
              && find_capability("IA32_VMX") == nullptr);
static_assert(find_feature("vmx") == nullptr && find_feature("") == nullptr);

// --- names

TEST_CASE("a bit is found by QEMU's name, and its names by the bit") {
    const auto& secondary = feature("vmx-secondary-ctls");
    CHECK(secondary.index == 0x48e);
    CHECK(secondary.bit == 31);
    CHECK(manual_name(secondary) == "activate secondary controls");
    CHECK(&secondary == find_feature(0x48e, 31));
    CHECK(&secondary == find_feature(0x482, 31)); // the same bit of the MSR that is not the TRUE one
    CHECK(secondary.libvirt() == "vmx-secondary-ctls");

    CHECK(feature("vmx-ept-execonly").index == 0x48c);
    CHECK(manual_name(feature("vmx-ept-execonly")) == "execute-only translations");
    CHECK(find_feature(0x48b, 16)->qemu == "vmx-rdseed-exit"); // "MSR(48BH).vmx-rdseed-exit [bit 16]"
    CHECK(manual_name(feature("lbrv")) == "LBR virtualization");
    CHECK(feature("vnmi").index == 0x8000'000a);
    CHECK(feature("vnmi").bit == 25);
    CHECK(find_feature(0x48b, 29) == nullptr);
    CHECK(find_feature(0x3a, 0) == nullptr);
}

TEST_CASE("libvirt's names, where they are others") {
    CHECK(find_feature("vmx-ept-wb") == find_feature(0x48c, 14));
    CHECK(find_feature(0x48c, 14)->qemu.empty());
    CHECK(find_feature("vmx-invvpid-single-context") == find_feature(0x48c, 41));
    CHECK(find_feature("vmx-invvpid-single-context-noglobals") == find_feature(0x48c, 43));
    CHECK(find_feature("vmx-invept-single-context-noglobals") == find_feature(0x48c, 43));
}

TEST_CASE("QEMU's one name for two bits finds both") {
    const auto* first = find_feature("vmx-invept-single-context");
    REQUIRE(first != nullptr);
    CHECK(first->bit == 25);
    const auto* second = find_feature("vmx-invept-single-context", first);
    REQUIRE(second != nullptr);
    CHECK(second->bit == 41);
    CHECK(find_feature("vmx-invept-single-context", second) == nullptr);
    CHECK(find_feature("vmx-vpid", find_feature("vmx-vpid")) == nullptr);
}

/// "vmx-" and SVM among what QEMU 7.2 lists as recognized flags.
constexpr auto of_qemu_7_2 = std::to_array<std::string_view>({
    "avic",
    "decodeassists",
    "flushbyasid",
    "lbrv",
    "npt",
    "nrip-save",
    "pause-filter",
    "pfthreshold",
    "svm-lock",
    "svme-addr-chk",
    "tsc-scale",
    "v-vmsave-vmload",
    "vgif",
    "vmcb-clean",
    "vmx-activity-hlt",
    "vmx-activity-shutdown",
    "vmx-activity-wait-sipi",
    "vmx-apicv-register",
    "vmx-apicv-vid",
    "vmx-apicv-x2apic",
    "vmx-apicv-xapic",
    "vmx-cr3-load-noexit",
    "vmx-cr3-store-noexit",
    "vmx-cr8-load-exit",
    "vmx-cr8-store-exit",
    "vmx-desc-exit",
    "vmx-encls-exit",
    "vmx-entry-ia32e-mode",
    "vmx-entry-load-bndcfgs",
    "vmx-entry-load-efer",
    "vmx-entry-load-pat",
    "vmx-entry-load-perf-global-ctrl",
    "vmx-entry-load-pkrs",
    "vmx-entry-load-rtit-ctl",
    "vmx-entry-noload-debugctl",
    "vmx-ept",
    "vmx-ept-1gb",
    "vmx-ept-2mb",
    "vmx-ept-advanced-exitinfo",
    "vmx-ept-execonly",
    "vmx-eptad",
    "vmx-eptp-switching",
    "vmx-exit-ack-intr",
    "vmx-exit-clear-bndcfgs",
    "vmx-exit-clear-rtit-ctl",
    "vmx-exit-load-efer",
    "vmx-exit-load-pat",
    "vmx-exit-load-perf-global-ctrl",
    "vmx-exit-load-pkrs",
    "vmx-exit-nosave-debugctl",
    "vmx-exit-save-efer",
    "vmx-exit-save-pat",
    "vmx-exit-save-preemption-timer",
    "vmx-flexpriority",
    "vmx-hlt-exit",
    "vmx-ins-outs",
    "vmx-intr-exit",
    "vmx-invept",
    "vmx-invept-all-context",
    "vmx-invept-single-context",
    "vmx-invept-single-context-noglobals",
    "vmx-invlpg-exit",
    "vmx-invpcid-exit",
    "vmx-invvpid",
    "vmx-invvpid-all-context",
    "vmx-invvpid-single-addr",
    "vmx-io-bitmap",
    "vmx-io-exit",
    "vmx-monitor-exit",
    "vmx-movdr-exit",
    "vmx-msr-bitmap",
    "vmx-mtf",
    "vmx-mwait-exit",
    "vmx-nmi-exit",
    "vmx-page-walk-4",
    "vmx-page-walk-5",
    "vmx-pause-exit",
    "vmx-ple",
    "vmx-pml",
    "vmx-posted-intr",
    "vmx-preemption-timer",
    "vmx-rdpmc-exit",
    "vmx-rdrand-exit",
    "vmx-rdseed-exit",
    "vmx-rdtsc-exit",
    "vmx-rdtscp-exit",
    "vmx-secondary-ctls",
    "vmx-shadow-vmcs",
    "vmx-store-lma",
    "vmx-true-ctls",
    "vmx-tsc-offset",
    "vmx-tsc-scaling",
    "vmx-unrestricted-guest",
    "vmx-vintr-pending",
    "vmx-vmfunc",
    "vmx-vmwrite-vmexit-fields",
    "vmx-vnmi",
    "vmx-vnmi-pending",
    "vmx-vpid",
    "vmx-wbinvd-exit",
    "vmx-xsaves",
    "vmx-zero-len-inject",
});
/// And what later ones do.
constexpr auto of_later_qemu = std::to_array<std::string_view>({
    "gmet",
    "vmx-any-errcode",
    "vmx-enable-user-wait-pause",
    "vmx-entry-load-cet",
    "vmx-entry-load-fred",
    "vmx-exit-save-cet",
    "vmx-exit-secondary-ctls",
    "vmx-mbec",
    "vmx-nested-exception",
    "vnmi",
});

TEST_CASE("QEMU has all of our names, and we have all of its") {
    for (const auto& row : feature_names) {
        CAPTURE(row.qemu);
        CHECK((row.qemu.empty() || std::ranges::binary_search(of_qemu_7_2, row.qemu)
               || std::ranges::binary_search(of_later_qemu, row.qemu)));
    }
    for (const auto names :
         {std::span<const std::string_view>{of_qemu_7_2}, std::span<const std::string_view>{of_later_qemu}})
        for (const auto name : names) {
            CAPTURE(name);
            CHECK(find_feature(name) != nullptr);
        }
}

// --- halves

TEST_CASE("a control of the default1 class is a feature by what it need not be") {
    for (const std::string_view name : {"vmx-exit-nosave-debugctl", "vmx-entry-noload-debugctl",
                                        "vmx-cr3-load-noexit", "vmx-cr3-store-noexit"}) {
        CAPTURE(name);
        CHECK(setting_of(feature(name)) == AllowedSetting::must_be_1);
    }
    CHECK(setting_of(feature("vmx-cr8-load-exit")) == AllowedSetting::may_be_1);
    CHECK(setting_of(feature("vmx-ept")) == AllowedSetting::may_be_1);
    CHECK(setting_of(feature("vmx-eptp-switching")) == AllowedSetting::may_be_1);
    CHECK(setting_of(feature("vmx-ept-execonly")) == AllowedSetting::feature);
    CHECK(setting_of(feature("npt")) == AllowedSetting::feature);
    CHECK(std::ranges::count_if(
              feature_names,
              [](const FeatureName& row) { return setting_of(row) == AllowedSetting::must_be_1; })
          == 4);
}

TEST_CASE("a control is there if it may be 0 and may be 1") {
    constexpr std::uint64_t exit_controls = 0x00ff'ffff'0003'6dfb;
    using kvm::nested::has_feature;
    CHECK(has_feature(exit_controls, feature("vmx-exit-nosave-debugctl")));
    CHECK(has_feature(exit_controls, feature("vmx-exit-save-efer")));
    CHECK_FALSE(has_feature(exit_controls, feature("vmx-exit-load-pkrs")));
    CHECK_FALSE(has_feature(exit_controls | 0x4, feature("vmx-exit-nosave-debugctl")));
    CHECK(has_feature(1, feature("vmx-ept-execonly")));
    CHECK(has_feature(std::uint64_t{1} << 54, feature("vmx-ins-outs")));

    kvm::nested::vmx::Capabilities vmx;
    CHECK_FALSE(has_feature(vmx, feature("vmx-exit-save-efer")).has_value());
    vmx.set(0x48f, exit_controls);
    CHECK(has_feature(vmx, feature("vmx-exit-save-efer")) == true);
    CHECK_FALSE(has_feature(vmx, feature("npt")).has_value());
    kvm::nested::svm::Capabilities svm;
    CHECK_FALSE(has_feature(svm, feature("npt")).has_value());
    svm.features = 1;
    CHECK(has_feature(svm, feature("npt")) == true);
    CHECK(has_feature(svm, feature("vgif")) == false);
    CHECK_FALSE(has_feature(svm, feature("vmx-ept")).has_value());
}

// --- as text

std::string text(const CapabilityLayout& layout, std::uint64_t value) {
    std::string result;
    describe(layout, value, [&](std::string_view piece) noexcept { result += piece; });
    return result;
}

TEST_CASE("exit controls that a host refuses, as text") {
    CHECK(text(*find_capability(0x48f), 0x00ff'ffff'0003'6dfb) ==
          R"(0x48f IA32_VMX_TRUE_EXIT_CTLS 0x00ffffff00036dfb (Intel SDM Vol. 3 appendix A.4.1)
  2      0 or 1     save debug controls                   vmx-exit-nosave-debugctl
  9      0 or 1     host address-space size
  12     0 or 1     load IA32_PERF_GLOBAL_CTRL            vmx-exit-load-perf-global-ctrl
  15     0 or 1     acknowledge interrupt on exit         vmx-exit-ack-intr
  18     0 or 1     save IA32_PAT                         vmx-exit-save-pat
  19     0 or 1     load IA32_PAT                         vmx-exit-load-pat
  20     0 or 1     save IA32_EFER                        vmx-exit-save-efer
  21     0 or 1     load IA32_EFER                        vmx-exit-load-efer
  22     0 or 1     save VMX-preemption timer value       vmx-exit-save-preemption-timer
  23     0 or 1     clear IA32_BNDCFGS                    vmx-exit-clear-bndcfgs
  24     must be 0  conceal VMX from PT
  25     must be 0  clear IA32_RTIT_CTL                   vmx-exit-clear-rtit-ctl
  26     must be 0  clear IA32_LBR_CTL
  27     must be 0  clear UINV
  28     must be 0  load CET state                        vmx-exit-save-cet
  29     must be 0  load PKRS                             vmx-exit-load-pkrs
  30     must be 0  save IA32_PERF_GLOBAL_CTL
  31     must be 0  activate secondary controls           vmx-exit-secondary-ctls
  reserved, must be 1: 0x36dfb
)");
}

TEST_CASE("numbers as text") {
    CHECK(text(*find_capability(0x485), 0x0000'0000'6004'01e5) ==
          R"(0x485 IA32_VMX_MISC 0x00000000600401e5 (Intel SDM Vol. 3 appendix A.6)
  0-4    5          VMX-preemption timer rate
  5      yes        VM exits store EFER.LMA               vmx-store-lma
  6      yes        HLT activity state                    vmx-activity-hlt
  7      yes        shutdown activity state               vmx-activity-shutdown
  8      yes        wait-for-SIPI activity state          vmx-activity-wait-sipi
  14     no         Intel PT in VMX operation
  15     no         RDMSR of IA32_SMBASE in SMM
  16-24  4          CR3-target count
  25-27  512        MSR-list maximum
  28     no         IA32_SMM_MONITOR_CTL bit 2
  29     yes        VMWRITE to any supported field        vmx-vmwrite-vmexit-fields
  30     yes        injection with instruction length 0   vmx-zero-len-inject
  32-63  0x0        MSEG revision
)");
    CHECK(text(capability_layouts.back(), 16) ==
          R"(CPUID.8000000AH:EBX 0x00000010 (AMD APM Vol. 3 appendix E.4.9)
  0-31   16         number of ASIDs
)");
}

TEST_CASE("a control register's fixed bits, and bits that nobody knows, as text") {
    const auto fixed0 = text(*find_capability(0x486), 0x8000'0021);
    CHECK(fixed0.contains("  5      must be 1  NE\n"));
    CHECK(fixed0.contains("  16     0 or 1     WP\n"));
    const auto fixed1 = text(*find_capability(0x489), 0x3727ff);
    CHECK(fixed1.contains("  13     0 or 1     VMXE\n"));
    CHECK(fixed1.contains("  12     must be 0  LA57\n"));
    CHECK(text(*find_capability(0x491), 0x8000'0000'0000'0001)
              .contains("  undefined bits that may be 1: 0x8000000000000000\n"));
    CHECK(text(*find_capability(0x48c), 0x8000'0000'0000'0000)
              .contains("  undefined bits: 0x8000000000000000\n"));
    const auto ept = text(*find_capability(0x48c), 0x0000'0f01'0633'4141);
    CHECK(ept.contains("  14     yes        WB EPT paging structures              libvirt: vmx-ept-wb\n"));
    CHECK(ept.contains("vmx-invept-single-context, libvirt: vmx-invvpid-single-context\n"));
}

TEST_CASE("no bit that processors have is unknown") {
    struct Value {
        std::uint32_t msr;
        std::uint64_t value;
    };
    for (const auto& [msr, value] : std::to_array<Value>({{0x3a, 0x5},
                                                          {0x480, 0x00da'0400'0000'0004},
                                                          {0x482, 0xfff9'fffe'0401'e172},
                                                          {0x485, 0x7004'c1e7},
                                                          {0x486, 0x8000'0021},
                                                          {0x488, 0x2000},
                                                          {0x489, 0x37'27ff},
                                                          {0x48a, 0x2e},
                                                          {0x48c, 0x0000'0f01'0673'4141},
                                                          {0x48d, 0x0000'007f'0000'0016},
                                                          {0x48e, 0xfff9'fffe'0400'6172},
                                                          {0x48f, 0x01ff'ffff'0003'6dfb},
                                                          {0x490, 0x0003'ffff'0000'11fb},
                                                          {0x491, 0x1}})) {
        CAPTURE(msr);
        CHECK_FALSE(text(*find_capability(msr), value).contains("undefined"));
    }
}

} // namespace
