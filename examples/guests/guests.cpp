// SPDX-License-Identifier: MIT
#include "guests.hpp"

#include <initializer_list>
#include <utility>

#include <sys/ioctl.h>

// The ends of the images, from the assembler.
extern "C" {
extern const std::byte guest_svm_migrate_begin[], guest_svm_migrate_end[];
extern const std::byte guest_vmx_migrate_begin[], guest_vmx_migrate_end[];
}

namespace guests {

Image migrate(Vendor vendor) {
    return vendor == Vendor::svm ? Image{guest_svm_migrate_begin, guest_svm_migrate_end}
                                 : Image{guest_vmx_migrate_begin, guest_vmx_migrate_end};
}

namespace {

/// Gives the vCPU the XCR0 that the L1 of migrate() will choose. On a real processor L1's own XSETBV is
/// enough. The emulated one of the lab (QEMU 7.2, TCG) executes XSETBV without telling KVM, which then goes
/// on loading the XCR0 it knows of.
void choose_xcr0(const machine::Machine& machine, unsigned vcpu) {
    constexpr std::uint64_t without_avx = XCR0_X87 | XCR0_SSE;
    for (const std::uint64_t xcr0 : {without_avx | XCR0_AVX, without_avx}) {
        kvm_xcrs xcrs = {};
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].value = xcr0;
        if (::ioctl(machine.vcpu_fd(vcpu), KVM_SET_XCRS, &xcrs) == 0)
            return;
    } // refused: no AVX; refused again: no XSAVE, and nothing to choose
}

/// Gives the vCPU a microcode patch level that no vCPU has by itself. Only user space can set it, through one
/// of KVM's feature MSRs.
void choose_patch_level(const machine::Machine& machine, unsigned vcpu) {
    constexpr std::uint32_t msr_patch_level = 0x8b;
    struct { // kvm_msrs with its one entry
        std::uint32_t count = 1, padding = 0;
        kvm_msr_entry entry{.index = msr_patch_level, .reserved = 0, .data = 0x11c0de};
    } msrs;
    ::ioctl(machine.vcpu_fd(vcpu), KVM_SET_MSRS, &msrs); // refused: it keeps its own
}

} // namespace

std::string missing_checks(std::uint32_t checks) {
    std::string names;
    for (const auto& [check, name] : named_checks) {
        if ((checks & std::to_underlying(check)) != 0)
            continue;
        if (!names.empty())
            names += ' ';
        names += name;
    }
    return names;
}

machine::Result<void> start(const machine::Machine& machine, Image image, const Parameters& parameters,
                            unsigned vcpu) {
    choose_xcr0(machine, vcpu);
    choose_patch_level(machine, vcpu);
    return machine.load(image_address, image)
        .and_then([&] { return machine.load(parameters_address, std::as_bytes(std::span{&parameters, 1})); })
        .and_then([&] { return machine.start_long_mode(image_address, l1_stack, vcpu); });
}

} // namespace guests
