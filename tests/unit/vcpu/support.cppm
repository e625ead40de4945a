// SPDX-License-Identifier: MIT
//
// A vCPU in memory that answers every ioctl that kvm.vcpu makes, as the real one is known to, and fails any
// of them on demand.
module;
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>
export module unit.vcpu.support;
export import kvm.vcpu;

export namespace unit {

namespace request = kvm::vcpu::uapi::request;
namespace cap = kvm::vcpu::uapi::cap;
namespace exit_reason = kvm::vcpu::uapi::exit_reason;

using Bytes = std::vector<std::byte>;

/// What the run page offers, at the offsets of struct kvm_run.
struct RunPage {
    std::uint8_t request_interrupt_window = 0;
    std::uint8_t immediate_exit = 0;
    std::array<std::uint8_t, 6> padding{};
    std::uint32_t exit_reason = 77; ///< of an earlier run
    std::array<std::uint8_t, 20> between{};
    std::uint32_t suberror = 0;
    std::uint32_t ndata = 0;
};

/// How a KVM_RUN ends.
struct RunEnd {
    int error_number = 0;                          ///< 0: returns 0
    std::optional<std::uint32_t> exit_reason = {}; ///< none: the run page is left alone, as by Linux 6.1
    std::uint32_t suberror = 0;
    std::uint32_t ndata = 0;
    bool kicked = false; ///< somebody sets immediate_exit meanwhile
};

/// A nested state as bytes: VMX with a current VMCS and L2 active, or SVM with L2 active.
inline Bytes l2_active(kvm::nested::VendorId vendor, std::uint16_t more_flags = 0) {
    const bool vmx = vendor == kvm::nested::VendorId::vmx;
    kvm::nested::uapi::StateHeader header{};
    header.flags = static_cast<std::uint16_t>((vmx ? 0x1 : 0x101) | more_flags);
    header.format = vmx ? 0 : 1;
    header.size = 4224;
    header.vendor[0] = vmx ? 0x1000 : 0xc000;
    if (vmx)
        header.vendor[1] =
            (more_flags & kvm::nested::uapi::state_flag::evmcs) != 0 ? kvm::nested::uapi::no_address : 0x2000;
    Bytes bytes(4224);
    for (std::size_t i = 128; i < bytes.size(); ++i)
        bytes[i] = static_cast<std::byte>(i * 37 + i / 256);
    std::memcpy(bytes.data(), &header, sizeof header);
    if (vmx)
        std::memcpy(bytes.data() + 128, &kvm::nested::uapi::vmcs12_revision, 4);
    if (!vmx) // the VMRUN intercept and an ASID, which KVM demands
        bytes[128 + 0x10] = bytes[128 + 0x58] = std::byte{1};
    return bytes;
}

/// /dev/kvm, a VM and one vCPU.
struct FakeKvm {
    static constexpr int system = 3, vm = 4, vcpu = 5;

    kvm::nested::VendorId vendor = kvm::nested::VendorId::svm;
    std::map<std::uint32_t, int> offered{
        {cap::exception_payload, 1}, {cap::triple_fault_event, 1}, {cap::disable_quirks2, 0xfff},
        {cap::enlightened_vmcs, 1},  {cap::x2apic_api, 3},         {cap::apic_bus_cycles_ns, 1},
        {cap::hyperv_synic, 1},      {cap::hyperv_synic2, 1},      {cap::xsave2, 4096}};
    std::vector<kvm::vcpu::uapi::EnableCap> enabled_on_vm, enabled_on_vcpu;
    std::uint32_t events_flags = 0x3d; ///< what KVM_GET_VCPU_EVENTS sets

