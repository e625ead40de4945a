// SPDX-License-Identifier: MIT
//
// The rules of KVM_SET_NESTED_STATE on SVM, in the order in which KVM asks them (Linux 6.1 to 7.3), and
// behind them what it takes and leaves out without a word. Sections are those of the AMD APM, Volume 2.
module;
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:svm_rules;
import :uapi;
import :vendor;
import :bit_layout;
import :svm_bit_layout;
import :capability_bit_layout;
import :capabilities;
import :field;
import :header;
import :vmcb12;
import :error;
import :destination;
import :rule;
import :state_case;

export namespace kvm::nested {

/// A state and a destination, as the rules of SVM look at them.
class SvmCase : public StateCase {
  public:
    using StateCase::has, StateCase::violated;
    static constexpr VendorId vendor = VendorId::svm;
    using Name = Vmcb12Fields::Name;

    constexpr SvmCase(const uapi::StateHeader& header, std::span<const std::byte> payload,
                      const Destination& to) noexcept
        : StateCase{header, payload, to}, svm_{std::bit_cast<uapi::SvmHeader>(header.vendor)} {
        if (!has(uapi::state_flag::guest_mode))
            return;
        reach(Reached::l2_active);
        if (header.size >= Svm::capacity && given() >= size_with_vmcb12)
            reach(Reached::vmcb12);
    }

    constexpr const uapi::SvmHeader& svm() const noexcept { return svm_; }

    /// What KVM_SET_NESTED_STATE reads: the control area and the save area.
    static constexpr std::size_t size_with_vmcb12 =
        uapi::header_size + uapi::vmcb_control_size + uapi::vmcb_save_size;

    /// A field of the VMCB. Only where Reached::vmcb12 is.
    constexpr std::uint64_t operator[](Name name) const noexcept { return read(payload(), name.field()); }
    /// NP_ENABLE, as the kernel takes it: 7.x clears it where the guest's CPUID has no nested paging.
    constexpr Known nested_paging() const noexcept {
        if (!nested::has((*this)["misc_ctl"], svm::MiscCtl::np_enable))
            return Known::no;
        const auto is_7 = from_7.in(to().kernel), npt = to().guest[Feature::npt];
        return negation(both(is_7, negation(npt)));
    }

    static constexpr std::uint16_t offset(Name name) noexcept {
        return static_cast<std::uint16_t>(uapi::header_size + name.field().offset);
    }
    static constexpr Judgement violated(bool violation, Name name, std::uint64_t bits = 0) noexcept {
        return StateCase::violated(violation, offset(name), bits);
    }
    /// A bitmap of `size` bytes; the low 12 bits of its address are dropped.
    constexpr Judgement bitmap(Name name, std::uint64_t size) const noexcept {
        return address((*this)[name] & ~std::uint64_t{uapi::page_size - 1}, 1, size, offset(name));
    }

    /// Bits that KVM takes and does not use where the guest's CPUID.8000000AH lacks a feature.
    constexpr Judgement used_with(svm::Feature feature, Name name, std::uint64_t bits) const noexcept {
        const auto set = (*this)[name] & bits;
        if (set == 0)
            return holds;
        const auto& features = to().svm.features;
        const auto there = features ? known(std::optional{nested::has(*features, feature)}) : Known::unknown;
        return if_known(negation(there), Needs::guest_cpuid, violated(true, name, set));
    }
    /// An intercept that 7.x drops where the guest's CPUID has not the instruction.
    constexpr Judgement intercept_kept(svm::Intercept intercept, Feature instruction,
                                       Name name) const noexcept {
        if (!svm::has((*this)[name], intercept))
            return holds;
        return if_known(negation(to().guest[instruction]), Needs::guest_cpuid,
                        violated(true, name, svm::mask(intercept)));
    }
    /// L2 has a PAT of its own: from 7.x on, with the quirk disabled.
    constexpr Known own_pat() const noexcept {
        const auto disabled =
            !to().disabled_quirks
                ? Known::unknown
                : known(std::optional{(*to().disabled_quirks & quirk::nested_svm_shared_pat) != 0});
        return both(both(from_7.in(to().kernel), disabled), nested_paging());
    }
    constexpr Needs own_pat_needs() const noexcept {
        return !to().kernel ? Needs::kernel : !to().disabled_quirks ? Needs::quirks : Needs::guest_cpuid;
    }

