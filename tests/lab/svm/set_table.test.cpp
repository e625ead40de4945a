// SPDX-License-Identifier: MIT
//
// KVM_SET_NESTED_STATE on AMD: the rows of support/set_table.hpp for SVM, and what KVM_RUN makes of some of
// them.
#include "support/set_table.hpp"
#include "support/svm.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using lab::beyond, lab::bit, lab::no_memory, lab::maxphyaddr;
using lab::Change, lab::Where, lab::Into;
using lab::clear_bits, lab::fill, lab::fill_header, lab::flags, lab::format, lab::put, lab::set_bits,
    lab::size;
using lab::must;

constexpr Change vmcb12(std::uint64_t value) {
    return {Change::Kind::put, lab::svm::vmcb12_at, 8, value};
}
constexpr Change gpat(std::uint64_t value) {
    return {Change::Kind::put, lab::svm::gpat_at, 8, value};
}

class Scene;

/// What SVM adds to the machinery of the table.
struct Svm {
    using Vendor = kvm::nested::Svm;

    /// What the vCPU is before. Each has SREGS2 of an L2 that ran, and so EFER.SVME, unless it says
    /// otherwise.
    enum class On : std::uint8_t {
        l2,          ///< from both starting points
        svme_off,    ///< EFER.SVME clear
        fresh,       ///< nothing set but CPUID
        in_smm,      ///< in SMM
        no_svm,      ///< CPUID without SVM; EFER.SVME nevertheless, where the kernel allows
        no_npt,      ///< CPUID without NPT
        quirk_off,   ///< KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT disabled, where there is such a quirk
        illegal_cr3, ///< paging off, and a CR3 beyond MAXPHYADDR
        cr0_nw,      ///< CR0.NW without CD, which no kernel lets us set: the row is about that
    };

    /// What the row changes.
    enum class Base : std::uint8_t {
        saved,    ///< the state of an L2 that ran
        built,    ///< made by hand: GUEST_MODE, GIF_SET, no nested paging, intercepts VMRUN and NMI
        selftest, ///< as in the kernel's nested_set_state_test: no flags, vmcb12 0x3000, all zero
    };

    enum class Start : std::uint8_t { l2_saved, outside_l2, count };
    static constexpr std::array<const char*, std::to_underlying(Start::count)> start_names{
        "L2 active with the saved state", "outside L2"};

    /// In what kernels differ.
    enum class Trait : std::uint8_t {
        none,
        gif_clear_without_svme,
        v_nmi_needs_nmi_intercept,
        event_injection_checked,
        lma_needs_lme,
        gpat_checked,
        save_area_of_744_bytes,
        np_dropped_without_cpuid,
        controls_masked,
        count,
    };

    struct Failure {
        kvm::nested::Effect effect = kvm::nested::Effect::unchanged;
        kvm::nested::Effect over_l2 =
            kvm::nested::Effect::unchanged; ///< where L2 was active before with the saved state
    };
    struct Needs {};

    using Row = lab::SetRow<Svm>;
    static const Scene& scene(On on);
    static bool from(const Row& row, Start start) {
        return start == Start::outside_l2 || row.on == On::l2 || row.on == On::quirk_off;
    }
    static lab::Bytes bytes(Base base);
    static std::string why_not(const Row& row);
    static void check_failure(const lab::Failed<Svm>& failed);
    static bool same(const lab::Bytes& a, const lab::Bytes& b) { return lab::same_bytes(a, b); }
    static bool blurred(Start, const lab::Bytes&) { return false; }
    static void check_success(const Row& row, Start start, const lab::Bytes& set, const lab::Bytes& after);
    static kvm::nested::Vcpu<kvm::nested::Svm> nested(const machine::Machine& machine) {
        return lab::svm::nested(machine);
    }
};
using Base = Svm::Base;
using On = Svm::On;
using Trait = Svm::Trait;

// --- the table

constexpr std::uint16_t payload = lab::header_size;

// Offsets in a VMCB (AMD APM Vol. 2, appendix B).
constexpr std::uint16_t intercept3 = 0x00c, intercept4 = 0x010, iopm = 0x040, msrpm = 0x048,
                        tsc_offset = 0x050, asid = 0x058, tlb_ctl = 0x05c, int_ctl = 0x060, int_state = 0x068,
                        exit_code = 0x070, nested_ctl = 0x090, event_inj = 0x0a8, nested_cr3 = 0x0b0,
                        virt_ext = 0x0b8;
