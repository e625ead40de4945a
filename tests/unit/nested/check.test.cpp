// SPDX-License-Identifier: MIT
//
// check() and explain(): what they say of states that the kernel has judged (tests/lab/rules asks it), and
// what they say where something is not known.
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::Certainty;
using kvm::nested::check;
using kvm::nested::Destination;
using kvm::nested::Feature;
using kvm::nested::Known;
using kvm::nested::VendorId;
using unit::Bytes;
using unit::none;

/// All that there is to know of a vCPU of Linux 6.12 with 40 address bits.
Destination destination(VendorId vendor) {
    Destination to{.vendor = vendor,
                   .kernel = kvm::nested::KernelVersion{6, 12, 118},
                   .nested = true,
                   .maxphyaddr = std::uint8_t{40},
                   .smm = false,
                   .efer = 0x1d01,
                   .cr0 = 0x8000'0011,
                   .cr3 = 0x1000,
                   .cr4 = 0x20,
                   .enlightened_vmcs = false,
                   .disabled_quirks = 0,
                   .nested_paging = true,
                   .perf_global_ctrl = 0};
    for (std::size_t i = 0; i < kvm::nested::feature_count; ++i) {
        const auto feature = static_cast<Feature>(i);
        const bool there = feature != Feature::hyperv && feature != Feature::la57;
        to.guest.set(feature, there);
        to.host.set(feature, there);
    }
    to.vmx.set(0x480, 0x00da'0400'11e5'7ed0);
    to.vmx.set(0x485, 0x6000'0025);
    to.vmx.set(0x486, 0x8000'0021);
    to.vmx.set(0x487, 0xffff'ffff);
    to.vmx.set(0x488, 0x2000);
    to.vmx.set(0x489, 0x0037'27ff);
    to.vmx.set(0x48b, 0x0157'1aff'0000'0000);
    to.vmx.set(0x48c, 0x0f01'0633'4141);
    to.vmx.set(0x48d, 0x0000'007f'0000'0016);
    to.vmx.set(0x48e, 0xfff9'fffe'0400'6172);
    to.vmx.set(0x48f, 0x00ff'ffff'0003'6dfb);
    to.vmx.set(0x490, 0x0000'ffff'0000'11fb);
    to.vmx.set(0x491, 1);
    return to;
}

/// An L2 that breaks no rule there.
Bytes vmx_l2() {
    Bytes state(4224);
    unit::put(state, 0, std::uint16_t{1});
    unit::put(state, 4, std::uint32_t{4224});
    unit::put(state, 8, std::uint64_t{0x1000});
    unit::put(state, 16, std::uint64_t{0x2000});
    const auto field = [&](std::string_view name, std::uint64_t value) {
        const auto* found = kvm::nested::find_vmcs12_field(name);
        REQUIRE(found != nullptr);
        for (std::size_t i = 0; i < found->size; ++i)
            state[128 + found->offset + i] = static_cast<std::byte>(value >> 8 * i);
    };
    field("hdr", 0x11e5'7ed0);
    field("pin_based_vm_exec_control", 0x16);
    field("cpu_based_vm_exec_control", 0x8400'6172);
    field("secondary_vm_exec_control", 0x2);
    field("vm_exit_controls", 0x0003'6ffb);
    field("vm_entry_controls", 0x13fb);
    field("ept_pointer", 0x2'001e);
    field("vmcs_link_pointer", none);
    for (const auto* name : {"host_cr0", "guest_cr0"})
        field(name, 0x8000'0031);
    for (const auto* name : {"host_cr4", "guest_cr4"})
        field(name, 0x2020);
    for (const auto* name : {"host_cs_selector", "host_tr_selector"})
        field(name, 8);
    return state;
}

Bytes with(Bytes state, std::string_view name, std::uint64_t value) {
    const auto* field = state[2] == std::byte{0} ? kvm::nested::find_vmcs12_field(name)
                                                 : kvm::nested::find_vmcb12_field(name);
    REQUIRE(field != nullptr);
    for (std::size_t i = 0; i < field->size; ++i)
        state[128 + field->offset + i] = static_cast<std::byte>(value >> 8 * i);
    return state;
}

Bytes svm_l2() {
    Bytes state(4224);
    unit::put(state, 0, std::uint16_t{0x101});
    unit::put(state, 2, std::uint16_t{1});
    unit::put(state, 4, std::uint32_t{4224});
    unit::put(state, 8, std::uint64_t{0x3000});
    state = with(state, "intercepts[4]", 1);
    state = with(state, "asid", 1);
    state = with(state, "efer", 0x1500);
    state = with(state, "cr0", 0x8000'0011);
    return with(state, "cr4", 0x20);
}

/// Ids of what is found, separated by blanks; those that may fail with a question mark.
std::string found(std::span<const std::byte> state, const Destination& to) {
    std::string text;
    for (const auto& finding : check(state, to)) {
        text += text.empty() ? "" : " ";
        text += finding.rule->id;
        if (finding.certainty != Certainty::fails)
            text += finding.certainty == Certainty::may_fail ? "?" : "~";
    }
    return text;
}

constexpr std::uint64_t beyond = std::uint64_t{1} << 40;

} // namespace

TEST_CASE("a state that breaks no rule is found to break none") {
    CHECK(found(vmx_l2(), destination(VendorId::vmx)).empty());
    CHECK(found(svm_l2(), destination(VendorId::svm)).empty());
    CHECK(!check(vmx_l2(), destination(VendorId::vmx)).verdict());
}

TEST_CASE("one wrong field is one finding, with the field and its value") {
    const auto findings = check(with(vmx_l2(), "guest_activity_state", 2), destination(VendorId::vmx));
    REQUIRE(findings.size() == 1);
    CHECK(findings[0].rule->id == "G13");
    CHECK(findings[0].certainty == Certainty::fails);
    CHECK(findings[0].offset == 128 + 916);
    CHECK(findings[0].value == 2);
    CHECK(findings[0].bits == 0);
}

TEST_CASE("a control that the destination lacks is told by its name") {
    auto to = destination(VendorId::vmx);
    to.vmx.set(0x48b, 0x0000'00ff'0000'0000);
    const auto findings = check(with(vmx_l2(), "secondary_vm_exec_control", 0x0040'0002), to);
    REQUIRE(findings.size() == 1);
    CHECK(findings[0].bits == 0x0040'0000);
    CHECK(findings[0].message().view().find("mode-based execute control for EPT is set")
          != std::string_view::npos);
}

TEST_CASE("addresses are legal up to MAXPHYADDR, and not beyond") {
    const auto to = destination(VendorId::vmx);
    const auto with_bitmap = [&](std::uint64_t address) {
        return found(with(with(vmx_l2(), "cpu_based_vm_exec_control", 0x9400'6172), "msr_bitmap", address),
                     to);
    };
    CHECK(with_bitmap(beyond - 4096).empty());
    CHECK(with_bitmap(beyond) == "C6");
    CHECK(with_bitmap(0x1008) == "C6");
    auto absurd = to;
    absurd.maxphyaddr = std::uint8_t{255}; // a record may say anything; no processor has more than 52
    const auto at = [&](std::uint64_t address) {
        return found(with(with(vmx_l2(), "cpu_based_vm_exec_control", 0x9400'6172), "msr_bitmap", address),
                     absurd);
    };
    CHECK(at(beyond).empty());
    CHECK(at(std::uint64_t{1} << 52) == "C6");
    const auto svm = destination(VendorId::svm);
    CHECK(found(with(svm_l2(), "msrpm_base_pa", beyond - 8192), svm).empty());
    CHECK(found(with(svm_l2(), "msrpm_base_pa", beyond - 4096), svm) == "S13");
    CHECK(found(with(svm_l2(), "iopm_base_pa", beyond - 12288), svm).empty());
    CHECK(found(with(svm_l2(), "iopm_base_pa", beyond - 8192), svm) == "S13");
}

TEST_CASE("what is not known makes a rule that may fail, and only where it decides") {
    auto to = destination(VendorId::svm);
    to.maxphyaddr.reset();
    CHECK(found(svm_l2(), to).empty()); // addresses below 4 GB are legal on every processor
    CHECK(found(with(svm_l2(), "msrpm_base_pa", beyond), to) == "S13?");
    CHECK(found(with(svm_l2(), "msrpm_base_pa", std::uint64_t{1} << 52), to) == "S13");
    to = {};
    for (const auto& finding : check(svm_l2(), to)) {
        CAPTURE(finding.rule->id);
        CHECK(finding.certainty == Certainty::may_fail);
        CHECK(finding.message().view().find("is not known") != std::string_view::npos);
    }
    CHECK(check(svm_l2(), to).verdict() == Certainty::may_fail);
}

TEST_CASE("a rule of some kernels is asked there alone, and may fail on one that nobody has seen") {
    const auto state = with(svm_l2(), "efer", 0x1400); // LMA without LME
    const auto on = [&](std::string_view release) {
        auto to = destination(VendorId::svm);
        to.kernel = kvm::nested::kernel_version(release);
        return found(state, to);
    };
    CHECK(on("6.1.192").empty());
    CHECK(on("6.12.107-cloud-amd64").empty());
    CHECK(on("6.12.118+deb13-amd64") == "S19");
    CHECK(on("7.2.12").empty());
    CHECK(on("7.3.4+deb14-amd64") == "S19");
    CHECK(on("8.0") == "S19");
    CHECK(on("6.12.110") == "S19?");
    CHECK(on("7.2.20") == "S19?");
    CHECK(on("something else") == "S19?");
}

TEST_CASE("the kernel's order is kept, and first_refusal() is where it stops") {
    auto state = with(with(svm_l2(), "asid", 0), "intercepts[4]", 0);
    unit::put(state, 8, std::uint64_t{0x3001});
    CHECK(found(state, destination(VendorId::svm)) == "S6 S9 S10");
    const auto first = kvm::nested::first_refusal(state, destination(VendorId::svm));
    REQUIRE(first);
    CHECK(first->rule->id == "S6");
}

TEST_CASE("bytes that are no state are judged as the kernel would, and nothing behind them is read") {
    const auto to = destination(VendorId::vmx);
    CHECK(found({}, to) == "X2?");
    CHECK(found(Bytes(127), to) == "X2?");
    auto state = vmx_l2();
    unit::put(state, 4, std::uint32_t{127});
    CHECK(found(state, to) == "X3");
    unit::put(state, 4, std::uint32_t{5000});
    CHECK(found(state, to) == "P1~"); // taken, and reported with 4224
    unit::put(state, 4, std::uint32_t{4224});
    for (std::size_t size = 128; size < state.size(); size += 61)
        CHECK(!check(Bytes(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(size)), to)
                   .verdict()
                   .has_value()
              == (size >= 128 + 998));
    CHECK(found(svm_l2(), to) == "V1");
    CHECK(found(vmx_l2(), destination(VendorId::svm)) == "S1");
}

TEST_CASE("what KVM takes and does not use is found, and changes no verdict") {
    auto to = destination(VendorId::svm);
    const auto found_silent = [&](const Bytes& state) {
        CHECK(!check(state, to).verdict());
        CHECK(!kvm::nested::first_refusal(state, to));
        return found(state, to);
    };
    to.svm.features = 1; // nested paging alone
    CHECK(found_silent(with(svm_l2(), "int_ctl", 1 << 25)) == "M9~");
    CHECK(found_silent(with(with(svm_l2(), "int_ctl", 1 << 26), "intercepts[3]", 2)) == "M10~");
    CHECK(found_silent(with(svm_l2(), "misc_ctl2", 1)) == "M11~");
    CHECK(found_silent(with(svm_l2(), "misc_ctl2", 2)) == "M12~");
    CHECK(found_silent(with(svm_l2(), "pause_filter_thresh", 1)) == "M13~");
    CHECK(found_silent(with(svm_l2(), "misc_ctl", 8)) == "M8~");
    to.svm.features = 0xffff'ffff;
    CHECK(found_silent(with(svm_l2(), "int_ctl", 1 << 25)).empty());
    CHECK(found_silent(with(svm_l2(), "misc_ctl2", 3)).empty());
    auto with_pat = with(svm_l2(), "misc_ctl", 1);
    unit::put(with_pat, 16, std::uint64_t{0x0007'0406'0007'0406});
    CHECK(found_silent(with_pat) == "M16~");
    to.kernel = kvm::nested::KernelVersion{7, 3, 4};
    CHECK(found_silent(with_pat) == "M16~");
    to.disabled_quirks = kvm::nested::quirk::nested_svm_shared_pat;
    CHECK(found_silent(with_pat).empty());
    CHECK(found_silent(with(svm_l2(), "misc_ctl", 1)) == "M17~");
    CHECK(found_silent(with(svm_l2(), "intercepts[4]", 1 | 1 << 14)).empty());
    to.guest.set(Feature::rdpru, false);
    to.guest.set(Feature::npt, false);
    CHECK(found_silent(with(svm_l2(), "intercepts[4]", 1 | 1 << 14)) == "M15~");
    CHECK(found_silent(with(svm_l2(), "misc_ctl", 1)) == "M7~");
    auto without_l2 = svm_l2();
    unit::put(without_l2, 0, std::uint16_t{0x100});
    CHECK(found_silent(without_l2) == "M18~");

    // Where nobody knows it is no news.
    to.svm.features.reset();
    CHECK(found_silent(with(svm_l2(), "int_ctl", 1 << 25)).empty());

    to = destination(VendorId::vmx);
    auto state = vmx_l2();
    unit::put(state, 0, std::uint16_t{0x101});
    CHECK(found_silent(state) == "M1~");
    unit::put(state, 0, std::uint16_t{8});
    CHECK(found_silent(state) == "M2~");
    to.enlightened_vmcs = true;
    unit::put(state, 0, std::uint16_t{4});
    CHECK(found_silent(state) == "M3~ M4~");
    state = vmx_l2();
    unit::put(state, 32, std::uint64_t{1});
    CHECK(found_silent(state) == "M6~");
    unit::put(state, 28, std::uint32_t{1});
    CHECK(found_silent(state).empty());
    state = vmx_l2();
    unit::put(state, 0, std::uint16_t{0});
    unit::put(state, 8, none);
    unit::put(state, 16, none);
    CHECK(found_silent(state) == "M5~");
}

TEST_CASE("explain() finds the rule that fits the answer") {
    const auto to = destination(VendorId::vmx);
    const kvm::nested::Error refused{.code = kvm::nested::Errc::refused,
                                     .operation = kvm::nested::Operation::set_nested_state,
                                     .raw_result = -1,
                                     .error_number = 22};
    auto explanation = kvm::nested::explain(with(vmx_l2(), "guest_activity_state", 2), to, refused);
    REQUIRE(explanation.rule);
    CHECK(explanation.rule->rule->id == "G13");
    CHECK(explanation.sure());
    CHECK(explanation.message().view().starts_with("KVM stopped at G13"));

    auto entry_failed = refused;
    entry_failed.raw_result = 2;
    entry_failed.error_number = 0;
    explanation = kvm::nested::explain(with(vmx_l2(), "guest_cr3", beyond), to, entry_failed);
    REQUIRE(explanation.rule);
    CHECK(explanation.rule->rule->id == "E1");

    explanation = kvm::nested::explain(vmx_l2(), to, refused);
    CHECK(!explanation.rule);
    CHECK(explanation.message().view().find("kvm_nested_vmenter_failed") != std::string_view::npos);

    auto without_smm = to;
    without_smm.smm.reset();
    explanation = kvm::nested::explain(vmx_l2(), without_smm, refused);
    REQUIRE(explanation.rule);
    CHECK(explanation.rule->rule->id == "V10");
    CHECK(!explanation.sure());
}

TEST_CASE("explain() names the first rule that it can have been, and the one that it was at the latest") {
    auto to = destination(VendorId::vmx);
    to.smm.reset();
    const kvm::nested::Error refused{.code = kvm::nested::Errc::refused,
                                     .operation = kvm::nested::Operation::set_nested_state,
                                     .raw_result = -1,
                                     .error_number = 22};
    const auto explanation = kvm::nested::explain(with(vmx_l2(), "guest_activity_state", 2), to, refused);
    REQUIRE(explanation.rule);
    REQUIRE(explanation.latest);
    CHECK(explanation.rule->rule->id == "V10");
    CHECK(explanation.latest->rule->id == "G13");
    CHECK(!explanation.sure());
    const auto text = explanation.message();
    CHECK(text.view().starts_with("KVM may have stopped at V10"));
    CHECK(text.view().find("; and at the latest at G13") != std::string_view::npos);
}

TEST_CASE("the catalogue has every rule once, in the kernel's order, each with a sentence") {
    for (const auto vendor : {VendorId::vmx, VendorId::svm}) {
        const auto rules = kvm::nested::rules(vendor);
        std::set<std::string_view> ids;
        for (const auto& rule : rules) {
            CAPTURE(rule.id);
            CHECK(ids.insert(rule.id).second);
            CHECK(!rule.holds.empty());
            REQUIRE(kvm::nested::find_rule(rule.id) != nullptr);
            CHECK(kvm::nested::find_rule(rule.id)->holds == rule.holds);
        }
        CHECK(rules.size() > 30);
    }
    CHECK(kvm::nested::find_rule("Z9") == nullptr);
}

TEST_CASE("checked_set() does not touch a vCPU that would surely refuse") {
    unit::FakeKvm kernel;
    kernel.vendor = VendorId::vmx;
    const kvm::nested::Vcpu vcpu{unit::host<kvm::nested::Vmx>(kernel), kvm::nested::VcpuFd{unit::vcpu_fd},
                                 kvm::nested::IoctlRef{kernel}};
    const auto bad =
        kvm::nested::NestedState<kvm::nested::Vmx>::parse(with(vmx_l2(), "guest_activity_state", 2));
    REQUIRE(bad);
    const auto to = destination(VendorId::vmx);
    const auto refused = kvm::nested::checked_set(vcpu, *bad, to);
    REQUIRE(!refused);
    CHECK(kernel.sets() == 0);
    CHECK(!refused.error().error);
    CHECK(refused.error().why.rule->rule->id == "G13");
    CHECK(refused.error().effect() == kvm::nested::Effect::unchanged);
    CHECK(refused.error().message().view().starts_with("not tried: KVM would stop at G13"));

    const auto good = kvm::nested::NestedState<kvm::nested::Vmx>::parse(vmx_l2());
    REQUIRE(good);
    CHECK(kvm::nested::checked_set(vcpu, *good, to).has_value());
    CHECK(kernel.sets() == 1);
}

TEST_CASE("a refusal that checked_set() did not foresee comes with the rule that may have been it") {
    unit::FakeKvm kernel;
    kernel.vendor = VendorId::vmx;
    kernel.set_result = kvm::nested::IoctlResult{-1, 22};
    const kvm::nested::Vcpu vcpu{unit::host<kvm::nested::Vmx>(kernel), kvm::nested::VcpuFd{unit::vcpu_fd},
                                 kvm::nested::IoctlRef{kernel}};
    const auto state = kvm::nested::NestedState<kvm::nested::Vmx>::parse(vmx_l2());
    REQUIRE(state);
    auto to = destination(VendorId::vmx);
    auto refused = kvm::nested::checked_set(vcpu, *state, to);
    REQUIRE(!refused);
    REQUIRE(refused.error().error);
    CHECK(!refused.error().why.rule);
    CHECK(refused.error().message().view().find("kvm_nested_vmenter_failed") != std::string_view::npos);

    to.smm.reset();
    refused = kvm::nested::checked_set(vcpu, *state, to);
    REQUIRE(!refused);
    REQUIRE(refused.error().why.rule);
    CHECK(refused.error().why.rule->rule->id == "V10");
    CHECK(!refused.error().why.sure());
}
