// SPDX-License-Identifier: MIT
//
// What one host can do and the other cannot, and whether a state needs it.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::AllowedSetting;
using kvm::nested::capability_difference;
using kvm::nested::CapabilityDifference;
using kvm::nested::find_feature;
using kvm::nested::Holder;
using kvm::nested::Usage;
using kvm::nested::used_by;
using unit::Bytes;
namespace vmx = kvm::nested::vmx;
namespace svm = kvm::nested::svm;

template <class Capabilities>
std::vector<CapabilityDifference> differences(const Capabilities& a, const Capabilities& b) {
    std::vector<CapabilityDifference> result;
    const auto count = capability_difference(
        a, b, [&](const CapabilityDifference& what) noexcept { result.push_back(what); });
    CHECK(count == result.size());
    return result;
}

template <class Capabilities>
std::string text(const Capabilities& a, const Capabilities& b) {
    std::string result;
    capability_difference(a, b, [&](std::string_view piece) noexcept { result += piece; },
                          {.a = "source", .b = "here"});
    return result;
}

/// One capability MSR.
vmx::Capabilities with(std::uint32_t msr, std::uint64_t value) {
    vmx::Capabilities result;
    result.set(msr, value);
    return result;
}

/// The one difference of two values of an MSR.
CapabilityDifference difference(std::uint32_t msr, std::uint64_t a, std::uint64_t b) {
    const auto all = differences(with(msr, a), with(msr, b));
    REQUIRE(all.size() == 1);
    return all[0];
}

