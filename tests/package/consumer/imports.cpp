// SPDX-License-Identifier: MIT
#include <cstdio>
#include <expected>

import kvm.nested;

int main() {
    const auto host = kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{-1});
    const auto state = kvm::nested::NestedState<kvm::nested::Svm>::gif_clear();
    std::puts(kvm::nested::summary(state).c_str());
    return !host && host.error().code == kvm::nested::Errc::bad_descriptor
                   && state.phase() == kvm::nested::Phase::svm_outside_l2_gif_clear
               ? 0
               : 1;
}
