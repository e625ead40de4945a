// SPDX-License-Identifier: MIT
#include "vcpu_file.hpp"

#include <algorithm>
#include <array>

import kvm.vcpu;

namespace kvm::tool {
namespace {

constexpr std::array magic{std::byte{0x8f}, std::byte{0x4b}, std::byte{0x56}, std::byte{0x43},
                           std::byte{0x50}, std::byte{0x55}, std::byte{0x0d}, std::byte{0x0a}};

} // namespace

bool is_vcpu_file(Bytes input) {
    return input.size() >= magic.size() && std::ranges::equal(input.first(magic.size()), magic);
}

Reading read_vcpu_file(Bytes input) {
    const auto file = vcpu::parse_vcpu(input);
    if (!file) {
        const auto& [kind, value] = file.error().detail;
        std::optional<std::size_t> offset;
        if (kind == vcpu::Detail::Kind::file_offset)
            offset = static_cast<std::size_t>(value);
        return std::unexpected{Trouble{std::string{description(file.error().cause)}, offset,
                                       "save the vCPU again, or take another copy of the file"}};
    }
    const auto bytes = file->state.nested.bytes();
    const Registers registers{file->state.regs.rip, file->state.regs.rsp, file->state.sregs.cr3,
                              file->state.regs.rflags};
    return Contents{"kvm.vcpu file", {{.bytes = {bytes.begin(), bytes.end()}, .registers = registers}}};
}

} // namespace kvm::tool
