// SPDX-License-Identifier: MIT
//
// kvm.nested.json brings kvm.nested along; the JSON library behind it is nobody's business.
#include <cstdio>
#include <expected>
#include <string>

import kvm.nested.json;

int main() {
    const auto text = kvm::nested::to_json(kvm::nested::NestedState<kvm::nested::Svm>::gif_clear());
    const auto state = kvm::nested::from_json(text);
    std::puts(text.c_str());
    return state && state->phase() == kvm::nested::Phase::svm_outside_l2_gif_clear ? 0 : 1;
}
