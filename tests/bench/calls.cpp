// SPDX-License-Identifier: MIT
//
// Each way of moving a nested state, through the library and by hand. Never run: tests/bench/count reads
// the machine code. A pair is raw_NAME and typed_NAME; `alone` is what a program gets that does not handle
// failure.
//
// By hand means as a careful program does it: a failure goes out of line, with all that is known about it,
// and the caller learns whether the call succeeded.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <sys/ioctl.h>

import kvm.nested;

#pragma clang diagnostic ignored "-Wreturn-type-c-linkage"

template <std::size_t Bytes>
struct Raw {
    std::uint16_t flags;
    std::uint16_t format;
    std::uint32_t size;
    std::byte rest[Bytes - 8];
};
using RawVmx = Raw<8320>;
using RawSvm = Raw<4224>;
using Vmx = kvm::nested::NestedState<kvm::nested::Vmx>;
using Svm = kvm::nested::NestedState<kvm::nested::Svm>;

constexpr unsigned long get_nested_state = 0xc080'aebe;
constexpr unsigned long set_nested_state = 0x4080'aebf;

extern "C" {

[[gnu::cold]] void failed(int fd, const void* state, int result, int error_number) noexcept;

bool alone_get(int fd, RawSvm* state) {
    state->size = sizeof *state;
    return ioctl(fd, get_nested_state, state) == 0;
}
bool alone_set(int fd, const RawSvm* state) {
    return ioctl(fd, set_nested_state, state) == 0;
}

#define RAW_GET(name, State)                                                                                 \
    bool raw_##name(int fd, State* state) {                                                                  \
        state->size = sizeof *state;                                                                         \
        const int result = ioctl(fd, get_nested_state, state);                                               \
        if (result != 0) [[unlikely]]                                                                        \
            failed(fd, state, result, errno);                                                                \
        return result == 0;                                                                                  \
    }
RAW_GET(get_vmx, RawVmx)
RAW_GET(get_svm, RawSvm)
RAW_GET(get_any, RawVmx)

#define RAW_SET(name, State)                                                                                 \
    bool raw_##name(int fd, const State* state) {                                                            \
        const int result = ioctl(fd, set_nested_state, state);                                               \
        if (result != 0) [[unlikely]]                                                                        \
            failed(fd, state, result, errno);                                                                \
        return result == 0;                                                                                  \
    }
RAW_SET(set_vmx, RawVmx)
RAW_SET(set_svm, RawSvm)
RAW_SET(set_any, RawVmx)

#define RAW_VALUE(name, State)                                                                               \
    State raw_##name(int fd) {                                                                               \
        State state;                                                                                         \
        state.size = sizeof state;                                                                           \
        if (const int result = ioctl(fd, get_nested_state, &state); result != 0) [[unlikely]]                \
            failed(fd, &state, result, errno);                                                               \
        return state;                                                                                        \
    }
RAW_VALUE(value_vmx, RawVmx)
RAW_VALUE(value_svm, RawSvm)
RAW_VALUE(value_any, RawVmx)

bool typed_get_vmx(kvm::nested::Host<kvm::nested::Vmx> host, int fd, Vmx* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state(*state).has_value();
}
bool typed_get_svm(kvm::nested::Host<kvm::nested::Svm> host, int fd, Svm* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state(*state).has_value();
}
bool typed_get_any(kvm::nested::Host<kvm::nested::Any> host, int fd, kvm::nested::NestedStateBuffer* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state(*state).has_value();
}
bool typed_set_vmx(kvm::nested::Host<kvm::nested::Vmx> host, int fd, const Vmx* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.set_nested_state(*state).has_value();
}
bool typed_set_svm(kvm::nested::Host<kvm::nested::Svm> host, int fd, const Svm* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.set_nested_state(*state).has_value();
}
bool typed_set_any(kvm::nested::Host<kvm::nested::Any> host, int fd,
                   const kvm::nested::NestedStateBuffer* state) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.set_nested_state(*state).has_value();
}
std::expected<Vmx, kvm::nested::Error> typed_value_vmx(kvm::nested::Host<kvm::nested::Vmx> host, int fd) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state();
}
std::expected<Svm, kvm::nested::Error> typed_value_svm(kvm::nested::Host<kvm::nested::Svm> host, int fd) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state();
}
std::expected<kvm::nested::NestedStateBuffer, kvm::nested::Error>
typed_value_any(kvm::nested::Host<kvm::nested::Any> host, int fd) {
    return kvm::nested::Vcpu{host, kvm::nested::VcpuFd{fd}}.nested_state();
}

} // extern "C"
