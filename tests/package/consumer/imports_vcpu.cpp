// SPDX-License-Identifier: MIT
//
// kvm.vcpu brings kvm.nested along; the file form needs zlib at link time.
#include <cstddef>
#include <cstdio>
#include <expected>
#include <span>
#include <vector>

import kvm.vcpu;

int main() {
    const std::byte nothing[16]{};
    const auto parsed = kvm::vcpu::parse_vcpu(nothing);
    if (!parsed)
        std::puts(parsed.error().message().c_str());
    const auto state = kvm::nested::NestedState<kvm::nested::Svm>::gif_clear();
    return !parsed && state.phase() == kvm::nested::Phase::svm_outside_l2_gif_clear
                   && kvm::vcpu::restore_order.back().step == kvm::vcpu::Step::first_run
               ? 0
               : 1;
}