    std::vector<kvm::nested::uapi::CpuidEntry> cpuid;
    std::vector<std::uint32_t> msr_list, feature_list;
    std::map<std::uint32_t, std::uint64_t> msr;
    std::set<std::uint32_t> unreadable, refused;
    std::uint64_t machine_checks = 0x20; ///< IA32_MCG_CAP: 32 banks, as KVM has it
    bool machine_checks_can_be_set_up = true;
    static constexpr bool is_machine_checks(std::uint32_t index) noexcept {
        return index == kvm::vcpu::uapi::msr::machine_check_capabilities;
    }
    /// What a kernel has that it does not list.
    inline void serve_unlisted_msrs() {
        for (const auto& unlisted : kvm::vcpu::unlisted_msrs)
            for (auto index = unlisted.first; index <= unlisted.last; index += unlisted.stride)
                msr.try_emplace(index, std::uint64_t{index} * 3);
    }
    bool keeps_cpuid_count = false; ///< KVM_GET_CPUID2 does not write the count back, as in Linux 6.1
    int tsc_khz = 2'000'000;
    std::optional<int> vm_tsc_khz; ///< KVM_GET_TSC_KHZ on the VM; none: a kernel that does not know it
    kvm::vcpu::uapi::Regs regs{};
    kvm::vcpu::uapi::Sregs2 sregs{};
    Bytes xsave = Bytes(kvm::vcpu::uapi::xsave_limit);
    std::size_t xsave_area = kvm::vcpu::uapi::xsave_limit; ///< what this vCPU's takes, of what the VM's may
    kvm::vcpu::uapi::Xcrs xcrs{};
    kvm::vcpu::uapi::DebugRegs debugregs{};
    kvm::vcpu::uapi::VcpuEvents events{};
    kvm::vcpu::uapi::MpState mp_state{};
    std::optional<kvm::vcpu::uapi::Lapic> lapic;
    Bytes nested;

    // Time, as KVM has it: a microsecond for each ioctl if it passes, a TSC of 2 GHz and a clock.
    bool time_passes = false;
    std::uint64_t ticks = 0,
                  host_boot = 0; ///< microseconds since the host was switched on, and when that was
    std::uint64_t clock_offset = 0;
    std::uint32_t clock_flags = 0xe; ///< what KVM_GET_CLOCK sets
    /// Of KVM_GET_REG_LIST; none: a kernel without it.
    std::optional<std::map<std::uint64_t, std::uint64_t>> one_regs;
    std::optional<std::uint64_t> tsc_offset = 5000; ///< none: a kernel without the attribute
    inline std::uint64_t host_tsc() const noexcept { return ticks * 2000; }
    inline std::uint64_t clock() const noexcept { return clock_offset + ticks * 1000; }
    inline std::uint64_t realtime() const noexcept { return (host_boot + ticks) * 1000; }

    // Where they are in the kernel.
    std::optional<kvm::vcpu::Irqchips> irqchips;
    std::optional<kvm::vcpu::uapi::Pit> pit;
    int no_device_errno = ENXIO; ///< what the VM says where they are not
    inline void add_devices(unsigned seed) {
        const auto fill = [seed](auto& object) {
            auto bytes = std::as_writable_bytes(std::span{&object, 1});
            for (std::size_t i = 0; i < bytes.size(); ++i)
                bytes[i] = static_cast<std::byte>(i * 13 + seed);
        };
        fill(irqchips.emplace());
        for (std::uint32_t id = 0; id < irqchips->size(); ++id) {
            (*irqchips)[id].id = id;
            (*irqchips)[id].padding = 0;
        }
        fill(pit.emplace());
    }
    inline void remove_devices() {
        irqchips.reset();
        pit.reset();
    }
    /// VMX: L2 was left, and its segments have not been copied into a vmcs12 yet. The next vmcs12 pays, as in
    /// KVM.
    bool owes_segments = false;

    RunPage page;
    std::deque<RunEnd> runs; ///< how the next runs end; empty: EINTR with immediate_exit, else an exit

