// SPDX-License-Identifier: MIT
//
// What an Error of this floor says.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <format>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <doctest/doctest.h>

import unit.vcpu.support;

namespace {

using kvm::nested::Effect;
using kvm::vcpu::Called;
using kvm::vcpu::Cause;
using kvm::vcpu::Detail;
using kvm::vcpu::Errc;
using kvm::vcpu::Error;
using kvm::vcpu::Operation;
using kvm::vcpu::Step;
namespace request = unit::request;
namespace cap = unit::cap;

constexpr int last_errc = static_cast<int>(Errc::file_not_synced);
constexpr int last_operation = static_cast<int>(Operation::file);
constexpr int last_detail = static_cast<int>(Detail::Kind::answer);

/// A failed ioctl in a step.
Error failed(Cause cause, Operation operation, Step step, unsigned long request, int error_number) {
    Error error{cause, operation};
    error.step = step;
    error.request = static_cast<std::uint32_t>(request);
    error.raw_result = -1;
    error.error_number = error_number;
    return error;
}

std::string text(const Error& error) {
    return std::string{error.message().view()};
}

TEST_CASE("every cause has a name, a sentence and a next step of its own") {
    std::set<std::string_view> names, sentences;
    for (int i = 1; i <= last_errc; ++i) {
        const auto code = static_cast<Errc>(i);
        CAPTURE(name(code));
        CHECK(name(code) != "?");
        CHECK(names.insert(name(code)).second);
        CHECK_FALSE(description(code).empty());
        CHECK(sentences.insert(description(code)).second);
        CHECK(next_step(code).empty() == (code == Errc::file_system)); // there the errno says it
        CHECK(name(Cause{code}) == name(code));
        CHECK(description(Cause{code}) == description(code));
    }
    for (const int unknown : {0, last_errc + 1, 255}) {
        CHECK(name(static_cast<Errc>(unknown)) == "?");
        CHECK(description(static_cast<Errc>(unknown)) == "no known cause");
        CHECK(next_step(static_cast<Errc>(unknown)).empty());
    }
}

TEST_CASE("every operation and every step has a name of its own") {
    std::set<std::string_view> names;
    for (int i = 1; i <= last_operation; ++i) {
        const auto operation = static_cast<Operation>(i);
        CHECK(name(operation) != "?");
        CHECK(names.insert(name(operation)).second);
        CHECK(name(Called{operation}) == name(operation));
    }
    for (const int unknown : {0, last_operation + 1, 255})
        CHECK(name(static_cast<Operation>(unknown)) == "?");
    names.clear();
    for (const auto& ordered : kvm::vcpu::restore_order) {
        CHECK_FALSE(name(ordered.step).empty());
        CHECK(names.insert(name(ordered.step)).second);
    }
    CHECK(name(static_cast<Step>(kvm::vcpu::restore_order.size())) == "?");
}

TEST_CASE("a cause or operation of either floor keeps its floor") {
    const Cause own = Errc::not_prepared, lower = kvm::nested::Errc::not_supported;
    REQUIRE(static_cast<int>(Errc::not_prepared) == static_cast<int>(kvm::nested::Errc::not_supported));
    CHECK(own != lower);
    CHECK(own == Errc::not_prepared);
    CHECK(lower == kvm::nested::Errc::not_supported);
    CHECK_FALSE(own.lower().has_value());
    CHECK_FALSE(lower.own().has_value());
    CHECK(name(lower) == "not_supported");
    CHECK(name(Called{kvm::nested::Operation::set_nested_state}) == "KVM_SET_NESTED_STATE");
}

TEST_CASE("errors work as std::error_code, in the category of their floor") {
    const std::error_code code = Errc::not_prepared;
    CHECK(code.category() == kvm::vcpu::error_category());
    CHECK(std::string_view{code.category().name()} == "kvm.vcpu");
    CHECK(kvm::vcpu::make_error_code(Cause{Errc::not_prepared}) == code);
    const auto lower = kvm::vcpu::make_error_code(Cause{kvm::nested::Errc::refused});
    CHECK(lower.category() == kvm::nested::error_category());
    CHECK(lower == kvm::nested::Errc::refused);
    for (int i = 1; i <= last_errc; ++i) {
        const std::error_code each = static_cast<Errc>(i);
        CHECK(each);
        CHECK(each.message() == description(static_cast<Errc>(i)));
    }
    CHECK(std::error_code{Errc::requirement_not_offered} == std::errc::function_not_supported);
    CHECK(std::error_code{Errc::requirement_differs} == std::errc::invalid_argument);
    CHECK(std::error_code{Errc::file_system} == std::errc::io_error);
    CHECK(std::error_code{Errc::file_not_synced} == std::errc::io_error);
    CHECK(code.default_error_condition().category() == kvm::vcpu::error_category());
}

TEST_CASE("whatever can be printed is printed as message() and name() have it") {
    const Error error{Errc::exit_pending, Operation::save, {Detail::Kind::exit_reason, 6}};
    CHECK(std::format("{}", error) == text(error));
    CHECK(std::format("{}", error.message()) == text(error));
    CHECK(std::format("{:>13} {} {} {} {}", Errc::exit_pending, Operation::save, Step::xcrs,
                      Cause{kvm::nested::Errc::refused}, Called{Operation::restore})
          == " exit_pending save xcrs refused restore");
}

TEST_CASE("a message in full") {
    CHECK(text({Errc::not_prepared, Operation::restore, kvm::vcpu::capability(cap::exception_payload)})
          == "restore: a capability that must be on before the guest runs is off; capability "
             "KVM_CAP_EXCEPTION_PAYLOAD; the vCPU's nested state is unchanged. Next: call prepare() when the "
             "VM is created");
    CHECK(
        text(failed(kvm::nested::Errc::out_of_memory, Operation::save, Step::lapic, request::get_lapic,
                    ENOMEM))
        == "save, step lapic, KVM_GET_LAPIC: the kernel or the process is out of memory (ENOMEM, errno 12). "
           "Next: free memory and try again");
    auto lost = failed(kvm::nested::Errc::refused, Operation::restore, Step::nested_state,
                       request::set_nested_state, EINVAL);
    lost.effect = Effect::nested_state_lost;
    CHECK(text(lost)
          == "restore, step nested_state, KVM_SET_NESTED_STATE: one of the kernel's checks failed, and it "
             "does not "
             "say which (EINVAL, errno 22); the vCPU's nested state is lost. Next: this host does not take "
             "the state "
             "as it was saved: compare its kernel, its CPU and the VM's capabilities with those where it was "
             "saved");
    Error absurd{kvm::nested::Errc::unexpected, Operation::save, {Detail::Kind::answer, 70000}};
    absurd.step = Step::xsave;
    absurd.request = request::check_extension;
    CHECK(text(absurd)
          == "save, step xsave, KVM_CHECK_EXTENSION: the kernel gave an answer that this operation is not "
             "known to "
             "give; it answered 70000. Next: report it with the kernel's version");
    CHECK(text({Errc::damaged_file, Operation::file, kvm::vcpu::file_offset(64)})
          == "file: a checksum does not fit: the file is damaged; at byte 64 of the file. Next: copy the "
             "file again");
    CHECK(text(Error{kvm::nested::Error{.code = kvm::nested::Errc::bad_vmxon_address,
                                        .operation = kvm::nested::Operation::parse,
                                        .detail_kind = kvm::nested::DetailKind::vmx_offset,
                                        .detail = 8}})
          == "parse: the VMXON address is not page-aligned (V6); hdr.vmx.vmxon_pa (offset 8)");
}

TEST_CASE("the next step is one of the operation that failed") {
    const auto next = [](Operation operation) {
        return text(failed(kvm::nested::Errc::refused, operation, Step::lapic, request::get_lapic, EINVAL));
    };
    for (int i = 1; i <= last_operation; ++i) {
        const auto operation = static_cast<Operation>(i);
        CAPTURE(next(operation));
        CHECK(next(operation).contains(". Next: "));
        CHECK(next(operation).contains("this host does not take") == (operation == Operation::restore));
        CHECK_FALSE(next(operation).contains("documented order"));
    }
}

TEST_CASE("a detail is told by its name, and by its number where it has none") {
    const auto says = [](Detail detail, std::string_view what) {
        const auto message = text({Errc::malformed_section, Operation::file, detail});
        CAPTURE(message);
        CHECK(message.contains(what));
    };
    says(kvm::vcpu::capability(cap::irqchip), "; capability KVM_CAP_IRQCHIP");
    says(kvm::vcpu::capability(9999), "; capability number 9999");
    says(kvm::vcpu::group(Step::xsave), "; group xsave");
    says({Detail::Kind::msr, 0x179}, "; MSR 0x179 (IA32_MCG_CAP)");
    says({Detail::Kind::msr, 0x12345}, "; MSR 0x12345.");
    says({Detail::Kind::exit_reason, 6}, "; exit reason 6");
    says({Detail::Kind::file_offset, 0}, "; at byte 0 of the file");
    says({Detail::Kind::section, 0x8000'0001}, "; section type 0x80000001");
    says({Detail::Kind::answer, 17}, "; it answered 17");
    says({Detail::Kind::bytes, 4096}, "; 4096 bytes");
    says({Detail::Kind::svm_offset, 8}, "; hdr.svm.vmcb_pa (offset 8)");
    for (const auto capability :
         {cap::irqchip, cap::pit2, cap::hyperv_synic, cap::x2apic_api, cap::hyperv_synic2,
          cap::enlightened_vmcs, cap::exception_payload, cap::xsave2, cap::disable_quirks2,
          cap::triple_fault_event, cap::apic_bus_cycles_ns})
        says(kvm::vcpu::capability(capability), "; capability KVM_CAP_");
}

TEST_CASE("every ioctl that can fail is named") {
    for (const auto number : {request::run,
                              request::enable_cap,
                              request::check_extension,
                              request::get_cpuid2,
                              request::set_cpuid2,
                              request::get_msrs,
                              request::set_msrs,
                              request::get_lapic,
                              request::set_lapic,
                              request::get_tsc_khz,
                              request::set_tsc_khz,
                              request::get_device_attr,
                              request::get_xsave,
                              request::get_xsave2,
                              request::set_xsave,
                              request::get_reg_list,
                              request::get_one_reg,
                              request::set_one_reg,
                              request::get_clock,
                              request::set_clock,
                              request::get_irqchip,
                              request::set_irqchip,
                              request::get_pit2,
                              request::set_pit2,
                              request::get_regs,
                              request::set_regs,
                              request::get_sregs2,
                              request::set_sregs2,
                              request::get_xcrs,
                              request::set_xcrs,
                              request::get_debugregs,
                              request::set_debugregs,
                              request::get_vcpu_events,
                              request::set_vcpu_events,
                              request::get_mp_state,
                              request::set_mp_state,
                              request::get_msr_index_list,
                              request::get_msr_feature_index_list,
                              request::set_device_attr,
                              request::get_nested_state,
                              request::set_nested_state}) {
        const auto message =
            text(failed(kvm::nested::Errc::refused, Operation::save, Step::clock, number, EINVAL));
        CAPTURE(message);
        CHECK(message.starts_with("save, step clock, KVM_"));
    }
}

TEST_CASE("no message is cut") {
    std::size_t longest = 0;
    const auto look_at = [&](Cause cause) {
        for (int kind = 0; kind <= last_detail; ++kind)
            for (const auto effect : {Effect::unchanged, Effect::nested_state_lost, Effect::undetermined}) {
                auto error = failed(cause, Operation::restore, Step::vcpu_capabilities,
                                    request::get_msr_feature_index_list, -2147483647);
                error.detail = {static_cast<Detail::Kind>(kind), ~0ull};
                error.effect = effect;
                longest = std::max(longest, error.message().view().size());
            }
    };
    for (int i = 1; i <= last_errc; ++i)
        look_at(static_cast<Errc>(i));
    for (int i = 1; i <= static_cast<int>(kvm::nested::Errc::asid_zero); ++i)
        look_at(static_cast<kvm::nested::Errc>(i));
    MESSAGE("the longest has ", longest, " bytes");
    CHECK(longest < 512);
}

} // namespace
