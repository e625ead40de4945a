// SPDX-License-Identifier: MIT
//
// A VMM that has a namespace kvm of its own, with names that are ours, too, as far as they are in kvm::nested
// or kvm::vcpu.
#include <cstdio>
#include <expected>

import kvm.nested;
import kvm.vcpu;

namespace kvm {

struct Error {
    int number;
};

class Vcpu {
  public:
    explicit Vcpu(int fd) : fd_{fd} {}
    std::expected<int, Error> run() const {
        if (fd_ < 0)
            return std::unexpected{Error{9}};
        return fd_;
    }

  private:
    int fd_;
};

class WholeVcpu {};
struct VmFd {};

} // namespace kvm

using namespace kvm;

int main() {
    const Vcpu vcpu{-1};
    const auto ran = vcpu.run();
    const kvm::Error own = ran.error();
    const auto host = kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{-1});
    const kvm::nested::Error& theirs = host.error();
    std::puts(theirs.message().c_str());
    return own.number == 9 && theirs.code == kvm::nested::Errc::bad_descriptor ? 0 : 1;
}
