// SPDX-License-Identifier: MIT
//
// kvm.nested inside a VMM that has its own ioctl layer, its own error type and one vendor: embed-svm and
// embed-vmx are this file, built once for each.
#include <cerrno>
#include <concepts>
#include <cstdint>
#include <expected>
#include <fcntl.h>
#include <print>
#include <string>
#include <sys/ioctl.h>

#include "machine/linux_kvm.hpp"

import kvm.nested;

namespace vmm {

/// The one line that says which vendor this VMM is for: kvm::nested::Svm or kvm::nested::Vmx.
using Vendor = VMM_VENDOR;

/// The VMM's way to the kernel: it counts what it asks and never shows anybody the thread's errno.
class Kernel {
  public:
    kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) noexcept {
        ++calls_;
        const int result = ::ioctl(fd, request, argument);
        return {result, result < 0 ? std::exchange(errno, 0) : 0};
    }
    unsigned calls() const { return calls_; }

  private:
    unsigned calls_ = 0;
};

/// The VMM's own failure: what its upper layers decide by, and a text for the log.
struct Failure {
    enum class Action : std::uint8_t { try_elsewhere, reset_vcpu, give_up } action;
    std::string text;
};

/// The one place where the two error types meet.
Failure failure(const kvm::nested::Error& error) {
    const auto action =
        error.effect == kvm::nested::Effect::nested_state_lost ? Failure::Action::reset_vcpu
        : error.code == kvm::nested::Errc::wrong_vendor || error.code == kvm::nested::Errc::nesting_off
            ? Failure::Action::try_elsewhere
            : Failure::Action::give_up;
    return {action, std::string{error.message().view()}};
}

/// A vCPU of this VMM. It owns its descriptors elsewhere; the library only borrows them.
class Vcpu {
  public:
    static std::expected<Vcpu, Failure> make(int system, int vcpu, Kernel& kernel) {
        return kvm::nested::Host<Vendor>::probe(kvm::nested::SystemFd{system}, kernel)
            .transform([&](kvm::nested::Host<Vendor> host) {
                return Vcpu{Nested{host, kvm::nested::VcpuFd{vcpu}, kernel}};
            })
            .transform_error(failure);
    }

    /// Into memory that the VMM has already, as its snapshots want it.
    std::expected<void, Failure> save(kvm::nested::NestedState<Vendor>& into) const {
        return nested_.nested_state(into).transform_error(failure);
    }
    std::expected<void, Failure> restore(const kvm::nested::NestedState<Vendor>& state) const {
        return nested_.set_nested_state(state).transform_error(failure);
    }

  private:
    using Nested = kvm::nested::Vcpu<Vendor, kvm::nested::IoctlRef>;
    explicit Vcpu(Nested nested) : nested_{nested} {}
    Nested nested_;
};

/// What this vCPU cannot be in. On SVM: GIF clear without SVM ever enabled (Linux from 7.x on takes that). On
/// VMX: in VMX operation, without a CPUID that offers it.
template <kvm::nested::Vendor V>
kvm::nested::NestedState<V> impossible() {
    if constexpr (std::same_as<V, kvm::nested::Svm>)
        return kvm::nested::NestedState<V>::gif_clear();
    else
        return kvm::nested::NestedState<V>::vmxon_only(0x1000);
}

int complain(const Failure& failure) {
    std::println(stderr, "embed: {} (action {})", failure.text, static_cast<int>(failure.action));
    return 1;
}

} // namespace vmm

int main() {
    const int system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    const int fd = ioctl(ioctl(system, KVM_CREATE_VM, 0), KVM_CREATE_VCPU, 0);

    vmm::Kernel kernel;
    const auto vcpu = vmm::Vcpu::make(system, fd, kernel);
    if (!vcpu)
        return vmm::complain(vcpu.error());

    kvm::nested::NestedState<vmm::Vendor> snapshot;
    if (const auto saved = vcpu->save(snapshot); !saved)
        return vmm::complain(saved.error());
    if (const auto restored = vcpu->restore(snapshot); !restored)
        return vmm::complain(restored.error());
    std::println("saved and restored through the VMM's own layer in {} calls: {}", kernel.calls(), snapshot);

    // A failure arrives as the VMM's own type.
    if (const auto refused = vcpu->restore(vmm::impossible<vmm::Vendor>()); !refused)
        std::println("as it should be: {}", refused.error().text);
}
