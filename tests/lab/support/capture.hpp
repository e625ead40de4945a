// SPDX-License-Identifier: MIT
//
// States of a real kernel, from each place that the lab reaches: that JSON carries them, and, where there is
// a folder to write to, the bytes themselves, as KVM_GET_NESTED_STATE wrote them. tests/corpus tells what
// becomes of those.
//
// Include it last, after scenario.hpp: it ends the includes and imports kvm.nested.json.
#pragma once

#include "scenario.hpp"

import kvm.nested.json;

namespace lab {

/// Where states are written to: made by who wants them, in the working directory.
inline constexpr const char* capture_folder = "captured";

/// VENDOR-PLACE.state.
inline void write_capture(const std::string& place, std::span<const std::byte> state) {
    if (::access(capture_folder, W_OK) != 0)
        return;
    const auto path = std::format("{}/{}-{}.state", capture_folder, is_vmx() ? "vmx" : "svm", place);
    const machine::Descriptor file{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (::write(file.get(), state.data(), state.size()) != static_cast<ssize_t>(state.size()))
        give_up(std::format("{} cannot be written: errno {}", path, errno));
}

/// A state as the kernel wrote it, by the name of the place that the guest was at: "l2-run-pending".
inline void capture(const std::string& place, std::span<const std::byte> state) {
    CAPTURE(place);
    write_capture(place, state);
    const auto parsed = must(kvm::nested::NestedStateBuffer::parse(state));
    const auto again = kvm::nested::from_json(kvm::nested::to_json(parsed));
    INFO((again ? "" : again.error().message()));
    REQUIRE(again.has_value());
    CHECK(*again == parsed);
}

/// The same of a vCPU whose I/O is completed.
inline void capture(const std::string& place, const machine::Machine& machine) {
    capture(place, read_back(machine.vcpu_fd()));
}

/// The same of a guest right after its first write of `value` to `port`.
inline void capture_at(const std::string& place, const Scenario& scenario, std::uint16_t port,
                       std::uint32_t value) {
    const auto reached = run_until(scenario, port, value);
    complete_io(reached.vm.machine);
    capture(place, reached.vm.machine);
}

} // namespace lab
