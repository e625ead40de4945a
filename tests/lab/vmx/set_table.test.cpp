// SPDX-License-Identifier: MIT
//
// KVM_SET_NESTED_STATE on Intel: the rows of support/set_table.hpp for VMX. The state that most rows change
// is made by hand from the vCPU's own capabilities, so that one field at a time can be wrong.
//
// Rules beyond the README's: C1 to C32 are checks of the controls, H1 to H12 of the host state (L1), G1 to
// G13 of the guest state (L2), in the order of Intel SDM Vol. 3, 27.2 and 27.3. KVM makes them with L2 active
// only, when the old nested state is already gone.
#include "support/set_table.hpp"
#include "support/get.hpp"
#include "support/vmx.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using lab::beyond, lab::bit, lab::no_memory, lab::maxphyaddr, lab::returned_2;
using lab::Change, lab::Where, lab::Into;
using lab::fill, lab::fill_header, lab::flags, lab::format, lab::size;
using lab::must;
using namespace lab::vmx::field;
using lab::vmx::Field, lab::vmx::shadow_indicator;
namespace pin = lab::vmx::pin;
namespace primary = lab::vmx::primary;
namespace secondary = lab::vmx::secondary;
namespace exit_control = lab::vmx::exit;
namespace entry = lab::vmx::entry;
namespace msr = lab::vmx::msr;

constexpr std::uint64_t none = kvm::nested::uapi::no_address;

constexpr Change vmxon(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::vmxon_at, 8, value};
}
constexpr Change vmcs12(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::vmcs12_at, 8, value};
}
constexpr Change smm(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::smm_flags_at, 2, value};
}
constexpr Change vmx_flags(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::vmx_flags_at, 4, value};
}
constexpr Change deadline(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::deadline_at, 8, value};
}
constexpr Change put(Field field, std::uint64_t value) {
    return lab::put(field.offset, field.width, value);
}
constexpr Change set(Field field, std::uint64_t bits) {
    return lab::set_bits(field.offset, field.width, bits);
}
constexpr Change clear(Field field, std::uint64_t bits) {
    return lab::clear_bits(field.offset, field.width, bits);
}
constexpr Change shadow_revision(std::uint64_t value) {
    return {Change::Kind::put, lab::vmx::shadow_at, 4, value};
}

class Scene;

/// What VMX adds to the machinery of the table.
struct Vmx {
    using Vendor = kvm::nested::Vmx;

    /// What the vCPU is before.
    enum class On : std::uint8_t {
        vmx,                ///< VMX in CPUID, IA32_FEATURE_CONTROL 5, reset registers
        no_feature_control, ///< the same, IA32_FEATURE_CONTROL never set
        long_mode,          ///< the same as the first, in 64-bit mode
        no_cpuid,           ///< no CPUID at all
        no_vmx,             ///< CPUID without VMX
        in_smm,             ///< in SMM
        in_smm_from_l2,     ///< in SMM, for states that say that L2 was interrupted: see below
        evmcs,              ///< KVM_CAP_HYPERV_ENLIGHTENED_VMCS enabled; no Hyper-V in CPUID
        hyperv,             ///< the same with Hyper-V in CPUID
        quirk_off, ///< KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM disabled, where there is such a quirk
        count,
    };

    /// What the row changes.
    enum class Base : std::uint8_t {
        l2,       ///< made by hand: L2 active, all checks pass
        shadow,   ///< the same with a shadow VMCS, 8320 bytes
        current,  ///< the first with L1 running
        selftest, ///< as in the kernel's nested_set_state_test: no flags, vmcs12 empty but for the revision
        vmxon,    ///< 128 bytes: VMXON and no more
        off,      ///< 128 bytes: outside VMX operation
        saved,    ///< the state of an L2 that ran
        count,
    };

    enum class Start : std::uint8_t { off, vmxon, same_vmcs, other_vmcs, same_l2, other_l2, count };
    static constexpr std::array<const char*, std::to_underlying(Start::count)> start_names{
        "outside VMX operation", "VMXON only",          "the same VMCS is current", "another VMCS is current",
        "the same L2 is active", "another L2 is active"};

    /// In what kernels differ.
    enum class Trait : std::uint8_t {
        none,
        tpr_threshold_checked,
        tsc_multiplier_checked,
        msr_count_limited,
        freeze_in_smm_tolerated,
        cet_needs_wp,
        count,
    };

    /// What a failure leaves.
    enum class Left : std::uint8_t {
        as_before, ///< the checks of the header come before the old state is torn down
        vmxon,     ///< VMX operation with the address that was to be set, no current VMCS
        vmcs,      ///< the same with the VMCS that was to be set, L2 not active
    };
    struct Failure {
        Left left = Left::as_before;
    };
    /// A capability without which the row says nothing: the MSR must have these bits set, and those clear.
    struct Needs {
        std::uint32_t msr = 0;
        std::uint64_t set = 0;
        std::uint64_t clear = 0;
    };

    using Row = lab::SetRow<Vmx>;
    static Scene& scene(On on);
    static bool from(const Row& row, Start start);
    static bool same(const lab::Bytes& a, const lab::Bytes& b);
    static bool blurred(Start start, const lab::Bytes& after);
    static lab::Bytes bytes(Base base);
    static std::string why_not(const Row& row);
    static void check_failure(const lab::Failed<Vmx>& failed);
    static void check_success(const Row& row, Start start, const lab::Bytes& set, const lab::Bytes& after);
    static kvm::nested::Vcpu<kvm::nested::Vmx> nested(const machine::Machine& machine) {
        return lab::vmx::nested(machine);
    }
};
using Base = Vmx::Base;
using On = Vmx::On;
using Trait = Vmx::Trait;
using Left = Vmx::Left;
using Needs = Vmx::Needs;

constexpr Vmx::Failure vmxon_left{Left::vmxon};
constexpr Vmx::Failure vmcs_left{Left::vmcs};

/// The upper half of a control capability: these bits may be 1.
constexpr Needs offered(std::uint32_t capability, std::uint32_t bits) {
    return {.msr = capability, .set = std::uint64_t{bits} << 32};
}

/// A check of the vmcs12 that fails with L2 active.
constexpr lab::SetRow<Vmx> refused(const char* name, std::array<Change, 4> change, Needs needs = {}) {
    return {.name = name, .change = change, .expect = EINVAL, .failure = vmcs_left, .needs = needs};
}
/// One that passes.
constexpr lab::SetRow<Vmx> taken(const char* name, std::array<Change, 4> change, Needs needs = {}) {
    return {.name = name, .change = change, .needs = needs};
}

// --- the table

constexpr std::uint16_t payload = lab::header_size;
constexpr std::uint64_t not_canonical = bit(63) | bit(12);
constexpr std::uint32_t revision_12 = kvm::nested::uapi::vmcs12_revision;

