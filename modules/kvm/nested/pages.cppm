// SPDX-License-Identifier: MIT
//
// The guest memory that a nested state refers to. None of it is in the state: it has to be carried with it,
// and KVM reads and writes it behind the back of dirty tracking by user space, of userfaultfd and of dumps.
module;
#include <cstdint>
#include <string_view>
export module kvm.nested:pages;
import :uapi;
import :sink;
import :state_view;

export namespace kvm::nested {

/// What a range of guest memory is for.
enum class PageRole : std::uint8_t {
    vmxon_region,
    vmcs12,
    linked_vmcs, ///< what the VMCS link pointer leads to, without VMCS shadowing
    shadow_vmcs,
    vmread_bitmap,
    vmwrite_bitmap,
    io_bitmap_a,
    io_bitmap_b,
    msr_bitmap,
    exit_msr_store,
    exit_msr_load,
    entry_msr_load,
    virtual_apic,
    apic_access,
    posted_interrupts,
    ept_root,
    eptp_list,
    page_modification_log,
    vmcb12,
    iopm,
    msrpm,
    nested_cr3,
    l2_page_table, ///< the root of L2's own page table, where L2 has no second level of translation
    l1_page_table, ///< the root of the page table to which the next VM exit returns
};
std::string_view name(PageRole) noexcept;

/// What KVM does with the range on behalf of the guest, from when the state is set until L1 says otherwise. A
/// processor that runs the guest counts as KVM.
enum class PageAccess : std::uint8_t { none, reads, writes, reads_and_writes };
std::string_view name(PageAccess) noexcept;

/// A range of guest physical memory.
struct GuestRange {
    std::uint64_t address;
    std::uint64_t size; ///< in bytes
    PageRole role;
    PageAccess access;

    /// Pages of 4 KiB that it touches.
    constexpr std::uint64_t pages() const noexcept {
        return size == 0 ? 0 : (address % uapi::page_size + size + uapi::page_size - 1) / uapi::page_size;
    }
};

/// Hands over every range that `state` refers to, as far as its controls make it live: a bitmap that is
/// switched off is not one. Page tables are told by their roots; what they lead to is L1's and L2's memory.
/// An enlightened VMCS is not among them: its address is in the Hyper-V VP assist page.
void guest_ranges(const NestedStateView& state, Receiver<const GuestRange&> receiver) noexcept;

} // namespace kvm::nested
