// SPDX-License-Identifier: MIT
//
// The least that tells a Linux of its interrupt controllers (ACPI specification 6.5, chapter 5): RSDP, XSDT,
// MADT. A distribution's kernel need not read the older MP tables. Without any of them it does without its
// local APIC, and the one that KVM has would lie idle. There is no FADT, so Linux switches the rest of ACPI
// off.
#pragma once

#include <cstddef>
#include <span>

namespace linux_l1 {

void place_acpi(std::span<std::byte> memory);

} // namespace linux_l1
