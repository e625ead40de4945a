// SPDX-License-Identifier: MIT
//
// The MSRs that this kernel serves to user space, held against those that a save carries. KVM's two lists of
// indices leave many out, and a new kernel may add some. A scan finds what KVM_GET_MSRS reads, and what of
// that keeps another value that is written; what keeps one, is not carried and is no exception here, would be
// lost by every move.
//
//     tests/lab/run --on lab --kernel 7 build/dev/tests/lab/lab-msr-scan
#include <fstream>

#include "support/cpuid.hpp"
#include "support/migration.hpp"

namespace {

using lab::must;
using lab::Vm;

struct Range {
    std::uint32_t first, last; ///< both belong to it
};

/// Where processors, KVM and Hyper-V have their MSRs.
constexpr std::array scanned{Range{0, 0x1fff}, Range{0x4000'0000, 0x4000'01ff},
                             Range{0x4b56'4d00, 0x4b56'4d0f}, Range{0xc000'0000, 0xc000'1fff},
                             Range{0xc001'0000, 0xc001'10ff}};

// --- virtual machines

struct Kind {
    const char* name;
    bool kernel_apic, synic, machine_checks;
};

/// The first has all that makes KVM serve more MSRs.
constexpr std::array kinds{Kind{"with SynIC, machine checks and an APIC in the kernel", true, true, true},
                           Kind{"with an APIC in the kernel", true, false, false},
                           Kind{"with nothing", false, false, false}};

// --- exceptions

/// Bits of CPUID (Intel SDM Vol. 2), as KVM offers it and the virtual machines here have it.
bool has_cpuid(const machine::Machine& machine, std::uint32_t leaf, std::uint32_t kvm_cpuid_entry2::* reg,
               unsigned bit) {
    lab::SupportedCpuid cpuid{machine, KVM_GET_SUPPORTED_CPUID};
    return std::ranges::any_of(cpuid.entries(), [&](const kvm_cpuid_entry2& entry) {
        return entry.function == leaf && entry.index == 0 && (entry.*reg >> bit & 1) != 0;
    });
}
bool no_waitpkg(const Vm& vm, const Kind&) {
    return !has_cpuid(vm.machine, 7, &kvm_cpuid_entry2::ecx, 5);
}
bool no_sgx_launch_control(const Vm& vm, const Kind&) {
    return !has_cpuid(vm.machine, 7, &kvm_cpuid_entry2::ecx, 30);
}
bool no_tsx_control(const Vm& vm, const Kind&) {
    constexpr std::uint32_t arch_capabilities = 0x10a;
    return (lab::get_msr(vm.machine, arch_capabilities).value_or(0) >> 7 & 1) == 0;
}
bool no_synic(const Vm&, const Kind& kind) {
    return !kind.synic;
}

struct Exception {
    Range range;
    const char* reason;
    bool (*holds)(const Vm&, const Kind&) = nullptr; ///< not always
};

/// What keeps a value and is not carried as an MSR, or must not be written by a scan.
constexpr std::array exceptions = std::to_array<Exception>({
    {{0x1b, 0x1b}, "IA32_APIC_BASE: KVM_GET_SREGS2 has it"},
    {{0x49, 0x49}, "IA32_PRED_CMD: a command to the host's processor"},
    {{0x79, 0x79}, "IA32_BIOS_UPDT_TRIG: a command to the host's processor"},
    {{0x8c, 0x8f}, "IA32_SGXLEPUBKEYHASH0-3: the guest has no SGX launch control", no_sgx_launch_control},
    {{0xe1, 0xe1}, "IA32_UMWAIT_CONTROL: the guest has no WAITPKG", no_waitpkg},
    {{0x10b, 0x10b}, "IA32_FLUSH_CMD: a command to the host's processor"},
    {{0x122, 0x122}, "IA32_TSX_CTRL: the guest does not have it", no_tsx_control},
    {{0x1c8, 0x1c9}, "last branch records: a perf event of the host's that is made when they are read"},
    {{0x40, 0x47}, "last branch records, the same"},
    {{0x60, 0x67}, "last branch records, the same"},
    {{0x680, 0x69f}, "last branch records, the same"},
    {{0x6c0, 0x6df}, "last branch records, the same"},
    {{0xdc0, 0xddf}, "last branch records, the same"},
    {{0x4c1, 0x4c8}, "IA32_A_PMCi: the counters at 0xc1 once more"},
    {{0x800, 0x8ff}, "the local APIC: KVM_GET_LAPIC has it"},
    {{0xc000'0080, 0xc000'0080}, "EFER: KVM_GET_SREGS2 has it"},
    {{0xc000'0100, 0xc000'0101}, "FS and GS base: KVM_GET_SREGS2 has them"},
    {{0x4000'0070, 0x4000'0072}, "HV_X64_MSR_EOI, ICR, TPR: registers of the local APIC"},
    {{0x4000'0081, 0x4000'0083}, "HV_X64_MSR_SVERSION, SIEFP, SIMP: the guest has no SynIC", no_synic},
    {{0x4000'0084, 0x4000'0084}, "HV_X64_MSR_EOM: a command"},
    {{0x4000'0090, 0x4000'00b7}, "HV_X64_MSR_SINT, STIMER: the guest has no SynIC", no_synic},
});

const Exception* exception_for(std::uint32_t index, const Vm& vm, const Kind& kind) {
    const auto* const found = std::ranges::find_if(exceptions, [&](const Exception& exception) {
        return exception.range.first <= index && index <= exception.range.last
               && (exception.holds == nullptr || exception.holds(vm, kind));
    });
    return found == exceptions.end() ? nullptr : found;
}

void set_up_machine_checks(const Vm& vm) {
    constexpr std::uint64_t banks = 10;
    std::uint64_t supported = 0;
    lab::must_ioctl(vm.machine.system_fd(), KVM_X86_GET_MCE_CAP_SUPPORTED, &supported,
                    "KVM_X86_GET_MCE_CAP_SUPPORTED");
    std::uint64_t capability = (supported & ~0xffull) | banks;
    lab::must_ioctl(vm.machine.vcpu_fd(), KVM_X86_SETUP_MCE, &capability, "KVM_X86_SETUP_MCE");
}

Vm made(const Kind& kind) {
    using enum kvm::vcpu::HypervSynic;
    auto vm =
        lab::prepared_vm({.kernel_apic = kind.kernel_apic}, {.hyperv_synic = kind.synic ? synic2 : off});
    must(vm.whole().enable_capabilities());
    if (kind.machine_checks)
        set_up_machine_checks(vm);
    return vm;
}

// --- the scan

using Indices = std::vector<std::uint32_t>;

struct Block {                                     // kvm_msrs with its entries
    static constexpr std::uint32_t capacity = 255; // KVM takes less than 256
    std::uint32_t count = 0, padding = 0;
    std::array<kvm_msr_entry, capacity> entries{};
};

/// Those of consecutive MSRs that the vCPU lets one read. KVM stops at the first that it does not.
void add_served(const Vm& vm, Range range, Indices& served) {
    Block block;
    for (std::uint64_t next = range.first; next <= range.last;) {
        block.count =
            static_cast<std::uint32_t>(std::min<std::uint64_t>(range.last - next + 1, Block::capacity));
        for (std::uint32_t i = 0; i < block.count; ++i)
            block.entries[i].index = static_cast<std::uint32_t>(next + i);
        const int read = ::ioctl(vm.machine.vcpu_fd(), KVM_GET_MSRS, &block);
        if (read < 0)
            lab::give_up(std::format("KVM_GET_MSRS: errno {}", errno));
        for (int i = 0; i < read; ++i)
            served.push_back(static_cast<std::uint32_t>(next) + static_cast<std::uint32_t>(i));
        next += static_cast<std::uint64_t>(read) + 1;
    }
}

Indices served_by(const Vm& vm) {
    Indices served;
    for (const auto range : scanned)
        add_served(vm, range, served);
    return served;
}

Indices carried_by(const Vm& vm) {
    const auto state = must(vm.whole().save());
    Indices carried;
    for (const auto* msrs : {&state.feature_msrs, &state.msrs})
        for (const auto& msr : *msrs)
            carried.push_back(msr.index);
    std::ranges::sort(carried);
    return carried;
}

/// Whether the MSR comes out with another value after another was written.
bool keeps_another_value(const machine::Machine& machine, std::uint32_t index) {
    const auto before = lab::get_msr(machine, index);
    if (!before)
        return false;
    constexpr std::uint64_t write_back_everywhere = 0x0606'0606'0606'0606; // memory types
    for (const auto other :
         {*before ^ 1, *before ^ 2, *before ^ 0x10, *before ^ 0x1000, *before ^ 0x2'0000,
          *before ^ (std::uint64_t{1} << 30), *before ^ (std::uint64_t{1} << 40), std::uint64_t{0},
          ~std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{6}, write_back_everywhere}) {
        if (other == *before || !lab::set_msr(machine, index, other))
            continue;
        const auto after = lab::get_msr(machine, index);
        lab::set_msr(machine, index, *before);
        if (after != before)
            return true;
    }
    return false;
}

/// "0x200-0x20f 0x2ff"
std::string listed(const Indices& indices) {
    std::string text;
    for (std::size_t i = 0; i < indices.size();) {
        std::size_t end = i + 1;
        while (end < indices.size() && indices[end] == indices[end - 1] + 1)
            ++end;
        text += std::format(" {:#x}", indices[i]);
        if (end - i > 1)
            text += std::format("-{:#x}", indices[end - 1]);
        i = end;
    }
    return text.empty() ? " none" : text;
}

/// With it KVM answers for MSRs that it does not have.
bool ignores_unknown_msrs() {
    std::string value;
    std::ifstream{"/sys/module/kvm/parameters/ignore_msrs"} >> value;
    return value != "N";
}

} // namespace

TEST_CASE("each MSR that KVM serves and that keeps a value is carried, or is an exception with a reason") {
    REQUIRE_FALSE(ignores_unknown_msrs());
    Indices served; // by the first kind, which serves the most
    for (const auto& kind : kinds) {
        const auto vm = made(kind);
        if (served.empty())
            served = served_by(vm);
        const auto carried = carried_by(vm);
        Indices lost, excepted, without_state;
        for (const auto index : served) {
            if (std::ranges::binary_search(carried, index))
                continue;
            if (exception_for(index, vm, kind) != nullptr)
                excepted.push_back(index);
            else if (keeps_another_value(vm.machine, index))
                lost.push_back(index);
            else
                without_state.push_back(index);
        }
        std::println(
            "A virtual machine {}:\n  carried:{}\n  exceptions:{}\n  read, but keep nothing:{}\n  LOST:{}",
            kind.name, listed(carried), listed(excepted), listed(without_state), listed(lost));
        std::println("count: {} MSRs are read {}, {} of them are lost", served.size(), kind.name,
                     lost.size());
        CHECK(listed(lost) == " none");
    }
}