    /// The request that is to fail, on all its calls, and how.
    struct Failure {
        unsigned long request;
        int value = -1;
        int error_number = ENOMEM;
        int from = 1; ///< the first of its calls that fails
    };
    std::optional<Failure> failure;
    /// What hostile kernels write where a count belongs.
    std::optional<std::uint32_t> claimed_cpuid, claimed_msr_list, claimed_xcrs;
    std::optional<int> claimed_msrs;

    struct Call {
        int fd;
        unsigned long request;
        std::uint32_t first_msr; ///< of KVM_SET_MSRS
    };
    std::vector<Call> calls;

    inline kvm::nested::IoctlResult operator()(int fd, unsigned long number, void* argument) noexcept {
        ticks += time_passes ? 1 : 0;
        calls.push_back({fd, number, number == request::set_msrs ? word(argument, 8) : 0});
        if (failure && failure->request == number && --failure->from <= 0)
            return {failure->value, failure->error_number};
        switch (fd) {
        case system:
            return on_system(number, argument);
        case vm:
            return on_vm(number, argument);
        case vcpu:
            return on_vcpu(number, argument);
        default:
            return {-1, EBADF};
        }
    }

    inline bool called(unsigned long number) const {
        return std::ranges::any_of(calls, [=](const Call& call) { return call.request == number; });
    }

  private:
    static std::uint32_t word(const void* argument, std::size_t offset) noexcept {
        std::uint32_t value;
        std::memcpy(&value, static_cast<const std::byte*>(argument) + offset, sizeof value);
        return value;
    }
    static void word(void* argument, std::size_t offset, std::uint32_t value) noexcept {
        std::memcpy(static_cast<std::byte*>(argument) + offset, &value, sizeof value);
    }
    template <class T>
    static kvm::nested::IoctlResult give(void* argument, const T& value) noexcept {
        std::memcpy(argument, &value, sizeof value);
        return {0, 0};
    }
    template <class T>
    static kvm::nested::IoctlResult take(T& value, const void* argument) noexcept {
        std::memcpy(&value, argument, sizeof value);
        return {0, 0};
    }

    inline int extension(std::uint32_t capability) const noexcept {
        if (capability == kvm::nested::uapi::cap_nested_state)
            return vendor == kvm::nested::VendorId::vmx ? 8320 : 4224;
        const auto found = offered.find(capability);
        return found == offered.end() ? 0 : found->second;
    }

    inline kvm::nested::IoctlResult on_system(unsigned long number, void* argument) noexcept {
        switch (number) {
        case request::get_api_version:
            return {12, 0};
        case request::check_extension:
            return {extension(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(argument))), 0};
        case request::get_supported_cpuid: {
            kvm::nested::uapi::CpuidEntry entry{};
            entry.function = vendor == kvm::nested::VendorId::vmx ? 1 : 0x8000'0001;
            entry.ecx = vendor == kvm::nested::VendorId::vmx ? 1u << 5 : 1u << 2;
            word(argument, 0, 1);
            std::memcpy(static_cast<std::byte*>(argument) + 8, &entry, sizeof entry);
            return {0, 0};
        }
        case request::get_msr_index_list:
            return list(msr_list, argument);
        case request::get_msr_feature_index_list:
            return list(feature_list, argument);
        default:
            return {-1, EINVAL};
        }
    }

    inline kvm::nested::IoctlResult list(const std::vector<std::uint32_t>& indices,
                                         void* argument) const noexcept {
        const auto room = word(argument, 0);
        word(argument, 0, claimed_msr_list.value_or(static_cast<std::uint32_t>(indices.size())));
        if (room < indices.size())
            return {-1, E2BIG};
        if (!indices.empty())
            std::memcpy(static_cast<std::byte*>(argument) + 4, indices.data(), indices.size() * 4);
        return {0, 0};
    }

