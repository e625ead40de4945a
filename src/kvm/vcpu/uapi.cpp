// SPDX-License-Identifier: MIT
//
// Compiling is the test: our layouts, flags and numbers against the kernel's own header.
module;
#include <cstddef>

#include "../linux_kvm.hpp"
module kvm.vcpu;

namespace kvm::vcpu::uapi {

// Layouts.
static_assert(sizeof(kvm_regs) == sizeof(Regs));
static_assert(offsetof(kvm_regs, rdx) == offsetof(Regs, rdx) && offsetof(kvm_regs, rsi) == offsetof(Regs, rsi)
              && offsetof(kvm_regs, rsp) == offsetof(Regs, rsp)
              && offsetof(kvm_regs, rbp) == offsetof(Regs, rbp)
              && offsetof(kvm_regs, r8) == offsetof(Regs, r8)
              && offsetof(kvm_regs, r15) == offsetof(Regs, r15)
              && offsetof(kvm_regs, rip) == offsetof(Regs, rip)
              && offsetof(kvm_regs, rflags) == offsetof(Regs, rflags));

static_assert(sizeof(kvm_segment) == sizeof(Segment));
static_assert(offsetof(kvm_segment, limit) == offsetof(Segment, limit)
              && offsetof(kvm_segment, selector) == offsetof(Segment, selector)
              && offsetof(kvm_segment, type) == offsetof(Segment, type)
              && offsetof(kvm_segment, present) == offsetof(Segment, present)
              && offsetof(kvm_segment, dpl) == offsetof(Segment, dpl)
              && offsetof(kvm_segment, db) == offsetof(Segment, db)
              && offsetof(kvm_segment, s) == offsetof(Segment, s)
              && offsetof(kvm_segment, l) == offsetof(Segment, l)
              && offsetof(kvm_segment, g) == offsetof(Segment, g)
              && offsetof(kvm_segment, avl) == offsetof(Segment, avl)
              && offsetof(kvm_segment, unusable) == offsetof(Segment, unusable));

static_assert(sizeof(kvm_dtable) == sizeof(DescriptorTable));
static_assert(offsetof(kvm_dtable, base) == offsetof(DescriptorTable, base)
              && offsetof(kvm_dtable, limit) == offsetof(DescriptorTable, limit));

static_assert(sizeof(kvm_sregs2) == sizeof(Sregs2));
static_assert(
    offsetof(kvm_sregs2, cs) == offsetof(Sregs2, cs) && offsetof(kvm_sregs2, ds) == offsetof(Sregs2, ds)
    && offsetof(kvm_sregs2, es) == offsetof(Sregs2, es) && offsetof(kvm_sregs2, fs) == offsetof(Sregs2, fs)
    && offsetof(kvm_sregs2, gs) == offsetof(Sregs2, gs) && offsetof(kvm_sregs2, ss) == offsetof(Sregs2, ss)
    && offsetof(kvm_sregs2, tr) == offsetof(Sregs2, tr) && offsetof(kvm_sregs2, ldt) == offsetof(Sregs2, ldt)
    && offsetof(kvm_sregs2, gdt) == offsetof(Sregs2, gdt)
    && offsetof(kvm_sregs2, idt) == offsetof(Sregs2, idt)
    && offsetof(kvm_sregs2, cr0) == offsetof(Sregs2, cr0)
    && offsetof(kvm_sregs2, cr8) == offsetof(Sregs2, cr8)
    && offsetof(kvm_sregs2, efer) == offsetof(Sregs2, efer)
    && offsetof(kvm_sregs2, apic_base) == offsetof(Sregs2, apic_base)
    && offsetof(kvm_sregs2, flags) == offsetof(Sregs2, flags)
    && offsetof(kvm_sregs2, pdptrs) == offsetof(Sregs2, pdptrs));

static_assert(sizeof(kvm_xcr) == sizeof(Xcr) && offsetof(kvm_xcr, xcr) == offsetof(Xcr, index)
              && offsetof(kvm_xcr, value) == offsetof(Xcr, value));
static_assert(sizeof(kvm_xcrs) == sizeof(Xcrs) && offsetof(kvm_xcrs, nr_xcrs) == offsetof(Xcrs, count)
              && offsetof(kvm_xcrs, flags) == offsetof(Xcrs, flags)
              && offsetof(kvm_xcrs, xcrs) == offsetof(Xcrs, entries) && KVM_MAX_XCRS == 16);

static_assert(sizeof(kvm_debugregs) == sizeof(DebugRegs));
static_assert(offsetof(kvm_debugregs, db) == offsetof(DebugRegs, db)
              && offsetof(kvm_debugregs, dr6) == offsetof(DebugRegs, dr6)
              && offsetof(kvm_debugregs, dr7) == offsetof(DebugRegs, dr7)
              && offsetof(kvm_debugregs, flags) == offsetof(DebugRegs, flags));

static_assert(sizeof(kvm_vcpu_events) == sizeof(VcpuEvents));
static_assert(offsetof(kvm_vcpu_events, exception.pending) == offsetof(VcpuEvents, exception_pending)
              && offsetof(kvm_vcpu_events, exception.error_code) == offsetof(VcpuEvents, exception_error_code)
              && offsetof(kvm_vcpu_events, interrupt.shadow) == offsetof(VcpuEvents, interrupt_shadow)
              && offsetof(kvm_vcpu_events, nmi.injected) == offsetof(VcpuEvents, nmi_injected)
              && offsetof(kvm_vcpu_events, nmi.masked) == offsetof(VcpuEvents, nmi_masked)
              && offsetof(kvm_vcpu_events, sipi_vector) == offsetof(VcpuEvents, sipi_vector)
              && offsetof(kvm_vcpu_events, flags) == offsetof(VcpuEvents, flags)
              && offsetof(kvm_vcpu_events, smi.smm) == offsetof(VcpuEvents, smi_smm)
              && offsetof(kvm_vcpu_events, smi.latched_init) == offsetof(VcpuEvents, smi_latched_init)
              && offsetof(kvm_vcpu_events, triple_fault) == offsetof(VcpuEvents, triple_fault_pending)
              && offsetof(kvm_vcpu_events, exception_has_payload)
                     == offsetof(VcpuEvents, exception_has_payload)
              && offsetof(kvm_vcpu_events, exception_payload) == offsetof(VcpuEvents, exception_payload));

static_assert(sizeof(kvm_mp_state) == sizeof(MpState) && KVM_MP_STATE_RUNNABLE == 0);
static_assert(sizeof(kvm_msr_entry) == sizeof(Msr) && offsetof(kvm_msr_entry, index) == offsetof(Msr, index)
              && offsetof(kvm_msr_entry, data) == offsetof(Msr, value));
static_assert(sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_list) == 4);
static_assert(sizeof(kvm_lapic_state) == sizeof(Lapic));
static_assert(sizeof(kvm_xsave) == xsave_size);
static_assert(sizeof(kvm_enable_cap) == sizeof(EnableCap)
              && offsetof(kvm_enable_cap, cap) == offsetof(EnableCap, capability)
              && offsetof(kvm_enable_cap, args) == offsetof(EnableCap, arguments));

