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

std::expected<void, Error> WholeVcpu::save(VcpuState& state, const SaveOptions& options) const {
    const auto calls = this->calls(Operation::save);
    state.vendor = host_.vendor();
    auto step = Step::pending_io;
    auto done = calls.complete_io();
    std::optional<MsrLists> asked;
    if (done && options.lists == nullptr) {
        step = Step::feature_msrs;
        if (auto lists = MsrLists::ask(system_, ioctl_))
            asked = *std::move(lists);
        else
            done = std::unexpected(lists.error());
    }
    if (done) {
        const Saving saving{calls, host_, requirements_, state, options, asked ? *asked : *options.lists};
        for (const auto group : save_order) {
            if (!done)
                break;
            step = group;
            done = save_group(row(group).group, saving);
        }
    }
    if (!done) {
        done.error().operation = Operation::save; // whatever the lower floor was asked to do for it
        done.error().step = step;
        state.nested.clear(); // half of it is no state
    }
    return done;
}

std::expected<VcpuState, Error> WholeVcpu::save(const SaveOptions& options) const {
    std::expected<VcpuState, Error> result{std::in_place};
    if (const auto saved = save(*result, options); !saved)
        result = std::unexpected(saved.error());
    return result;
}

} // namespace kvm::vcpu
