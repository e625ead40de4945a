// SPDX-License-Identifier: MIT
//
// Errors: classification, effect, text, std::error_code.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <doctest/doctest.h>

import unit.support;

namespace {

using kvm::nested::classify;
using kvm::nested::Context;
using kvm::nested::DescriptorKind;
using kvm::nested::Effect;
using kvm::nested::Errc;
using kvm::nested::Error;
using kvm::nested::Operation;
using unit::Bytes;
using unit::SvmBlob;
using unit::VmxBlob;

constexpr int last_errc = static_cast<int>(Errc::asid_zero);
constexpr int last_operation = static_cast<int>(Operation::narrow);

constexpr std::array kinds = {DescriptorKind::unknown, DescriptorKind::not_open, DescriptorKind::not_kvm,
                              DescriptorKind::system,  DescriptorKind::vm,       DescriptorKind::vcpu};

/// The descriptor that an operation works on.
DescriptorKind wanted(Operation operation) {
    return operation == Operation::probe ? DescriptorKind::system : DescriptorKind::vcpu;
}

TEST_CASE("every errno, operation and kind of descriptor has one cause") {
    const auto cause = [](Operation operation, int error_number, DescriptorKind kind) {
        switch (error_number) {
        case EBADF:
            return Errc::bad_descriptor;
        case EIO:
            return Errc::other_process_or_dead_vm;
        case EINTR:
            return Errc::interrupted;
        case EFAULT:
            return Errc::bad_address;
        case ENOMEM:
            return Errc::out_of_memory;
        case E2BIG:
            return Errc::buffer_too_small;
        case ENOTTY:
        case EINVAL:
            if (kind != wanted(operation) && kind != DescriptorKind::unknown)
                return kind == DescriptorKind::system    ? Errc::system_fd_given
                       : kind == DescriptorKind::vm      ? Errc::vm_fd_given
                       : kind == DescriptorKind::vcpu    ? Errc::vcpu_fd_given
                       : kind == DescriptorKind::not_kvm ? Errc::not_a_kvm_descriptor
                                                         : Errc::bad_descriptor;
            if (error_number == ENOTTY)
                return Errc::not_a_kvm_descriptor;
            return operation == Operation::get_nested_state ? Errc::nesting_off : Errc::refused;
        default:
            return Errc::unexpected;
        }
    };
    for (int op = 1; op <= last_operation; ++op)
        for (int error_number = 0; error_number < 140; ++error_number)
            for (const auto kind : kinds) {
                const auto operation = static_cast<Operation>(op);
                const auto error = classify(operation, -1, error_number, {.descriptor = kind});
                CAPTURE(op);
                CAPTURE(error_number);
                REQUIRE(error.code == cause(operation, error_number, kind));
                REQUIRE(error.operation == operation);
                REQUIRE(error.raw_result == -1);
                REQUIRE(error.error_number == error_number);
                REQUIRE(error.detail == 0);
                if (operation != Operation::set_nested_state)
                    REQUIRE(error.effect == Effect::unchanged);
            }
}

TEST_CASE("SET on a host with nesting off says so") {
    const auto error = classify(Operation::set_nested_state, -1, EINVAL,
                                {.descriptor = DescriptorKind::vcpu, .nesting_off = true});
    CHECK(error.code == Errc::nesting_off);
    CHECK(error.effect == Effect::unchanged);
}

TEST_CASE("errno is not consulted where the result is not negative") {
    const auto samples = unit::samples();
    for (int op = 1; op <= last_operation; ++op)
        for (const int result : {0, 1, 2, 0x7fffffff})
            for (const auto& attempted : samples)
                for (const auto& found : samples) {
                    const Context context{.descriptor = DescriptorKind::vcpu,
                                          .attempted = attempted.bytes,
                                          .found = found.bytes};
                    const auto operation = static_cast<Operation>(op);
                    const auto without = classify(operation, result, 0, context);
                    for (const int error_number : {EINVAL, ENOMEM, EBADF, EIO, 4242})
                        REQUIRE(classify(operation, result, error_number, context) == without);
                    REQUIRE(without.error_number == 0);
                    REQUIRE(without.code
                            == (operation == Operation::set_nested_state && result > 0 ? Errc::entry_failed
                                                                                       : Errc::unexpected));
                    if (without.code == Errc::entry_failed)
                        REQUIRE(without.effect == Effect::nested_state_lost);
                }
}

// --- effect

/// How a SET can end, and what GET shows afterwards: the residual states of Linux 6.1 to 7.3.
struct Ending {
    std::string_view rule;
    int result;
    int error_number;
    Bytes after;
};

VmxBlob vmx_fields(const Bytes& bytes) {
    return {.flags = unit::take<std::uint16_t>(bytes, 0),
            .vmxon_pa = unit::take<std::uint64_t>(bytes, 8),
            .vmcs12_pa = unit::take<std::uint64_t>(bytes, 16),
            .smm_flags = unit::take<std::uint16_t>(bytes, 24),
            .size = unit::take<std::uint32_t>(bytes, 4)};
}

std::vector<Ending> endings_on_vmx(const Bytes& before, const Bytes& attempted) {
    std::vector<Ending> endings{{"V5", -1, EINVAL, before},
                                {"X2", -1, EFAULT, before},
                                {"V10", -1, EINVAL, before},
                                {"mutex", -1, EINTR, before},
                                {"mm", -1, EIO, before}};
    const auto state = vmx_fields(attempted);
    if (state.vmxon_pa == unit::none)
        return endings; // V13: nothing fails behind it
    // The point of no return.
    endings.push_back({"V14", -1, ENOMEM, VmxBlob{}});
    const VmxBlob vmxon{.vmxon_pa = state.vmxon_pa,
                        .smm_flags = state.smm_flags & 2u ? std::uint16_t{2} : std::uint16_t{0}};
    endings.push_back({"V15, V16, V17", -1, EINVAL, vmxon});
    if (state.size > 128) {
        auto current = state;
        current.flags = state.flags & 4; // L2 is never active after a failure
        current.size = 4224;
        for (const unsigned seed : {1u, 9u}) {
            current.seed = seed; // the cached vmcs12 is partly new
            endings.push_back({"V18, V22", -1, EFAULT, current});
            endings.push_back({"V19 to V24", -1, EINVAL, current});
            if (state.flags & 1)
                endings.push_back({"V25", 2, 0, current});
        }
    }
    return endings;
}

std::vector<Ending> endings_on_svm(const Bytes& before, const Bytes& attempted) {
    std::vector<Ending> endings{{"S1 to S26", -1, EINVAL, before},
                                {"S8", -1, EFAULT, before},
                                {"S8", -1, ENOMEM, before},
                                {"mutex", -1, EINTR, before},
                                {"mm", -1, EIO, before}};
    if (attempted.size() == 4224)
        endings.push_back({"S27", -1, EINVAL, attempted});
    return endings;
}

TEST_CASE("an effect never contradicts what GET shows before and after") {
    const auto samples = unit::samples();
    std::size_t told = 0, all = 0;
    for (const auto& before : samples)
        for (const auto& attempted : samples) {
            if (before.vendor != attempted.vendor)
                continue;
            const auto endings = before.vendor == kvm::nested::VendorId::vmx
                                     ? endings_on_vmx(before.bytes, attempted.bytes)
                                     : endings_on_svm(before.bytes, attempted.bytes);
            for (const auto& ending : endings) {
                CAPTURE(before.name);
                CAPTURE(attempted.name);
                CAPTURE(ending.rule);
                const auto error = classify(Operation::set_nested_state, ending.result, ending.error_number,
                                            {.descriptor = DescriptorKind::vcpu,
                                             .attempted = attempted.bytes,
                                             .found = ending.after});
                const bool same = !kvm::nested::first_difference(before.bytes, ending.after).has_value();
                if (error.effect == Effect::unchanged)
                    CHECK(same);
                if (error.effect == Effect::nested_state_lost)
                    CHECK(ending.result > 0);
                ++all;
                told += error.effect != Effect::undetermined;
            }
        }
    MESSAGE(told, " of ", all, " endings are told");
    CHECK(told * 5 > all * 2); // an answer that is always "undetermined" would be true as well
}

TEST_CASE("an ioctl that did not reach the vCPU changed nothing, whatever is known besides") {
    for (const int error_number : {EBADF, ENOTTY, EIO, EINTR})
        for (const auto kind : kinds)
            CHECK(classify(Operation::set_nested_state, -1, error_number, {.descriptor = kind}).effect
                  == Effect::unchanged);
    for (const auto kind : {DescriptorKind::system, DescriptorKind::vm})
        CHECK(classify(Operation::set_nested_state, -1, EINVAL, {.descriptor = kind}).effect
              == Effect::unchanged);
}

TEST_CASE("where GET fails as well, what became of the vCPU is undetermined") {
    const Bytes attempted = VmxBlob{.vmxon_pa = 0x1000};
    CHECK(classify(Operation::set_nested_state, -1, EINVAL,
                   {.descriptor = DescriptorKind::vcpu, .attempted = attempted})
              .effect
          == Effect::undetermined);
    CHECK(classify(Operation::set_nested_state, -1, EFAULT).effect == Effect::undetermined);
}

TEST_CASE("classify survives contexts that are too short to be states") {
    const Bytes l2 = SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224};
    for (const std::size_t length : {0u, 1u, 127u, 128u, 129u, 1000u, 1600u, 4223u})
        for (const std::size_t other : {0u, 127u, 128u, 4224u}) {
            const auto attempted = std::span{l2}.first(length);
            const auto found = std::span{l2}.first(other);
            CHECK(classify(Operation::set_nested_state, -1, EINVAL, {.attempted = attempted, .found = found})
                      .code
                  == Errc::refused);
        }
}

