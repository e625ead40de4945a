// SPDX-License-Identifier: MIT
//
// A user who includes nothing: what the library's templates need, they bring along. Compiling is the test.
import kvm.nested;

namespace {

template <class V, class Ioctl>
bool use(const kvm::Vcpu<V, Ioctl>& vcpu) {
    auto state = vcpu.nested_state();
    if (!state || !vcpu.nested_state(*state) || !vcpu.set_nested_state(*state) || !vcpu.clear_nested_state()
        || !vcpu.verify_nested_state(*state))
        return false;
    using State = typename kvm::Vcpu<V, Ioctl>::State;
    const auto parsed = State::parse(state->bytes());
    const auto prefix = State::parse_prefix(state->bytes());
    if (!parsed || !prefix || prefix->consumed == 0 || parsed.error() == prefix.error())
        return false;
    return *parsed == *state && equivalent(*parsed, *state) && *parsed != State{}
           && !summary(*state).view().empty()
           && state->visit(kvm::overloaded{[](const kvm::vmx::L2Active& l2) { return l2.run_pending(); },
                                           [](const auto&) { return true; }});
}

} // namespace

template <class V>
bool use_host(int system, int vcpu) {
    const auto host = kvm::Host<V>::probe(kvm::SystemFd{system});
    return host && use(kvm::Vcpu{*host, kvm::VcpuFd{vcpu}})
           && use(kvm::Vcpu{*host, kvm::VcpuFd{vcpu}, kvm::IoctlRef{kvm::system_call}});
}
template bool use_host<kvm::Vmx>(int, int);
template bool use_host<kvm::Svm>(int, int);
template bool use_host<kvm::Any>(int, int);

bool use_buffer(const kvm::NestedStateBuffer& buffer) {
    const auto vmx = buffer.to<kvm::Vmx>();
    const auto svm = buffer.to<kvm::Svm>();
    return vmx && svm && kvm::NestedStateBuffer{*vmx} == kvm::NestedStateBuffer{*svm};
}

/// The text goes wherever the caller wants it, the caller's own types included.
struct Line {
    char text[160];
    unsigned length;
};
unsigned use_report(const kvm::NestedState<kvm::Vmx>& vmx, const kvm::NestedStateBuffer& buffer) {
    Line line{};
    const auto sink = [&line](auto piece) noexcept {
        for (const char c : piece)
            if (line.length < sizeof line.text)
                line.text[line.length++] = c;
    };
    describe(vmx, sink);
    describe(buffer, sink, {.fields = kvm::FieldsShown::all, .redact = true});
    unsigned pages = 0;
    guest_ranges(vmx, [&pages](const kvm::GuestRange& range) noexcept {
        pages += static_cast<unsigned>(range.pages());
    });
    const auto rip =
        vmx.visit(kvm::overloaded{[](const kvm::vmx::L2Active& l2) { return l2.fields()["guest_rip"]; },
                                  [](const auto&) { return decltype(kvm::uapi::no_address){}; }});
    return line.length + pages + (rip == 0)
           + static_cast<unsigned>(difference(vmx, vmx, [](const kvm::Difference&) noexcept {}));
}