static_assert(offsetof(kvm_run, immediate_exit) == run_page::immediate_exit);
static_assert(offsetof(kvm_run, exit_reason) == run_page::exit_reason);
static_assert(offsetof(kvm_run, internal.suberror) == run_page::internal_suberror);
static_assert(offsetof(kvm_run, internal.ndata) == run_page::internal_count);

static_assert(sizeof(kvm_clock_data) == sizeof(Clock)
              && offsetof(kvm_clock_data, clock) == offsetof(Clock, clock)
              && offsetof(kvm_clock_data, flags) == offsetof(Clock, flags)
              && offsetof(kvm_clock_data, realtime) == offsetof(Clock, realtime)
              && offsetof(kvm_clock_data, host_tsc) == offsetof(Clock, host_tsc));
static_assert(sizeof(kvm_irqchip) == sizeof(Irqchip)
              && offsetof(kvm_irqchip, chip_id) == offsetof(Irqchip, id)
              && offsetof(kvm_irqchip, chip) == offsetof(Irqchip, registers)
              && KVM_NR_IRQCHIPS == irqchip_id::count && KVM_IRQCHIP_PIC_MASTER == irqchip_id::pic_master
              && KVM_IRQCHIP_PIC_SLAVE == irqchip_id::pic_slave && KVM_IRQCHIP_IOAPIC == irqchip_id::ioapic);
static_assert(sizeof(kvm_pit_state2) == sizeof(Pit)
              && offsetof(kvm_pit_state2, channels) == offsetof(Pit, channels)
              && offsetof(kvm_pit_state2, flags) == offsetof(Pit, flags)
              && sizeof(kvm_pit_channel_state) == sizeof(Pit{}.channels[0]));
static_assert(sizeof(kvm_device_attr) == sizeof(DeviceAttribute)
              && offsetof(kvm_device_attr, group) == offsetof(DeviceAttribute, group)
              && offsetof(kvm_device_attr, attr) == offsetof(DeviceAttribute, attribute)
              && offsetof(kvm_device_attr, addr) == offsetof(DeviceAttribute, address)
              && KVM_VCPU_TSC_CTRL == 0 && KVM_VCPU_TSC_OFFSET == 0);

// Flags.
static_assert(KVM_CLOCK_TSC_STABLE == clock_flag::tsc_stable && KVM_CLOCK_REALTIME == clock_flag::realtime
              && KVM_CLOCK_HOST_TSC == clock_flag::host_tsc);