constexpr std::array rows = std::to_array<lab::SetRow<Vmx>>({
    // Header.
    {.name = "nothing changed"},
    {.name = "nothing changed, at an odd address", .where = Where::odd_address},
    {.name = "nothing changed, in 64-bit mode", .on = On::long_mode},
    {.name = "nothing changed, IA32_FEATURE_CONTROL never set", .on = On::no_feature_control},
    {.name = "V5: L2 without CPUID", .on = On::no_cpuid, .expect = EINVAL},
    {.name = "V5: L2 without VMX in CPUID", .on = On::no_vmx, .expect = EINVAL},
    {.name = "V1: format 1 (SVM)", .change = {format(1)}, .expect = EINVAL},
    {.name = "V1: format 7", .change = {format(7)}, .expect = EINVAL},
    {.name = "X4: flag 0x10", .change = {flags(0x11)}, .expect = EINVAL},
    {.name = "X4: flag 0x200", .change = {flags(0x201)}, .expect = EINVAL},
    {.name = "X4: flag 0x8000", .change = {flags(0x8001)}, .expect = EINVAL},
    {.name = "GIF_SET, which is SVM's", .change = {flags(0x101)}},
    {.name = "GIF_SET outside L2", .base = Base::selftest, .change = {flags(0x100)}},
    {.name = "X5: RUN_PENDING outside L2", .change = {flags(2)}, .expect = EINVAL},
    {.name = "RUN_PENDING in L2", .change = {flags(3)}},
    {.name = "MTF_PENDING in L2", .change = {flags(9)}},
    {.name = "MTF_PENDING outside L2", .change = {flags(8)}},
    {.name = "GUEST_MODE clear", .change = {flags(0)}},

    {.name = "X3: size 0", .change = {size(0)}, .expect = EINVAL},
    {.name = "X3: size 127", .change = {size(127)}, .expect = EINVAL},
    {.name = "X3: size 127 outside L2", .base = Base::selftest, .change = {size(127)}, .expect = EINVAL},
    {.name = "V15: size 128 in L2", .change = {size(128)}, .expect = EINVAL, .failure = vmxon_left},
    {.name = "V15: size 1000 in L2", .change = {size(1000)}, .expect = EINVAL, .failure = vmxon_left},
    {.name = "V15: size 1125 in L2", .change = {size(1125)}, .expect = EINVAL, .failure = vmxon_left},
    {.name = "size 1126 in L2", .change = {size(1126)}},
    {.name = "V15: size 1125 outside L2",
     .base = Base::selftest,
     .change = {size(1125)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "size 1126 outside L2", .base = Base::selftest, .change = {size(1126)}},
    {.name = "size 4223", .change = {size(4223)}},
    {.name = "size 4225", .change = {size(4225)}},
    {.name = "size 8320", .change = {size(8320)}}, // without a shadow VMCS that is linked: 4224 for both
    {.name = "size 0xffffffff", .change = {size(0xffff'ffff)}},
    {.name = "size 0xffffffff outside L2", .base = Base::selftest, .change = {size(0xffff'ffff)}},

    // V6: the VMXON region.
    {.name = "V6: VMXON address unaligned", .change = {vmxon(0x1008)}, .expect = EINVAL},
    {.name = "V6: VMXON address 1", .base = Base::selftest, .change = {vmxon(1)}, .expect = EINVAL},
    {.name = "V6: VMXON address at MAXPHYADDR", .change = {vmxon(beyond)}, .expect = EINVAL},
    {.name = "V6: VMXON address 1<<52", .change = {vmxon(bit(52))}, .expect = EINVAL},
    {.name = "VMXON address 0", .change = {vmxon(0)}},
    {.name = "VMXON address without memory", .change = {vmxon(no_memory)}},

    // V15 to V17: the current VMCS.
    {.name = "V16: vmcs12 address unaligned",
     .change = {vmcs12(0x2008)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V16: vmcs12 address at MAXPHYADDR",
     .change = {vmcs12(beyond)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V16: vmcs12 address 1<<60",
     .change = {vmcs12(bit(60))},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V16: vmcs12 address is the VMXON address",
     .change = {vmcs12(lab::vmx::vmxon_address)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V16: vmcs12 address at MAXPHYADDR, outside L2",
     .base = Base::selftest,
     .change = {vmcs12(beyond)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V17: no vmcs12 address, in L2",
     .change = {vmcs12(none)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V17: no vmcs12 address, 4224 bytes",
     .base = Base::selftest,
     .change = {vmcs12(none)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "vmcs12 address without memory", .change = {vmcs12(no_memory)}},
    {.name = "VMXON and no more", .base = Base::vmxon},
    {.name = "V15: VMXON and no more, in L2",
     .base = Base::vmxon,
     .change = {flags(1)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V15: a vmcs12 address, 128 bytes",
     .base = Base::vmxon,
     .change = {vmcs12(lab::vmx::vmcs12_address)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "VMXON and no more, MTF_PENDING", .base = Base::vmxon, .change = {flags(8)}},
    {.name = "VMXON and no more, size 1125", .base = Base::vmxon, .change = {size(1125)}},

    // V2 to V4: outside VMX operation.
    {.name = "V3: no VMXON, in L2", .change = {vmxon(none)}, .expect = EINVAL},
    {.name = "V3: no VMXON, a vmcs12 address",
     .base = Base::selftest,
     .change = {vmxon(none)},
     .expect = EINVAL},
    {.name = "V4: no VMXON, GUEST_MODE", .base = Base::off, .change = {flags(1)}, .expect = EINVAL},
    {.name = "V4: no VMXON, GUEST_MODE, RUN_PENDING",
     .base = Base::off,
     .change = {flags(3)},
     .expect = EINVAL},
    {.name = "V4: no VMXON, MTF_PENDING", .base = Base::off, .change = {flags(8)}, .expect = EINVAL},
    {.name = "V4: no VMXON, GIF_SET", .base = Base::off, .change = {flags(0x100)}, .expect = EINVAL},
    {.name = "V12: no VMXON, EVMCS", .base = Base::off, .change = {flags(4)}, .expect = EINVAL},
    {.name = "V2: no VMXON, SMM flags 1", .base = Base::off, .change = {smm(1)}, .expect = EINVAL},
    {.name = "V2: no VMXON, SMM flags 2", .base = Base::off, .change = {smm(2)}, .expect = EINVAL},
    {.name = "V9: no VMXON, VMX flags ~0", .base = Base::off, .change = {vmx_flags(~0u)}, .expect = EINVAL},
    {.name = "outside VMX operation", .base = Base::off},
    {.name = "outside VMX operation, size 4224", .base = Base::off, .change = {size(4224)}},
    {.name = "outside VMX operation, size 0xffffffff", .base = Base::off, .change = {size(0xffff'ffff)}},
    {.name = "outside VMX operation, payload not mapped",
     .base = Base::off,
     .change = {size(4224)},
     .where = Where::cut,
     .cut = payload},
    {.name = "outside VMX operation, without VMX in CPUID", .on = On::no_vmx, .base = Base::off},
    {.name = "outside VMX operation, without CPUID", .on = On::no_cpuid, .base = Base::off},
    {.name = "outside VMX operation, without CPUID, size 8320",
     .on = On::no_cpuid,
     .base = Base::off,
     .change = {size(8320)}},

    // V7 to V11: SMM.
    {.name = "V7: SMM flags 1 in L2", .change = {smm(1)}, .expect = EINVAL},
    {.name = "V10: SMM flags 2 in L2, outside SMM", .change = {smm(2)}, .expect = EINVAL},
    {.name = "V7: SMM flags 3 in L2", .change = {smm(3)}, .expect = EINVAL},
    {.name = "V8: SMM flags 4", .change = {smm(4)}, .expect = EINVAL},
    {.name = "V8: SMM flags 4 outside L2", .base = Base::selftest, .change = {smm(4)}, .expect = EINVAL},
    {.name = "V8: SMM flags ~3", .base = Base::selftest, .change = {smm(0xfffc)}, .expect = EINVAL},
    {.name = "V10: SMM flags 1 outside SMM", .base = Base::selftest, .change = {smm(1)}, .expect = EINVAL},
    {.name = "V10: SMM flags 2 outside SMM", .base = Base::selftest, .change = {smm(2)}, .expect = EINVAL},
    {.name = "V10: SMM flags 3 outside SMM", .base = Base::selftest, .change = {smm(3)}, .expect = EINVAL},
    {.name = "V10: VMXON and SMM flags 2 outside SMM",
     .base = Base::vmxon,
     .change = {smm(2)},
     .expect = EINVAL},
    {.name = "in SMM: VMXON and no more, SMM flags 3",
     .on = On::in_smm_from_l2,
     .base = Base::vmxon,
     .change = {smm(3)}},
    {.name = "in SMM: L1 had a current VMCS", .on = On::in_smm, .base = Base::current, .change = {smm(2)}},
    {.name = "in SMM: L2 was interrupted",
     .on = On::in_smm_from_l2,
     .base = Base::current,
     .change = {smm(3)}},
    {.name = "in SMM: an empty vmcs12, SMM flags 2",
     .on = On::in_smm,
     .base = Base::selftest,
     .change = {smm(2)}},
    {.name = "in SMM: an empty vmcs12, SMM flags 3",
     .on = On::in_smm_from_l2,
     .base = Base::selftest,
     .change = {smm(3)}},
    {.name = "V11: in SMM, SMM flags 1",
     .on = On::in_smm,
     .base = Base::selftest,
     .change = {smm(1)},
     .expect = EINVAL},
    {.name = "V10: in SMM, L2 active", .on = On::in_smm, .expect = EINVAL},
    {.name = "V10: in SMM, L2 active, RUN_PENDING", .on = On::in_smm, .change = {flags(3)}, .expect = EINVAL},
    {.name = "V10: in SMM, L2 active, SMM flags 2", .on = On::in_smm, .change = {smm(2)}, .expect = EINVAL},
    {.name = "in SMM: no SMM flags", .on = On::in_smm, .base = Base::selftest},
    {.name = "in SMM: VMXON and no more, no SMM flags", .on = On::in_smm, .base = Base::vmxon},
    {.name = "in SMM: VMXON and no more, SMM flags 2",
     .on = On::in_smm,
     .base = Base::vmxon,
     .change = {smm(2)},
     .rewritten = true},
    {.name = "in SMM: outside VMX operation", .on = On::in_smm, .base = Base::off},
    {.name = "V19: in SMM, revision 0",
     .on = On::in_smm,
     .base = Base::current,
     .change = {smm(2), put(revision, 0)},
     .expect = EINVAL,
     .failure = vmcs_left},

    // V9 and what is not looked at.
    {.name = "V9: VMX flags 2", .change = {vmx_flags(2)}, .expect = EINVAL},
    {.name = "V9: VMX flags ~0", .base = Base::selftest, .change = {vmx_flags(~0u)}, .expect = EINVAL},
    {.name = "V9: VMXON and VMX flags ~0", .base = Base::vmxon, .change = {vmx_flags(~0u)}, .expect = EINVAL},
    {.name = "a deadline, the preemption timer not in use",
     .change = {vmx_flags(1), deadline(0x1234'5678)},
     .rewritten = true},
    {.name = "a deadline, the preemption timer in use",
     .change = {vmx_flags(1), deadline(0x1234'5678'9abc), set(pin_controls, pin::preemption_timer),
                put(vmx_preemption_timer_value, 0x1000'0000)},
     .needs = offered(msr::pin, pin::preemption_timer)},
    {.name = "no deadline, the preemption timer in use",
     .change = {set(pin_controls, pin::preemption_timer), put(vmx_preemption_timer_value, 0x1000'0000)},
     .needs = offered(msr::pin, pin::preemption_timer),
     .rewritten = true},
    {.name = "a deadline without its flag", .base = Base::selftest, .change = {deadline(0x1234'5678)}},
    {.name = "padding of the header", .change = {fill_header(26, 28, 0xff)}},
    {.name = "reserved bytes of the header", .change = {fill_header(40, payload, 0xff)}},

    // V12: the enlightened VMCS.
    {.name = "V12: EVMCS", .base = Base::selftest, .change = {flags(4)}, .expect = EINVAL},
    {.name = "V12: EVMCS without an address",
     .base = Base::selftest,
     .change = {flags(4), vmcs12(none)},
     .expect = EINVAL},
    {.name = "V12: EVMCS in L2", .change = {flags(5)}, .expect = EINVAL},
    {.name = "EVMCS enabled: outside VMX operation",
     .on = On::evmcs,
     .base = Base::off,
     .change = {flags(4)}},
    {.name = "EVMCS enabled: no address",
     .on = On::evmcs,
     .base = Base::selftest,
     .change = {flags(4), vmcs12(none)}},
    {.name = "EVMCS enabled: L2 without an address", .on = On::evmcs, .change = {flags(5), vmcs12(none)}},
    {.name = "EVMCS enabled: an address goes before the flag",
     .on = On::evmcs,
     .base = Base::current,
     .change = {flags(4)}},
    {.name = "V15: EVMCS enabled, 128 bytes",
     .on = On::evmcs,
     .base = Base::vmxon,
     .change = {flags(4)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "V19: EVMCS enabled, revision 0",
     .on = On::evmcs,
     .base = Base::selftest,
     .change = {flags(4), vmcs12(none), put(revision, 0)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "EVMCS enabled, no Hyper-V in CPUID: a control that an enlightened VMCS has not",
     .on = On::evmcs,
     .change = {set(pin_controls, pin::preemption_timer)},
     .needs = offered(msr::pin, pin::preemption_timer),
     .rewritten = true},
    {.name = "Hyper-V: nothing changed", .on = On::hyperv},
    {.name = "Hyper-V: L2 without an address", .on = On::hyperv, .change = {flags(5), vmcs12(none)}},
    {.name = "Hyper-V: L1 without an address",
     .on = On::hyperv,
     .base = Base::current,
     .change = {flags(4), vmcs12(none)}},
    {.name = "C32: Hyper-V, preemption timer",
     .on = On::hyperv,
     .change = {set(pin_controls, pin::preemption_timer)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = offered(msr::pin, pin::preemption_timer)},
    {.name = "C32: Hyper-V, shadow VMCS",
     .on = On::hyperv,
     .base = Base::shadow,
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "C32: Hyper-V, VM functions",
     .on = On::hyperv,
     .change = {set(secondary_controls, secondary::vm_functions)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = offered(msr::secondary, secondary::vm_functions)},
    {.name = "C32: Hyper-V, VM functions, no address",
     .on = On::hyperv,
     .change = {flags(5), vmcs12(none), set(secondary_controls, secondary::vm_functions)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = offered(msr::secondary, secondary::vm_functions)},
    {.name = "C32: Hyper-V, page-modification log",
     .on = On::hyperv,
     .change = {set(secondary_controls, secondary::pml), put(pml_address, 0xd000)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = offered(msr::secondary, secondary::pml)},
    {.name = "C32: Hyper-V, TSC scaling",
     .on = On::hyperv,
     .change = {set(secondary_controls, secondary::tsc_scaling)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = offered(msr::secondary, secondary::tsc_scaling)},

    // V18 to V20: the vmcs12.
    {.name = "V19: revision ^ 1",
     .change = {put(revision, revision_12 ^ 1)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V19: revision 0", .change = {put(revision, 0)}, .expect = EINVAL, .failure = vmcs_left},
    {.name = "V19: revision ^ 1 outside L2",
     .base = Base::current,
     .change = {put(revision, revision_12 ^ 1)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V19: revision 0 outside L2",
     .base = Base::current,
     .change = {put(revision, 0)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V19: revision + 1",
     .base = Base::selftest,
     .change = {put(revision, revision_12 + 1)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "revision with bit 31", .change = {put(revision, revision_12 | shadow_indicator)}},
    {.name = "revision with bit 31 outside L2",
     .base = Base::selftest,
     .change = {put(revision, revision_12 | shadow_indicator)}},
    {.name = "abort 4", .change = {put(lab::vmx::field::abort, 4)}},
    {.name = "launch state 0", .change = {put(launch_state, 0)}},
    {.name = "bytes behind the vmcs12", .change = {fill(lab::vmx::vmcs12_size, 0x1000, 0x5a)}},
    {.name = "an empty vmcs12 outside L2", .base = Base::selftest},
    {.name = "a vmcs12 of ones outside L2",
     .base = Base::selftest,
     .change = {fill(4, lab::vmx::vmcs12_size, 0xff)}},
    refused("an empty vmcs12", {fill(4, lab::vmx::vmcs12_size, 0)}),
    refused("a vmcs12 of ones", {fill(4, lab::vmx::vmcs12_size, 0xff)}),

    // V21 to V23, G6: the shadow VMCS.
    {.name = "shadow VMCS", .base = Base::shadow},
    {.name = "shadow VMCS, size 5222", .base = Base::shadow, .change = {size(5222)}},
    {.name = "shadow VMCS outside L2", .base = Base::shadow, .change = {flags(0), size(4224)}},
    {.name = "shadow VMCS without a link, size 4224",
     .base = Base::shadow,
     .change = {put(vmcs_link_pointer, none), size(4224)}},
    {.name = "V21: shadow VMCS, size 4224",
     .base = Base::shadow,
     .change = {size(4224)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V21: shadow VMCS, size 5221",
     .base = Base::shadow,
     .change = {size(5221)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V23: shadow VMCS, size 5222, revision 0",
     .base = Base::shadow,
     .change = {size(5222), shadow_revision(0)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V23: shadow VMCS, revision 0",
     .base = Base::shadow,
     .change = {shadow_revision(0)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V23: shadow VMCS, revision ^ 1",
     .base = Base::shadow,
     .change = {shadow_revision((revision_12 ^ 1) | shadow_indicator)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V23: shadow VMCS, bit 31 clear",
     .base = Base::shadow,
     .change = {shadow_revision(revision_12)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V22: shadow VMCS readable for 997 bytes",
     .base = Base::shadow,
     .expect = EFAULT,
     .where = Where::cut,
     .cut = lab::vmx::shadow_at + 997,
     .failure = vmcs_left},
    {.name = "shadow VMCS readable for 998 bytes",
     .base = Base::shadow,
     .where = Where::cut,
     .cut = lab::vmx::shadow_at + 998},
    refused("G6: link pointer to memory that is no VMCS", {put(vmcs_link_pointer, 0xc000)}),
    refused("G6: link pointer to a shadow VMCS, shadowing off",
            {put(vmcs_link_pointer, lab::vmx::shadow_address)}),
    {.name = "G6: shadow VMCS, link pointer to memory that is no VMCS",
     .base = Base::shadow,
     .change = {put(vmcs_link_pointer, 0xc000)},
     .expect = EINVAL,
     .failure = vmcs_left},
    refused("G6: link pointer unaligned", {put(vmcs_link_pointer, lab::vmx::shadow_address + 8)}),
    refused("G6: link pointer at MAXPHYADDR", {put(vmcs_link_pointer, beyond)}),
    refused("G6: link pointer without memory", {put(vmcs_link_pointer, no_memory)}),

    // The execution controls.
    refused("C1: pin-based, a required bit clear", {clear(pin_controls, 0x16)}),
    refused("C1: pin-based, an unknown bit", {set(pin_controls, bit(31))}),
    refused("C2: primary, a required bit clear", {clear(primary_controls, bit(1))}),
    refused("C2: primary, an unknown bit", {set(primary_controls, bit(0))}),
    refused("C3: secondary, an unknown bit", {set(secondary_controls, bit(31))}),
    taken("secondary, an unknown bit, but not in use",
          {clear(primary_controls, primary::secondary_controls), set(secondary_controls, bit(31))}),
    refused("C4: 512 CR3 targets", {put(cr3_target_count, 512)}),
    refused("C5: I/O bitmap A unaligned",
            {set(primary_controls, primary::io_bitmaps), put(io_bitmap_a, 0xd008)}),
    refused("C5: I/O bitmap B at MAXPHYADDR",
            {set(primary_controls, primary::io_bitmaps), put(io_bitmap_b, beyond)}),
    taken("I/O bitmaps without memory", {set(primary_controls, primary::io_bitmaps),
                                         put(io_bitmap_a, no_memory), put(io_bitmap_b, no_memory)}),
    taken("I/O bitmap A unaligned, not in use", {put(io_bitmap_a, 0xd008)}),
    refused("C6: MSR bitmap unaligned",
            {set(primary_controls, primary::msr_bitmaps), put(msr_bitmap, 0xd008)}),
    refused("C6: MSR bitmap at MAXPHYADDR",
            {set(primary_controls, primary::msr_bitmaps), put(msr_bitmap, beyond)}),
    taken("MSR bitmap without memory",
          {set(primary_controls, primary::msr_bitmaps), put(msr_bitmap, no_memory)}),
    refused("C7: virtual-APIC page unaligned",
            {set(primary_controls, primary::tpr_shadow), put(virtual_apic_page_addr, 0xd008)},
            offered(msr::primary, primary::tpr_shadow)),
    {.name = "C8: TPR threshold 16",
     .change = {set(primary_controls, primary::tpr_shadow), put(virtual_apic_page_addr, 0xd000),
                put(tpr_threshold, 16)},
     .unless = {Trait::tpr_threshold_checked, EINVAL},
     .failure = vmcs_left,
     .needs = offered(msr::primary, primary::tpr_shadow)},
    taken("TPR threshold 15",
          {set(primary_controls, primary::tpr_shadow), put(virtual_apic_page_addr, 0xd000),
           put(tpr_threshold, 15)},
          offered(msr::primary, primary::tpr_shadow)),
    refused("C9: APIC-access page unaligned",
            {set(secondary_controls, secondary::apic_accesses), put(apic_access_addr, 0xd008)},
            offered(msr::secondary, secondary::apic_accesses)),
    refused("C10: x2APIC mode without TPR shadow", {set(secondary_controls, secondary::x2apic_mode)},
            offered(msr::secondary, secondary::x2apic_mode)),
    refused("C10: APIC-register virtualization without TPR shadow",
            {set(secondary_controls, secondary::apic_registers)},
            offered(msr::secondary, secondary::apic_registers)),
    refused("C12: virtual NMIs without NMI exiting",
            {set(pin_controls, pin::virtual_nmis), clear(pin_controls, pin::nmi)},
            offered(msr::pin, pin::virtual_nmis)),
    refused("C12: NMI-window exiting without virtual NMIs", {set(primary_controls, primary::nmi_window)},
            offered(msr::primary, primary::nmi_window)),
    refused("C13: PML without EPT",
            {set(secondary_controls, secondary::pml), clear(secondary_controls, secondary::ept),
             put(pml_address, 0xd000)},
            offered(msr::secondary, secondary::pml)),
    refused("C13: PML page unaligned", {set(secondary_controls, secondary::pml), put(pml_address, 0xd008)},
            offered(msr::secondary, secondary::pml)),
    refused(
        "C14: unrestricted guest without EPT",
        {set(secondary_controls, secondary::unrestricted_guest), clear(secondary_controls, secondary::ept)},
        offered(msr::secondary, secondary::unrestricted_guest)),
    refused(
        "C15: mode-based execute control without EPT",
        {set(secondary_controls, secondary::mode_based_execute), clear(secondary_controls, secondary::ept)},
        offered(msr::secondary, secondary::mode_based_execute)),
    taken("no EPT", {clear(secondary_controls, secondary::ept)}),
    {.name = "C16: VMREAD bitmap unaligned",
     .base = Base::shadow,
     .change = {put(vmread_bitmap, 0xa008)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "C16: VMWRITE bitmap at MAXPHYADDR",
     .base = Base::shadow,
     .change = {put(vmwrite_bitmap, beyond)},
     .expect = EINVAL,
     .failure = vmcs_left},
    refused("C17: VPID 0", {set(secondary_controls, secondary::vpid), put(virtual_processor_id, 0)},
            offered(msr::secondary, secondary::vpid)),
    taken("VPID 1", {set(secondary_controls, secondary::vpid), put(virtual_processor_id, 1)},
          offered(msr::secondary, secondary::vpid)),
    refused("C18: saving the preemption timer without it",
            {set(exit_controls, exit_control::save_preemption_timer)},
            offered(msr::exit, exit_control::save_preemption_timer)),
    refused("C19: EPTP, memory type 1", {put(ept_pointer, lab::vmx::built_ept | 3 << 3 | 1)}),
    refused("C19: EPTP, a walk of 3 levels", {put(ept_pointer, lab::vmx::built_ept | 2 << 3 | 6)}),
    refused("C19: EPTP, bit 7", {set(ept_pointer, bit(7))}),
    refused("C19: EPTP at MAXPHYADDR", {set(ept_pointer, beyond)}),
    {.name = "EPTP, accessed and dirty flags",
     .change = {set(ept_pointer, bit(6))},
     .needs = {.msr = msr::ept_vpid, .set = bit(21)}},
    {.name = "C19: EPTP, accessed and dirty flags not offered",
     .change = {set(ept_pointer, bit(6))},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = {.msr = msr::ept_vpid, .clear = bit(21)}},
    taken("EPTP without memory", {put(ept_pointer, no_memory | 3 << 3 | 6)}),
    refused("C20: VM functions that are not offered",
            {set(secondary_controls, secondary::vm_functions), put(vm_function_control, ~0ull)},
            offered(msr::secondary, secondary::vm_functions)),
    refused("C20: EPTP switching without EPT",
            {set(secondary_controls, secondary::vm_functions), clear(secondary_controls, secondary::ept),
             put(vm_function_control, 1), put(eptp_list_address, 0xd000)},
            offered(msr::secondary, secondary::vm_functions)),
    {.name = "C21: TSC multiplier 0",
     .change = {set(secondary_controls, secondary::tsc_scaling), put(tsc_multiplier, 0)},
     .unless = {Trait::tsc_multiplier_checked, EINVAL},
     .failure = vmcs_left,
     .needs = offered(msr::secondary, secondary::tsc_scaling)},

    // Exit and entry controls.
    refused("C22: exit, a required bit clear", {clear(exit_controls, 0x00036dff)}),
    refused("C22: exit, an unknown bit", {set(exit_controls, bit(31))}),
    refused("C23: MSRs to load at exit, unaligned",
            {put(vm_exit_msr_load_count, 1), put(vm_exit_msr_load_addr, 0xd008)}),
    refused("C23: MSRs to load at exit, at MAXPHYADDR",
            {put(vm_exit_msr_load_count, 1), put(vm_exit_msr_load_addr, beyond)}),
    refused("C23: MSRs to store at exit, unaligned",
            {put(vm_exit_msr_store_count, 1), put(vm_exit_msr_store_addr, 0xd008)}),
    refused("C23: MSRs to store at exit, whose end crosses MAXPHYADDR",
            {put(vm_exit_msr_store_count, 2), put(vm_exit_msr_store_addr, beyond - 16)}),
    taken("MSRs to store at exit, at the last address below MAXPHYADDR",
          {put(vm_exit_msr_store_count, 1), put(vm_exit_msr_store_addr, beyond - 16)}),
    {.name = "C23: 4097 MSRs to store at exit",
     .change = {put(vm_exit_msr_store_count, 4097), put(vm_exit_msr_store_addr, no_memory)},
     .unless = {Trait::msr_count_limited, EINVAL},
     .failure = vmcs_left},
    refused("C24: entry, a required bit clear", {clear(entry_controls, 0x000011ff)}),
    refused("C24: entry, an unknown bit", {set(entry_controls, bit(31))}),
    taken("injected external interrupt", {put(vm_entry_intr_info_field, 0x8000'0020)}),
    taken("injected page fault", {put(vm_entry_intr_info_field, 0x8000'0b0e)}),
    refused("C25: injected event of type 1", {put(vm_entry_intr_info_field, 0x8000'0120)}),
    {.name = "C25: injected event of type 7, no monitor trap flag",
     .change = {put(vm_entry_intr_info_field, 0x8000'0700)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = {.msr = msr::primary, .clear = std::uint64_t{primary::monitor_trap} << 32}},
    taken("injected event of type 7", {put(vm_entry_intr_info_field, 0x8000'0700)},
          offered(msr::primary, primary::monitor_trap)),
    refused("C26: injected NMI with vector 3", {put(vm_entry_intr_info_field, 0x8000'0203)}),
    refused("C26: injected exception 32", {put(vm_entry_intr_info_field, 0x8000'0320)}),
    refused("C26: injected event of type 7 with vector 1", {put(vm_entry_intr_info_field, 0x8000'0701)}),
    {.name = "C27: injected #GP without an error code",
     .change = {put(vm_entry_intr_info_field, 0x8000'030d)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = {.msr = msr::basic, .clear = bit(56)}},
    taken("injected #GP without an error code, where the processor does not mind",
          {put(vm_entry_intr_info_field, 0x8000'030d)}, {.msr = msr::basic, .set = bit(56)}),
    refused("C27: injected interrupt with an error code", {put(vm_entry_intr_info_field, 0x8000'0820)}),
    refused("C28: error code of 17 bits",
            {put(vm_entry_intr_info_field, 0x8000'0b0d), put(vm_entry_exception_error_code, 0x1'0000)}),
    refused("C29: injected event, bit 12", {put(vm_entry_intr_info_field, 0x8000'1020)}),
    refused("C30: injected software interrupt of 16 bytes",
            {put(vm_entry_intr_info_field, 0x8000'0420), put(vm_entry_instruction_len, 16)}),
    taken("injected software interrupt of 15 bytes",
          {put(vm_entry_intr_info_field, 0x8000'0420), put(vm_entry_instruction_len, 15)}),
    {.name = "C30: injected software interrupt of 0 bytes",
     .change = {put(vm_entry_intr_info_field, 0x8000'0420), put(vm_entry_instruction_len, 0)},
     .expect = EINVAL,
     .failure = vmcs_left,
     .needs = {.msr = msr::misc, .clear = bit(30)}},
    taken("injected software interrupt of 0 bytes",
          {put(vm_entry_intr_info_field, 0x8000'0420), put(vm_entry_instruction_len, 0)},
          {.msr = msr::misc, .set = bit(30)}),
    refused("C31: MSRs to load at entry, unaligned",
            {put(vm_entry_msr_load_count, 1), put(vm_entry_msr_load_addr, 0xd008)}),

    // Host state: L1.
    refused("H1: host CR0.PE clear", {clear(host_cr0, bit(0))}),
    refused("H1: host CR0.PG clear", {clear(host_cr0, bit(31))}),
    refused("H1: host CR0.NE clear", {clear(host_cr0, bit(5))}),
    refused("H2: host CR4.VMXE clear", {clear(host_cr4, bit(13))}),
    refused("H2: host CR4 bit 63", {set(host_cr4, bit(63))}),
    refused("H3: host CR3 at MAXPHYADDR", {put(host_cr3, beyond)}),
    refused("H3: host CR3 bit 63", {set(host_cr3, bit(63))}),
    taken("host CR3 without memory", {put(host_cr3, no_memory)}),
    {.name = "H4: host CR4.CET without CR0.WP",
     .change = {set(host_cr4, bit(23))},
     .unless = {Trait::cet_needs_wp, EINVAL},
     .failure = vmcs_left,
     .needs = {.msr = msr::cr4_fixed1, .set = bit(23)}},
    refused("H5: host SYSENTER_ESP not canonical", {put(host_ia32_sysenter_esp, not_canonical)}),
    refused("H5: host SYSENTER_EIP not canonical", {put(host_ia32_sysenter_eip, not_canonical)}),
    refused("H6: host PAT of a reserved type",
            {set(exit_controls, exit_control::load_pat), put(host_ia32_pat, 2)},
            offered(msr::exit, exit_control::load_pat)),
    taken("host PAT of a reserved type, not in use", {put(host_ia32_pat, 2)}),
    refused("H8: host CR4.PAE clear in 64-bit mode", {clear(host_cr4, bit(5))}),
    refused("H8: 32-bit host, IA-32e guest",
            {clear(exit_controls, exit_control::host_64_bit), put(host_ia32_efer, 0)}),
    refused("H9: host SS with RPL 3", {put(host_ss_selector, 0x13)}),
    refused("H9: host CS 0", {put(host_cs_selector, 0)}),
    refused("H9: host TR 0", {put(host_tr_selector, 0)}),
    refused("H9: host TR in the LDT", {put(host_tr_selector, 0x1c)}),
    taken("host SS 0 in 64-bit mode", {put(host_ss_selector, 0)}),
    refused("H10: host FS base not canonical", {put(host_fs_base, not_canonical)}),
    refused("H10: host GS base not canonical", {put(host_gs_base, not_canonical)}),
    refused("H10: host TR base not canonical", {put(host_tr_base, not_canonical)}),
    refused("H10: host GDTR base not canonical", {put(host_gdtr_base, not_canonical)}),
    refused("H10: host IDTR base not canonical", {put(host_idtr_base, not_canonical)}),
    refused("H10: host RIP not canonical", {put(host_rip, not_canonical)}),
    refused("H11: host EFER bit 1", {set(host_ia32_efer, bit(1))}),
    refused("H11: host EFER.LMA clear in 64-bit mode", {clear(host_ia32_efer, bit(10))}),
    taken("host EFER bit 1, not in use",
          {clear(exit_controls, exit_control::load_efer), set(host_ia32_efer, bit(1))}),

    refused("H12: host S_CET, a reserved bit",
            {set(exit_controls, exit_control::load_cet), put(host_s_cet, bit(9))},
            offered(msr::exit, exit_control::load_cet)),
    refused("H12: host SSP unaligned", {set(exit_controls, exit_control::load_cet), put(host_ssp, 0x9002)},
            offered(msr::exit, exit_control::load_cet)),
    taken("host SSP unaligned, not in use", {put(host_ssp, 0x9002)}),

    // Guest state: L2.
    refused("G1: guest CR0.PE clear", {clear(guest_cr0, bit(0))}),
    refused("G1: guest CR0.NE clear", {clear(guest_cr0, bit(5))}),
    refused("G2: guest CR4.VMXE clear", {clear(guest_cr4, bit(13))}),
    refused("G2: guest CR4 bit 63", {set(guest_cr4, bit(63))}),
    {.name = "G3: guest CR4.CET without CR0.WP",
     .change = {set(guest_cr4, bit(23))},
     .unless = {Trait::cet_needs_wp, EINVAL},
     .failure = vmcs_left,
     .needs = {.msr = msr::cr4_fixed1, .set = bit(23)}},
    refused("G4: guest DR7 bit 32",
            {set(entry_controls, entry::load_debug_controls), set(guest_dr7, bit(32))}),
    taken("guest DR7 bit 32, not in use", {set(guest_dr7, bit(32))}),
    refused("G4: guest DEBUGCTL bit 5",
            {set(entry_controls, entry::load_debug_controls), put(guest_ia32_debugctl, bit(5))}),
    taken("guest DEBUGCTL.LBR and .BTF",
          {set(entry_controls, entry::load_debug_controls), put(guest_ia32_debugctl, 3)}),
    {.name = "G4: guest DEBUGCTL.FREEZE_IN_SMM",
     .change = {set(entry_controls, entry::load_debug_controls), put(guest_ia32_debugctl, bit(14))},
     .expect = EINVAL,
     .unless = {Trait::freeze_in_smm_tolerated, 0},
     .failure = vmcs_left},
    {.name = "G4: guest DEBUGCTL.FREEZE_IN_SMM, quirk disabled",
     .on = On::quirk_off,
     .change = {set(entry_controls, entry::load_debug_controls), put(guest_ia32_debugctl, bit(14))},
     .expect = EINVAL,
     .failure = vmcs_left},
    refused("G5: guest PAT of a reserved type",
            {set(entry_controls, entry::load_pat), put(guest_ia32_pat, 2)},
            offered(msr::entry, entry::load_pat)),
    refused("G8: guest CR0.PG without PE",
            {set(secondary_controls, secondary::unrestricted_guest), clear(guest_cr0, bit(0))},
            offered(msr::secondary, secondary::unrestricted_guest)),
    taken("guest without paging or protection",
          {set(secondary_controls, secondary::unrestricted_guest), clear(guest_cr0, bit(0) | bit(31)),
           clear(entry_controls, entry::ia32e_guest), put(guest_ia32_efer, 0)},
          offered(msr::secondary, secondary::unrestricted_guest)),
    refused("G9: IA-32e guest without CR4.PAE", {clear(guest_cr4, bit(5))}),
    refused("G9: IA-32e guest without CR0.PG",
            {set(secondary_controls, secondary::unrestricted_guest), clear(guest_cr0, bit(31))},
            offered(msr::secondary, secondary::unrestricted_guest)),
    {.name = "G10: RUN_PENDING, IA-32e guest with EFER.LMA clear",
     .change = {flags(3), clear(guest_ia32_efer, bit(10))},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "G10: RUN_PENDING, guest EFER bit 1",
     .change = {flags(3), set(guest_ia32_efer, bit(1))},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "guest EFER.LMA clear, but L2 has run",
     .change = {clear(guest_ia32_efer, bit(10))},
     .rewritten = true},
    refused("G11: guest BNDCFGS bit 2",
            {set(entry_controls, entry::load_bndcfgs), put(guest_bndcfgs, bit(2))},
            offered(msr::entry, entry::load_bndcfgs)),
    refused("G12: guest S_CET, a reserved bit",
            {set(entry_controls, entry::load_cet), put(guest_s_cet, bit(9))},
            offered(msr::entry, entry::load_cet)),
    refused("G12: guest SSP unaligned", {set(entry_controls, entry::load_cet), put(guest_ssp, 0x9002)},
            offered(msr::entry, entry::load_cet)),
    {.name = "guest activity state 1 (HLT)", .change = {put(guest_activity_state, 1)}, .rewritten = true},
    {.name = "guest activity state 3 (wait for SIPI)",
     .change = {put(guest_activity_state, 3)},
     .rewritten = true},
    refused("G13: guest activity state 2 (shutdown)", {put(guest_activity_state, 2)}),
    refused("G13: guest activity state 4", {put(guest_activity_state, 4)}),
    taken("guest RIP not canonical", {put(guest_rip, not_canonical)}),
    taken("guest CS base", {put(guest_cs_base, 0x1'0000)}),
    taken("guest CR3 without memory", {put(guest_cr3, no_memory)}),

    // The state of a guest that ran.
    {.name = "saved: nothing changed", .base = Base::saved},
    {.name = "saved: nothing changed, in 64-bit mode", .on = On::long_mode, .base = Base::saved},
    {.name = "saved: RUN_PENDING", .base = Base::saved, .change = {flags(3)}},
    {.name = "saved: GUEST_MODE clear", .base = Base::saved, .change = {flags(0)}},
    {.name = "V16: saved, vmcs12 address unaligned",
     .base = Base::saved,
     .change = {vmcs12(guests::vmcs12_address + 8)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "H9: saved, host TR 0",
     .base = Base::saved,
     .change = {put(host_tr_selector, 0)},
     .expect = EINVAL,
     .failure = vmcs_left},
    {.name = "V25: saved, guest CR3 at MAXPHYADDR",
     .base = Base::saved,
     .change = {put(guest_cr3, beyond)},
     .expect = returned_2,
     .failure = vmcs_left},

    // What no check looks at and entering L2 fails with.
    {.name = "V25: guest CR3 at MAXPHYADDR",
     .change = {put(guest_cr3, beyond)},
     .expect = returned_2,
     .failure = vmcs_left},
    {.name = "V25: guest CR3 bit 63",
     .change = {set(guest_cr3, bit(63))},
     .expect = returned_2,
     .failure = vmcs_left},
    {.name = "V25: guest CR3 at MAXPHYADDR, no EPT",
     .change = {put(guest_cr3, beyond), clear(secondary_controls, secondary::ept)},
     .expect = returned_2,
     .failure = vmcs_left},
    {.name = "V25: guest CR3 at MAXPHYADDR, RUN_PENDING",
     .change = {flags(3), put(guest_cr3, beyond)},
     .expect = returned_2,
     .failure = vmcs_left},
    {.name = "V25: guest CR3 at MAXPHYADDR, shadow VMCS",
     .base = Base::shadow,
     .change = {put(guest_cr3, beyond)},
     .expect = returned_2,
     .failure = vmcs_left},
    {.name = "guest CR3 at MAXPHYADDR outside L2", .base = Base::current, .change = {put(guest_cr3, beyond)}},

    // Memory that is not there.
    {.name = "X2: NULL", .expect = EFAULT, .where = Where::null},
    {.name = "X2: address 0x10", .expect = EFAULT, .where = Where::low},
    {.name = "X2: a kernel address", .expect = EFAULT, .where = Where::kernel},
    {.name = "X2: half of the header mapped", .expect = EFAULT, .where = Where::cut, .cut = 64},
    {.name = "X2: 127 bytes mapped", .expect = EFAULT, .where = Where::cut, .cut = 127},
    {.name = "V18: the header alone mapped",
     .expect = EFAULT,
     .where = Where::cut,
     .cut = payload,
     .failure = vmcs_left},
    {.name = "V18: vmcs12 readable for 997 bytes",
     .expect = EFAULT,
     .where = Where::cut,
     .cut = payload + 997,
     .failure = vmcs_left},
    {.name = "V18: vmcs12 readable for 997 bytes, outside L2",
     .base = Base::selftest,
     .expect = EFAULT,
     .where = Where::cut,
     .cut = payload + 997,
     .failure = vmcs_left},
    {.name = "vmcs12 readable for 998 bytes", .where = Where::cut, .cut = payload + 998},
    {.name = "vmcs12 readable for 998 bytes, outside L2",
     .base = Base::selftest,
     .where = Where::cut,
     .cut = payload + 998},

    // Descriptors.
    {.name = "to the VM", .expect = ENOTTY, .into = Into::vm},
    {.name = "to /dev/kvm", .expect = EINVAL, .into = Into::system},
    {.name = "to a closed descriptor", .expect = EBADF, .into = Into::closed},
    {.name = "to a pipe", .expect = ENOTTY, .into = Into::pipe},
    {.name = "from a forked child", .expect = EIO, .into = Into::vcpu_of_parent},

    // The kernel's nested_set_state_test, VMX: what is not above.
    {.name = "selftest 1: NULL without VMX", .on = On::no_vmx, .expect = EFAULT, .where = Where::null},
    {.name = "selftest 2: flags 3, size 0, without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {flags(3), size(0)},
     .expect = EINVAL},
    {.name = "selftest 3: flags 0xf, header alone, without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {flags(0xf), size(128)},
     .expect = EINVAL},
    {.name = "selftest 4: RUN_PENDING alone without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {flags(2), size(128)},
     .expect = EINVAL},
    {.name = "selftest 5: format 1 without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {format(1)},
     .expect = EINVAL},
    {.name = "selftest 6: VMXON without VMX", .on = On::no_vmx, .base = Base::selftest, .expect = EINVAL},
    {.name = "selftest 7: no VMXON, a vmcs12 address, without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {vmxon(none)},
     .expect = EINVAL},
    {.name = "selftest 8: no VMXON, EVMCS, without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none), flags(4)},
     .expect = EINVAL},
    {.name = "selftest 9: no VMXON, 4224 bytes, without VMX",
     .on = On::no_vmx,
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none)}},
    {.name = "selftest 10, 25: no VMXON, 4224 bytes",
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none)}},
    {.name = "selftest 11: no VMXON, EVMCS, 4224 bytes",
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none), flags(4)},
     .expect = EINVAL},
    {.name = "selftest 12: no VMXON, EVMCS enabled, 4224 bytes",
     .on = On::evmcs,
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none), flags(4)}},
    {.name = "selftest 13: no VMXON, SMM flags 1, 4224 bytes",
     .base = Base::selftest,
     .change = {vmxon(none), vmcs12(none), smm(1)},
     .expect = EINVAL},
    {.name = "selftest 17: L2, RUN_PENDING, SMM flags 1",
     .base = Base::selftest,
     .change = {flags(3), smm(1)},
     .expect = EINVAL},
    {.name = "selftest 20: a vmcs12 address, size 128",
     .base = Base::selftest,
     .change = {size(128)},
     .expect = EINVAL,
     .failure = vmxon_left},
    {.name = "selftest 21: no vmcs12 address, size 128",
     .base = Base::selftest,
     .change = {size(128), vmcs12(none)}},
    {.name = "selftest 23: the same, VMX flags ~0",
     .base = Base::selftest,
     .change = {size(128), vmcs12(none), vmx_flags(~0u)},
     .expect = EINVAL},
    {.name = "selftest 24: both addresses 0",
     .base = Base::selftest,
     .change = {vmxon(0), vmcs12(0)},
     .expect = EINVAL,
     .failure = vmxon_left},
});

/// As seen.
constexpr std::array known_kernels = std::to_array<lab::KnownKernel<Vmx>>({
    // none, TPR, TSC, MSR count, FREEZE_IN_SMM, CET
    {"6.1", {false, false, false, false, false, false}},
    {"6.12", {false, false, false, false, true, false}},
    {"7.3", {false, true, true, true, true, true}},
});
constexpr std::array<const char*, std::to_underlying(Trait::count)> trait_names{
    "none",
    "checks the TPR threshold (C8)",
    "checks the TSC multiplier (C21)",
    "limits the number of MSRs to load and store (C23)",
    "tolerates DEBUGCTL.FREEZE_IN_SMM (G4)",
    "wants CR0.WP for CR4.CET (H4, G3)",
};

// --- vCPUs

/// A vCPU that can be brought back to the same condition for every row.
class Scene {
  public:
    explicit Scene(On on) : on_{on}, machine_{must(machine::Machine::create({.supported_cpuid = false}))} {
        if (on != On::no_cpuid)
            lab::set_cpuid(
                machine_,
                [on](kvm_cpuid_entry2& entry) {
                    if (entry.function == 1 && on == On::no_vmx)
                        entry.ecx &= ~(1u << 5);
                },
                on == On::hyperv);
        if (on != On::no_cpuid && on != On::no_vmx && on != On::no_feature_control)
            CHECK(lab::vmx::set_msr(machine_, msr::feature_control, 5));
        if (on == On::evmcs || on == On::hyperv)
            lab::vmx::enable_enlightened_vmcs(machine_);
        if (on == On::quirk_off)
            lab::disable_quirk(machine_, 1u << 10); // not in 6.1
        if (on == On::long_mode)
            must(machine_.start_long_mode(0x9000, 0xf000));
        lab::vmx::place_shadow_vmcs(machine_);
        sregs_ = lab::get_sregs(machine_);
    }

    void reset(Vmx::Start start) {
        const bool smm = on_ == On::in_smm || on_ == On::in_smm_from_l2;
        if (smm)
            lab::set_smm(machine_, false);
        const auto found = lab::load<std::uint16_t>(lab::read_back(machine_.vcpu_fd()), lab::flags_at);
        if (l2_was_active_ || (found & 1) != 0) {
            lab::vmx::clear_and_forget(machine_);
            lab::set_sregs(machine_, sregs_); // leaving L2 loads L1's from the vmcs12
        } else {
            must(lab::vmx::nested(machine_).clear_nested_state());
        }
        if (smm)
            lab::set_smm(machine_, true);
        if (start != Vmx::Start::off)
            must(lab::vmx::nested(machine_).set_nested_state(state_at(start)));
        l2_was_active_ = start == Vmx::Start::same_l2 || start == Vmx::Start::other_l2;
    }

    [[nodiscard]] const machine::Machine& machine() const { return machine_; }

  private:
    static lab::vmx::State make_state(Vmx::Start start) {
        using enum Vmx::Start;
        if (start == vmxon)
            return lab::vmx::State::vmxon_only(lab::vmx::vmxon_address);
        auto bytes = Vmx::bytes(start == same_l2 || start == other_l2 ? Base::l2 : Base::current);
        bytes.resize(lab::vmx::state_size);
        if (start == other_vmcs || start == other_l2) {
            lab::perform(::vmcs12(0x6000), bytes);
            lab::perform(put(guest_rip, 0x8888), bytes);
        }
        if (start == other_l2)
            lab::perform(::vmxon(0x5000), bytes);
        return must(lab::vmx::State::parse(bytes));
    }
    static const lab::vmx::State& state_at(Vmx::Start start) {
        static std::array<std::optional<lab::vmx::State>, std::to_underlying(Vmx::Start::count)> states;
        auto& state = states[std::to_underlying(start)];
        if (!state)
            state = make_state(start);
        return *state;
    }

    On on_;
    machine::Machine machine_;
    kvm_sregs2 sregs_ = {};
    bool l2_was_active_ = false;
};

/// Made when first asked for: a machine is what takes time.
Scene& Vmx::scene(On on) {
    static std::array<std::optional<Scene>, std::to_underlying(On::count)> scenes;
    auto& scene = scenes[std::to_underlying(on)];
    if (!scene)
        scene.emplace(on);
    return *scene;
}

bool Vmx::from(const Row& row, Start start) {
    if (row.on == On::no_cpuid || row.on == On::no_vmx)
        return start == Start::off;
    if (row.on == On::in_smm || row.on == On::in_smm_from_l2)
        return start != Start::same_l2 && start != Start::other_l2;
    return true;
}

// --- making the bytes

lab::Bytes make_base(Base base) {
    const auto& machine = Vmx::scene(On::vmx).machine();
    auto bytes = base == Base::saved    ? lab::read_back(lab::with_l2_active().vcpu_fd())
                 : base == Base::shadow ? lab::vmx::built_l2_with_shadow(machine)
                                        : lab::vmx::built_l2(machine);
    bytes.resize(lab::input_size);
    const auto change = [&](std::initializer_list<Change> changes) {
        for (const auto& one : changes)
            lab::perform(one, bytes);
    };
    switch (base) {
    case Base::current:
        change({flags(0)});
        break;
    case Base::selftest:
        change({flags(0), fill(4, 0x1000, 0)});
        break;
    case Base::vmxon:
        change({flags(0), size(128), vmcs12(none)});
        break;
    case Base::off:
        change({flags(0), size(128), vmxon(none), vmcs12(none)});
        break;
    default:
        break;
    }
    return bytes;
}

lab::Bytes Vmx::bytes(Base base) {
    static std::array<lab::Bytes, std::to_underlying(Base::count)> bases;
    auto& bytes = bases[std::to_underlying(base)];
    if (bytes.empty())
        bytes = make_base(base);
    return bytes;
}

std::string Vmx::why_not(const Row& row) {
    const auto& needs = row.needs;
    if (needs.msr == 0)
        return {};
    const auto value = lab::vmx::get_msr(scene(On::vmx).machine(), needs.msr).value_or(0);
    if ((value & needs.set) == needs.set && (value & needs.clear) == 0)
        return {};
    return std::format("not for this processor: MSR {:x}h is {:#x}, and bit {} is {}", needs.msr, value,
                       std::countr_zero((needs.set & ~value) | (needs.clear & value)),
                       (value & needs.set) == needs.set ? "set" : "clear");
}

// --- judging it

/// As the comment of Effect has it, for VMX: what KVM leaves behind after a late failure.
bool looks_left_behind(const lab::Bytes& attempted, const lab::Bytes& after) {
    const auto vmxon_pa = lab::load<std::uint64_t>(after, lab::vmx::vmxon_at);
    const auto vmcs12_pa = lab::load<std::uint64_t>(after, lab::vmx::vmcs12_at);
    return vmxon_pa != none && vmxon_pa == lab::load<std::uint64_t>(attempted, lab::vmx::vmxon_at)
           && (vmcs12_pa == none || vmcs12_pa == lab::load<std::uint64_t>(attempted, lab::vmx::vmcs12_at))
           && (lab::load<std::uint16_t>(after, lab::flags_at) & 1) == 0;
}

kvm::nested::Effect expected_effect(const lab::Failed<Vmx>& failed) {
    if (failed.error.raw_result > 0)
        return kvm::nested::Effect::nested_state_lost;
    if (failed.row.into != Into::vcpu)
        return kvm::nested::Effect::unchanged;
    if (failed.attempted.size() < lab::header_size) // what was to be set is not known
        return kvm::nested::Effect::undetermined;
    return looks_left_behind(failed.attempted, failed.after) ? kvm::nested::Effect::undetermined
                                                             : kvm::nested::Effect::unchanged;
}

/// What GET has to show after a success, or after a failure behind the point of no return (then `l2_active`
/// is false).
lab::Bytes expected_bytes(const lab::Bytes& set, bool payload_taken, bool l2_active) {
    const auto vmxon_pa = lab::load<std::uint64_t>(set, lab::vmx::vmxon_at);
    const auto vmcs12_pa = lab::load<std::uint64_t>(set, lab::vmx::vmcs12_at);
    const auto set_flags = lab::load<std::uint16_t>(set, lab::flags_at);

    lab::Bytes bytes(lab::header_size);
    lab::store<std::uint64_t>(bytes, lab::vmx::vmxon_at, vmxon_pa);
    lab::store<std::uint64_t>(bytes, lab::vmx::vmcs12_at, payload_taken ? vmcs12_pa : none);
    if (payload_taken) {
        const std::uint16_t kept = l2_active ? 0xb : 0; // GUEST_MODE, RUN_PENDING, MTF_PENDING
        const std::uint16_t enlightened = vmcs12_pa == none ? 4 : 0;
        lab::store<std::uint16_t>(bytes, lab::flags_at, set_flags & (kept | enlightened));
        lab::store(bytes, lab::vmx::smm_flags_at, lab::load<std::uint16_t>(set, lab::vmx::smm_flags_at));
        const bool shadow = l2_active && lab::vmx::load(set, vmcs_link_pointer) != none
                            && (lab::vmx::load(set, primary_controls) & primary::secondary_controls) != 0
                            && (lab::vmx::load(set, secondary_controls) & secondary::shadow_vmcs) != 0;
        const std::size_t pages = shadow ? 2 : 1;
        bytes.resize(lab::header_size + pages * 0x1000);
        for (std::size_t page = 0; page < pages; ++page) {
            const auto begin = lab::header_size + page * 0x1000;
            std::copy_n(set.begin() + static_cast<std::ptrdiff_t>(begin), lab::vmx::vmcs12_size,
                        bytes.begin() + static_cast<std::ptrdiff_t>(begin));
        }
        if (l2_active && (lab::vmx::load(set, pin_controls) & pin::preemption_timer) != 0
            && (lab::load<std::uint32_t>(set, lab::vmx::vmx_flags_at) & 1) != 0) {
            lab::store<std::uint32_t>(bytes, lab::vmx::vmx_flags_at, 1);
            lab::store(bytes, lab::vmx::deadline_at, lab::load<std::uint64_t>(set, lab::vmx::deadline_at));
        }
    }
    lab::store(bytes, lab::size_at, static_cast<std::uint32_t>(bytes.size()));
    return bytes;
}

/// L1 runs with an enlightened VMCS: GET shows fields that nobody has set, guest CR0 among them. It looks
/// like hardware VMCS shadowing, in which an enlightened VMCS has no part.
bool shows_another_vmcs(const lab::Bytes& after) {
    return (lab::load<std::uint16_t>(after, lab::flags_at) & 5) == 4;
}

/// Where L2 was forced out and L1 runs, GET fetches fields of L2 from where they are not (see
/// clear_and_forget()).
bool shows_other_segments(Vmx::Start start, const lab::Bytes& after) {
    return (start == Vmx::Start::same_l2 || start == Vmx::Start::other_l2) && after.size() > lab::header_size
           && (lab::load<std::uint16_t>(after, lab::flags_at) & 1) == 0;
}

bool Vmx::blurred(Start start, const lab::Bytes& after) {
    return shows_another_vmcs(after) || shows_other_segments(start, after);
}

/// What GET showed in two runs is the same, but for what depends on time.
bool Vmx::same(const lab::Bytes& a, const lab::Bytes& b) {
    const auto timeless = [](lab::Bytes bytes) {
        lab::store<std::uint64_t>(bytes, lab::vmx::deadline_at, 0);
        if (bytes.size() > lab::header_size)
            lab::vmx::store(bytes, vmx_preemption_timer_value, 0);
        return bytes;
    };
    return lab::same_bytes(a, b) || lab::same_bytes(timeless(a), timeless(b));
}

/// Without the fields that a blurred GET shows wrong.
lab::Bytes without_segments(lab::Bytes bytes) {
    for (const auto& [begin, end] : lab::vmx::fetched_late)
        std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(lab::header_size + begin),
                  bytes.begin() + static_cast<std::ptrdiff_t>(lab::header_size + end), std::byte{});
    return bytes;
}

void Vmx::check_failure(const lab::Failed<Vmx>& failed) {
    const auto& [row, start, error, attempted, before, after] = failed;
    CHECK(error.effect == expected_effect(failed));
    if (row.failure.left == Left::as_before) {
        CHECK(lab::same_bytes(before, after));
        return;
    }
    CHECK(error.effect != kvm::nested::Effect::unchanged);
    auto set = attempted;
    set.resize(lab::input_size);
    const bool payload_taken = row.failure.left == Left::vmcs;
    const auto expected = expected_bytes(set, payload_taken, false);
    CHECK(after.size() == expected.size());
    CHECK(std::equal(after.begin(), after.begin() + lab::header_size, expected.begin()));
    if (!payload_taken || row.where == Where::cut) // cut: as much of it as could be read
        return;
    if (shows_another_vmcs(after))
        return;
    if (shows_other_segments(start, after))
        CHECK(lab::same_bytes(without_segments(after), without_segments(expected)));
    else
        CHECK(lab::same_bytes(after, expected));
}

void Vmx::check_success(const Row& row, Start start, const lab::Bytes& set, const lab::Bytes& after) {
    const auto size = lab::load<std::uint32_t>(set, lab::size_at);
    const bool vmxon = lab::load<std::uint64_t>(set, lab::vmx::vmxon_at) != none;
    const bool l2_active = (lab::load<std::uint16_t>(set, lab::flags_at) & 1) != 0;
    const bool payload_taken = vmxon && size >= lab::header_size + lab::vmx::vmcs12_size;
    auto expected = expected_bytes(set, payload_taken, l2_active);
    CHECK(after.size() == expected.size());
    if (l2_active && (lab::vmx::load(set, pin_controls) & pin::preemption_timer) != 0) {
        // Without a deadline KVM makes one, from the timer's value and L1's TSC.
        lab::store<std::uint32_t>(expected, lab::vmx::vmx_flags_at, 1);
        if ((lab::load<std::uint32_t>(set, lab::vmx::vmx_flags_at) & 1) == 0)
            lab::store(expected, lab::vmx::deadline_at,
                       lab::load<std::uint64_t>(after, lab::vmx::deadline_at));
    }
    CHECK(std::equal(after.begin(), after.begin() + lab::header_size, expected.begin()));
    if (shows_another_vmcs(after))
        return;
    if (shows_other_segments(start, after)) {
        CHECK(lab::same_bytes(without_segments(after), without_segments(expected)));
    } else if (!row.rewritten) {
        const auto difference =
            lab::same_bytes(expected, after) ? std::nullopt : kvm::nested::first_difference(expected, after);
        INFO("first difference at " << difference.value_or(0));
        CHECK_FALSE(difference.has_value());
    }
}

} // namespace

TEST_CASE(
    "KVM_SET_NESTED_STATE does in every row of the table what is known of it, and errors tell the truth") {
    lab::SetTable<Vmx> table;
    for (const auto& row : rows)
        table.run(row);

    std::println(
        "count: KVM_SET_NESTED_STATE, {} rows: {} through Vcpu and raw, {} raw only, {} not for this "
        "processor; {} SETs",
        rows.size(), table.through_vcpu(), table.raw_only(), table.not_tried(), table.issued());
    CHECK(table.through_vcpu() + table.raw_only() + table.not_tried() == rows.size());
    lab::tell_traits<Vmx>(table.traits(), trait_names, known_kernels);
}

TEST_SUITE_END();