    inline kvm::nested::IoctlResult on_vm(unsigned long number, void* argument) noexcept {
        switch (number) {
        case request::check_extension:
            return {extension(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(argument))), 0};
        case request::get_tsc_khz:
            return vm_tsc_khz ? kvm::nested::IoctlResult{*vm_tsc_khz, 0}
                              : kvm::nested::IoctlResult{-1, ENOTTY};
        case request::enable_cap:
            return take(enabled_on_vm.emplace_back(), argument);
        case request::get_clock: {
            kvm::vcpu::uapi::Clock now{};
            now.clock = clock();
            now.flags = clock_flags;
            now.realtime = (clock_flags & 4) != 0 ? realtime() : 0;
            now.host_tsc = (clock_flags & 8) != 0 ? host_tsc() : 0;
            return give(argument, now);
        }
        case request::set_clock: {
            kvm::vcpu::uapi::Clock wanted{};
            take(wanted, argument);
            if ((wanted.flags & 4) != 0 && realtime() > wanted.realtime)
                wanted.clock += realtime() - wanted.realtime;
            clock_offset = wanted.clock - ticks * 1000;
            return {0, 0};
        }
        case request::get_irqchip:
        case request::set_irqchip: {
            const auto id = word(argument, 0);
            if (!irqchips)
                return {-1, no_device_errno};
            if (id >= irqchips->size())
                return {-1, EINVAL};
            return number == request::get_irqchip ? give(argument, (*irqchips)[id])
                                                  : take((*irqchips)[id], argument);
        }
        case request::get_pit2:
        case request::set_pit2:
            if (!pit)
                return {-1, no_device_errno};
            return number == request::get_pit2 ? give(argument, *pit) : take(*pit, argument);
        default:
            return {-1, ENOTTY};
        }
    }

    inline kvm::nested::IoctlResult on_vcpu(unsigned long number, void* argument) noexcept {
        switch (number) {
        case request::run:
            return run();
        case request::enable_cap:
            return take(enabled_on_vcpu.emplace_back(), argument);
        case request::get_cpuid2:
            if (word(argument, 0) < cpuid.size())
                return {-1, E2BIG};
            if (!keeps_cpuid_count)
                word(argument, 0, claimed_cpuid.value_or(static_cast<std::uint32_t>(cpuid.size())));
            if (!cpuid.empty())
                std::memcpy(static_cast<std::byte*>(argument) + 8, cpuid.data(),
                            cpuid.size() * sizeof cpuid[0]);
            return {0, 0};
        case request::set_cpuid2:
            cpuid.resize(word(argument, 0));
            if (!cpuid.empty())
                std::memcpy(cpuid.data(), static_cast<std::byte*>(argument) + 8,
                            cpuid.size() * sizeof cpuid[0]);
            return {0, 0};
        case request::set_up_machine_checks:
            if (!machine_checks_can_be_set_up)
                return {-1, EINVAL};
            return take(machine_checks, argument);
        case request::get_msrs:
        case request::set_msrs:
            return msrs(number == request::set_msrs, argument);
        case request::get_tsc_khz:
            return {tsc_khz, 0};
        case request::set_tsc_khz:
            tsc_khz = static_cast<int>(reinterpret_cast<std::uintptr_t>(argument));
            return {0, 0};
        case request::get_device_attr:
        case request::set_device_attr: {
            kvm::vcpu::uapi::DeviceAttribute attribute;
            take(attribute, argument);
            if (!tsc_offset || attribute.group != 0 || attribute.attribute != 0)
                return {-1, ENXIO};
            auto* value = reinterpret_cast<void*>(static_cast<std::uintptr_t>(attribute.address));
            return number == request::get_device_attr ? give(value, *tsc_offset) : take(*tsc_offset, value);
        }
        case request::get_reg_list: {
            if (!one_regs)
                return {-1, EINVAL};
            auto* at = static_cast<std::byte*>(argument);
            std::uint64_t room;
            std::memcpy(&room, at, 8);
            const std::uint64_t count = one_regs->size();
            std::memcpy(at, &count, 8);
            if (count > room)
                return {-1, E2BIG};
            for (const auto& [id, value] : *one_regs)
                std::memcpy(at += 8, &id, 8);
            return {0, 0};
        }
        case request::get_one_reg:
        case request::set_one_reg: {
            kvm::vcpu::uapi::OneRegAddress reg;
            take(reg, argument);
            if (!one_regs || !one_regs->contains(reg.id))
                return {-1, EINVAL};
            auto* value = reinterpret_cast<void*>(static_cast<std::uintptr_t>(reg.address));
            return number == request::get_one_reg ? give(value, (*one_regs)[reg.id])
                                                  : take((*one_regs)[reg.id], value);
        }
        case request::get_regs:
            return give(argument, regs);
        case request::set_regs:
            events.exception_pending = 0; // as KVM does
            return take(regs, argument);
        case request::get_sregs2:
            return give(argument, sregs);
        case request::set_sregs2:
            return take(sregs, argument);
        case request::get_xsave:
            std::memcpy(argument, xsave.data(), 4096);
            return {0, 0};
        case request::get_xsave2:
            std::memcpy(argument, xsave.data(),
                        std::min(xsave_area, static_cast<std::size_t>(offered[cap::xsave2])));
            return {0, 0};
        case request::set_xsave: // as KVM: what this vCPU's area takes, not what the number says
            std::memcpy(xsave.data(), argument,
                        static_cast<std::size_t>(std::max(offered[cap::xsave2], 4096)));
            return {0, 0};
        case request::get_xcrs:
            give(argument, xcrs);
            if (claimed_xcrs)
                word(argument, 0, *claimed_xcrs);
            return {0, 0};
        case request::set_xcrs:
            if (word(argument, 0) == 0)
                return {-1, EINVAL};
            return take(xcrs, argument);
        case request::get_debugregs:
            return give(argument, debugregs);
        case request::set_debugregs:
            return take(debugregs, argument);
        case request::get_vcpu_events:
            events.flags = events_flags;
            return give(argument, events);
        case request::set_vcpu_events:
            return take(events, argument);
        case request::get_mp_state:
            return give(argument, mp_state);
        case request::set_mp_state:
            return take(mp_state, argument);
        case request::get_lapic:
            if (!lapic)
                return {-1, EINVAL};
            return give(argument, *lapic);
        case request::set_lapic:
            if (!lapic)
                return {-1, EINVAL};
            return take(*lapic, argument);
        case request::get_nested_state:
            if (word(argument, 4)
                < static_cast<std::uint32_t>(extension(kvm::nested::uapi::cap_nested_state)))
                return {-1, E2BIG};
            if (owes_segments && nested.size() > 4096 && !in_l2()) {
                std::ranges::fill(std::span{nested}.subspan(128 + 840, 70),
                                  std::byte{}); // limits, access rights
                owes_segments = false;
            }
            std::memcpy(argument, nested.data(), nested.size());
            return {0, 0};
        case request::set_nested_state:
            if (vendor == kvm::nested::VendorId::vmx && in_l2())
                owes_segments = true;
            nested.resize(word(argument, 4));
            std::memcpy(nested.data(), argument, nested.size());
            return {0, 0};
        default:
            return {-1, EINVAL};
        }
    }

    inline bool in_l2() const noexcept {
        return !nested.empty()
               && (nested[0] & std::byte{kvm::nested::uapi::state_flag::guest_mode}) != std::byte{};
    }

    inline kvm::nested::IoctlResult run() noexcept {
        RunEnd end;
        if (!runs.empty()) {
            end = runs.front();
            runs.pop_front();
        } else if (page.immediate_exit != 0) {
            end.error_number = EINTR;
        } else {
            end.exit_reason = 2; // KVM_EXIT_IO
        }
        if (end.exit_reason)
            page.exit_reason = *end.exit_reason;
        if (end.kicked)
            page.immediate_exit = 1;
        page.suberror = end.suberror;
        page.ndata = end.ndata;
        if (end.error_number != 0)
            return {-1, end.error_number};
        return {0, 0};
    }

    inline kvm::nested::IoctlResult msrs(bool set, void* argument) noexcept {
        const auto count = word(argument, 0);
        if (count >= 256) // KVM's MAX_IO_MSRS
            return {-1, E2BIG};
        if (claimed_msrs)
            return {*claimed_msrs, 0};
        auto* at = static_cast<std::byte*>(argument) + 8;
        for (std::uint32_t i = 0; i < count; ++i, at += sizeof(kvm::vcpu::uapi::Msr)) {
            kvm::vcpu::uapi::Msr entry;
            std::memcpy(&entry, at, sizeof entry);
            if (set ? refused.contains(entry.index) || is_machine_checks(entry.index)
                    : unreadable.contains(entry.index)
                          || (!msr.contains(entry.index) && !is_machine_checks(entry.index)))
                return {static_cast<int>(i), 0};
            if (set)
                msr[entry.index] = entry.value;
            entry.value = !set && entry.index == kvm::vcpu::uapi::msr::tsc && time_passes && tsc_offset
                              ? host_tsc() + *tsc_offset
                          : is_machine_checks(entry.index) ? machine_checks
                                                           : msr[entry.index];
            std::memcpy(at, &entry, sizeof entry);
        }
        return {static_cast<int>(count), 0};
    }
};

