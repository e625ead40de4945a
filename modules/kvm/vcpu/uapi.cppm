// SPDX-License-Identifier: MIT
//
// The kernel's interface for the ordinary registers of a vCPU, in our own words: layouts, flags and numbers.
// As in kvm.nested no kernel header is included; src/kvm/vcpu/uapi.cpp holds all of this against it.
module;
#include <array>
#include <cstddef>
#include <cstdint>
export module kvm.vcpu:uapi;
import kvm.nested;

namespace kvm::vcpu {
using namespace nested; // whose names this module uses, and hides where it has its own
} // namespace kvm::vcpu

export namespace kvm::vcpu::uapi {

using namespace nested::uapi; // all of it is here, too

/// KVM_GET_REGS (struct kvm_regs).
struct Regs {
    std::uint64_t rax, rbx, rcx, rdx;
    std::uint64_t rsi, rdi, rsp, rbp;
    std::uint64_t r8, r9, r10, r11;
    std::uint64_t r12, r13, r14, r15;
    std::uint64_t rip, rflags;

    constexpr bool operator==(const Regs&) const = default;
};

/// A segment register with its hidden part (struct kvm_segment).
struct Segment {
    std::uint64_t base;
    std::uint32_t limit;
    std::uint16_t selector;
    std::uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;

    constexpr bool operator==(const Segment&) const = default;
};

/// GDTR or IDTR (struct kvm_dtable).
struct DescriptorTable {
    std::uint64_t base;
    std::uint16_t limit;
    std::array<std::uint16_t, 3> padding;

    constexpr bool operator==(const DescriptorTable&) const = default;
};

/// KVM_GET_SREGS2 (struct kvm_sregs2): segments, control registers and, with PAE paging, the PDPTRs.
struct Sregs2 {
    Segment cs, ds, es, fs, gs, ss;
    Segment tr, ldt;
    DescriptorTable gdt, idt;
    std::uint64_t cr0, cr2, cr3, cr4, cr8;
    std::uint64_t efer;
    std::uint64_t apic_base;
    std::uint64_t flags; ///< bit 0: pdptrs hold something
    std::array<std::uint64_t, 4> pdptrs;

    constexpr bool operator==(const Sregs2&) const = default;
};

/// One extended control register (struct kvm_xcr).
struct Xcr {
    std::uint32_t index; ///< 0: XCR0
    std::uint32_t reserved;
    std::uint64_t value;

    constexpr bool operator==(const Xcr&) const = default;
};

/// KVM_GET_XCRS (struct kvm_xcrs).
struct Xcrs {
    std::uint32_t count; ///< of `entries`; 0 where the vCPU has no XSAVE
    std::uint32_t flags;
    std::array<Xcr, 16> entries;
    std::array<std::uint64_t, 16> padding;

    constexpr bool operator==(const Xcrs&) const = default;
};

/// KVM_GET_DEBUGREGS (struct kvm_debugregs).
struct DebugRegs {
    std::array<std::uint64_t, 4> db; ///< DR0 to DR3
    std::uint64_t dr6, dr7;
    std::uint64_t flags;
    std::array<std::uint64_t, 9> reserved;

    constexpr bool operator==(const DebugRegs&) const = default;
};

/// KVM_GET_VCPU_EVENTS (struct kvm_vcpu_events): what is about to be delivered.
struct VcpuEvents {
    std::uint8_t exception_injected, exception_number, exception_has_error_code, exception_pending;
    std::uint32_t exception_error_code;
    std::uint8_t interrupt_injected, interrupt_number, interrupt_soft, interrupt_shadow;
    std::uint8_t nmi_injected, nmi_pending, nmi_masked, nmi_padding;
    std::uint32_t sipi_vector;
    std::uint32_t flags; ///< event_flag
    std::uint8_t smi_smm, smi_pending, smi_inside_nmi, smi_latched_init;
    std::uint8_t triple_fault_pending;
    std::array<std::uint8_t, 26> reserved;
    std::uint8_t exception_has_payload;
    std::uint64_t exception_payload;

    constexpr bool operator==(const VcpuEvents&) const = default;
};

/// VcpuEvents::flags: which parts hold something.
namespace event_flag {
inline constexpr std::uint32_t nmi_pending = 0x01;
inline constexpr std::uint32_t sipi_vector = 0x02;
inline constexpr std::uint32_t shadow = 0x04;
inline constexpr std::uint32_t smm = 0x08;
inline constexpr std::uint32_t payload = 0x10;      ///< KVM sets it only with cap::exception_payload
inline constexpr std::uint32_t triple_fault = 0x20; ///< KVM sets it only with cap::triple_fault_event
} // namespace event_flag

/// KVM_GET_MP_STATE (struct kvm_mp_state).
struct MpState {
    std::uint32_t state; ///< 0: runnable

