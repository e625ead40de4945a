// SPDX-License-Identifier: MIT
#include <cstdio>
#include <expected>

import kvm.nested;

int main() {
    const auto host = kvm::Host<kvm::Any>::probe(kvm::SystemFd{-1});
    const auto state = kvm::NestedState<kvm::Svm>::gif_clear();
    std::puts(kvm::summary(state).c_str());
    return !host && host.error().code == kvm::Errc::bad_descriptor
                   && state.phase() == kvm::Phase::svm_outside_l2_gif_clear
               ? 0
               : 1;
}
