// SPDX-License-Identifier: MIT
//
// What the tests of kvm.nested share: states as raw bytes, written without the library's help, and a KVM made
// of a few dozen lines that answers as the real one is known to (kernel 6.1 to 7.3).
module;
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
export module unit.support;
export import kvm.nested;

export namespace unit {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t none = ~std::uint64_t{0};
inline constexpr std::uint32_t revision = 0x11e57ed0;

template <class T>
inline void put(Bytes& bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}
template <class T>
inline T take(std::span<const std::byte> bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

struct VmxBlob {
    std::uint16_t flags = 0;
    std::uint64_t vmxon_pa = none;
    std::uint64_t vmcs12_pa = none;
    std::uint16_t smm_flags = 0;
    std::uint32_t vmx_flags = 0;
    std::uint64_t deadline = 0;
    std::uint32_t size = 128;
    std::uint32_t first_word = revision;
    unsigned seed = 1; ///< of what fills the pages

    inline operator Bytes() const { return bytes(); }
    inline Bytes bytes() const {
        Bytes result(std::max<std::size_t>(size, 128));
        for (std::size_t i = 128; i < result.size(); ++i)
            result[i] = static_cast<std::byte>((i * 37 + seed * 101 + i / 256) & 0xff);
        put(result, 0, flags);
        put(result, 2, std::uint16_t{0});
        put(result, 4, size);
        put(result, 8, vmxon_pa);
        put(result, 16, vmcs12_pa);
        put(result, 24, smm_flags);
        put(result, 28, vmx_flags);
        put(result, 32, deadline);
        if (size >= 132)
            put(result, 128, first_word);
        if (size >= 4224) { // VMCS shadowing exactly where there is a shadow vmcs12
            put(result, 128 + 748, take<std::uint32_t>(result, 128 + 748) | 1u << 31);
            put(result, 128 + 804,
                (take<std::uint32_t>(result, 128 + 804) & ~(1u << 14)) | (size >= 8320 ? 1u << 14 : 0));
        }
        if (size >= 8320)
            put(result, 128 + 4096, revision | 1u << 31);
        return result;
    }
};

struct SvmBlob {
    std::uint16_t flags = 0x100;
    std::uint64_t vmcb12_pa = 0;
    std::uint64_t gpat = 0;
    std::uint32_t size = 128;
    unsigned seed = 1;

    inline operator Bytes() const { return bytes(); }
    inline Bytes bytes() const {
        Bytes result(std::max<std::size_t>(size, 128));
        for (std::size_t i = 128; i < result.size(); ++i)
            result[i] = static_cast<std::byte>((i * 41 + seed * 103 + i / 256) & 0xff);
        put(result, 0, flags);
        put(result, 2, std::uint16_t{1});
        put(result, 4, size);
        put(result, 8, vmcb12_pa);
        put(result, 16, gpat);
        // What KVM checks to be zero where L2 is active: the upper halves of DR7 and DR6.
        if (size == 4224) {
            put(result, 128 + 0x564, std::uint32_t{0});
            put(result, 128 + 0x56c, std::uint32_t{0});
            put(result, 128 + 0x10, take<std::uint32_t>(result, 128 + 0x10) | 1u); // the VMRUN intercept
            put(result, 128 + 0x58, take<std::uint32_t>(result, 128 + 0x58) | 1u); // an ASID
        }
        return result;
    }
};

/// A field of a payload page and what a test writes into it.
struct Entry {
    std::string_view field;
    std::uint64_t value;
};

/// `state` with all zeros in its pages but the given fields and what KVM demands of every one: the revisions
/// of vmcs12 and shadow vmcs12; the VMRUN intercept and an ASID.
inline Bytes with_fields(Bytes state, std::initializer_list<Entry> entries) {
    const bool vmx = take<std::uint16_t>(state, 2) == 0;
    std::fill(state.begin() + 128, state.end(), std::byte{0});
    if (vmx) {
        put(state, 128, revision);
        if (state.size() >= 8320)
            put(state, 128 + 4096, revision | 1u << 31);
    } else {
        put(state, 128 + 0x10, std::uint32_t{1});
        put(state, 128 + 0x58, std::uint32_t{1});
    }
    for (const auto& entry : entries) {
        const auto* field =
            vmx ? kvm::nested::find_vmcs12_field(entry.field) : kvm::nested::find_vmcb12_field(entry.field);
        std::memcpy(state.data() + 128 + field->offset, &entry.value, field->size); // little-endian
    }
    return state;
}

/// A hypervisor on VMX whose guest runs in 64-bit mode with EPT, about to begin with a page fault.
inline Bytes vmx_l2() {
    return with_fields(VmxBlob{.flags = 3, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224},
                       {{"launch_state", 1},
                        {"pin_based_vm_exec_control", 0x3f},
                        {"cpu_based_vm_exec_control", 0xb5a1e9f2},
                        {"secondary_vm_exec_control", 0x000000aa},
                        {"vm_exit_controls", 0x003fffff & ~(1u << 12)},
                        {"vm_entry_controls", 0x0000d3ff & ~(1u << 13)},
                        {"vm_entry_intr_info_field", 0x80000b0e},
                        {"vm_entry_exception_error_code", 6},
                        {"exception_bitmap", 0x60042},
                        {"io_bitmap_a", 0x5000},
                        {"io_bitmap_b", 0x6000},
                        {"msr_bitmap", 0x7000},
                        {"virtual_apic_page_addr", 0x8000},
                        {"ept_pointer", 0x905e},
                        {"virtual_processor_id", 1},
                        {"vm_exit_msr_store_count", 2},
                        {"vm_exit_msr_store_addr", 0xa010},
                        {"vmcs_link_pointer", ~0ull},
                        {"vm_exit_reason", 48},
                        {"guest_cr0", 0x80050033},
                        {"guest_cr3", 0xb000},
                        {"guest_cr4", 0x2620},
                        {"guest_rip", 0xffffffff81000123},
                        {"guest_rsp", 0xffffc90000013f58},
                        {"guest_rflags", 0x246},
                        {"guest_cs_selector", 0x10},
                        {"guest_cs_ar_bytes", 0xa09b},
                        {"guest_ia32_efer", 0xd01},
                        {"guest_ia32_pat", 0x0007040600070406},
                        {"host_cr0", 0x80050033},
                        {"host_cr3", 0xc000},
                        {"host_rip", 0xffffffff82000456},
                        {"host_rsp", 0xffffc90000100000}});
}

/// A hypervisor on SVM whose guest runs with nested paging.
inline Bytes svm_l2() {
    return with_fields(SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224},
                       {{"intercepts[0]", 0x00010018},
                        {"intercepts[2]", 0x4002},
                        {"intercepts[3]", 0x19040003},
                        {"intercepts[4]", 0x3},
                        {"iopm_base_pa", 0x10000},
                        {"msrpm_base_pa", 0x14000},
                        {"asid", 1},
                        {"int_ctl", 0x01000003},
                        {"exit_code", 0x72},
                        {"misc_ctl", 1},
                        {"nested_cr3", 0x17000},
                        {"cs.selector", 0x8},
                        {"cs.attrib", 0xa9b},
                        {"fs.base", 0x1234000},
                        {"efer", 0x1d01},
                        {"cr0", 0x80000011},
                        {"cr3", 0x1a000},
                        {"cr4", 0x20},
                        {"rflags", 0x2},
                        {"rip", 0x86b2},
                        {"rsp", 0x9000},
                        {"rax", 0x3000}});
}

/// One state of each shape that KVM_GET_NESTED_STATE produces.
struct Sample {
    std::string_view name;
    kvm::nested::VendorId vendor;
    kvm::nested::Phase phase;
    Bytes bytes;
};

inline std::vector<Sample> samples() {
    using enum kvm::nested::Phase;
    using enum kvm::nested::VendorId;
    return {
        {"off", vmx, vmx_off, VmxBlob{}},
        {"VMXON only", vmx, vmx_vmxon_only, VmxBlob{.vmxon_pa = 0x1000}},
        {"current VMCS", vmx, vmx_current_vmcs,
         VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}},
        {"current VMCS at 0", vmx, vmx_current_vmcs,
         VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0, .size = 4224}},
        {"enlightened VMCS", vmx, vmx_current_vmcs, VmxBlob{.flags = 4, .vmxon_pa = 0x1000, .size = 4224}},
        {"L2", vmx, vmx_l2_active,
         VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}},
        {"L2, run and MTF pending", vmx, vmx_l2_active,
         VmxBlob{.flags = 0xb, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 4224}},
        {"L2 on an enlightened VMCS", vmx, vmx_l2_active,
         VmxBlob{.flags = 5, .vmxon_pa = 0x1000, .size = 4224}},
        {"L2 with a deadline", vmx, vmx_l2_active,
         VmxBlob{.flags = 1,
                 .vmxon_pa = 0x1000,
                 .vmcs12_pa = 0x2000,
                 .vmx_flags = 1,
                 .deadline = 0x1234567890,
                 .size = 4224}},
        {"L2 with a shadow vmcs12", vmx, vmx_l2_active,
         VmxBlob{.flags = 1, .vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .size = 8320}},
        {"SMM, VMXON only", vmx, vmx_smm_vmxon_only, VmxBlob{.vmxon_pa = 0x1000, .smm_flags = 2}},
        {"SMM, current VMCS", vmx, vmx_smm_current_vmcs,
         VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .smm_flags = 2, .size = 4224}},
        {"SMM, interrupted L2", vmx, vmx_smm_interrupted_l2,
         VmxBlob{.vmxon_pa = 0x1000, .vmcs12_pa = 0x2000, .smm_flags = 3, .size = 4224}},
        {"GIF set", svm, svm_outside_l2_gif_set, SvmBlob{}},
        {"GIF clear", svm, svm_outside_l2_gif_clear, SvmBlob{.flags = 0}},
        {"L2 (SVM)", svm, svm_l2_active, SvmBlob{.flags = 0x101, .vmcb12_pa = 0x3000, .size = 4224}},
        {"L2 (SVM), run pending, GIF clear, gpat", svm, svm_l2_active,
         SvmBlob{.flags = 3, .vmcb12_pa = 0, .gpat = 0x0007040600070406, .size = 4224}},
    };
}

