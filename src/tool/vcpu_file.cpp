// SPDX-License-Identifier: MIT
#include "vcpu_file.hpp"

#include <algorithm>
#include <array>
#include <format>
#include <memory>
#include <utility>
#include <vector>

import kvm.vcpu;

namespace kvm::tool {
namespace {

constexpr std::array magic{std::byte{0x8f}, std::byte{0x4b}, std::byte{0x56}, std::byte{0x43},
                           std::byte{0x50}, std::byte{0x55}, std::byte{0x0d}, std::byte{0x0a}};

using Vcpus = std::shared_ptr<const std::vector<vcpu::VcpuState>>;

FoundState found_in(const Vcpus& vcpus, std::size_t index, std::size_t number) {
    const auto& state = (*vcpus)[index];
    const auto bytes = state.nested.bytes();
    return {.vcpu = static_cast<unsigned>(number),
            .bytes = {bytes.begin(), bytes.end()},
            .registers = Registers{state.regs.rip, state.regs.rsp, state.sregs.cr3, state.regs.rflags},
            .on_host = [vcpus, index](const Destination& host) {
                return vcpu::destination_of((*vcpus)[index], host);
            }};
}

/// What lies beside the vCPUs. Its meaning is its writer's, but for one that is a file of vCPUs itself.
std::string note_on(const vcpu::Section& section) {
    return std::format("beside it, of its writer's own: section {:#x}, {} bytes{}", section.type,
                       section.bytes.size(),
                       is_vcpu_file(section.bytes) ? ", a kvm.vcpu file, whose vCPUs come behind" : "");
}

/// Appends what a file has; what it has inside in another file, behind it.
std::expected<void, vcpu::Error> append(Bytes input, Contents& contents, bool inside) {
    auto file = vcpu::parse_vm(input);
    if (!file)
        return std::unexpected{file.error()};
    if (file->vm)
        contents.format = "kvm.vcpu file of a virtual machine";
    const auto first = contents.states.size();
    const auto vcpus = std::make_shared<const std::vector<vcpu::VcpuState>>(std::move(file->vcpus));
    for (std::size_t i = 0; i < vcpus->size(); ++i)
        contents.states.push_back(found_in(vcpus, i, contents.states.size()));
    for (const auto& section : file->sections) {
        contents.states[first].notes.push_back(note_on(section));
        if (!inside && is_vcpu_file(section.bytes))
            if (const auto done = append(section.bytes, contents, true); !done)
                contents.states[first].notes.push_back(std::format(
                    "section {:#x} cannot be read: {}", section.type, description(done.error().cause)));
    }
    return {};
}

} // namespace

bool is_vcpu_file(Bytes input) {
    return input.size() >= magic.size() && std::ranges::equal(input.first(magic.size()), magic);
}

Reading read_vcpu_file(Bytes input) {
    Contents contents{"kvm.vcpu file", {}};
    if (const auto done = append(input, contents, false); !done) {
        const auto& [kind, value] = done.error().detail;
        std::optional<std::size_t> offset;
        if (kind == vcpu::Detail::Kind::file_offset)
            offset = static_cast<std::size_t>(value);
        return std::unexpected{Trouble{std::string{description(done.error().cause)}, offset,
                                       "save the vCPU again, or take another copy of the file"}};
    }
    return contents;
}

} // namespace kvm::tool