// --- text

TEST_CASE("every cause has a name and a sentence of its own") {
    std::set<std::string_view> names, sentences;
    for (int i = 1; i <= last_errc; ++i) {
        const auto code = static_cast<Errc>(i);
        CHECK(kvm::nested::name(code) != "?");
        CHECK(names.insert(kvm::nested::name(code)).second);
        CHECK(sentences.insert(kvm::nested::description(code)).second);
    }
    for (int i = 1; i <= last_operation; ++i)
        CHECK(kvm::nested::name(static_cast<Operation>(i)) != "?");
    for (const int unknown : {0, last_errc + 1, 255}) {
        CHECK(kvm::nested::name(static_cast<Errc>(unknown)) == "?");
        CHECK_FALSE(kvm::nested::description(static_cast<Errc>(unknown)).empty());
    }
    CHECK(kvm::nested::name(static_cast<Operation>(0)) == "?");
    CHECK(kvm::nested::name(static_cast<Effect>(9)) == "?");
}

TEST_CASE("a message says operation, cause, errno or result, effect and a next step, and is never cut") {
    std::size_t longest = 0;
    for (int op = 1; op <= last_operation; ++op)
        for (int i = 1; i <= last_errc; ++i)
            for (const auto effect : {Effect::unchanged, Effect::nested_state_lost, Effect::undetermined}) {
                const Error error{.code = static_cast<Errc>(i),
                                  .operation = static_cast<Operation>(op),
                                  .effect = effect,
                                  .raw_result = -1,
                                  .error_number = -2147483647,
                                  .detail = ~0ull};
                const auto text = error.message();
                longest = std::max(longest, text.view().size());
                REQUIRE(text.view().starts_with(kvm::nested::name(error.operation)));
                REQUIRE(text.view().find(kvm::nested::description(error.code)) != std::string_view::npos);
            }
    CHECK(longest < 384);

    const auto refused =
        classify(Operation::set_nested_state, -1, EINVAL, {.descriptor = DescriptorKind::vcpu}).message();
    const std::string text{refused.view()};
    CAPTURE(text);
    CHECK(text.starts_with("KVM_SET_NESTED_STATE: "));
    CHECK(text.find("(EINVAL, errno 22)") != std::string::npos);
    CHECK(text.find("; what became of the vCPU's nested state cannot be told") != std::string::npos);
    CHECK(text.find(". Next: ") != std::string::npos);

    const std::string positive{classify(Operation::set_nested_state, 2, EINVAL).message().view()};
    CHECK(positive.find("(returned 2)") != std::string::npos);
    CHECK(positive.find("EINVAL") == std::string::npos);
    CHECK(positive.find("is lost") != std::string::npos);
}

