// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

constexpr std::array role_names = std::to_array<std::string_view>({
    "VMXON region",
    "vmcs12",
    "VMCS at the link pointer",
    "shadow VMCS at the link pointer",
    "VMREAD bitmap",
    "VMWRITE bitmap",
    "I/O bitmap A",
    "I/O bitmap B",
    "MSR bitmap",
    "VM-exit MSR-store area",
    "VM-exit MSR-load area",
    "VM-entry MSR-load area",
    "virtual-APIC page",
    "APIC-access page",
    "posted-interrupt descriptor",
    "EPT root",
    "EPTP list",
    "page-modification log",
    "vmcb12",
    "I/O permission map",
    "MSR permission map",
    "root of the nested page table",
    "root of L2's page table",
    "root of L1's page table",
});
static_assert(role_names.size() == static_cast<std::size_t>(PageRole::l1_page_table) + 1);

constexpr std::uint64_t page_of(std::uint64_t address) {
    return address
           & 0x000f'ffff'ffff'f000; // without what CR3, EPTP and the permission maps have below and above
}

constexpr const Field& vmcs12_field(std::string_view name) {
    return *find_vmcs12_field(name);
}
// The control words as one: pin-based, primary, secondary.
struct Controls {
    std::uint64_t pin, primary, secondary;

    explicit constexpr Controls(const Vmcs12Fields& vmcs12) noexcept
        : pin{vmcs12["pin_based_vm_exec_control"]}, primary{vmcs12["cpu_based_vm_exec_control"]},
          secondary{has(primary, vmx::Primary::activate_secondary_controls)
                        ? vmcs12["secondary_vm_exec_control"]
                        : 0} {}
};

/// A page that one control bit makes live.
struct Row {
    PageRole role;
    PageAccess access;
    std::uint64_t Controls::* word;
    std::uint64_t bits;
    const Field& address;
    std::uint64_t size = uapi::page_size;
};

using enum PageAccess;
constexpr std::array rows = std::to_array<Row>({
    {PageRole::vmread_bitmap, reads, &Controls::secondary, mask(vmx::Secondary::vmcs_shadowing),
     vmcs12_field("vmread_bitmap")},
    {PageRole::vmwrite_bitmap, reads, &Controls::secondary, mask(vmx::Secondary::vmcs_shadowing),
     vmcs12_field("vmwrite_bitmap")},
    {PageRole::io_bitmap_a, reads, &Controls::primary, mask(vmx::Primary::use_io_bitmaps),
     vmcs12_field("io_bitmap_a")},
    {PageRole::io_bitmap_b, reads, &Controls::primary, mask(vmx::Primary::use_io_bitmaps),
     vmcs12_field("io_bitmap_b")},
    {PageRole::msr_bitmap, reads, &Controls::primary, mask(vmx::Primary::use_msr_bitmaps),
     vmcs12_field("msr_bitmap")},
    {PageRole::virtual_apic, reads_and_writes, &Controls::primary, mask(vmx::Primary::use_tpr_shadow),
     vmcs12_field("virtual_apic_page_addr")},
    // Only its address counts: accesses to it go elsewhere (Intel SDM Vol. 3, APIC-access page).
    {PageRole::apic_access, none, &Controls::secondary, mask(vmx::Secondary::virtualize_apic_accesses),
     vmcs12_field("apic_access_addr")},
    {PageRole::posted_interrupts, reads_and_writes, &Controls::pin,
     mask(vmx::PinBased::process_posted_interrupts), vmcs12_field("posted_intr_desc_addr"), 64},
    {PageRole::page_modification_log, writes, &Controls::secondary, mask(vmx::Secondary::enable_pml),
     vmcs12_field("pml_address")},
});

/// A list of MSRs: 16 bytes each (Intel SDM Vol. 3, VM-exit controls for MSRs).
struct MsrArea {
    PageRole role;
    PageAccess access;
    const Field& address;
    const Field& count;
};
constexpr std::array msr_areas = std::to_array<MsrArea>({
    {PageRole::exit_msr_store, reads_and_writes, vmcs12_field("vm_exit_msr_store_addr"),
     vmcs12_field("vm_exit_msr_store_count")},
    {PageRole::exit_msr_load, reads, vmcs12_field("vm_exit_msr_load_addr"),
     vmcs12_field("vm_exit_msr_load_count")},
    {PageRole::entry_msr_load, reads, vmcs12_field("vm_entry_msr_load_addr"),
     vmcs12_field("vm_entry_msr_load_count")},
});

/// Hands over the ranges of each phase.
struct Ranges {
    Receiver<const GuestRange&> receiver;

