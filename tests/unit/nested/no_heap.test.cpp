// SPDX-License-Identifier: MIT
//
// Everything of kvm.nested but error_category::message in a program in which the heap does not exist. No
// doctest: it allocates.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <format>
#include <iterator>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

import kvm.nested;

// Every form of new ends in one of these.
void* operator new(std::size_t) {
    std::fputs("no_heap: operator new was called\n", stderr);
    std::abort();
}
void* operator new(std::size_t, std::align_val_t) {
    std::fputs("no_heap: operator new was called\n", stderr);
    std::abort();
}
void operator delete(void*) noexcept {}
void operator delete(void*, std::size_t) noexcept {}
void operator delete(void*, std::align_val_t) noexcept {}
void operator delete(void*, std::size_t, std::align_val_t) noexcept {}

namespace {

/// A kernel of either vendor that holds one state, and fails on demand.
struct Kernel {
    kvm::nested::VendorId vendor;
    kvm::nested::IoctlResult get{0, 0}, set{0, 0};
    alignas(8) std::byte held[8320]{};

    explicit Kernel(kvm::nested::VendorId id) : vendor{id} {
        hold(kvm::nested::NestedStateBuffer::not_in_nested_operation(id));
    }
    void hold(const kvm::nested::NestedStateBuffer& state) {
        std::memcpy(held, state.bytes().data(), state.size());
    }