TEST_CASE("a detail is told as what it is, at offset 0, too, and none is told where there is none") {
    using kvm::nested::DetailKind;
    const auto text = [](DetailKind kind, std::uint64_t detail) {
        const Error error{.code = Errc::unknown_flags,
                          .operation = Operation::parse,
                          .detail_kind = kind,
                          .detail = detail};
        return std::string{error.message().view()};
    };
    const auto says = [&](DetailKind kind, std::uint64_t detail, std::string_view what) {
        CAPTURE(text(kind, detail));
        CHECK(text(kind, detail).find(what) != std::string::npos);
    };
    says(DetailKind::vmx_offset, 0, "; flags (offset 0)");
    says(DetailKind::vmx_offset, 8, "; hdr.vmx.vmxon_pa (offset 8)");
    says(DetailKind::vmx_offset, 29, "; hdr.vmx.flags (offset 29)");
    says(DetailKind::vmx_offset, 128 + 672, "; host_rip of the vmcs12 (offset 800)");
    says(DetailKind::vmx_offset, 128 + 4096, "; hdr of the shadow vmcs12 (offset 4224)");
    says(DetailKind::vmx_offset, 8320, "; behind the state (offset 8320)");
    says(DetailKind::svm_offset, 8, "; hdr.svm.vmcb_pa (offset 8)");
    says(DetailKind::svm_offset, 128 + 0x58, "; asid of the VMCB (offset 216)");
    says(DetailKind::bytes, 0, "; 0 bytes");
    says(DetailKind::bytes, 4223, "; 4223 bytes");
    CHECK(text(DetailKind::none, 0).find(';') == std::string::npos);
}