constexpr std::uint16_t save_area = 0x400, cs_attrib = 0x412, cpl = 0x4cb, efer = 0x4d0, cr4 = 0x548,
                        cr3 = 0x550, cr0 = 0x558, dr7 = 0x560, dr6 = 0x568, rflags = 0x570, rip = 0x578,
                        g_pat = 0x668, page_end = 0x1000;
constexpr std::uint64_t cr0_pe = bit(0), cr0_nw = bit(29), cr0_pg = bit(31), rflags_vm = bit(17),
                        efer_lme = bit(8), efer_svme = bit(12), cr4_pae = bit(5), ioio_prot = bit(27),
                        msr_prot = bit(28), np_enable = 1;

constexpr std::array rows = std::to_array<lab::SetRow<Svm>>({
    // Header.
    {.name = "nothing changed"},
    {.name = "nothing changed, at an odd address", .where = Where::odd_address},
    {.name = "size 4225", .change = {size(4225)}},
    {.name = "size 8192", .change = {size(8192)}},
    {.name = "size 0xffffffff", .change = {size(0xffff'ffff)}},
    {.name = "X3: size 0", .change = {size(0)}, .expect = EINVAL},
    {.name = "X3: size 127", .change = {size(127)}, .expect = EINVAL},
    {.name = "S7: size 128 in L2", .change = {size(128)}, .expect = EINVAL},
    {.name = "S7: size 4223 in L2", .change = {size(4223)}, .expect = EINVAL},
    {.name = "S1: format 0 (VMX)", .change = {format(0)}, .expect = EINVAL},
    {.name = "S1: format 2", .change = {format(2)}, .expect = EINVAL},
    {.name = "X4: flag 0x2000", .change = {flags(0x2101)}, .expect = EINVAL},
    {.name = "S2: EVMCS", .change = {flags(0x105)}, .expect = EINVAL},
    {.name = "S2: MTF_PENDING", .change = {flags(0x109)}, .expect = EINVAL},
    {.name = "X5: RUN_PENDING outside L2, GIF set", .change = {flags(0x102)}, .expect = EINVAL},
    {.name = "X5: RUN_PENDING outside L2, GIF clear", .change = {flags(0x002)}, .expect = EINVAL},
    {.name = "RUN_PENDING added", .change = {flags(0x103)}},
    {.name = "GIF clear in L2", .change = {flags(0x001)}},
    {.name = "GIF set, header alone", .change = {flags(0x100), size(128)}},
    {.name = "GIF clear, header alone", .change = {flags(0), size(128)}},
    {.name = "GIF set with a payload that is not looked at", .change = {flags(0x100)}},
    {.name = "GIF clear with a payload that is not looked at", .change = {flags(0)}},
    {.name = "GIF set, size 4224, payload not mapped",
     .change = {flags(0x100)},
     .where = Where::cut,
     .cut = payload},
    {.name = "GIF clear, size 4224, payload not mapped",
     .change = {flags(0)},
     .where = Where::cut,
     .cut = payload},
    {.name = "GIF set, junk as vmcb12 address", .change = {flags(0x100), size(128), vmcb12(~0ull)}},
    {.name = "gpat while the quirk is on", .change = {gpat(0x0707'0707'0707'0707)}, .rewritten = true},
    {.name = "reserved bytes of the header", .change = {fill_header(24, payload, 0x5a)}},

    // The vCPU's own state.
    {.name = "S3: L2 without EFER.SVME", .on = On::svme_off, .expect = EINVAL},
    {.name = "S3: L2 on a fresh vCPU", .on = On::fresh, .expect = EINVAL},
    {.name = "GIF set without EFER.SVME", .on = On::svme_off, .change = {flags(0x100), size(128)}},
    {.name = "GIF set on a fresh vCPU", .on = On::fresh, .change = {flags(0x100), size(128)}},
    {.name = "S3: GIF clear without EFER.SVME",
     .on = On::svme_off,
     .change = {flags(0), size(128)},
     .expect = EINVAL,
     .unless = {Trait::gif_clear_without_svme, 0}},
    {.name = "S3: GIF clear on a fresh vCPU",
     .on = On::fresh,
     .change = {flags(0), size(128)},
     .expect = EINVAL,
     .unless = {Trait::gif_clear_without_svme, 0}},
    {.name = "S4: L2 in SMM", .on = On::in_smm, .expect = EINVAL},
    {.name = "S4: hand-made L2 in SMM", .on = On::in_smm, .base = Base::built, .expect = EINVAL},
    {.name = "GIF set in SMM", .on = On::in_smm, .change = {flags(0x100), size(128)}},
    {.name = "L2 without SVM in CPUID", .on = On::no_svm, .expect = EINVAL},
    {.name = "S16: L2 while CR0 has NW without CD", .on = On::cr0_nw, .base = Base::built},
    {.name = "S27: L2 while CR3 is illegal",
     .on = On::illegal_cr3,
     .base = Base::built,
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with slack",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {size(8192)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with reserved bytes of the header",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {fill_header(24, payload, 0x5a)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with gpat",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {gpat(0x0707'0707'0707'0707)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with unaligned bitmaps",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {put(iopm, 8, 0x14123), put(msrpm, 8, 0x1234)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with controls that no kernel knows",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {put(tlb_ctl, 4, ~0u), put(nested_ctl, 8, ~1ull), put(virt_ext, 8, ~0ull)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with interrupt state that no kernel knows",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {put(int_ctl + 4, 4, ~0u), put(int_state, 8, ~0ull), set_bits(event_inj, 8, 0x7fff'f000)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same with every intercept",
     .on = On::illegal_cr3,
     .base = Base::built,
     .change = {fill(0x000, 0x018, 0xff)},
     .expect = EINVAL,
     .failure = {.effect = kvm::nested::Effect::undetermined}},
    {.name = "S27: the same, mapped for 2200 bytes",
     .on = On::illegal_cr3,
     .base = Base::built,
     .expect = EINVAL,
     .where = Where::cut,
     .cut = 2200,
     .failure = {.effect = kvm::nested::Effect::undetermined}},

    // S6: the vmcb12 address.
    {.name = "S6: vmcb12 address + 1", .change = {vmcb12(guests::vmcb12_address + 1)}, .expect = EINVAL},
    {.name = "S6: vmcb12 address + 0x800",
     .change = {vmcb12(guests::vmcb12_address + 0x800)},
     .expect = EINVAL},
    {.name = "S6: vmcb12 address beyond MAXPHYADDR", .change = {vmcb12(beyond)}, .expect = EINVAL},
    {.name = "S6: vmcb12 address 1<<51", .change = {vmcb12(bit(51))}, .expect = EINVAL},
    {.name = "S6: vmcb12 address ~0", .change = {vmcb12(~0ull)}, .expect = EINVAL},
    {.name = "vmcb12 address 0", .change = {vmcb12(0)}},
    {.name = "vmcb12 address without memory", .change = {vmcb12(no_memory)}},

    // The control area.
    {.name = "S9: VMRUN not intercepted", .change = {clear_bits(intercept4, 4, 1)}, .expect = EINVAL},
    {.name = "S10: ASID 0", .change = {put(asid, 4, 0)}, .expect = EINVAL},
    {.name = "S12: nested CR3 1<<51", .change = {put(nested_cr3, 8, bit(51))}, .expect = EINVAL},
    {.name = "S12: nested CR3 1<<52", .change = {put(nested_cr3, 8, bit(52))}, .expect = EINVAL},
    {.name = "S12: nested CR3 at MAXPHYADDR",
     .base = Base::built,
     .change = {put(nested_ctl, 8, np_enable), put(nested_cr3, 8, beyond)},
     .expect = EINVAL},
    {.name = "S12: the same without NPT in CPUID",
     .on = On::no_npt,
     .base = Base::built,
     .change = {put(nested_ctl, 8, np_enable), put(nested_cr3, 8, beyond)},
     .expect = EINVAL,
     .unless = {Trait::np_dropped_without_cpuid, 0},
     .rewritten = true},
    {.name = "S13: IOPM 1<<51", .change = {put(iopm, 8, bit(51))}, .expect = EINVAL},
    {.name = "S13: MSRPM 1<<51", .change = {put(msrpm, 8, bit(51))}, .expect = EINVAL},
    {.name = "S13: MSRPM at MAXPHYADDR",
     .base = Base::built,
     .change = {put(msrpm, 8, beyond)},
     .expect = EINVAL},
    {.name = "S13: MSRPM whose end crosses MAXPHYADDR",
     .base = Base::built,
     .change = {put(msrpm, 8, beyond - 0x1000)},
     .expect = EINVAL},
    {.name = "S13: IOPM whose end crosses MAXPHYADDR",
     .base = Base::built,
     .change = {put(iopm, 8, beyond - 0x2000)},
     .expect = EINVAL},
    {.name = "MSRPM 0x1234", .base = Base::built, .change = {put(msrpm, 8, 0x1234)}, .rewritten = true},
    {.name = "IOPM unaligned", .change = {put(iopm, 8, 0x14123)}, .rewritten = true},
    {.name = "MSRPM without memory", .change = {put(msrpm, 8, no_memory)}},
    {.name = "IOPM without memory", .change = {put(iopm, 8, no_memory)}},
    {.name = "nested CR3, low bits", .change = {set_bits(nested_cr3, 8, 0xfff)}},
    {.name = "TLB_CONTROL 1", .change = {put(tlb_ctl, 1, 1)}},
    {.name = "TLB_CONTROL 2", .change = {put(tlb_ctl, 1, 2)}},
    {.name = "TLB_CONTROL 3", .change = {put(tlb_ctl, 1, 3)}},
    {.name = "TLB_CONTROL 0xff", .change = {put(tlb_ctl, 1, 0xff)}, .rewritten_with = Trait::controls_masked},
    {.name = "nested control 0", .change = {put(nested_ctl, 8, 0)}},
    {.name = "nested control 3", .change = {put(nested_ctl, 8, 3)}},
    {.name = "nested control ~0",
     .change = {put(nested_ctl, 8, ~0ull)},
     .rewritten_with = Trait::controls_masked},
    {.name = "virtualization extensions 3", .change = {put(virt_ext, 8, 3)}},
    {.name = "AVIC bit", .change = {set_bits(int_ctl, 4, bit(31))}},
    {.name = "exit code junk", .change = {put(exit_code, 8, 0x1234'5678)}},
    {.name = "TSC offset junk", .change = {put(tsc_offset, 8, 0x1234'5678'9abc)}},
    {.name = "reserved bytes of the control area",
     .change = {fill(0x018, 0x03c, 0x5a), fill(0x100, 0x400, 0x5a)}},
    {.name = "S14: V_NMI_ENABLE without an NMI intercept",
     .change = {clear_bits(intercept3, 4, 2), set_bits(int_ctl, 4, bit(26))},
     .unless = {Trait::v_nmi_needs_nmi_intercept, EINVAL}},
    {.name = "S14: all bits of int_ctl",
     .change = {put(int_ctl, 4, ~0u)},
     .unless = {Trait::v_nmi_needs_nmi_intercept, EINVAL}},
    {.name = "S14: V_NMI_ENABLE with an NMI intercept",
     .base = Base::built,
     .change = {set_bits(int_ctl, 4, bit(26))}},
    {.name = "S15: injected event of type 1",
     .change = {put(event_inj, 8, 0x8000'0100)},
     .unless = {Trait::event_injection_checked, EINVAL}},
    {.name = "S15: injected exception 2",
     .base = Base::built,
     .change = {put(event_inj, 8, 0x8000'0302)},
     .unless = {Trait::event_injection_checked, EINVAL}},
    {.name = "S15: injected exception 21 without shadow stacks",
     .base = Base::built,
     .change = {put(event_inj, 8, 0x8000'0315)},
     .unless = {Trait::event_injection_checked, EINVAL}},
    {.name = "injected page fault", .base = Base::built, .change = {put(event_inj, 8, 0x8000'0b0e)}},

    // The save area: L1.
    {.name = "S17: CR0.PG clear", .change = {clear_bits(cr0, 8, cr0_pg)}, .expect = EINVAL},
    {.name = "S17: CR0.PE clear", .change = {clear_bits(cr0, 8, cr0_pe)}, .expect = EINVAL},
    {.name = "S18: RFLAGS.VM", .change = {set_bits(rflags, 8, rflags_vm)}, .expect = EINVAL},
    {.name = "S19: EFER.LME clear, LMA set",
     .change = {clear_bits(efer, 8, efer_lme)},
     .unless = {Trait::lma_needs_lme, EINVAL}},
    {.name = "S20: EFER.SVME clear", .change = {clear_bits(efer, 8, efer_svme)}, .expect = EINVAL},
    {.name = "S21: CR0.NW without CD", .change = {set_bits(cr0, 8, cr0_nw)}, .expect = EINVAL},
    {.name = "S21: CR0 bit 32", .change = {set_bits(cr0, 8, bit(32))}, .expect = EINVAL},
    {.name = "S22: DR6 bit 32", .change = {set_bits(dr6, 8, bit(32))}, .expect = EINVAL},
    {.name = "S22: DR7 bit 32", .change = {set_bits(dr7, 8, bit(32))}, .expect = EINVAL},
    {.name = "S23: CR4.PAE clear", .change = {clear_bits(cr4, 8, cr4_pae)}, .expect = EINVAL},
    {.name = "S23: CR3 bit 63", .change = {set_bits(cr3, 8, bit(63))}, .expect = EINVAL},
    {.name = "S23: CR3 at MAXPHYADDR", .change = {put(cr3, 8, beyond)}, .expect = EINVAL},
    {.name = "S23: CS with L and D", .change = {set_bits(cs_attrib, 2, 0x600)}, .expect = EINVAL},
    {.name = "S24: CR4 bit 63", .change = {set_bits(cr4, 8, bit(63))}, .expect = EINVAL},
    {.name = "S25: EFER bit 1", .change = {set_bits(efer, 8, bit(1))}, .expect = EINVAL},
    {.name = "save area all zero", .change = {fill(save_area, page_end, 0)}, .expect = EINVAL},
    {.name = "CPL 3", .change = {put(cpl, 1, 3)}},
    {.name = "RIP not canonical", .change = {put(rip, 8, bit(63))}},
    {.name = "CR3 without memory", .change = {put(cr3, 8, no_memory)}},
    {.name = "G_PAT junk", .change = {put(g_pat, 8, 0x5a5a'5a5a'5a5a'5a5a)}},
    {.name = "bytes behind the save area", .change = {fill(0x700, page_end, 0x5a)}},

    // S26: L2's PAT in the header.
    {.name = "gpat 0, quirk disabled", .on = On::quirk_off},
    {.name = "S26: gpat of a reserved type, quirk disabled",
     .on = On::quirk_off,
     .change = {gpat(8)},
     .unless = {Trait::gpat_checked, EINVAL},
     .failure = {.over_l2 =
                     kvm::nested::Effect::undetermined}, // a kernel with the quirk on would show gpat 0, too
     .rewritten = true},
    {.name = "gpat of a reserved type, quirk disabled, nested paging off",
     .on = On::quirk_off,
     .base = Base::built,
     .change = {gpat(8)},
     .rewritten = true},
    {.name = "gpat of a reserved type, quirk on", .change = {gpat(8)}, .rewritten = true},

    // Memory that is not there.
    {.name = "X2: NULL", .expect = EFAULT, .where = Where::null},
    {.name = "X2: address 0x10", .expect = EFAULT, .where = Where::low},
    {.name = "X2: a kernel address", .expect = EFAULT, .where = Where::kernel},
    {.name = "X2: half of the header mapped", .expect = EFAULT, .where = Where::cut, .cut = 64},
    {.name = "S8: the header alone mapped", .expect = EFAULT, .where = Where::cut, .cut = payload},
    {.name = "S8: header and control area mapped",
     .expect = EFAULT,
     .where = Where::cut,
     .cut = payload + save_area},
    {.name = "S8: save area mapped for 739 bytes",
     .expect = EFAULT,
     .where = Where::cut,
     .cut = payload + save_area + 739},
    {.name = "S8: save area mapped for 740 bytes",
     .unless = {Trait::save_area_of_744_bytes, EFAULT},
     .where = Where::cut,
     .cut = payload + save_area + 740},
    {.name = "save area mapped for 744 bytes", .where = Where::cut, .cut = payload + save_area + 744},
    {.name = "mapped for 2200 bytes", .where = Where::cut, .cut = 2200},

    // Descriptors.
    {.name = "to the VM", .expect = ENOTTY, .into = Into::vm},
    {.name = "to /dev/kvm", .expect = EINVAL, .into = Into::system},
    {.name = "to a closed descriptor", .expect = EBADF, .into = Into::closed},
    {.name = "to a pipe", .expect = ENOTTY, .into = Into::pipe},
    {.name = "from a forked child", .expect = EIO, .into = Into::vcpu_of_parent},

    // The kernel's nested_set_state_test, SVM.
    {.name = "selftest: NULL without SVM", .on = On::no_svm, .expect = EFAULT, .where = Where::null},
    {.name = "selftest: size 0 without SVM",
     .on = On::no_svm,
     .base = Base::selftest,
     .change = {flags(3), size(0)},
     .expect = EINVAL},
    {.name = "selftest: flags 0xf, header alone, without SVM",
     .on = On::no_svm,
     .base = Base::selftest,
     .change = {flags(0xf), size(128)},
     .expect = EINVAL},
    {.name = "selftest: RUN_PENDING alone without SVM",
     .on = On::no_svm,
     .base = Base::selftest,
     .change = {flags(2), size(128)},
     .expect = EINVAL},
    {.name = "selftest: format 0", .base = Base::selftest, .change = {format(0)}, .expect = EINVAL},
    {.name = "selftest: EVMCS", .base = Base::selftest, .change = {flags(4)}, .expect = EINVAL},
    {.name = "selftest: GUEST_MODE without EFER.SVME",
     .on = On::svme_off,
     .base = Base::selftest,
     .change = {flags(1)},
     .expect = EINVAL},
    {.name = "selftest: GIF clear without EFER.SVME",
     .on = On::svme_off,
     .base = Base::selftest,
     .expect = EINVAL,
     .unless = {Trait::gif_clear_without_svme, 0}},
    {.name = "selftest: GIF set without EFER.SVME",
     .on = On::svme_off,
     .base = Base::selftest,
     .change = {flags(0x100)}},
    {.name = "selftest: vmcb12 ~0, GIF clear", .base = Base::selftest, .change = {vmcb12(~0ull)}},
    {.name = "selftest: vmcb12 ~0, GUEST_MODE",
     .base = Base::selftest,
     .change = {vmcb12(~0ull), flags(1)},
     .expect = EINVAL},
    {.name = "selftest: size 2112, GIF clear", .base = Base::selftest, .change = {size(2112)}},
    {.name = "selftest: size 2112, GUEST_MODE",
     .base = Base::selftest,
     .change = {size(2112), flags(1)},
     .expect = EINVAL},
    {.name = "selftest: vmcb12 ~0, GIF set", .base = Base::selftest, .change = {vmcb12(~0ull), flags(0x100)}},

    // Hand-made states, as kernel-independent as can be.
    {.name = "hand-made L2", .base = Base::built},
    {.name = "hand-made: size 4223", .base = Base::built, .change = {size(4223)}, .expect = EINVAL},
    {.name = "hand-made: vmcb12 0", .base = Base::built, .change = {vmcb12(0)}},
    {.name = "hand-made: ASID 0", .base = Base::built, .change = {put(asid, 4, 0)}, .expect = EINVAL},
    {.name = "hand-made: MTF_PENDING", .base = Base::built, .change = {flags(0x109)}, .expect = EINVAL},
    {.name = "hand-made: IOPM and MSRPM without memory and their intercepts off",
     .base = Base::built,
     .change = {put(iopm, 8, no_memory), put(msrpm, 8, no_memory)}},
});

/// As seen.
constexpr std::array known_kernels = std::to_array<lab::KnownKernel<Svm>>({
    // none, gif_clear, v_nmi, event, lma, gpat, save 744, np dropped, masked
    {"6.1", {false, false, false, false, false, false, false, false, false}},
    {"6.12", {false, false, true, false, false, false, true, false, false}},
    {"6.12.118", {false, false, true, false, true, false, true, false, false}},
    {"7.2", {false, true, true, true, false, true, true, true, true}},
    {"7.3", {false, true, true, true, true, true, true, true, true}},
});
constexpr std::array<const char*, std::to_underlying(Trait::count)> trait_names{
    "none",
    "takes GIF clear without EFER.SVME",
    "V_NMI_ENABLE needs an NMI intercept",
    "checks event injection",
    "LMA needs LME",
    "checks gpat",
    "reads 744 bytes of the save area",
    "drops nested paging that CPUID lacks",
    "keeps only the bits of the controls that it knows",
};

// --- vCPUs

/// A vCPU that can be brought back to the same condition for every row.
class Scene {
  public:
    explicit Scene(On on) : on_{on}, machine_{must(machine::Machine::create({.supported_cpuid = false}))} {
        lab::set_cpuid(machine_, [on](kvm_cpuid_entry2& entry) {
            if (entry.function == 0x8000'0001 && on == On::no_svm)
                entry.ecx &= ~(1u << 2);
            if (entry.function == 0x8000'000a && on == On::no_npt)
                entry.edx &= ~1u;
        });
        sregs_ = lab::get_sregs(on == On::fresh || on == On::illegal_cr3 ? machine_ : lab::svm::shared_l2());
        if (on == On::svme_off)
            sregs_.efer &= ~efer_svme;
        if (on == On::illegal_cr3) {
            sregs_.efer |= efer_svme;
            sregs_.cr3 = bit(maxphyaddr + 5);
        }
        if (on == On::quirk_off)
            lab::disable_quirk(machine_,
                               kvm::nested::uapi::quirk_nested_svm_shared_pat); // 6.x has no such quirk
        if (on == On::no_svm && ::ioctl(machine_.vcpu_fd(), KVM_SET_SREGS2, &sregs_) != 0)
            sregs_.efer &= ~efer_svme; // 7.x refuses it
    }

    void reset(Svm::Start start) const {
        if (on_ == On::in_smm)
            lab::set_smm(machine_, false);
        must(lab::svm::nested(machine_).clear_nested_state());
        lab::set_sregs(machine_, sregs_);
        if (on_ == On::in_smm)
            lab::set_smm(machine_, true);
        if (start == Svm::Start::l2_saved)
            must(lab::svm::nested(machine_).set_nested_state(
                must(lab::svm::State::parse(lab::read_back(lab::svm::shared_l2().vcpu_fd())))));
    }

    [[nodiscard]] const machine::Machine& machine() const { return machine_; }

  private:
    On on_;
    machine::Machine machine_;
    kvm_sregs2 sregs_ = {};
};

/// Made when first asked for: a machine is what takes time.
const Scene& Svm::scene(On on) {
    static std::array<std::optional<Scene>, std::to_underlying(On::cr0_nw)> scenes;
    auto& scene = scenes[std::to_underlying(on)];
    if (!scene)
        scene.emplace(on);
    return *scene;
}

lab::Bytes Svm::bytes(Base base) {
    lab::Bytes bytes;
    if (base == Base::saved)
        bytes = lab::read_back(lab::svm::shared_l2().vcpu_fd());
    bytes.resize(lab::input_size);
    if (base == Base::saved)
        return bytes;
    std::vector<Change> fields{format(1), size(lab::svm::state_size), vmcb12(0x3000)};
    if (base == Base::built) {
        fields.insert(fields.end(), {
                                        flags(0x101),
                                        put(intercept3, 4, 2), // NMI
                                        put(intercept4, 4, 1), // VMRUN
                                        put(asid, 4, 1),
                                        put(efer, 8, efer_svme | efer_lme | bit(10)),
                                        put(cr4, 8, cr4_pae),
                                        put(cr3, 8, 0x1000),
                                        put(cr0, 8, cr0_pg | cr0_pe | bit(4)),
                                        put(rflags, 8, 2),
                                    });
    }
    for (const auto& change : fields)
        lab::perform(change, bytes);
    return bytes;
}

// --- judging it

/// S16 cannot be tried: KVM_SET_SREGS2 refuses the only way to get there.
std::string Svm::why_not(const Row& row) {
    if (row.on != On::cr0_nw)
        return {};
    const auto& vcpu = scene(On::l2);
    vcpu.reset(Start::outside_l2);
    auto sregs = lab::get_sregs(vcpu.machine());
    sregs.cr0 |= cr0_nw;
    CHECK(::ioctl(vcpu.machine().vcpu_fd(), KVM_SET_SREGS2, &sregs) == -1);
    CHECK(errno == EINVAL);
    return "not reachable, KVM_SET_SREGS2 refuses that CR0";
}

void Svm::check_failure(const lab::Failed<Svm>& failed) {
    const auto& [row, start, error, attempted, before, after] = failed;
    const bool over_l2 = (lab::load<std::uint16_t>(before, lab::flags_at) & 1) != 0;
    CHECK(error.effect == (over_l2 ? row.failure.over_l2 : row.failure.effect));
    CHECK(error.effect != kvm::nested::Effect::nested_state_lost); // VMX only
    if (error.effect == kvm::nested::Effect::undetermined)         // as the comment of Effect has it, for SVM
        CHECK((lab::load<std::uint16_t>(after, lab::flags_at) & 1) == 1);
    if (row.failure.effect == kvm::nested::Effect::undetermined)
        CHECK(before != after); // so "unchanged" would have been wrong
}

/// After a success GET shows what was set, without what the kernel does not look at.
void Svm::check_success(const Row&, Start, const lab::Bytes& set, const lab::Bytes& after) {
    const auto flags = lab::load<std::uint16_t>(set, lab::flags_at);
    const bool l2 = (flags & 1) != 0;
    CHECK(lab::load<std::uint16_t>(after, lab::flags_at) == flags);
    CHECK(lab::load<std::uint16_t>(after, lab::format_at) == 1);
    CHECK(after.size() == (l2 ? lab::svm::state_size : lab::header_size));
    CHECK(lab::load<std::uint64_t>(after, lab::svm::vmcb12_at)
          == (l2 ? lab::load<std::uint64_t>(set, lab::svm::vmcb12_at) : 0));
}

} // namespace

TEST_CASE(
    "KVM_SET_NESTED_STATE does in every row of the table what is known of it, and errors tell the truth") {
    lab::SetTable<Svm> table;
    for (const auto& row : rows)
        table.run(row);

    std::println("count: KVM_SET_NESTED_STATE, {} rows: {} through Vcpu and raw, {} raw only, {} not "
                 "reachable; {} SETs",
                 rows.size(), table.through_vcpu(), table.raw_only(), table.not_tried(), table.issued());
    CHECK(table.through_vcpu() + table.raw_only() + table.not_tried() == rows.size());
    CHECK(table.not_tried() == 1);
    CHECK(table.through_vcpu() == 101); // what parse() takes

    for (std::size_t trait = 1; trait < table.traits().size(); ++trait)
        CHECK(table.traits()[trait].has_value());
    lab::tell_traits<Svm>(table.traits(), trait_names, known_kernels);
}

// --- what KVM_RUN makes of a SET that succeeded

namespace {

machine::Exit run_with(const machine::Machine& machine, std::span<const Change> changes) {
    lab::complete_io(machine);
    auto bytes = lab::read_back(machine.vcpu_fd());
    for (const auto& change : changes)
        lab::perform(change, bytes);
    CHECK(lab::svm::nested(machine).set_nested_state(must(lab::svm::State::parse(bytes))));
    return must(machine.run());
}

} // namespace

TEST_CASE("a vmcb12 without memory is found out at #VMEXIT, as a shutdown") {
    const auto machine = lab::svm::machine_at(guests::Phase::l2);
    const std::array changes{vmcb12(no_memory)};
    CHECK(run_with(machine, changes) == machine::Exit{machine::Shutdown{}});
    // 6.x leaves L2 active, 7.x does not.
    const auto flags = lab::load<std::uint16_t>(lab::read_back(machine.vcpu_fd()), lab::flags_at);
    CAPTURE(flags);
    CHECK((flags == 0x101 || flags == 0));
}

TEST_CASE("an IOPM without memory intercepts every port") {
    constexpr std::uint32_t vmexit_ioio = 0x7b;
    const auto machine = lab::svm::machine_at(guests::Phase::l2);
    kvm_regs in_front_of_out = {};
    lab::must_ioctl(machine.vcpu_fd(), KVM_GET_REGS, &in_front_of_out, "KVM_GET_REGS");
    lab::complete_io(machine);
    lab::must_ioctl(machine.vcpu_fd(), KVM_SET_REGS, &in_front_of_out, "KVM_SET_REGS"); // once more
    const std::array changes{put(iopm, 8, no_memory), set_bits(intercept3, 4, ioio_prot)};
    CHECK(run_with(machine, changes)
          == machine::Exit{machine::PortOut{guests::port::unexpected, 4, vmexit_ioio}});
}

TEST_CASE("a nested CR3 of 0 is a nested page fault, which L1 hears of") {
    constexpr std::uint32_t vmexit_npf = 0x400;
    const auto machine = lab::svm::machine_at(guests::Phase::l2);
    const std::array changes{put(nested_cr3, 8, 0)};
    CHECK(run_with(machine, changes)
          == machine::Exit{machine::PortOut{guests::port::unexpected, 4, vmexit_npf}});
}

TEST_CASE("clearing EFER.SVME in KVM_SET_SREGS2 drops an active L2, and says nothing") {
    const auto machine = lab::svm::machine_at(guests::Phase::l2);
    lab::complete_io(machine);
    auto sregs = lab::get_sregs(machine);
    sregs.efer &= ~efer_svme;
    lab::set_sregs(machine, sregs);
    CHECK(must(lab::svm::nested(machine).nested_state()) == lab::svm::State::not_in_nested_operation());
}

TEST_CASE("an MSR bitmap without memory is found out at the first KVM_RUN, as an internal error") {
    const auto machine = lab::svm::machine_at(guests::Phase::l2);
    const std::array changes{put(msrpm, 8, no_memory), set_bits(intercept3, 4, msr_prot)};
    const auto exit = run_with(machine, changes);
    CAPTURE(machine::describe(exit));
    const auto* error = std::get_if<machine::InternalError>(&exit);
    REQUIRE(error != nullptr);
    CHECK(error->suberror == 1);
}

TEST_SUITE_END();
