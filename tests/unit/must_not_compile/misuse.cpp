// SPDX-License-Identifier: MIT
//
// Each block is built twice: as it stands, in which case it must compile, and with the macro of its name, in
// which case it must not, with the diagnostic that CMakeLists.txt names.
#include <cstddef>
#include <expected>
#include <span>
#include <string_view>

import kvm.nested;

using kvm::nested::Any;
using kvm::nested::Host;
using kvm::nested::NestedState;
using kvm::nested::NestedStateBuffer;
using kvm::nested::Svm;
using kvm::nested::Vcpu;
using kvm::nested::VcpuFd;
using kvm::nested::Vmx;

void vcpu(Host<Svm> host, int fd) {
#ifdef vcpu_without_host
    Vcpu<Svm> made{VcpuFd{fd}};
    static_cast<void>(host);
#else
    Vcpu made{host, VcpuFd{fd}};
#endif
    static_cast<void>(made);
}

std::expected<Host<Svm>, kvm::nested::Error> host() {
#ifdef host_made_up
    return Host<Svm>{};
#else
    return Host<Svm>::probe(kvm::nested::SystemFd{3});
#endif
}

void descriptor(Host<Svm> host, int fd) {
#ifdef vm_descriptor
    Vcpu<Svm> made{host, kvm::nested::VmFd{fd}};
#else
    Vcpu<Svm> made{host, VcpuFd{fd}};
#endif
    static_cast<void>(made);
}

void number(Host<Svm> host, int fd) {
#ifdef bare_number
    Vcpu<Svm> made{host, fd};
#else
    Vcpu<Svm> made{host, VcpuFd{fd}};
#endif
    static_cast<void>(made);
}

bool vendor(Vcpu<Svm> vcpu) {
#ifdef other_vendors_state
    return vcpu.set_nested_state(NestedState<Vmx>{}).has_value();
#else
    return vcpu.set_nested_state(NestedState<Svm>{}).has_value();
#endif
}

auto gif() {
#ifdef gif_clear_on_vmx
    return NestedState<Vmx>::gif_clear();
#else
    return NestedState<Svm>::gif_clear();
#endif
}

auto vmxon() {
#ifdef vmxon_only_on_svm
    return NestedState<Svm>::vmxon_only(0x1000);
#else
    return NestedState<Vmx>::vmxon_only(0x1000);
#endif
}

std::size_t bytes(const NestedState<Svm>& state) {
#ifdef bytes_of_a_temporary
    return NestedState<Svm>{state}.bytes().size();
#else
    return state.bytes().size();
#endif
}

void discard(Vcpu<Svm> vcpu, NestedState<Svm>& state) {
#ifdef discarded_get
    vcpu.nested_state(state);
#elif defined(discarded_set)
    vcpu.set_nested_state(state);
#elif defined(discarded_parse)
    NestedState<Svm>::parse({});
#else
    static_cast<void>(vcpu.nested_state(state));
    static_cast<void>(vcpu.set_nested_state(state));
    static_cast<void>(NestedState<Svm>::parse({}));
#endif
}

auto accessor(const kvm::nested::vmx::VmxonOnly& view) {
#ifdef vmcs12_of_vmxon_only
    return view.vmcs12_pa();
#else
    return view.vmxon_pa();
#endif
}

auto narrowing(const NestedStateBuffer& buffer) {
#ifdef implicit_narrowing
    NestedState<Svm> state = buffer;
    return state;
#else
    return buffer.to<Svm>();
#endif
}

void unarmed() {
#ifdef uninitialised_state
    NestedState<Svm> state({});
#else
    NestedState<Svm> state{};
#endif
    static_cast<void>(state);
}

auto field(const kvm::nested::vmx::CurrentVmcs& view) {
#ifdef unknown_field
    return view.fields()["guest_ri"];
#else
    return view.fields()["guest_rip"];
#endif
}

constexpr auto place() {
#ifdef unknown_header_field
    return kvm::nested::header_offset("hdr.vmx.vmxon");
#else
    return kvm::nested::header_offset("hdr.vmx.vmxon_pa");
#endif
}
static_assert(place() == 8);

auto named_bits() {
#ifdef unknown_bits
    return bits(kvm::nested::bit_layout::cr0, "PGG");
#else
    return bits(kvm::nested::bit_layout::cr0, "PG");
#endif
}

auto other_enumeration(const kvm::nested::Vmcs12& page) {
#ifdef no_enumeration_of_bits
    return has(page.vm_exit_controls, kvm::nested::FieldGroup::control);
#else
    return has(page.vm_exit_controls, kvm::nested::vmx::ExitControl::load_ia32_efer);
#endif
}

auto misspelt(const NestedState<Vmx>& state) {
    return state.visit(kvm::nested::overloaded{[](const kvm::nested::vmx::L2Active& l2) {
#ifdef misspelt_field_in_a_visitor
                                                   return l2.fields()["guest_rpi"];
#else
                                                   return l2.fields()["guest_rip"];
#endif
                                               },
                                               [](const auto&) { return kvm::nested::uapi::no_address; }});
}

std::size_t looked_at(const NestedState<Svm>& state) {
#ifdef view_of_a_temporary
    const kvm::nested::NestedStateView view = NestedState<Svm>{state};
#else
    const kvm::nested::NestedStateView view = state;
#endif
    return view.bytes().size();
}

auto phase_view(const NestedStateBuffer& state) {
    const auto unrecognised = [](const auto& view) { return kvm::nested::Unrecognised{view.header(), {}}; };
    const auto any = kvm::nested::overloaded{unrecognised, [](const kvm::nested::Empty&) {
                                                 static constexpr kvm::nested::uapi::StateHeader none{};
                                                 return kvm::nested::Unrecognised{none, {}};
                                             }};
#ifdef phase_view_of_a_temporary
    return NestedStateBuffer{state}.visit(any).header().size;
#else
    return state.visit(any).header().size;
#endif
}

void sink(const NestedStateBuffer& state) {
    std::size_t size = 0;
    const auto count = [&](std::string_view piece) noexcept { size += piece.size(); };
#ifdef stored_sink_of_a_temporary
    const kvm::nested::TextSink stored = [&](std::string_view piece) noexcept { size += piece.size(); };
#else
    const kvm::nested::TextSink stored = count;
#endif
    describe(state, stored);
#ifdef throwing_sink
    describe(state, [&](std::string_view piece) { size += piece.size(); });
#else
    describe(state, count);
#endif
}

struct Throwing {
    kvm::nested::IoctlResult operator()(int, unsigned long, void*) const
#ifndef throwing_seam
        noexcept
#endif
    {
        return {0, 0};
    }
};

void seam(Host<Svm> host) {
    Vcpu vcpu{host, VcpuFd{3}, Throwing{}};
    static_cast<void>(vcpu);
}