  private:
    uapi::SvmHeader svm_;
};

} // namespace kvm::nested

namespace kvm::nested::detail {

inline constexpr auto svm_rules_after_the_common_ones = std::to_array<Rule<SvmCase>>({
    {.id = "S1",
     .holds = "the format is 1, SVM",
     .fields = "format",
     .needs = Needs::vendor,
     .cause = Errc::unknown_format,
     .advice = "a state goes only to a host of its own vendor",
     .is_last = true,
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(c.header().format != Svm::format, header_offset("format"));
         }},
    {.id = "S2",
     .holds = "no flag of VMX is set",
     .fields = "flags",
     .cause = Errc::flags_of_other_vendor,
     .judge =
         [](const SvmCase& c) noexcept {
             const auto surplus =
                 c.header().flags & (uapi::state_flag::evmcs | uapi::state_flag::mtf_pending);
             return c.violated(surplus != 0, header_offset("flags"), static_cast<std::uint64_t>(surplus));
         }},
    {.id = "S3",
     .holds = "with EFER.SVME clear the only flag is GIF_SET, which 7.x does not ask for",
     .fields = "flags",
     .needs = Needs::registers | Needs::kernel,
     .manual = "15.4",
     .advice = "KVM_SET_SREGS2, which brings EFER.SVME, comes before; without SVME set the flags to GIF_SET",
     .judge =
         [](const SvmCase& c) noexcept {
             const auto flags = c.header().flags;
             if (flags == uapi::state_flag::gif_set)
                 return holds;
             const auto without_svme =
                 c.to().efer ? known(std::optional{!has(*c.to().efer, Efer::svme)}) : Known::unknown;
             const auto judgement =
                 if_known(without_svme, Needs::registers, c.violated(true, header_offset("flags")));
             return flags != 0 ? judgement
                               : if_known(negation(from_7.in(c.to().kernel)), Needs::kernel, judgement);
         }},
    {.id = "S4",
     .holds = "in SMM L2 is not active",
     .fields = "flags",
     .needs = Needs::smm,
     .reached = Reached::l2_active,
     .advice = "the state was saved outside SMM: KVM_SET_VCPU_EVENTS, which decides SMM, comes before",
     .judge =
         [](const SvmCase& c) noexcept {
             return if_known(known(c.to().smm), Needs::smm,
                             c.violated(true, header_offset("flags"), uapi::state_flag::guest_mode));
         }},
    {.id = "S6",
     .holds = "the VMCB is page-aligned and below 2^MAXPHYADDR",
     .fields = "hdr.svm.vmcb_pa",
     .needs = Needs::maxphyaddr,
     .reached = Reached::l2_active,
     .manual = "15.5.1",
     .cause = Errc::bad_vmcb12_address,
     .judge =
         [](const SvmCase& c) noexcept {
             return c.address(c.svm().vmcb12_pa, uapi::page_size, 1, header_offset("hdr.svm.vmcb_pa"));
         }},
    {.id = "S7",
     .holds = "the size has room for a VMCB: 4224",
     .fields = "size",
     .reached = Reached::l2_active,
     .cause = Errc::payload_missing,
     .advice = "the state was cut off",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(c.header().size < Svm::capacity, header_offset("size"));
         }},
    {.id = "S8",
     .holds = "the VMCB can be read",
     .fields = "size",
     .needs = Needs::caller_memory,
     .reached = Reached::l2_active,
     .answer = Answer::efault,
     .advice = "the buffer ends before the VMCB does",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.header().size >= Svm::capacity && c.given() < c.size_with_vmcb12
                        ? c.unknown(Needs::caller_memory, header_offset("size"))
                        : holds;
         }},
    {.id = "S9",
     .holds = "VMRUN is intercepted",
     .fields = "intercepts[4]",
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .cause = Errc::vmrun_not_intercepted,
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(!has(c["intercepts[4]"], svm::Intercept::vmrun), "intercepts[4]",
                               mask(svm::Intercept::vmrun));
         }},
    {.id = "S10",
     .holds = "the ASID is not 0",
     .fields = "asid",
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .cause = Errc::asid_zero,
     .judge = [](const SvmCase& c) noexcept { return c.violated(c["asid"] == 0, "asid"); }},
    {.id = "S11",
     .holds = "nested paging needs a host with it (npt=1)",
     .fields = "misc_ctl",
     .needs = Needs::nested_paging,
     .reached = Reached::vmcb12,
     .applies = up_to_6_12,
     .manual = "15.25",
     .judge =
         [](const SvmCase& c) noexcept {
             if (!has(c["misc_ctl"], svm::MiscCtl::np_enable))
                 return holds;
             return if_known(negation(known(c.to().nested_paging)), Needs::nested_paging,
                             c.violated(true, "misc_ctl", mask(svm::MiscCtl::np_enable)));
         }},
    {.id = "S12",
     .holds = "with nested paging its CR3 lies below 2^MAXPHYADDR",
     .fields = "nested_cr3, misc_ctl",
     .needs = Needs::maxphyaddr | Needs::guest_cpuid | Needs::kernel,
     .reached = Reached::vmcb12,
     .manual = "15.25.3",
     .judge =
         [](const SvmCase& c) noexcept {
             return if_known(c.nested_paging(), c.to().kernel ? Needs::guest_cpuid : Needs::kernel,
                             c.address(c["nested_cr3"], 1, 1, c.offset("nested_cr3")));
         }},
    {.id = "S13",
     .holds = "the bitmaps of MSRs and of I/O lie below 2^MAXPHYADDR",
     .fields = "msrpm_base_pa, iopm_base_pa",
     .needs = Needs::maxphyaddr,
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge =
         [](const SvmCase& c) noexcept {
             constexpr std::uint64_t msr_bitmap = 2 * uapi::page_size, io_bitmap = 3 * uapi::page_size;
             return all(c.bitmap("msrpm_base_pa", msr_bitmap), c.bitmap("iopm_base_pa", io_bitmap));
         }},
    {.id = "S14",
     .holds = "virtual NMIs need the NMI intercept",
     .fields = "int_ctl, intercepts[3]",
     .reached = Reached::vmcb12,
     .applies = from_6_12,
     .manual = "15.21.10",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(has(c["int_ctl"], svm::IntCtl::v_nmi_enable)
                                   && !has(c["intercepts[3]"], svm::Intercept::nmi),
                               "intercepts[3]", mask(svm::Intercept::nmi));
         }},
    {.id = "S15",
     .holds =
         "the event to inject is an interrupt, an NMI, software's, or an exception that the guest can have",
     .fields = "event_inj",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .applies = from_7,
     .manual = "15.20",
     .judge =
         [](const SvmCase& c) noexcept {
             const auto event = c["event_inj"];
             if (!has(event, svm::Event::valid))
                 return holds;
             const auto type = event >> 8 & 7, vector = event & 0xff;
             constexpr unsigned interrupt = 0, nmi = 2, exception = 3, software = 4;
             if (type != interrupt && type != nmi && type != exception && type != software)
                 return c.violated(true, "event_inj", 0x700);
             if (type != exception)
                 return holds;
             // 0, 1, 3 to 8, 10 to 14, 16 to 19, 28, 30; #CP and #VC with their features.
             constexpr std::uint32_t defined = 0x500f'7dfb;
             constexpr unsigned control_protection = 21, vmm_communication = 29;
             if (vector == control_protection)
                 return if_known(negation(c.to().guest[Feature::shstk]), Needs::guest_cpuid,
                                 c.violated(true, "event_inj", 0xff));
             if (vector == vmm_communication)
                 return if_known(negation(c.to().guest[Feature::sev_es]), Needs::guest_cpuid,
                                 c.violated(true, "event_inj", 0xff));
             return c.violated(vector > 31 || (defined >> vector & 1) == 0, "event_inj", 0xff);
         }},
    {.id = "S16",
     .holds = "the vCPU's own CR0, which is L2's, has not NW without CD",
     .needs = Needs::registers,
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .advice = "KVM_SET_SREGS2 with L2's CR0 comes before",
     .judge =
         [](const SvmCase& c) noexcept {
             if (!c.to().cr0)
                 return c.unknown(Needs::registers, 0);
             return c.violated(has(*c.to().cr0, Cr0::nw) && !has(*c.to().cr0, Cr0::cd), 0);
         }},
    {.id = "S17",
     .holds = "L1's CR0 has PG and PE",
     .fields = "cr0",
     .reached = Reached::vmcb12,
     .judge =
         [](const SvmCase& c) noexcept {
             const auto missing = ~c["cr0"] & mask(Cr0::pg, Cr0::pe);
             return c.violated(missing != 0, "cr0", missing);
         }},
    {.id = "S18",
     .holds = "L1's RFLAGS has no VM",
     .fields = "rflags",
     .reached = Reached::vmcb12,
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(has(c["rflags"], Rflags::vm), "rflags", mask(Rflags::vm));
         }},
    {.id = "S19",
     .holds = "L1's EFER.LMA needs LME",
     .fields = "efer",
     .reached = Reached::vmcb12,
     .applies = from_7_3_and_6_12_118,
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(has(c["efer"], Efer::lma) && !has(c["efer"], Efer::lme), "efer",
                               mask(Efer::lme));
         }},
    {.id = "S20",
     .holds = "L1's EFER has SVME",
     .fields = "efer",
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.violated(!has(c["efer"], Efer::svme), "efer", mask(Efer::svme));
         }},
    {.id = "S21",
     .holds = "L1's CR0 has not NW without CD, nor any of bits 63:32",
     .fields = "cr0",
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge =
         [](const SvmCase& c) noexcept {
             const auto cr0 = c["cr0"];
             constexpr std::uint64_t high = ~std::uint64_t{0xffff'ffff};
             return all(c.violated(has(cr0, Cr0::nw) && !has(cr0, Cr0::cd), "cr0", mask(Cr0::nw)),
                        c.violated((cr0 & high) != 0, "cr0", cr0 & high));
         }},
    {.id = "S22",
     .holds = "bits 63:32 of L1's DR6 and DR7 are 0",
     .fields = "dr6, dr7",
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge =
         [](const SvmCase& c) noexcept {
             return all(c.violated(c["dr6"] >> 32 != 0, "dr6"), c.violated(c["dr7"] >> 32 != 0, "dr7"));
         }},
    {.id = "S23",
     .holds = "L1 in long mode has CR4.PAE, CR0.PE, a CR3 below 2^MAXPHYADDR and not both CS.L and CS.D",
     .fields = "cr4, cr0, cr3, cs.attrib",
     .needs = Needs::maxphyaddr | Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge =
         [](const SvmCase& c) noexcept {
             if (!has(c["efer"], Efer::lme) || !has(c["cr0"], Cr0::pg))
                 return holds;
             const auto both_sizes = mask(svm::Attribute::l, svm::Attribute::db);
             return all(c.violated(!has(c["cr4"], Cr4::pae), "cr4", mask(Cr4::pae)),
                        c.violated(!has(c["cr0"], Cr0::pe), "cr0", mask(Cr0::pe)),
                        c.legal_cr3(c["cr3"], c.offset("cr3")),
                        c.violated((c["cs.attrib"] & both_sizes) == both_sizes, "cs.attrib", both_sizes));
         }},
    {.id = "S24",
     .holds = "L1's CR4 has no bit that the vCPU lacks",
     .fields = "cr4",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge = [](const SvmCase& c) noexcept { return c.reserved_cr4(c["cr4"], c.offset("cr4")); }},
    {.id = "S25",
     .holds = "L1's EFER has no bit that the vCPU lacks",
     .fields = "efer",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::vmcb12,
     .manual = "15.5.1",
     .judge = [](const SvmCase& c) noexcept { return c.efer(c["efer"], c.offset("efer")); }},
    {.id = "S26",
     .holds = "where L2 has a PAT of its own, it has memory types in each byte",
     .fields = "hdr.svm.gpat, misc_ctl",
     .needs = Needs::quirks | Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .applies = from_7,
     .manual = "15.25.8",
     .judge =
         [](const SvmCase& c) noexcept {
             if (c.is_valid_pat(c.svm().gpat))
                 return holds;
             const auto own =
                 !c.to().disabled_quirks
                     ? Known::unknown
                     : known(std::optional{(*c.to().disabled_quirks & quirk::nested_svm_shared_pat) != 0});
             return if_known(both(own, c.nested_paging()),
                             c.to().disabled_quirks ? Needs::guest_cpuid : Needs::quirks,
                             c.violated(true, header_offset("hdr.svm.gpat")));
         }},
    {.id = "S27",
     .holds = "the vCPU's own CR3, which is L2's, lies below 2^MAXPHYADDR",
     .needs = Needs::registers | Needs::maxphyaddr,
     .reached = Reached::vmcb12,
     .keeps = Keeps::l2_active,
     .advice = "KVM_SET_SREGS2 with L2's CR3 comes before",
     .judge =
         [](const SvmCase& c) noexcept {
             if (!c.to().cr3)
                 return c.unknown(Needs::registers, 0);
             return c.legal_cr3(*c.to().cr3, 0);
         }},
    // --- taken, and not all of it used
    {.id = "M7",
     .holds = "nested paging is used: from 7.x on the guest's CPUID has it",
     .fields = "misc_ctl",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .applies = from_7,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.25",
     .advice = "KVM drops NP_ENABLE and L2 runs with the wrong page tables: give the guest NPT",
     .judge =
         [](const SvmCase& c) noexcept {
             if (!has(c["misc_ctl"], svm::MiscCtl::np_enable))
                 return holds;
             return if_known(negation(c.to().guest[Feature::npt]), Needs::guest_cpuid,
                             c.violated(true, "misc_ctl", mask(svm::MiscCtl::np_enable)));
         }},
    {.id = "M8",
     .holds = "guest-mode execute trap is used: the guest's CPUID and KVM have it",
     .fields = "misc_ctl",
     .needs = Needs::guest_cpuid | Needs::host_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .judge =
         [](const SvmCase& c) noexcept {
             if (!has(c["misc_ctl"], svm::MiscCtl::gmet))
                 return holds;
             const auto offered = both(c.to().guest[Feature::gmet], c.to().host[Feature::gmet]);
             return if_known(negation(both(from_7.in(c.to().kernel), offered)),
                             c.to().kernel ? Needs::guest_cpuid : Needs::kernel,
                             c.violated(true, "misc_ctl", mask(svm::MiscCtl::gmet)));
         }},
    {.id = "M9",
     .holds = "virtual GIF is used: the guest's CPUID has it",
     .fields = "int_ctl",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.33",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.used_with(svm::Feature::virtual_gif, "int_ctl", mask(svm::IntCtl::v_gif_enable));
         }},
    {.id = "M10",
     .holds = "virtual NMIs are used: the guest's CPUID has them",
     .fields = "int_ctl",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.21.10",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.used_with(svm::Feature::virtual_nmi, "int_ctl", mask(svm::IntCtl::v_nmi_enable));
         }},
    {.id = "M11",
     .holds = "LBR virtualization is used: the guest's CPUID has it",
     .fields = "misc_ctl2",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.23",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.used_with(svm::Feature::lbr_virtualization, "misc_ctl2",
                                mask(svm::MiscCtl2::lbr_virtualization));
         }},
    {.id = "M12",
     .holds = "virtualized VMLOAD and VMSAVE are used: the guest's CPUID has them",
     .fields = "misc_ctl2",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.33.1",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.used_with(svm::Feature::virtualized_vmload_and_vmsave, "misc_ctl2",
                                mask(svm::MiscCtl2::virtualized_vmload_and_vmsave));
         }},
    {.id = "M13",
     .holds = "the PAUSE filter's count and threshold are used: the guest's CPUID has them",
     .fields = "pause_filter_count, pause_filter_thresh",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.14.4",
     .judge =
         [](const SvmCase& c) noexcept {
             constexpr std::uint64_t whole = 0xffff;
             return all(c.used_with(svm::Feature::pause_intercept_filter, "pause_filter_count", whole),
                        c.used_with(svm::Feature::pause_filter_threshold, "pause_filter_thresh", whole));
         }},
    {.id = "M14",
     .holds = "the next RIP of an event of software is used: the guest's CPUID has NRIPS",
     .fields = "next_rip, event_inj, flags",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.7.1",
     .judge =
         [](const SvmCase& c) noexcept {
             const auto event = c["event_inj"];
             const auto type = event >> 8 & 7, vector = event & 0xff;
             constexpr unsigned exception = 3, software = 4, breakpoint = 3, overflow = 4;
             const bool of_software =
                 type == software || (type == exception && (vector == breakpoint || vector == overflow));
             if (!has(event, svm::Event::valid) || !of_software || !c.has(uapi::state_flag::run_pending))
                 return holds;
             return c.used_with(svm::Feature::next_rip_saved, "next_rip", ~std::uint64_t{0});
         }},
    {.id = "M15",
     .holds = "from 7.x on the guest's CPUID has the instructions that L1 intercepts",
     .fields = "intercepts[4], intercepts[5]",
     .needs = Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .applies = from_7,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .advice = "KVM drops these intercepts: L2 gets #UD where L1 expects an exit",
     .judge =
         [](const SvmCase& c) noexcept {
             using enum svm::Intercept;
             return all(c.intercept_kept(xsetbv, Feature::xsave, "intercepts[4]"),
                        c.intercept_kept(rdtscp, Feature::rdtscp, "intercepts[4]"),
                        c.intercept_kept(skinit, Feature::skinit, "intercepts[4]"),
                        c.intercept_kept(rdpru, Feature::rdpru, "intercepts[4]"),
                        c.intercept_kept(invpcid, Feature::invpcid, "intercepts[5]"));
         }},
    {.id = "M16",
     .holds = "a PAT of L2's own is used: from 7.x on, with nested paging and the quirk disabled",
     .fields = "hdr.svm.gpat",
     .needs = Needs::kernel | Needs::quirks | Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.25.8",
     .advice = "L2 gets L1's PAT: disable KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT there, too",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.svm().gpat == 0 ? holds
                                      : if_known(negation(c.own_pat()), c.own_pat_needs(),
                                                 c.violated(true, header_offset("hdr.svm.gpat")));
         }},
    {.id = "M17",
     .holds = "where L2 has a PAT of its own, the state has it",
     .fields = "hdr.svm.gpat",
     .needs = Needs::kernel | Needs::quirks | Needs::guest_cpuid,
     .reached = Reached::vmcb12,
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .keeps = Keeps::l2_active,
     .manual = "15.25.8",
     .advice = "0 makes all of L2's memory uncached: the state is of a vCPU that shared L1's PAT",
     .judge =
         [](const SvmCase& c) noexcept {
             return c.svm().gpat != 0 ? holds
                                      : if_known(c.own_pat(), c.own_pat_needs(),
                                                 c.violated(true, header_offset("hdr.svm.gpat")));
         }},
    {.id = "M18",
     .holds = "a state without L2 has no VMCB, neither its bytes nor its address",
     .fields = "hdr.svm.vmcb_pa, size, flags",
     .certainty = Certainty::silent,
     .answer = Answer::success,
     .advice = "KVM takes the GIF alone",
     .judge =
         [](const SvmCase& c) noexcept {
             if (c.has(uapi::state_flag::guest_mode))
                 return holds;
             return all(c.violated(c.svm().vmcb12_pa != 0, header_offset("hdr.svm.vmcb_pa")),
                        c.violated(c.header().size > uapi::header_size, header_offset("size")));
         }},
});

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All rules of SVM in the kernel's order.
inline constexpr auto svm_rules =
    detail::joined(detail::common_rules<SvmCase>, detail::svm_rules_after_the_common_ones);

} // namespace kvm::nested
