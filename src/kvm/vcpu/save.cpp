// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <utility>
#include <vector>
module kvm.vcpu;

#include "calls.hpp"

namespace kvm::vcpu {
namespace {

using namespace detail;

Result save_group(const Group& group, const Saving& saving) {
    return group.save != nullptr ? group.save(saving)
                                 : saving.calls.call(group.get.number, group.object(saving.state));
}

} // namespace

std::expected<VcpuState, Error> WholeVcpu::save() const {
    std::expected<VcpuState, Error> result{std::in_place};
    auto& state = *result;
    state.vendor = host_.vendor();

    const auto calls = this->calls(Operation::save);
    const Saving saving{calls, host_, requirements_, state};
    auto step = Step::pending_io;
    auto done = calls.complete_io();
    for (const auto group : save_order) {
        if (!done)
            break;
        step = group;
        done = save_group(row(group).group, saving);
    }
    if (!done) {
        auto error = done.error();
        error.operation = Operation::save; // whatever the lower floor was asked to do for it
        error.step = step;
        result = std::unexpected(error);
    }
    return result;
}

} // namespace kvm::vcpu