    constexpr bool operator==(const MpState&) const = default;
};

/// One model-specific register (struct kvm_msr_entry).
struct Msr {
    std::uint32_t index;
    std::uint32_t reserved;
    std::uint64_t value;

    constexpr bool operator==(const Msr&) const = default;
};

/// A register of KVM_GET_REG_LIST with its value.
struct OneReg {
    std::uint64_t id; ///< architecture, size, type and index, as KVM_REG_* make them
    std::uint64_t value;

    constexpr bool operator==(const OneReg&) const = default;
};
/// The size that an id tells, as a power of two of bytes.
constexpr unsigned one_reg_size_log2(std::uint64_t id) noexcept {
    return static_cast<unsigned>(id >> 52 & 0xf);
}
/// Many more registers than KVM lists on x86 (one in Linux 7.3).
inline constexpr std::size_t one_reg_limit = 64;

/// KVM_GET_ONE_REG, KVM_SET_ONE_REG (struct kvm_one_reg).
struct OneRegAddress {
    std::uint64_t id;
    std::uint64_t address; ///< of the value in this process
};

/// KVM_GET_LAPIC (struct kvm_lapic_state): the register page of the local APIC, its first 1024 bytes.
struct Lapic {
    std::array<std::byte, 1024> registers;

    constexpr bool operator==(const Lapic&) const = default;
};

/// KVM_ENABLE_CAP (struct kvm_enable_cap).
struct EnableCap {
    std::uint32_t capability;
    std::uint32_t flags;
    std::array<std::uint64_t, 4> arguments;
    std::array<std::uint8_t, 64> padding;
};

/// KVM_GET_CLOCK, KVM_SET_CLOCK (struct kvm_clock_data): the VM's kvmclock, and with it all that KVM derives
/// from that.
struct Clock {
    std::uint64_t clock; ///< nanoseconds
    std::uint32_t flags; ///< clock_flag
    std::uint32_t padding_0;
    std::uint64_t realtime; ///< nanoseconds since 1970, of the same moment; with clock_flag::realtime
    std::uint64_t host_tsc; ///< of the same moment; with clock_flag::host_tsc
    std::array<std::uint32_t, 4> padding;

    constexpr bool operator==(const Clock&) const = default;
};

/// Clock::flags.
namespace clock_flag {
inline constexpr std::uint32_t tsc_stable = 2; ///< all vCPUs have the same kvmclock, to the nanosecond
inline constexpr std::uint32_t realtime = 4;
inline constexpr std::uint32_t host_tsc = 8;
} // namespace clock_flag

/// KVM_GET_IRQCHIP, KVM_SET_IRQCHIP (struct kvm_irqchip): one interrupt controller of a VM.
struct Irqchip {
    std::uint32_t id; ///< irqchip_id
    std::uint32_t padding;
    std::array<std::byte, 512> registers; ///< a PIC's take 16 bytes, the IOAPIC's 216

    constexpr bool operator==(const Irqchip&) const = default;
};

/// Irqchip::id.
namespace irqchip_id {
inline constexpr std::uint32_t pic_master = 0;
inline constexpr std::uint32_t pic_slave = 1;
inline constexpr std::uint32_t ioapic = 2;
inline constexpr std::size_t count = 3;
} // namespace irqchip_id

/// KVM_GET_PIT2, KVM_SET_PIT2 (struct kvm_pit_state2): the programmable interval timer.
struct Pit {
    std::array<std::array<std::byte, 24>, 3> channels;
    std::uint32_t flags;
    std::array<std::uint32_t, 9> reserved;