    void give(PageRole role, PageAccess access, std::uint64_t address,
              std::uint64_t size = uapi::page_size) const noexcept {
        receiver({address, size, role, access});
    }

    void operator()(const Empty&) const noexcept {}
    void operator()(const Unrecognised&) const noexcept {}
    void operator()(const vmx::Off&) const noexcept {}
    void operator()(const vmx::InVmxOperation& view) const noexcept {
        give(PageRole::vmxon_region, none, view.vmxon_pa());
    }
    void operator()(const vmx::WithVmcs12& view) const noexcept {
        give(PageRole::vmxon_region, none, view.vmxon_pa());
        if (const auto pa = view.vmcs12_pa())
            give(PageRole::vmcs12, writes, *pa); // KVM runs on its own copy and writes it back
    }
    void operator()(const vmx::L2Active& view) const noexcept {
        (*this)(static_cast<const vmx::WithVmcs12&>(view));
        controls(view.fields());
    }
    void operator()(const vmx::SmmInterruptedL2& view) const noexcept {
        (*this)(static_cast<const vmx::WithVmcs12&>(view));
        controls(view.fields());
    }
    void operator()(const svm::WithGif&) const noexcept {}
    void operator()(const svm::L2Active& view) const noexcept {
        const auto vmcb = view.fields();
        give(PageRole::vmcb12, writes, view.vmcb12_pa());
        if (has(vmcb["intercepts[3]"], svm::Intercept::ioio_prot))
            give(PageRole::iopm, reads, page_of(vmcb["iopm_base_pa"]), 3 * uapi::page_size);
        if (has(vmcb["intercepts[3]"], svm::Intercept::msr_prot))
            give(PageRole::msrpm, reads, page_of(vmcb["msrpm_base_pa"]), 2 * uapi::page_size);
        if (has(vmcb["misc_ctl"], svm::MiscCtl::np_enable))
            give(PageRole::nested_cr3, reads_and_writes, page_of(vmcb["nested_cr3"]));
        give(PageRole::l1_page_table, reads_and_writes, page_of(vmcb["cr3"]));
    }

    void controls(const Vmcs12Fields& vmcs12) const noexcept {
        const Controls controls{vmcs12};
        link(controls, vmcs12["vmcs_link_pointer"]);
        for (const auto& row : rows)
            if ((controls.*row.word & row.bits) != 0)
                give(row.role, row.access, vmcs12[row.address], row.size);
        for (const auto& area : msr_areas)
            if (const auto count = vmcs12[area.count]; count != 0)
                give(area.role, area.access, vmcs12[area.address], 16 * count);
        tables(controls, vmcs12);
    }

    void link(const Controls& controls, std::uint64_t pointer) const noexcept {
        if (pointer == uapi::no_address)
            return;
        if (has(controls.secondary, vmx::Secondary::vmcs_shadowing))
            give(PageRole::shadow_vmcs, reads_and_writes, pointer);
        else // KVM_SET_NESTED_STATE looks at its first word
            give(PageRole::linked_vmcs, reads, pointer, sizeof(std::uint32_t));
    }

    void tables(const Controls& controls, const Vmcs12Fields& vmcs12) const noexcept {
        const auto eptp = vmcs12["ept_pointer"];
        if (has(controls.secondary, vmx::Secondary::enable_ept)) {
            const bool flags = has(eptp, vmx::EptPointer::accessed_and_dirty_flags);
            give(PageRole::ept_root, flags ? reads_and_writes : reads, page_of(eptp));
        } else if (has(vmcs12["guest_cr0"], Cr0::pg)) {
            give(PageRole::l2_page_table, reads_and_writes, page_of(vmcs12["guest_cr3"]));
        }
        if (has(controls.secondary, vmx::Secondary::enable_vm_functions)
            && has(vmcs12["vm_function_control"], vmx::VmFunction::eptp_switching))
            give(PageRole::eptp_list, reads, vmcs12["eptp_list_address"]);
        give(PageRole::l1_page_table, reads_and_writes, page_of(vmcs12["host_cr3"]));
    }
};

} // namespace

std::string_view name(PageRole role) noexcept {
    const auto index = static_cast<std::size_t>(role);
    return index < role_names.size() ? role_names[index] : "?";
}

std::string_view name(PageAccess access) noexcept {
    constexpr auto names =
        std::to_array<std::string_view>({"not accessed", "read", "written", "read and written"});
    static_assert(names.size() == static_cast<std::size_t>(reads_and_writes) + 1);
    const auto index = static_cast<std::size_t>(access);
    return index < names.size() ? names[index] : "?";
}

void guest_ranges(const NestedStateView& state, Receiver<const GuestRange&> receiver) noexcept {
    state.visit(Ranges{receiver});
}

} // namespace kvm::nested
