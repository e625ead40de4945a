// SPDX-License-Identifier: MIT
//
// Layouts, sizes and traits. Compiling is the test.
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <type_traits>

import kvm.nested;

namespace {

using kvm::nested::Any;
using kvm::nested::Error;
using kvm::nested::Host;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Phase;
using kvm::nested::Svm;
using kvm::nested::Vcpu;
using kvm::nested::Vmx;

// The numbers of the kernel's ABI, once more and by hand.
static_assert(kvm::nested::uapi::request::get_nested_state == 0xc080aebe);
static_assert(kvm::nested::uapi::request::set_nested_state == 0x4080aebf);
static_assert(kvm::nested::uapi::request::check_extension == 0xae03);
static_assert(kvm::nested::uapi::request::get_api_version == 0xae00);
static_assert(kvm::nested::uapi::request::get_supported_cpuid == 0xc008ae05);
static_assert(kvm::nested::uapi::request::get_tsc_khz == 0xaea3);
static_assert(kvm::nested::uapi::cap_nested_state == 157);
static_assert(kvm::nested::uapi::state_flag::known == 0x010f);
static_assert(kvm::nested::uapi::smm_flag::known == 0x3 && kvm::nested::uapi::vmx_flag::known == 0x1);
static_assert(kvm::nested::uapi::vmcs12_revision == 0x11e57ed0 && kvm::nested::uapi::vmcs12_size == 998);

static_assert(offsetof(kvm::nested::uapi::VmxHeader, vmxon_pa) == 8 - 8);
static_assert(offsetof(kvm::nested::uapi::VmxHeader, vmcs12_pa) == 16 - 8);
static_assert(offsetof(kvm::nested::uapi::VmxHeader, smm_flags) == 24 - 8);
static_assert(offsetof(kvm::nested::uapi::VmxHeader, flags) == 28 - 8);
static_assert(offsetof(kvm::nested::uapi::VmxHeader, preemption_timer_deadline) == 32 - 8);
static_assert(offsetof(kvm::nested::uapi::SvmHeader, vmcb12_pa) == 8 - 8);
static_assert(offsetof(kvm::nested::uapi::SvmHeader, gpat) == 16 - 8);

// The objects are exactly as large as what the kernel may write, and nothing precedes the state in them.
static_assert(sizeof(NestedState<Vmx>) == 8320 && sizeof(NestedState<Svm>) == 4224);
static_assert(sizeof(NestedStateBuffer) == 8320);
static_assert(Vmx::capacity == sizeof(NestedState<Vmx>) && Svm::capacity == sizeof(NestedState<Svm>));
static_assert(Any::capacity == sizeof(NestedStateBuffer));

template <class T>
constexpr bool is_a_plain_value =
    std::regular<T> && std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T>
    && std::is_nothrow_default_constructible_v<T>;
static_assert(is_a_plain_value<NestedState<Vmx>> && is_a_plain_value<NestedState<Svm>>);
static_assert(is_a_plain_value<NestedStateBuffer>);
static_assert(std::is_trivially_copyable_v<Error> && sizeof(Error) <= 24);

// A vCPU is a descriptor; the proof, the vendor and the seam cost nothing unless they are chosen at run time.
static_assert(sizeof(Vcpu<Vmx>) == sizeof(int) && sizeof(Vcpu<Svm>) == sizeof(int));
static_assert(std::is_empty_v<Host<Vmx>> && std::is_empty_v<Host<Svm>>);

// A Host comes from probe() alone.
static_assert(!std::is_default_constructible_v<Host<Vmx>> && !std::is_default_constructible_v<Host<Svm>>
              && !std::is_default_constructible_v<Host<Any>>);
static_assert(!std::is_constructible_v<Host<Any>, kvm::nested::VendorId>);
static_assert(!std::is_constructible_v<Host<Vmx>, Host<Svm>>
              && !std::is_constructible_v<Host<Vmx>, Host<Any>>);
static_assert(std::is_convertible_v<Host<Vmx>, Host<Any>>);

// A Vcpu needs the proof of its vendor, and a vCPU's descriptor.
static_assert(std::is_constructible_v<Vcpu<Svm>, Host<Svm>, kvm::nested::VcpuFd>);
static_assert(!std::is_default_constructible_v<Vcpu<Svm>>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, kvm::nested::VcpuFd>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, Host<Vmx>, kvm::nested::VcpuFd>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, Host<Any>, kvm::nested::VcpuFd>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, Host<Svm>, kvm::nested::VmFd>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, Host<Svm>, kvm::nested::SystemFd>);
static_assert(!std::is_constructible_v<Vcpu<Svm>, Host<Svm>, int>);
static_assert(std::is_constructible_v<Vcpu<Any>, Host<Any>, kvm::nested::VcpuFd>);
static_assert(std::is_constructible_v<Vcpu<Any>, Host<Svm>, kvm::nested::VcpuFd>);

// A descriptor is never converted by accident.
static_assert(!std::is_convertible_v<int, kvm::nested::VcpuFd>
              && !std::is_convertible_v<kvm::nested::VmFd, kvm::nested::VcpuFd>
              && !std::is_constructible_v<kvm::nested::VcpuFd, kvm::nested::VmFd>);

// States and buffers.
static_assert(std::same_as<Vcpu<Vmx>::State, NestedState<Vmx>>);
static_assert(std::same_as<Vcpu<Any>::State, NestedStateBuffer>);
static_assert(std::is_convertible_v<NestedState<Vmx>, NestedStateBuffer>);
static_assert(std::is_convertible_v<NestedState<Svm>, NestedStateBuffer>);
static_assert(!std::is_constructible_v<NestedState<Vmx>, NestedStateBuffer>);
static_assert(!std::is_constructible_v<NestedState<Vmx>, NestedState<Svm>>);
template <class S, class Other>
concept SetsState = requires(const Vcpu<S>& vcpu, const Other& other) { vcpu.set_nested_state(other); };
static_assert(SetsState<Svm, NestedState<Svm>> && !SetsState<Svm, NestedState<Vmx>>);
static_assert(!SetsState<Svm, NestedStateBuffer>);
static_assert(SetsState<Any, NestedStateBuffer> && SetsState<Any, NestedState<Vmx>>);

// Builders exist for the vendor to which they belong.
template <class S>
concept HasVmxonOnly = requires { S::vmxon_only(0x1000); };
template <class S>
concept HasGifClear = requires { S::gif_clear(); };
static_assert(HasVmxonOnly<NestedState<Vmx>> && !HasVmxonOnly<NestedState<Svm>>);
static_assert(HasGifClear<NestedState<Svm>> && !HasGifClear<NestedState<Vmx>>);

// Bytes and headers of something that is about to die cannot be asked for.
template <class S>
concept LendsBytes = requires(S&& state) { static_cast<S&&>(state).bytes(); };
template <class S>
concept LendsHeader = requires(S&& state) { static_cast<S&&>(state).header(); };
static_assert(LendsBytes<const NestedState<Vmx>&> && !LendsBytes<NestedState<Vmx>>);
static_assert(LendsBytes<const NestedStateBuffer&> && !LendsBytes<NestedStateBuffer>);
static_assert(LendsHeader<const NestedState<Vmx>&> && !LendsHeader<NestedState<Vmx>>);
static_assert(LendsHeader<const NestedStateBuffer&> && !LendsHeader<NestedStateBuffer>);

// All of this at compile time.
static_assert(NestedState<Svm>::gif_clear().flags() == 0);
static_assert(NestedState<Svm>{}.flags() == kvm::nested::uapi::state_flag::gif_set);
static_assert(NestedState<Vmx>{}.flags() == 0);
constexpr kvm::nested::uapi::StateHeader vmxon_at(std::uint64_t address) {
    return {.flags = 0, .format = 0, .size = 128, .vendor = {address, kvm::nested::uapi::no_address}};
}
static_assert(*kvm::nested::phase_of(vmxon_at(kvm::nested::uapi::no_address), {}) == Phase::vmx_off);
static_assert(*kvm::nested::phase_of(vmxon_at(0x1000), {}) == Phase::vmx_vmxon_only);
static_assert(kvm::nested::phase_of(vmxon_at(0x1001), {}).error().code
              == kvm::nested::Errc::bad_vmxon_address);
static_assert(NestedStateBuffer{}.is_empty() && !NestedStateBuffer{}.vendor()
              && !NestedStateBuffer{}.format());
static_assert(NestedStateBuffer::not_in_nested_operation(kvm::nested::VendorId::vmx).vendor()
              == kvm::nested::VendorId::vmx);
static_assert(kvm::nested::name(kvm::nested::VendorId::svm) == "SVM"
              && kvm::nested::capacity(kvm::nested::VendorId::vmx) == 8320);

// Errors say so at compile time, too: every call that can fail is [[nodiscard]] by the type it returns.
static_assert(std::is_error_code_enum_v<kvm::nested::Errc>);

// Nothing that can run on a failing path throws.
template <class V>
concept NothrowCalls =
    requires(const Vcpu<V>& vcpu, typename Vcpu<V>::State& state, kvm::nested::SystemFd system) {
        { Host<V>::probe(system) } noexcept;
        { vcpu.nested_state() } noexcept;
        { vcpu.nested_state(state) } noexcept;
        { vcpu.set_nested_state(state) } noexcept;
        { vcpu.clear_nested_state() } noexcept;
        { vcpu.verify_nested_state(state) } noexcept;
        { Vcpu<V>::State::parse(std::span<const std::byte>{}) } noexcept;
        { Vcpu<V>::State::parse_prefix(std::span<const std::byte>{}) } noexcept;
        { state.bytes() } noexcept;
        { state.phase() } noexcept;
        { summary(state) } noexcept;
        { equivalent(state, state) } noexcept;
    };
static_assert(NothrowCalls<Vmx> && NothrowCalls<Svm> && NothrowCalls<Any>);

} // namespace