    constexpr bool operator==(const Pit&) const = default;
};

/// KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR (struct kvm_device_attr).
struct DeviceAttribute {
    std::uint32_t flags;
    std::uint32_t group;     ///< of a vCPU: 0 is KVM_VCPU_TSC_CTRL
    std::uint64_t attribute; ///< in that: 0 is KVM_VCPU_TSC_OFFSET
    std::uint64_t address;   ///< of the value
};

static_assert(sizeof(Clock) == 48 && sizeof(Irqchip) == 520 && sizeof(Pit) == 112
              && sizeof(DeviceAttribute) == 24);
static_assert(sizeof(Regs) == 144 && sizeof(Segment) == 24 && sizeof(DescriptorTable) == 16);
static_assert(sizeof(Sregs2) == 320 && sizeof(Xcr) == 16 && sizeof(Xcrs) == 392);
static_assert(sizeof(DebugRegs) == 128 && sizeof(VcpuEvents) == 64 && sizeof(MpState) == 4);
static_assert(sizeof(Msr) == 16 && sizeof(Lapic) == 1024 && sizeof(EnableCap) == 104);

/// Bytes of struct kvm_xsave, the least that KVM_SET_XSAVE reads.
inline constexpr std::size_t xsave_size = 4096;
/// More than any known processor's XSAVE area (with AMX: 11008 bytes). A host that asks for more is not
/// believed.
inline constexpr std::size_t xsave_limit = 65536;
/// KVM_MAX_CPUID_ENTRIES: more KVM neither gives nor takes.
inline constexpr std::size_t cpuid_limit = 256;
/// Far more MSRs than KVM knows (some 200 in Linux 7.3).
inline constexpr std::size_t msr_limit = 4096;

/// What of the page that a VMM maps from its vCPU (struct kvm_run) is of interest here.
namespace run_page {
inline constexpr std::size_t immediate_exit = 1;     ///< offset of a byte
inline constexpr std::size_t exit_reason = 8;        ///< offset of 32 bits
inline constexpr std::size_t internal_suberror = 32; ///< offset of 32 bits; exit::internal_error only
inline constexpr std::size_t internal_count = 36;    ///< offset of 32 bits; exit::internal_error only
} // namespace run_page

/// KVM_EXIT_*.
namespace exit_reason {
inline constexpr std::uint32_t unknown = 0;
inline constexpr std::uint32_t fail_entry = 9;
inline constexpr std::uint32_t intr = 10;
inline constexpr std::uint32_t internal_error = 17;
inline constexpr std::uint32_t dirty_ring_full = 31;
inline constexpr std::uint32_t suberror_emulation = 1;
} // namespace exit_reason

/// KVM_CAP_*.
namespace cap {
inline constexpr std::uint32_t irqchip = 0;              ///< VM: PIC and IOAPIC; not for KVM_ENABLE_CAP
inline constexpr std::uint32_t pit2 = 33;                ///< VM; not for KVM_ENABLE_CAP
inline constexpr std::uint32_t hyperv_synic = 123;       ///< vCPU
inline constexpr std::uint32_t x2apic_api = 129;         ///< VM; answers the flags it knows
inline constexpr std::uint32_t hyperv_synic2 = 148;      ///< vCPU
inline constexpr std::uint32_t enlightened_vmcs = 163;   ///< vCPU
inline constexpr std::uint32_t exception_payload = 164;  ///< VM
inline constexpr std::uint32_t xsave2 = 208;             ///< VM; answers the bytes of the XSAVE area
inline constexpr std::uint32_t disable_quirks2 = 213;    ///< VM; answers the quirks it knows
inline constexpr std::uint32_t triple_fault_event = 218; ///< VM
inline constexpr std::uint32_t apic_bus_cycles_ns = 237; ///< VM; since Linux 6.12
} // namespace cap

/// MSRs that need care.
namespace msr {
inline constexpr std::uint32_t tsc = 0x10;
inline constexpr std::uint32_t tsc_deadline = 0x6e0;
inline constexpr std::uint32_t architecture_capabilities = 0x10a;  ///< IA32_ARCH_CAPABILITIES
inline constexpr std::uint32_t machine_check_capabilities = 0x179; ///< IA32_MCG_CAP
inline constexpr std::uint32_t last_branch_from = 0x1db, last_interrupt_to = 0x1de;
inline constexpr std::uint32_t hyperv_scontrol = 0x4000'0080; ///< HV_X64_MSR_SCONTROL
/// VMX capabilities that KVM derives from the others and from CPUID, and never lets one write (Intel SDM
/// Vol. 3, Appendix A): pin-based, processor-based, exit and entry controls, CR0 and CR4 fixed to 1.
inline constexpr std::array<std::uint32_t, 6> derived{0x481, 0x482, 0x483, 0x484, 0x487, 0x489};
} // namespace msr

/// Request numbers. The comment names the descriptor each belongs to.
namespace request {
using namespace nested::uapi::request;
inline constexpr unsigned long get_msr_index_list = nested::uapi::detail::iowr(0x02, 4);         ///< /dev/kvm
inline constexpr unsigned long get_msr_feature_index_list = nested::uapi::detail::iowr(0x0a, 4); ///< /dev/kvm
inline constexpr unsigned long enable_cap = nested::uapi::detail::iow(0xa3, sizeof(EnableCap));  ///< VM, vCPU
inline constexpr unsigned long get_irqchip = nested::uapi::detail::iowr(0x62, sizeof(Irqchip));  ///< VM
inline constexpr unsigned long set_irqchip = nested::uapi::detail::ior(0x63, sizeof(Irqchip));   ///< VM
inline constexpr unsigned long set_clock = nested::uapi::detail::iow(0x7b, sizeof(Clock));       ///< VM
inline constexpr unsigned long get_clock = nested::uapi::detail::ior(0x7c, sizeof(Clock));       ///< VM
inline constexpr unsigned long get_pit2 = nested::uapi::detail::ior(0x9f, sizeof(Pit));          ///< VM
inline constexpr unsigned long set_pit2 = nested::uapi::detail::iow(0xa0, sizeof(Pit));          ///< VM
inline constexpr unsigned long run = nested::uapi::detail::io(0x80); ///< vCPU, as all below
inline constexpr unsigned long get_regs = nested::uapi::detail::ior(0x81, sizeof(Regs));
inline constexpr unsigned long set_regs = nested::uapi::detail::iow(0x82, sizeof(Regs));
inline constexpr unsigned long set_up_machine_checks = nested::uapi::detail::iow(0x9c, 8); ///< 8 bytes
inline constexpr unsigned long get_msrs = nested::uapi::detail::iowr(0x88, 8);
inline constexpr unsigned long set_msrs = nested::uapi::detail::iow(0x89, 8);
inline constexpr unsigned long get_lapic = nested::uapi::detail::ior(0x8e, sizeof(Lapic));
inline constexpr unsigned long set_lapic = nested::uapi::detail::iow(0x8f, sizeof(Lapic));
inline constexpr unsigned long set_cpuid2 = nested::uapi::detail::iow(0x90, 8);
inline constexpr unsigned long get_cpuid2 = nested::uapi::detail::iowr(0x91, 8);
inline constexpr unsigned long get_mp_state = nested::uapi::detail::ior(0x98, sizeof(MpState));
inline constexpr unsigned long set_mp_state = nested::uapi::detail::iow(0x99, sizeof(MpState));
inline constexpr unsigned long get_vcpu_events = nested::uapi::detail::ior(0x9f, sizeof(VcpuEvents));
inline constexpr unsigned long set_vcpu_events = nested::uapi::detail::iow(0xa0, sizeof(VcpuEvents));
inline constexpr unsigned long get_one_reg = nested::uapi::detail::iow(0xab, sizeof(OneRegAddress));
inline constexpr unsigned long set_one_reg = nested::uapi::detail::iow(0xac, sizeof(OneRegAddress));
inline constexpr unsigned long get_reg_list = nested::uapi::detail::iowr(0xb0, 8);
inline constexpr unsigned long get_debugregs = nested::uapi::detail::ior(0xa1, sizeof(DebugRegs));
inline constexpr unsigned long set_debugregs = nested::uapi::detail::iow(0xa2, sizeof(DebugRegs));
inline constexpr unsigned long set_tsc_khz = nested::uapi::detail::io(0xa2);
inline constexpr unsigned long get_xsave = nested::uapi::detail::ior(0xa4, xsave_size);
inline constexpr unsigned long set_xsave = nested::uapi::detail::iow(0xa5, xsave_size);
inline constexpr unsigned long get_xcrs = nested::uapi::detail::ior(0xa6, sizeof(Xcrs));
inline constexpr unsigned long set_xcrs = nested::uapi::detail::iow(0xa7, sizeof(Xcrs));
inline constexpr unsigned long get_sregs2 = nested::uapi::detail::ior(0xcc, sizeof(Sregs2));
inline constexpr unsigned long set_sregs2 = nested::uapi::detail::iow(0xcd, sizeof(Sregs2));
inline constexpr unsigned long set_device_attr = nested::uapi::detail::iow(0xe1, sizeof(DeviceAttribute));
inline constexpr unsigned long get_device_attr =
    nested::uapi::detail::iow(0xe2, sizeof(DeviceAttribute)); // "iow", though it writes
inline constexpr unsigned long get_xsave2 = nested::uapi::detail::ior(0xcf, xsave_size);
} // namespace request

} // namespace kvm::vcpu::uapi