/// What KVM gives a vCPU by default on a Skylake, but for what a Haswell lacks.
vmx::Capabilities skylake() {
    vmx::Capabilities result;
    result.set(0x480, 0x00da'0400'11e5'7ed0);
    result.set(0x481, 0x0000'007f'0000'0016);
    result.set(0x485, 0x0000'0000'2000'01e5);
    result.set(0x48b, 0x0011'38ee'0000'0000);
    result.set(0x48c, 0x0000'0f01'0633'4141);
    result.set(0x48d, 0x0000'007f'0000'0016);
    result.set(0x48f, 0x00ff'ffff'0003'6dfb);
    return result;
}

// --- differences

TEST_CASE("one host and itself, or a host and nobody, differ in nothing") {
    CHECK(differences(skylake(), skylake()).empty());
    CHECK(differences(skylake(), vmx::Capabilities{}).empty());
    CHECK(text(vmx::Capabilities{}, vmx::Capabilities{}).empty());
    CHECK(differences(svm::Capabilities{1, 8}, svm::Capabilities{}).empty());
}

TEST_CASE("a control that may be 1 on one side alone") {
    const auto what = difference(0x48b, 0x0000'2002'0000'0000, 0x0000'0002'0000'0000);
    CHECK(what.layout->name == "IA32_VMX_PROCBASED_CTLS2");
    CHECK(what.bits.name == "enable VM functions");
    CHECK(what.bits.first == 13);
    CHECK(what.setting == AllowedSetting::may_be_1);
    CHECK(what.holder == Holder::a);
    CHECK(what.a == 1);
    CHECK(what.b == 0);
    REQUIRE(what.feature != nullptr);
    CHECK(what.feature->qemu == "vmx-vmfunc");
    CHECK(difference(0x48b, 0, 0x0000'2000'0000'0000).holder == Holder::b);
}

TEST_CASE("a control that may be 0 on one side alone is that side's") {
    const auto what = difference(0x48f, 0x00ff'ffff'0003'6dff, 0x00ff'ffff'0003'6dfb);
    CHECK(what.setting == AllowedSetting::must_be_1);
    CHECK(what.holder == Holder::b);
    CHECK(what.a == 1);
    CHECK(what.feature->qemu == "vmx-exit-nosave-debugctl");
    CHECK(difference(0x486, 0x21, 0x1).holder == Holder::b); // CR0.NE may be 0 there
    CHECK(difference(0x487, 0x21, 0x1).holder == Holder::a); // and be 1 here
    CHECK(difference(0x487, 0x21, 0x1).bits.name == "NE");
}

TEST_CASE("numbers are compared as numbers") {
    auto what = difference(0x485, 4 << 16, 0);
    CHECK(what.bits.name == "CR3-target count");
    CHECK(what.holder == Holder::a);
    CHECK(what.a == 4);
    CHECK(what.b == 0);
    what = difference(0x485, 5, 7);
    CHECK(what.bits.name == "VMX-preemption timer rate");
    CHECK(what.holder == Holder::neither);
    CHECK(difference(0x485, 0, 7 << 25).holder == Holder::b);
    CHECK(difference(0x485, 1ull << 32, 2ull << 32).holder == Holder::neither);
    CHECK(difference(0x480, 0x11e5'7ed0, 0x4).holder == Holder::neither);
    CHECK(difference(0x480, 0x400ull << 32, 0x1000ull << 32).holder == Holder::neither);
    CHECK(difference(0x48a, 0x2e, 0x34).holder == Holder::b);
}

TEST_CASE("bits without a name are told by their number") {
    const auto what = difference(0x48c, std::uint64_t{1} << 63, 0);
    CHECK(what.bits.name.empty());
    CHECK(what.bits.first == 63);
    CHECK(what.bits.last == 63);
    CHECK(what.feature == nullptr);
    CHECK(difference(0x491, 0, std::uint64_t{1} << 62).bits.first == 62);
}

TEST_CASE("what the TRUE MSR says is not said twice") {
    auto a = skylake(), b = skylake();
    a.set(0x481, 0x0000'00ff'0000'0016);
    CHECK(differences(a, b).empty());
    b.forget(0x48d);
    CHECK(differences(a, b).size() == 1);
}

TEST_CASE("two hosts, as text") {
    auto haswell = skylake();
    haswell.set(0x48b, 0x0000'00ee'0000'0000);
    haswell.set(0x48c, 0x0000'0f01'0613'4140);
    haswell.set(0x48f, 0x007f'ffff'0003'6dfb);
    haswell.set(0x485, 0x0000'0000'2004'01e7);
    haswell.forget(0x480);
    CHECK(text(skylake(), haswell) ==
          R"(source and here  0x485  VMX-preemption timer rate 5 and 7
source and here  0x485  CR3-target count 0 and 4
source only  0x48b  RDRAND exiting may be 1  vmx-rdrand-exit
source only  0x48b  enable INVPCID may be 1  vmx-invpcid-exit
source only  0x48b  enable VM functions may be 1  vmx-vmfunc
source only  0x48b  RDSEED exiting may be 1  vmx-rdseed-exit
source only  0x48b  enable XSAVES/XRSTORS may be 1  vmx-xsaves
source only  0x48c  execute-only translations  vmx-ept-execonly
source only  0x48c  accessed and dirty flags for EPT  vmx-eptad
source only  0x48f  clear IA32_BNDCFGS may be 1  vmx-exit-clear-bndcfgs
not compared, since known of one alone: IA32_VMX_BASIC
)");
}

TEST_CASE("SVM's features and ASIDs") {
    const svm::Capabilities milan{0x1003'bcff, 0x8000}, guest{0x1000'0001, 16};
    const auto all = differences(milan, guest);
    CHECK(all.size() == 15);
    CHECK(all[0].feature->qemu == "lbrv");
    CHECK(all[0].holder == Holder::a);
    CHECK(all.back().bits.name == "number of ASIDs");
    CHECK(all.back().feature == nullptr);
    CHECK(all.back().holder == Holder::a);
    CHECK(text(svm::Capabilities{1, 16}, svm::Capabilities{0, 8})
          == "source only  CPUID.8000000AH:EDX  nested paging  npt\n"
             "source and here  CPUID.8000000AH:EBX  number of ASIDs 16 and 8\n");
    CHECK(text(svm::Capabilities{1, 16}, svm::Capabilities{{}, 16})
          == "not compared, since known of one alone: CPUID.8000000AH:EDX\n");
}

// --- what a state uses

Usage used(std::string_view feature, const Bytes& state) {
    CAPTURE(feature);
    REQUIRE(find_feature(feature) != nullptr);
    return used_by(*find_feature(feature), state);
}

/// L2 active with these fields.
Bytes vmx_with(std::initializer_list<unit::Entry> entries) {
    return unit::with_fields(unit::VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224},
                             entries);
}
Bytes svm_with(std::initializer_list<unit::Entry> entries) {
    return unit::with_fields(unit::SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224}, entries);
}

constexpr std::uint64_t secondary_active = 1ull << 31;

TEST_CASE("a vmcs12 uses the controls that are set in it") {
    const auto state = unit::vmx_l2();
    CHECK(used("vmx-vnmi", state) == Usage::uses);
    CHECK(used("vmx-preemption-timer", state) == Usage::does_not_use);
    CHECK(used("vmx-secondary-ctls", state) == Usage::uses);
    CHECK(used("vmx-ept", state) == Usage::uses);
    CHECK(used("vmx-vmfunc", state) == Usage::does_not_use);
    CHECK(used("vmx-exit-save-efer", state) == Usage::uses);
    CHECK(used("vmx-exit-load-pkrs", state) == Usage::does_not_use);
    CHECK(used("vmx-entry-load-efer", state) == Usage::uses);
    CHECK(used("vmx-entry-load-bndcfgs", state) == Usage::does_not_use);
}

TEST_CASE("of a default1 control a vmcs12 uses that it may be 0") {
    CHECK(used("vmx-exit-nosave-debugctl", unit::vmx_l2()) == Usage::does_not_use);
    CHECK(used("vmx-exit-nosave-debugctl", vmx_with({{"vm_exit_controls", 0x36dfb}})) == Usage::uses);
    CHECK(used("vmx-cr3-load-noexit", vmx_with({{"cpu_based_vm_exec_control", 0x0401'6172}})) == Usage::uses);
    CHECK(used("vmx-cr3-load-noexit", vmx_with({{"cpu_based_vm_exec_control", 0x0401'e172}}))
          == Usage::does_not_use);
    const auto all_ones = vmx_with({{"pin_based_vm_exec_control", 0x16},
                                    {"cpu_based_vm_exec_control", 0x0401'e172},
                                    {"vm_exit_controls", 0x36dff},
                                    {"vm_entry_controls", 0x11ff}});
    CHECK(used("vmx-true-ctls", all_ones) == Usage::does_not_use);
    CHECK(used("vmx-true-ctls", vmx_with({{"vm_exit_controls", 0x36dff}})) == Usage::uses);
}

TEST_CASE("secondary controls count only where the primary ones activate them") {
    CHECK(used("vmx-ept", vmx_with({{"secondary_vm_exec_control", 2}})) == Usage::does_not_use);
    CHECK(used("vmx-ept",
               vmx_with({{"cpu_based_vm_exec_control", secondary_active}, {"secondary_vm_exec_control", 2}}))
          == Usage::uses);
}

TEST_CASE("what the EPT pointer needs") {
    const auto with_pointer = [](std::uint64_t pointer) {
        return vmx_with({{"cpu_based_vm_exec_control", secondary_active},
                         {"secondary_vm_exec_control", 2},
                         {"ept_pointer", pointer}});
    };
    CHECK(used("vmx-page-walk-4", with_pointer(0x905e)) == Usage::uses);
    CHECK(used("vmx-page-walk-5", with_pointer(0x905e)) == Usage::does_not_use);
    CHECK(used("vmx-page-walk-5", with_pointer(0x9066)) == Usage::uses);
    CHECK(used("vmx-ept-wb", with_pointer(0x905e)) == Usage::uses);
    CHECK(used("vmx-ept-uc", with_pointer(0x9058)) == Usage::uses);
    CHECK(used("vmx-eptad", with_pointer(0x905e)) == Usage::uses);
    CHECK(used("vmx-eptad", with_pointer(0x901e)) == Usage::does_not_use);
    CHECK(used("vmx-ept-execonly", with_pointer(0x905e)) == Usage::not_known); // in L1's tables
    CHECK(used("vmx-ept-execonly", vmx_with({})) == Usage::does_not_use);
    CHECK(used("vmx-invvpid", with_pointer(0x905e)) == Usage::does_not_use);
    CHECK(used("vmx-invvpid", unit::vmx_l2()) == Usage::not_known);
    const auto shadow_stacks = difference(0x48c, 1 << 23, 0);
    CHECK(used_by(shadow_stacks, with_pointer(0x90de)) == Usage::uses);
    CHECK(used_by(difference(0x48c, 1ull << 48, 0), with_pointer(0x905e)) == Usage::does_not_use);
}

TEST_CASE("VM functions, tertiary and secondary exit controls") {
    CHECK(used("vmx-eptp-switching", vmx_with({{"cpu_based_vm_exec_control", secondary_active},
                                               {"secondary_vm_exec_control", 1 << 13},
                                               {"vm_function_control", 1}}))
          == Usage::uses);
    CHECK(used("vmx-eptp-switching", vmx_with({{"vm_function_control", 1}})) == Usage::does_not_use);
    CHECK(used_by(difference(0x492, 1 << 4, 0), vmx_with({})) == Usage::does_not_use);
    CHECK(used_by(difference(0x492, 1 << 4, 0), vmx_with({{"cpu_based_vm_exec_control", 1 << 17}}))
          == Usage::not_known);
    CHECK(used_by(difference(0x493, 1, 0), vmx_with({})) == Usage::does_not_use);
    CHECK(used_by(difference(0x493, 1, 0), vmx_with({{"vm_exit_controls", 1ull << 31}})) == Usage::not_known);
}

TEST_CASE("numbers are used beyond what the lesser side has") {
    const auto targets = difference(0x485, 4 << 16, 1 << 16);
    CHECK(used_by(targets, vmx_with({{"cr3_target_count", 1}})) == Usage::does_not_use);
    CHECK(used_by(targets, vmx_with({{"cr3_target_count", 2}})) == Usage::uses);
    const auto lists = difference(0x485, 0, 1 << 25);
    CHECK(used_by(lists, vmx_with({{"vm_exit_msr_store_count", 512}})) == Usage::does_not_use);
    for (const std::string_view count :
         {"vm_exit_msr_store_count", "vm_exit_msr_load_count", "vm_entry_msr_load_count"})
        CHECK(used_by(lists, vmx_with({{count, 513}})) == Usage::uses);
    const auto rate = difference(0x485, 5, 7);
    CHECK(used_by(rate, vmx_with({})) == Usage::does_not_use);
    CHECK(used_by(rate, vmx_with({{"pin_based_vm_exec_control", 1 << 6}})) == Usage::uses);
    CHECK(used_by(difference(0x480, 1, 2), vmx_with({})) == Usage::uses); // the revision
    CHECK(used_by(difference(0x48a, 0x2e, 0x34), vmx_with({})) == Usage::not_known);
}

TEST_CASE("activity states and injected events") {
    CHECK(used("vmx-activity-hlt", vmx_with({{"guest_activity_state", 1}})) == Usage::uses);
    CHECK(used("vmx-activity-hlt", vmx_with({})) == Usage::does_not_use);
    CHECK(used("vmx-activity-shutdown", vmx_with({{"guest_activity_state", 2}})) == Usage::uses);
    CHECK(used("vmx-activity-wait-sipi", vmx_with({{"guest_activity_state", 3}})) == Usage::uses);

    CHECK(used("vmx-zero-len-inject", vmx_with({{"vm_entry_intr_info_field", 0x8000'0480}})) == Usage::uses);
    CHECK(used("vmx-zero-len-inject",
               vmx_with({{"vm_entry_intr_info_field", 0x8000'0480}, {"vm_entry_instruction_len", 2}}))
          == Usage::does_not_use);
    CHECK(used("vmx-zero-len-inject", vmx_with({{"vm_entry_intr_info_field", 0x480}}))
          == Usage::does_not_use);

    CHECK(used("vmx-any-errcode", unit::vmx_l2()) == Usage::does_not_use); // #PF with its error code
    CHECK(used("vmx-any-errcode", vmx_with({{"vm_entry_intr_info_field", 0x8000'030e}})) == Usage::uses);
    CHECK(used("vmx-any-errcode", vmx_with({{"vm_entry_intr_info_field", 0x8000'0b06}})) == Usage::uses);
    CHECK(used("vmx-any-errcode", vmx_with({})) == Usage::does_not_use);

    CHECK(used("vmx-store-lma", unit::vmx_l2()) == Usage::not_known); // an unrestricted guest
    CHECK(used("vmx-store-lma", vmx_with({})) == Usage::does_not_use);
    CHECK(used("vmx-vmwrite-vmexit-fields", vmx_with({})) == Usage::not_known);
}

TEST_CASE("fixed bits of control registers, L2's and L1's") {
    const auto ne_may_be_0 = difference(0x486, 0x21, 0x01), pe_may_be_0 = difference(0x486, 0x21, 0x20);
    const auto la57 = difference(0x489, 1 << 12, 0);
    CHECK(used_by(ne_may_be_0, unit::vmx_l2()) == Usage::does_not_use);
    CHECK(used_by(ne_may_be_0, vmx_with({{"guest_cr0", 0x8000'0011}, {"host_cr0", 0x8000'0031}}))
          == Usage::uses);
    CHECK(used_by(la57, unit::vmx_l2()) == Usage::does_not_use);
    CHECK(used_by(la57, vmx_with({{"host_cr4", 0x1000}})) == Usage::uses);
    // An unrestricted guest in real mode needs no MSR to say so.
    CHECK(used_by(pe_may_be_0, vmx_with({{"cpu_based_vm_exec_control", secondary_active},
                                         {"secondary_vm_exec_control", 0x82},
                                         {"guest_cr0", 0x30},
                                         {"host_cr0", 0x31}}))
          == Usage::does_not_use);
    CHECK(used_by(pe_may_be_0, vmx_with({{"guest_cr0", 0x30}, {"host_cr0", 0x31}})) == Usage::uses);
}

TEST_CASE("while L1 runs, what its VMCS does not use is not known") {
    auto state = vmx_with({{"pin_based_vm_exec_control", 1 << 5}});
    unit::put(state, 0, std::uint16_t{0});
    CHECK(used("vmx-vnmi", state) == Usage::uses);
    CHECK(used("vmx-posted-intr", state) == Usage::not_known);
    CHECK(used("vmx-vnmi", unit::VmxBlob{.vmxon_pa = 0x1000}) == Usage::not_known);
    CHECK(used("vmx-vnmi", unit::VmxBlob{}) == Usage::does_not_use); // no VMX operation
    CHECK(used("npt", unit::SvmBlob{}) == Usage::not_known);

    auto in_smm = unit::with_fields(
        unit::VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .smm_flags = 3, .size = 4224},
        {{"pin_based_vm_exec_control", 1 << 5}});
    CHECK(used("vmx-vnmi", in_smm) == Usage::uses);
    CHECK(used("vmx-posted-intr", in_smm) == Usage::does_not_use); // RSM returns to this L2
}

TEST_CASE("the other vendor's capabilities are not used, and of no state is nothing known") {
    CHECK(used("npt", unit::vmx_l2()) == Usage::does_not_use);
    CHECK(used("vmx-ept", unit::svm_l2()) == Usage::does_not_use);
    CHECK(used("vmx-ept", Bytes{}) == Usage::not_known);
    CHECK(used("vmx-ept", Bytes(127)) == Usage::not_known);
    CHECK(used("vmx-ept", unit::VmxBlob{.vmcs12_pa = 0x2000}) == Usage::not_known); // KVM refuses it
}

TEST_CASE("a VMCB uses what its controls enable") {
    const auto state = unit::svm_l2();
    CHECK(used("npt", state) == Usage::uses);
    for (const std::string_view feature :
         {"lbrv", "vgif", "vnmi", "avic", "v-vmsave-vmload", "pause-filter", "pfthreshold", "flushbyasid"}) {
        CAPTURE(feature);
        CHECK(used(feature, state) == Usage::does_not_use);
    }
    for (const std::string_view feature :
         {"tsc-scale", "nrip-save", "decodeassists", "svm-lock", "vmcb-clean", "svme-addr-chk"})
        CHECK(used(feature, state) == Usage::not_known);

    CHECK(used("lbrv", svm_with({{"misc_ctl2", 1}})) == Usage::uses);
    CHECK(used("v-vmsave-vmload", svm_with({{"misc_ctl2", 2}})) == Usage::uses);
    CHECK(used("vgif", svm_with({{"int_ctl", 1 << 25}})) == Usage::uses);
    CHECK(used("vnmi", svm_with({{"int_ctl", 1 << 26}})) == Usage::uses);
    CHECK(used("avic", svm_with({{"int_ctl", 1ull << 31}})) == Usage::uses);
    CHECK(used("flushbyasid", svm_with({{"tlb_ctl", 3}})) == Usage::uses);
    CHECK(used("flushbyasid", svm_with({{"tlb_ctl", 1}})) == Usage::does_not_use);
    CHECK(used("pause-filter", svm_with({{"intercepts[3]", 1 << 23}, {"pause_filter_count", 1}}))
          == Usage::uses);
    CHECK(used("pause-filter", svm_with({{"pause_filter_count", 1}})) == Usage::does_not_use);

    const auto asids = differences(svm::Capabilities{{}, 64}, svm::Capabilities{{}, 16});
    REQUIRE(asids.size() == 1);
    CHECK(used_by(asids[0], svm_with({{"asid", 15}})) == Usage::does_not_use);
    CHECK(used_by(asids[0], svm_with({{"asid", 16}})) == Usage::uses);
}

TEST_CASE("every difference has an answer for every state") {
    vmx::Capabilities none, all;
    for (std::uint32_t msr = 0x480; msr <= 0x493; ++msr) {
        none.set(msr, 0);
        all.set(msr, ~std::uint64_t{0});
    }
    auto some = differences(none, all);
    const auto of_svm = differences(svm::Capabilities{0, 0}, svm::Capabilities{~0u, ~0u});
    some.insert(some.end(), of_svm.begin(), of_svm.end());
    CHECK(some.size() > 500);
    for (const auto& sample : unit::samples())
        for (const auto& what : some) {
            const auto answer = used_by(what, sample.bytes);
            CHECK_FALSE(name(answer).empty());
            if (what.layout->vendor != sample.vendor)
                CHECK(answer == Usage::does_not_use);
        }
}

} // namespace