/// A vCPU with something in every group, unlike any other seed.
inline FakeKvm busy(kvm::nested::VendorId vendor, unsigned seed = 1) {
    FakeKvm fake;
    fake.vendor = vendor;
    const auto fill = [&](auto& object) {
        auto bytes = std::as_writable_bytes(std::span{&object, 1});
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = static_cast<std::byte>(i * 29 + seed * 7 + sizeof object);
    };
    fill(fake.regs);
    fill(fake.sregs);
    fill(fake.debugregs);
    fill(fake.events);
    fake.events.flags = 0x3d;
    fake.events.exception_pending = 1;
    fake.xcrs.count = 1;
    fake.xcrs.entries[0] = {.index = 0, .reserved = 0, .value = 6 + seed};
    fill(fake.lapic.emplace());
    for (std::size_t i = 0; i < fake.xsave.size(); ++i)
        fake.xsave[i] = static_cast<std::byte>(i * 31 + seed);
    fake.cpuid.resize(3);
    for (auto& entry : fake.cpuid)
        fill(entry);
    fake.feature_list = {0x480, 0x481, 0x482, 0x483, 0x484, 0x485, 0x487, 0x489, 0x48d, 0x8b};
    fake.msr_list = {0x10, 0x6e0, 0x3a, 0x480, 0x8b, 0x277, 0xc0010117, 0x4b564d06};
    for (const auto& list : {fake.feature_list, fake.msr_list})
        for (const auto index : list)
            fake.msr[index] = std::uint64_t{index} * 1000 + seed;
    fake.nested = l2_active(vendor);
    fake.tsc_offset = 5000 + seed;
    return fake;
}

/// What a VMM puts around it. The capabilities are taken to be on.
inline kvm::vcpu::WholeVcpu whole(FakeKvm& fake, const kvm::vcpu::Requirements& requirements = {}) {
    const auto host =
        kvm::nested::Host<kvm::nested::Any>::probe(kvm::nested::SystemFd{FakeKvm::system}, fake);
    fake.calls.clear();
    return {*host,
            kvm::vcpu::already_prepared(requirements),
            kvm::nested::SystemFd{FakeKvm::system},
            kvm::nested::VmFd{FakeKvm::vm},
            kvm::nested::VcpuFd{FakeKvm::vcpu},
            &fake.page,
            fake};
}

/// A saved vCPU.
inline kvm::vcpu::VcpuState saved(kvm::nested::VendorId vendor = kvm::nested::VendorId::svm,
                                  unsigned seed = 1) {
    auto fake = busy(vendor, seed);
    return *whole(fake).save();
}

} // namespace unit
