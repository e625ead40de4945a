// SPDX-License-Identifier: MIT
//
// The state.json of a Cloud Hypervisor snapshot, as its sources of August 2026 write it: a tree of snapshots,
// in which "cpu-manager" has one for each vCPU, whose data is JSON in a string:
//
//     {"snapshots": {"cpu-manager": {"snapshots": {"0": {"snapshot_data": {"state": "{\"Kvm\": {...}}"}}, ...
//
// In it "nested_state" is null or all 8320 bytes of kvm-bindings' buffer, one number for each.
#pragma once
#include "reader.hpp"

namespace kvm::tool {

/// Of what is_json(): whether it has such a tree.
bool is_cloud_hypervisor_state(Bytes input);
Reading read_cloud_hypervisor_state(Bytes input);

} // namespace kvm::tool