/// Descriptors of FakeKvm.
inline constexpr int system_fd = 3, vm_fd = 4, vcpu_fd = 5, file_fd = 6, foreign_fd = 7, closed_fd = 8;

/// What one ioctl was asked.
struct Call {
    int fd;
    unsigned long request;
    std::uint64_t argument;
    std::uint32_t size; ///< of a nested state handed to GET or SET
};

/// A KVM to be given to the library as a seam. It answers as a healthy host would unless told otherwise.
class FakeKvm {
  public:
    kvm::nested::VendorId vendor = kvm::nested::VendorId::svm;
    bool nesting = true;
    int generation = 7;                                   ///< of the kernel: 4, 6 or 7
    std::optional<int> capacity;                          ///< instead of the vendor's
    std::optional<kvm::nested::IoctlResult> cpuid_result; ///< instead of success
    /// EAX of CPUID leaf 0x4000000a, as the vCPU supports it; none: a KVM without Hyper-V support
    std::optional<std::uint32_t> evmcs_versions;
    std::uint32_t vmx_bit = 0, svm_bit = 0; ///< set anyway
    bool no_cpuid_bits = false;
    std::optional<kvm::nested::IoctlResult> get_result, set_result; ///< instead of success
    std::optional<std::uint32_t> size_after_get;                    ///< instead of the truth
    std::optional<std::uint16_t> format_after_get;
    Bytes held;                          ///< what the vCPU holds
    std::optional<Bytes> held_after_set; ///< what it holds after a SET that fails
    std::vector<Call> calls;