static_assert(KVM_VCPUEVENT_VALID_NMI_PENDING == event_flag::nmi_pending);
static_assert(KVM_VCPUEVENT_VALID_SIPI_VECTOR == event_flag::sipi_vector);
static_assert(KVM_VCPUEVENT_VALID_SHADOW == event_flag::shadow);
static_assert(KVM_VCPUEVENT_VALID_SMM == event_flag::smm);
static_assert(KVM_VCPUEVENT_VALID_PAYLOAD == event_flag::payload);
static_assert(KVM_VCPUEVENT_VALID_TRIPLE_FAULT == event_flag::triple_fault);

// Numbers.
static_assert(KVM_EXIT_UNKNOWN == exit_reason::unknown && KVM_EXIT_FAIL_ENTRY == exit_reason::fail_entry
              && KVM_EXIT_INTR == exit_reason::intr && KVM_EXIT_INTERNAL_ERROR == exit_reason::internal_error
              && KVM_EXIT_DIRTY_RING_FULL == exit_reason::dirty_ring_full
              && KVM_INTERNAL_ERROR_EMULATION == exit_reason::suberror_emulation);
static_assert(KVM_CAP_IRQCHIP == cap::irqchip && KVM_CAP_PIT2 == cap::pit2);
static_assert(KVM_CAP_HYPERV_SYNIC == cap::hyperv_synic && KVM_CAP_HYPERV_SYNIC2 == cap::hyperv_synic2);
static_assert(KVM_CAP_X2APIC_API == cap::x2apic_api);
#if defined(KVM_CAP_X86_APIC_BUS_CYCLES_NS)
static_assert(KVM_CAP_X86_APIC_BUS_CYCLES_NS == cap::apic_bus_cycles_ns);
#endif
static_assert(KVM_CAP_HYPERV_ENLIGHTENED_VMCS == cap::enlightened_vmcs);
static_assert(KVM_CAP_EXCEPTION_PAYLOAD == cap::exception_payload);
static_assert(KVM_CAP_XSAVE2 == cap::xsave2);
static_assert(KVM_CAP_DISABLE_QUIRKS2 == cap::disable_quirks2);
static_assert(KVM_CAP_X86_TRIPLE_FAULT_EVENT == cap::triple_fault_event);

static_assert(KVM_GET_MSR_INDEX_LIST == request::get_msr_index_list);
static_assert(KVM_GET_MSR_FEATURE_INDEX_LIST == request::get_msr_feature_index_list);
static_assert(KVM_GET_CLOCK == request::get_clock && KVM_SET_CLOCK == request::set_clock);
static_assert(KVM_GET_IRQCHIP == request::get_irqchip && KVM_SET_IRQCHIP == request::set_irqchip);
static_assert(KVM_GET_PIT2 == request::get_pit2 && KVM_SET_PIT2 == request::set_pit2);
static_assert(KVM_GET_DEVICE_ATTR == request::get_device_attr
              && KVM_SET_DEVICE_ATTR == request::set_device_attr);
static_assert(KVM_ENABLE_CAP == request::enable_cap);
static_assert(KVM_RUN == request::run);
static_assert(KVM_GET_REGS == request::get_regs && KVM_SET_REGS == request::set_regs);
static_assert(KVM_X86_SETUP_MCE == request::set_up_machine_checks);
static_assert(KVM_GET_MSRS == request::get_msrs && KVM_SET_MSRS == request::set_msrs);
static_assert(KVM_GET_LAPIC == request::get_lapic && KVM_SET_LAPIC == request::set_lapic);
static_assert(KVM_GET_CPUID2 == request::get_cpuid2 && KVM_SET_CPUID2 == request::set_cpuid2);
static_assert(KVM_GET_MP_STATE == request::get_mp_state && KVM_SET_MP_STATE == request::set_mp_state);
static_assert(KVM_GET_VCPU_EVENTS == request::get_vcpu_events
              && KVM_SET_VCPU_EVENTS == request::set_vcpu_events);
static_assert(sizeof(kvm_one_reg) == sizeof(OneRegAddress)
              && offsetof(kvm_one_reg, addr) == offsetof(OneRegAddress, address));
static_assert((KVM_REG_SIZE_MASK >> KVM_REG_SIZE_SHIFT) == 0xf && KVM_REG_SIZE_SHIFT == 52);
static_assert(KVM_GET_ONE_REG == request::get_one_reg && KVM_SET_ONE_REG == request::set_one_reg);
static_assert(KVM_GET_REG_LIST == request::get_reg_list);
static_assert(KVM_GET_DEBUGREGS == request::get_debugregs && KVM_SET_DEBUGREGS == request::set_debugregs);
static_assert(KVM_SET_TSC_KHZ == request::set_tsc_khz);
static_assert(KVM_GET_XSAVE == request::get_xsave && KVM_SET_XSAVE == request::set_xsave);
static_assert(KVM_GET_XSAVE2 == request::get_xsave2);
static_assert(KVM_GET_XCRS == request::get_xcrs && KVM_SET_XCRS == request::set_xcrs);
static_assert(KVM_GET_SREGS2 == request::get_sregs2 && KVM_SET_SREGS2 == request::set_sregs2);

} // namespace kvm::vcpu::uapi
