// SPDX-License-Identifier: MIT
//
// A user who includes nothing: what the library's templates need, they bring along. Compiling is the test.
import kvm.nested;

namespace {

template <class V, class Ioctl>
bool use(const kvm::nested::Vcpu<V, Ioctl>& vcpu) {
    auto state = vcpu.nested_state();
    if (!state || !vcpu.nested_state(*state) || !vcpu.set_nested_state(*state) || !vcpu.clear_nested_state()
        || !vcpu.verify_nested_state(*state))
        return false;
    using State = typename kvm::nested::Vcpu<V, Ioctl>::State;
    const auto parsed = State::parse(state->bytes());
    const auto prefix = State::parse_prefix(state->bytes());
    if (!parsed || !prefix || prefix->consumed == 0 || parsed.error() == prefix.error())
        return false;
    return *parsed == *state && equivalent(*parsed, *state) && *parsed != State{}
           && !summary(*state).view().empty()
           && state->visit(
               kvm::nested::overloaded{[](const kvm::nested::vmx::L2Active& l2) { return l2.run_pending(); },
                                       [](const auto&) { return true; }});
}

} // namespace

template <class V>
bool use_host(int system, int vcpu) {
    const auto host = kvm::nested::Host<V>::probe(kvm::nested::SystemFd{system});
    return host && use(kvm::nested::Vcpu{*host, kvm::nested::VcpuFd{vcpu}})
           && use(kvm::nested::Vcpu{*host, kvm::nested::VcpuFd{vcpu},
                                    kvm::nested::IoctlRef{kvm::nested::system_call}});
}
template bool use_host<kvm::nested::Vmx>(int, int);
template bool use_host<kvm::nested::Svm>(int, int);
template bool use_host<kvm::nested::Any>(int, int);

bool use_buffer(const kvm::nested::NestedStateBuffer& buffer) {
    const auto vmx = buffer.to<kvm::nested::Vmx>();
    const auto svm = buffer.to<kvm::nested::Svm>();
    return vmx && svm && kvm::nested::NestedStateBuffer{*vmx} == kvm::nested::NestedStateBuffer{*svm};
}

/// The text goes wherever the caller wants it, the caller's own types included.
struct Line {
    char text[160];
    unsigned length;
};
unsigned use_report(const kvm::nested::NestedState<kvm::nested::Vmx>& vmx,
                    const kvm::nested::NestedStateBuffer& buffer) {
    Line line{};
    const auto sink = [&line](auto piece) noexcept {
        for (const char c : piece)
            if (line.length < sizeof line.text)
                line.text[line.length++] = c;
    };
    describe(vmx, sink);
    describe(buffer, sink, {.fields = kvm::nested::FieldsShown::all, .redact = true});
    unsigned pages = 0;
    guest_ranges(vmx, [&pages](const kvm::nested::GuestRange& range) noexcept {
        pages += static_cast<unsigned>(range.pages());
    });
    const auto rip = vmx.visit(
        kvm::nested::overloaded{[](const kvm::nested::vmx::L2Active& l2) { return l2.fields()["guest_rip"]; },
                                [](const auto&) { return decltype(kvm::nested::uapi::no_address){}; }});
    return line.length + pages + (rip == 0)
           + static_cast<unsigned>(difference(vmx, vmx, [](const kvm::nested::Difference&) noexcept {}));
}