    inline kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) noexcept {
        errno = 4242; // nobody may look here
        calls.push_back({fd, request, reinterpret_cast<std::uint64_t>(argument), 0});
        if (fd == closed_fd)
            return fails(EBADF);
        if (fd == foreign_fd)
            return fails(EIO);
        if (fd == file_fd)
            return fails(ENOTTY);
        switch (request) {
        case 0xae00: // KVM_GET_API_VERSION
            return fd == system_fd ? kvm::nested::IoctlResult{12, 0} : unknown(fd);
        case 0xae03: // KVM_CHECK_EXTENSION
            if (fd == vcpu_fd)
                return unknown(fd);
            return {reinterpret_cast<std::uint64_t>(argument) == 157 ? nested_capacity() : generation > 4, 0};
        case 0xc008ae05: // KVM_GET_SUPPORTED_CPUID
            return fd == system_fd ? cpuid(static_cast<std::byte*>(argument)) : unknown(fd);
        case 0xc008aec1: // KVM_GET_SUPPORTED_HV_CPUID
            return fd == vcpu_fd && evmcs_versions ? hv_cpuid(static_cast<std::byte*>(argument))
                                                   : unknown(fd);
        case 0xaea3: // KVM_GET_TSC_KHZ
            return fd == vcpu_fd ? kvm::nested::IoctlResult{0, 0} : unknown(fd);
        case 0xc080aebe:
            return fd == vcpu_fd ? get(static_cast<std::byte*>(argument)) : unknown(fd);
        case 0x4080aebf:
            return fd == vcpu_fd ? set(static_cast<const std::byte*>(argument)) : unknown(fd);
        }
        return unknown(fd);
    }

    inline std::size_t count(unsigned long request) const {
        return static_cast<std::size_t>(std::ranges::count(calls, request, &Call::request));
    }
    inline std::size_t gets() const { return count(0xc080aebe); }
    inline std::size_t sets() const { return count(0x4080aebf); }

  private:
    static inline kvm::nested::IoctlResult fails(int error_number) noexcept { return {-1, error_number}; }
    static inline kvm::nested::IoctlResult unknown(int fd) noexcept {
        return fails(fd == vm_fd ? ENOTTY : EINVAL);
    }

    inline int nested_capacity() const noexcept {
        if (capacity)
            return *capacity;
        if (generation < 6 || (!nesting && generation >= 7))
            return 0;
        return vendor == kvm::nested::VendorId::vmx ? 8320 : 4224;
    }

    /// Leaf 0 and the two that matter, in the layout of struct kvm_cpuid2.
    inline kvm::nested::IoctlResult cpuid(std::byte* argument) const noexcept {
        if (cpuid_result)
            return *cpuid_result;
        const bool bits = nesting && !no_cpuid_bits;
        const bool vmx = (bits && vendor == kvm::nested::VendorId::vmx) || vmx_bit != 0;
        const bool svm = (bits && vendor == kvm::nested::VendorId::svm) || svm_bit != 0;
        const std::uint32_t entries[3][10] = {
            {0, 0, 0, 0x16, 1, 2, 3, 0, 0, 0},
            {1, 0, 0, ~0u, ~0u, vmx ? ~0u : ~(1u << 5), ~0u, 0, 0, 0},
            {0x80000001, 0, 0, ~0u, ~0u, svm ? ~0u : ~(1u << 2), ~0u, 0, 0, 0},
        };
        const std::uint32_t count = 3;
        std::memcpy(argument, &count, sizeof count);
        std::memcpy(argument + 8, entries, sizeof entries);
        return {0, 0};
    }

    inline kvm::nested::IoctlResult hv_cpuid(std::byte* argument) const noexcept {
        const std::uint32_t entries[2][10] = {{0x40000000, 0, 0, 0x40000082},
                                              {0x4000000a, 0, 0, *evmcs_versions}};
        const std::uint32_t count = 2;
        std::memcpy(argument, &count, sizeof count);
        std::memcpy(argument + 8, entries, sizeof entries);
        return {0, 0};
    }

    inline kvm::nested::IoctlResult get(std::byte* argument) noexcept {
        std::uint32_t size = 0;
        std::memcpy(&size, argument + 4, sizeof size);
        calls.back().size = size;
        if (get_result)
            return *get_result;
        if (!nesting && generation >= 7)
            return fails(EINVAL);
        Bytes state = held;
        if (state.empty())
            state = vendor == kvm::nested::VendorId::vmx ? VmxBlob{}.bytes() : SvmBlob{}.bytes();
        std::memcpy(argument, state.data(), std::min<std::size_t>(state.size(), size));
        if (size_after_get)
            std::memcpy(argument + 4, &*size_after_get, 4);
        if (format_after_get)
            std::memcpy(argument + 2, &*format_after_get, 2);
        return {0, 0};
    }

    inline kvm::nested::IoctlResult set(const std::byte* argument) noexcept {
        std::uint32_t size = 0;
        std::memcpy(&size, argument + 4, sizeof size);
        calls.back().size = size;
        if (set_result) {
            if (held_after_set)
                held = *held_after_set;
            return *set_result;
        }
        if (!nesting && generation >= 7)
            return fails(EINVAL);
        held.assign(argument, argument + std::min<std::size_t>(size, 8320));
        return {0, 0};
    }
};

/// A view's address in the state that it looks at, as an offset.
inline std::size_t offset_in(const void* state, const std::byte* part) {
    return static_cast<std::size_t>(part - static_cast<const std::byte*>(state));
}

/// The host that FakeKvm proves.
template <class V>
inline kvm::nested::Host<V> host(FakeKvm& kernel) {
    auto probed = kvm::nested::Host<V>::probe(kvm::nested::SystemFd{system_fd}, kernel);
    kernel.calls.clear();
    return *probed;
}

template <class V>
inline constexpr kvm::nested::VendorId vendor_of = V::id;

} // namespace unit
