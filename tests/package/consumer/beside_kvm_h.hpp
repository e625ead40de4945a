// SPDX-License-Identifier: MIT
//
// What a VMM does with its own <linux/kvm.h>, included before this, next to ours.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <expected>
#include <new>
#include <span>

import kvm.nested;

int main() {
    constexpr unsigned count = 4;
    auto* cpuid =
        static_cast<kvm_cpuid2*>(std::calloc(1, sizeof(kvm_cpuid2) + (count + 1) * sizeof(kvm_cpuid_entry2)));
    cpuid->nent = count;
    cpuid->entries[0].function = 1;
    kvm_cpuid_entry2* entries = cpuid->entries;
    kvm_nested_state raw{};
    raw.size = sizeof raw;
    raw.format = KVM_STATE_NESTED_FORMAT_SVM;
    raw.flags = KVM_STATE_NESTED_GIF_SET;

    const auto state = kvm::nested::NestedState<kvm::nested::Svm>::parse(
        std::span{reinterpret_cast<const std::byte*>(&raw), static_cast<std::size_t>(raw.size)});
    const bool right = entries[0].function == 1 && state
                       && state->phase() == kvm::nested::Phase::svm_outside_l2_gif_set
                       && kvm::nested::uapi::request::get_nested_state == KVM_GET_NESTED_STATE;
    std::free(cpuid);
    return right ? 0 : 1;
}
