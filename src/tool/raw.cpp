// SPDX-License-Identifier: MIT
#include "raw.hpp"

#include <algorithm>
#include <cstring>
#include <format>

namespace kvm::tool {
namespace {

constexpr auto next_step =
    "pass what KVM_GET_NESTED_STATE wrote, a kvm.vcpu file, a QEMU migration stream, a libvirt "
    "save image, the state.json of Cloud Hypervisor, or JSON of kvm-nested show --json";

std::unexpected<Trouble> none(std::string reason, std::size_t offset) {
    return std::unexpected{
        Trouble{"no nested state is recognised here; as raw bytes: " + reason, offset, next_step}};
}

} // namespace

Reading read_raw(Bytes input) {
    uapi::StateHeader header;
    if (input.size() < sizeof header)
        return none(std::format("{} bytes, and the header takes {}", input.size(), sizeof header),
                    input.size());
    std::memcpy(&header, input.data(), sizeof header);
    if (header.format != Vmx::format && header.format != Svm::format)
        return none(std::format("the format is {}, neither 0 (VMX) nor 1 (SVM)", header.format),
                    offsetof(uapi::StateHeader, format));
    if (header.size < sizeof header || header.size > Any::capacity)
        return none(std::format("the size is said to be {}, and states take {} to {} bytes", header.size,
                                sizeof header, Any::capacity),
                    offsetof(uapi::StateHeader, size));
    if (header.size > input.size())
        return none(std::format("the header speaks of {} bytes, and there are {}", header.size, input.size()),
                    input.size());

    FoundState found{.bytes = {input.begin(), input.begin() + header.size}};
    const auto slack = input.subspan(header.size);
    if (!slack.empty())
        found.notes.push_back(
            std::format("{} bytes lie behind the state and are no part of it; {}", slack.size(),
                        std::ranges::all_of(slack, [](std::byte byte) { return byte == std::byte{}; })
                            ? "all are zero"
                            : "not all are zero"));
    return Contents{"raw bytes of KVM_GET_NESTED_STATE", {std::move(found)}};
}

} // namespace kvm::tool