    kvm::nested::IoctlResult operator()(int, unsigned long request, void* argument) noexcept {
        switch (request) {
        case kvm::nested::uapi::request::check_extension:
            return {static_cast<int>(kvm::nested::capacity(vendor)), 0};
        case kvm::nested::uapi::request::get_supported_cpuid: {
            const std::uint32_t count = 2;
            kvm::nested::uapi::CpuidEntry entries[2]{};
            entries[0].function = 1;
            entries[0].ecx = vendor == kvm::nested::VendorId::vmx ? 1u << 5 : 0;
            entries[1].function = 0x80000001;
            entries[1].ecx = vendor == kvm::nested::VendorId::svm ? 1u << 2 : 0;
            std::memcpy(argument, &count, sizeof count);
            std::memcpy(static_cast<std::byte*>(argument) + 8, entries, sizeof entries);
            return {0, 0};
        }
        case kvm::nested::uapi::request::get_nested_state:
            if (get.value == 0) {
                std::uint32_t size = 0;
                std::memcpy(&size, held + 4, sizeof size);
                std::memcpy(argument, held, size);
            }
            return get;
        case kvm::nested::uapi::request::set_nested_state:
            return set;
        }
        return {0, 0};
    }
};

int failures = 0;
void check(bool holds, int line) {
    if (!holds) {
        std::fprintf(stderr, "no_heap: line %d does not hold\n", line);
        ++failures;
    }
}
#define CHECK(...) check((__VA_ARGS__), __LINE__)

/// A VMX or SVM state with L2 active, as bytes.
struct L2 {
    alignas(8) std::byte bytes[4224]{};
    explicit L2(kvm::nested::VendorId vendor) {
        const bool vmx = vendor == kvm::nested::VendorId::vmx;
        const std::uint16_t words[] = {1, static_cast<std::uint16_t>(vmx ? 0 : 1)};
        const std::uint32_t size = 4224, revision = kvm::nested::uapi::vmcs12_revision;
        const std::uint64_t addresses[] = {0x1000, vmx ? 0x2000ull : 0};
        std::memcpy(bytes, words, sizeof words);
        std::memcpy(bytes + 4, &size, sizeof size);
        std::memcpy(bytes + 8, addresses, sizeof addresses);
        std::memcpy(bytes + 128, &revision, sizeof revision);
        if (!vmx) { // VMRUN intercept and ASID
            const std::uint32_t one = 1;
            std::memset(bytes + 128, 0, sizeof revision);
            std::memcpy(bytes + 128 + 0x10, &one, sizeof one);
            std::memcpy(bytes + 128 + 0x58, &one, sizeof one);
        }
    }
};

void text(const auto& value) {
    char line[512];
    const auto end = std::format_to_n(line, sizeof line, "{}", value).out;
    CHECK(end != line);
}

/// Everything that can be said about a state.
void report(const auto& state) {
    std::size_t length = 0, count = 0;
    const auto sink = [&length](std::string_view piece) noexcept { length += piece.size(); };
    for (const auto fields :
         {kvm::nested::FieldsShown::none, kvm::nested::FieldsShown::non_zero, kvm::nested::FieldsShown::all})
        for (const bool redact : {false, true}) {
            describe(state, sink, {.fields = fields, .redact = redact});
            CHECK(std::exchange(length, 0) != 0);
        }
    guest_ranges(state, [&count](const kvm::nested::GuestRange&) noexcept { ++count; });
    CHECK(count != 0);
    alignas(8) std::byte other[4224];
    std::memcpy(other, state.bytes().data(), sizeof other);
    for (std::size_t i = 200; i < sizeof other; i += 3)
        other[i] ^= std::byte{0x11};
    CHECK(kvm::nested::difference(state.bytes(), other, sink, {.ignored_too = true}) > 100);
    CHECK(kvm::nested::difference(state.bytes(), other, [](const kvm::nested::Difference&) noexcept {}) > 10);
    CHECK(kvm::nested::describe_field(other, "size", sink) == 1);
    kvm::nested::explain(kvm::nested::bit_layout::cr0, 0x80000011, sink);
    CHECK(length != 0);
}

/// Two hosts that differ in everything, and a state.
template <class Capabilities>
void compare(const Capabilities& a, const Capabilities& b, const auto& state) {
    std::size_t length = 0, answers = 0;
    const auto sink = [&length](std::string_view piece) noexcept { length += piece.size(); };
    const auto count =
        capability_difference(a, b, [&](const kvm::nested::CapabilityDifference& what) noexcept {
            answers += !name(used_by(what, state)).empty();
            describe(what, sink);
        });
    CHECK(answers == count && std::exchange(length, 0) > count);
    CHECK(capability_difference(a, b, sink) == count && length > count);
}
void capabilities(const auto& state) {
    kvm::nested::vmx::Capabilities none, all;
    std::size_t length = 0;
    for (const auto& layout : kvm::nested::capability_layouts) {
        none.set(layout.index, 0);
        all.set(layout.index, ~std::uint64_t{0});
        describe(layout, ~std::uint64_t{0}, [&](std::string_view piece) noexcept { length += piece.size(); });
        CHECK(std::exchange(length, 0) != 0);
    }
    compare(none, all, state);
    compare(kvm::nested::svm::Capabilities{0, 0}, kvm::nested::svm::Capabilities{~0u, ~0u}, state);
    for (const auto& feature : kvm::nested::feature_names)
        CHECK(!name(used_by(feature, state)).empty());
}

template <class V>
void everything(kvm::nested::VendorId vendor) {
    Kernel kernel{vendor};
    const auto host = kvm::nested::Host<V>::probe(kvm::nested::SystemFd{3}, kernel);
    CHECK(host.has_value());
    kvm::nested::Vcpu vcpu{*host, kvm::nested::VcpuFd{5}, kvm::nested::IoctlRef{kernel}};
    using State = typename decltype(vcpu)::State;

    const L2 l2{vendor};
    auto state = State::parse(l2.bytes);
    CHECK(state.has_value());
    CHECK(State::parse_prefix(l2.bytes).has_value());
    CHECK(!State::parse(std::span{l2.bytes}.first(4000)).has_value());
    CHECK(state->visit([](const auto& view) { return view.phase; }) == state->phase());
    kernel.hold(*state);
    CHECK(vcpu.nested_state().has_value());
    CHECK(vcpu.nested_state(*state).has_value());
    CHECK(vcpu.set_nested_state(*state).has_value());
    CHECK(vcpu.verify_nested_state(*state).has_value());
    CHECK(vcpu.clear_nested_state().has_value());
    CHECK(equivalent(*state, *state) && *state == *state);
    CHECK(!summary(*state).view().empty());
    text(*state);
    text(state->phase());
    report(*state);
    capabilities(*state);

    for (const int error_number : {EINVAL, ENOTTY, EBADF, EIO, EFAULT, ENOMEM, E2BIG, EPERM})
        for (const bool get : {true, false}) {
            kernel.get = get ? kvm::nested::IoctlResult{-1, error_number} : kvm::nested::IoctlResult{0, 0};
            kernel.set = {-1, error_number};
            const auto set = vcpu.set_nested_state(State{});
            CHECK(!set.has_value());
            text(set.error());
            CHECK(vcpu.nested_state().has_value() != get);
            const std::error_code code = set.error().code;
            CHECK(code.default_error_condition().value() != 0);
        }
    kernel.set = {2, 0};
    CHECK(!vcpu.clear_nested_state().has_value());
}

} // namespace

int main() {
    everything<kvm::nested::Vmx>(kvm::nested::VendorId::vmx);
    everything<kvm::nested::Svm>(kvm::nested::VendorId::svm);
    everything<kvm::nested::Any>(kvm::nested::VendorId::vmx);
    everything<kvm::nested::Any>(kvm::nested::VendorId::svm);

    const auto wide = kvm::nested::NestedStateBuffer{kvm::nested::NestedState<kvm::nested::Svm>::gif_clear()};
    CHECK(wide.to<kvm::nested::Svm>().has_value() && !wide.to<kvm::nested::Vmx>().has_value());
    CHECK(kvm::nested::NestedState<kvm::nested::Vmx>::vmxon_only(0x1000).phase()
          == kvm::nested::Phase::vmx_vmxon_only);
    text(kvm::nested::NestedStateBuffer{});
    text(kvm::nested::Errc::refused);
    for (int code = 0; code < 256; ++code)
        CHECK(!kvm::nested::Error{.code = static_cast<kvm::nested::Errc>(code), .operation = {}}
                   .message()
                   .view()
                   .empty());
    CHECK(!kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{-1}).has_value());
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