TEST_CASE("a host that nests no guests leaves a VMM nothing to save") {
    for (int i = 1; i <= last_errc; ++i) {
        const auto code = static_cast<Errc>(i);
        CHECK(kvm::nested::nothing_to_save({.code = code, .operation = Operation::probe})
              == (code == Errc::nesting_off || code == Errc::not_supported));
    }
}

TEST_CASE("errors work as std::error_code") {
    const std::error_code code = Errc::refused;
    CHECK(code.category() == kvm::nested::error_category());
    CHECK(std::string_view{code.category().name()} == "kvm.nested");
    CHECK(code.message() == kvm::nested::description(Errc::refused));
    CHECK(code == Errc::refused);
    CHECK(code != Errc::nesting_off);
    CHECK(code == std::errc::invalid_argument);
    CHECK(std::error_code{Errc::bad_address} == std::errc::bad_address);
    CHECK(std::error_code{Errc::out_of_memory} == std::errc::not_enough_memory);
    CHECK(std::error_code{Errc::interrupted} == std::errc::interrupted);
    CHECK(std::error_code{Errc::other_process_or_dead_vm} == std::errc::io_error);
    CHECK(std::error_code{Errc::bad_descriptor} == std::errc::bad_file_descriptor);
    CHECK(std::error_code{Errc::nesting_off} == std::errc::function_not_supported);
    CHECK(std::error_code{Errc::entry_failed}.default_error_condition().category()
          == kvm::nested::error_category());
    for (int i = 1; i <= last_errc; ++i) {
        const auto errc = static_cast<Errc>(i);
        CHECK(std::error_code{errc}); // never mistaken for success
        CHECK(std::error_code{errc}.message() == kvm::nested::description(errc));
    }
}

} // namespace
