// SPDX-License-Identifier: MIT
//
// The rules of KVM_SET_NESTED_STATE on SVM, in the order in which KVM asks them (Linux 6.1 to 7.3). Sections
// are those of the AMD APM, Volume 2.
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
    using StateCase::has;
    static constexpr VendorId vendor = VendorId::svm;
    using Name = Vmcb12Fields::Name;

    constexpr SvmCase(const uapi::StateHeader& header, std::span<const std::byte> bytes,
                      const Destination& to) noexcept
        : StateCase{header, bytes, to}, svm_{std::bit_cast<uapi::SvmHeader>(header.vendor)} {}

    constexpr const uapi::SvmHeader& svm() const noexcept { return svm_; }

    constexpr bool reaches(Reached step) const noexcept {
        switch (step) {
        case Reached::always:
            return true;
        case Reached::l2_active:
            return has(uapi::state_flag::guest_mode);
        case Reached::vmcb12:
            return has(uapi::state_flag::guest_mode) && header().size >= Svm::capacity
                   && bytes().size() >= size_with_vmcb12;
        default:
            return false;
        }
    }

    /// What KVM_SET_NESTED_STATE reads: the control area and the save area.
    static constexpr std::size_t size_with_vmcb12 =
        uapi::header_size + uapi::vmcb_control_size + uapi::vmcb_save_size;

    /// A field of the VMCB. Only where Reached::vmcb12 is.
    constexpr std::uint64_t operator[](Name name) const noexcept {
        return read(bytes().subspan(uapi::header_size), name.field());
    }
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

  private:
    uapi::SvmHeader svm_;
};

} // namespace kvm::nested

namespace kvm::nested::detail {

#define KVM_NESTED_JUDGE [](const SvmCase& c) noexcept -> Judgement

inline constexpr auto svm_rules_after_the_common_ones = std::to_array<Rule<SvmCase>>({
    {"S1", "the format is 1, SVM", "format", Needs::vendor, Reached::always, Keeps::unchanged, "",
     KVM_NESTED_JUDGE { return c.in_header(c.header().format != Svm::format, header_offset("format"));
} // namespace kvm::nested::detail
, Certainty::fails, Answer::einval, everywhere, Errc::unknown_format,
    "a state goes only to a host of its own vendor"
}
, {"S2", "no flag of VMX is set", "flags", Needs::bytes, Reached::always, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{const auto surplus =
                        c.header().flags & (uapi::state_flag::evmcs | uapi::state_flag::mtf_pending);
return c.in_header(surplus != 0, header_offset("flags"), static_cast<std::uint64_t>(surplus));
}
, Certainty::fails, Answer::einval, everywhere, Errc::flags_of_other_vendor
}
, {"S3", "with EFER.SVME clear the only flag is GIF_SET, which 7.x does not ask for", "flags",
   Needs::registers | Needs::kernel, Reached::always, Keeps::unchanged, "15.4",
   KVM_NESTED_JUDGE{const auto flags = c.header().flags;
if (flags == uapi::state_flag::gif_set)
    return holds;
const auto without_svme = c.to().efer ? known(std::optional{!has(*c.to().efer, Efer::svme)}) : Known::unknown;
const auto judgement = if_known(without_svme, Needs::registers, c.in_header(true, header_offset("flags")));
return flags != 0 ? judgement : if_known(negation(from_7.in(c.to().kernel)), Needs::kernel, judgement);
}
, Certainty::fails, Answer::einval, everywhere, {},
    "KVM_SET_SREGS2, which brings EFER.SVME, comes before; without SVME set the flags to GIF_SET"
}
, {"S4", "in SMM L2 is not active", "flags", Needs::smm, Reached::l2_active, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{return if_known(known(c.to().smm), Needs::smm,
                                    c.in_header(true, header_offset("flags"), uapi::state_flag::guest_mode));
}
, Certainty::fails, Answer::einval, everywhere, {},
    "the state was saved outside SMM: KVM_SET_VCPU_EVENTS, which decides SMM, comes before"
}
, {"S6", "the VMCB is page-aligned and below 2^MAXPHYADDR", "hdr.svm.vmcb_pa", Needs::maxphyaddr,
   Reached::l2_active, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{return c.address(c.svm().vmcb12_pa, uapi::page_size, 1, header_offset("hdr.svm.vmcb_pa"));
}
, Certainty::fails, Answer::einval, everywhere, Errc::bad_vmcb12_address
}
, {"S7", "the size has room for a VMCB: 4224", "size", Needs::bytes, Reached::l2_active, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{return c.in_header(c.header().size < Svm::capacity, header_offset("size"));
}
, Certainty::fails, Answer::einval, everywhere, Errc::payload_missing, "the state was cut off"
}
, {"S8", "the VMCB can be read", "size", Needs::caller_memory, Reached::l2_active, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{return c.header().size >= Svm::capacity && c.bytes().size() < c.size_with_vmcb12
                               ? c.unknown(Needs::caller_memory, header_offset("size"))
                               : holds;
}
, Certainty::fails, Answer::efault, everywhere, {}, "the buffer ends before the VMCB does"
}
, {"S9", "VMRUN is intercepted", "intercepts[4]", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{return c.violated(!has(c["intercepts[4]"], svm::Intercept::vmrun), "intercepts[4]",
                                      mask(svm::Intercept::vmrun));
}
, Certainty::fails, Answer::einval, everywhere, Errc::vmrun_not_intercepted
}
, {"S10", "the ASID is not 0", "asid", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{return c.violated(c["asid"] == 0, "asid");
}
, Certainty::fails, Answer::einval, everywhere, Errc::asid_zero
}
, {"S11", "nested paging needs a host with it (npt=1)", "misc_ctl", Needs::nested_paging, Reached::vmcb12,
   Keeps::unchanged, "15.25", KVM_NESTED_JUDGE{if (!has(c["misc_ctl"], svm::MiscCtl::np_enable)) return holds;
return if_known(negation(known(c.to().nested_paging)), Needs::nested_paging,
                c.violated(true, "misc_ctl", mask(svm::MiscCtl::np_enable)));
}
, Certainty::fails, Answer::einval, up_to_6_12
}
, {"S12", "with nested paging its CR3 lies below 2^MAXPHYADDR", "nested_cr3, misc_ctl",
   Needs::maxphyaddr | Needs::guest_cpuid | Needs::kernel, Reached::vmcb12, Keeps::unchanged, "15.25.3",
   KVM_NESTED_JUDGE{return if_known(c.nested_paging(), c.to().kernel ? Needs::guest_cpuid : Needs::kernel,
                                    c.address(c["nested_cr3"], 1, 1, c.offset("nested_cr3")));
}
}
, {"S13", "the bitmaps of MSRs and of I/O lie below 2^MAXPHYADDR", "msrpm_base_pa, iopm_base_pa",
   Needs::maxphyaddr, Reached::vmcb12, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{constexpr std::uint64_t msr_bitmap = 2 * uapi::page_size, io_bitmap = 3 * uapi::page_size;
return all(c.bitmap("msrpm_base_pa", msr_bitmap), c.bitmap("iopm_base_pa", io_bitmap));
}
}
, {"S14", "virtual NMIs need the NMI intercept", "int_ctl, intercepts[3]", Needs::bytes, Reached::vmcb12,
   Keeps::unchanged, "15.21.10",
   KVM_NESTED_JUDGE{return c.violated(has(c["int_ctl"], svm::IntCtl::v_nmi_enable)
                                          && !has(c["intercepts[3]"], svm::Intercept::nmi),
                                      "intercepts[3]", mask(svm::Intercept::nmi));
}
, Certainty::fails, Answer::einval, from_6_12
}
, {"S15", "the event to inject is an interrupt, an NMI, software's, or an exception that the guest can have",
   "event_inj", Needs::guest_cpuid, Reached::vmcb12, Keeps::unchanged, "15.20",
   KVM_NESTED_JUDGE{const auto event = c["event_inj"];
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
}
, Certainty::fails, Answer::einval, from_7
}
, {"S16", "the vCPU's own CR0, which is L2's, has not NW without CD", "", Needs::registers, Reached::vmcb12,
   Keeps::unchanged, "15.5.1", KVM_NESTED_JUDGE{if (!c.to().cr0) return c.unknown(Needs::registers, 0);
return SvmCase::StateCase::violated(has(*c.to().cr0, Cr0::nw) && !has(*c.to().cr0, Cr0::cd), 0);
}
, Certainty::fails, Answer::einval, everywhere, {}, "KVM_SET_SREGS2 with L2's CR0 comes before"
}
, {"S17", "L1's CR0 has PG and PE", "cr0", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{const auto missing = ~c["cr0"] & mask(Cr0::pg, Cr0::pe);
return c.violated(missing != 0, "cr0", missing);
}
}
, {"S18", "L1's RFLAGS has no VM", "rflags", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{return c.violated(has(c["rflags"], Rflags::vm), "rflags", mask(Rflags::vm));
}
}
, {"S19", "L1's EFER.LMA needs LME", "efer", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "",
   KVM_NESTED_JUDGE{
       return c.violated(has(c["efer"], Efer::lma) && !has(c["efer"], Efer::lme), "efer", mask(Efer::lme));
}
, Certainty::fails, Answer::einval, from_7_3
}
, {"S20", "L1's EFER has SVME", "efer", Needs::bytes, Reached::vmcb12, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{return c.violated(!has(c["efer"], Efer::svme), "efer", mask(Efer::svme));
}
}
, {"S21", "L1's CR0 has not NW without CD, nor any of bits 63:32", "cr0", Needs::bytes, Reached::vmcb12,
   Keeps::unchanged, "15.5.1", KVM_NESTED_JUDGE{const auto cr0 = c["cr0"];
constexpr std::uint64_t high = ~std::uint64_t{0xffff'ffff};
return all(c.violated(has(cr0, Cr0::nw) && !has(cr0, Cr0::cd), "cr0", mask(Cr0::nw)),
           c.violated((cr0 & high) != 0, "cr0", cr0& high));
}
}
, {"S22", "bits 63:32 of L1's DR6 and DR7 are 0", "dr6, dr7", Needs::bytes, Reached::vmcb12, Keeps::unchanged,
   "15.5.1",
   KVM_NESTED_JUDGE{
       return all(c.violated(c["dr6"] >> 32 != 0, "dr6"), c.violated(c["dr7"] >> 32 != 0, "dr7"));
}
}
, {"S23", "L1 in long mode has CR4.PAE, CR0.PE, a CR3 below 2^MAXPHYADDR and not both CS.L and CS.D",
   "cr4, cr0, cr3, cs.attrib", Needs::maxphyaddr | Needs::guest_cpuid, Reached::vmcb12, Keeps::unchanged,
   "15.5.1", KVM_NESTED_JUDGE{if (!has(c["efer"], Efer::lme) || !has(c["cr0"], Cr0::pg)) return holds;
const auto both_sizes = mask(svm::Attribute::l, svm::Attribute::db);
return all(c.violated(!has(c["cr4"], Cr4::pae), "cr4", mask(Cr4::pae)),
           c.violated(!has(c["cr0"], Cr0::pe), "cr0", mask(Cr0::pe)), c.legal_cr3(c["cr3"], c.offset("cr3")),
           c.violated((c["cs.attrib"] & both_sizes) == both_sizes, "cs.attrib", both_sizes));
}
}
, {"S24", "L1's CR4 has no bit that the vCPU lacks", "cr4", Needs::guest_cpuid | Needs::host_cpuid,
   Reached::vmcb12, Keeps::unchanged, "15.5.1",
   KVM_NESTED_JUDGE{return c.reserved_cr4(c["cr4"], c.offset("cr4"));
}
}
, {"S25", "L1's EFER has no bit that the vCPU lacks", "efer", Needs::guest_cpuid | Needs::host_cpuid,
   Reached::vmcb12, Keeps::unchanged, "15.5.1", KVM_NESTED_JUDGE{return c.efer(c["efer"], c.offset("efer"));
}
}
, {"S26", "where L2 has a PAT of its own, it has memory types in each byte", "hdr.svm.gpat, misc_ctl",
   Needs::quirks | Needs::guest_cpuid, Reached::vmcb12, Keeps::unchanged, "15.25.8",
   KVM_NESTED_JUDGE{if (c.is_valid_pat(c.svm().gpat)) return holds;
const auto own = !c.to().disabled_quirks
                     ? Known::unknown
                     : known(std::optional{(*c.to().disabled_quirks & quirk::nested_svm_shared_pat) != 0});
return if_known(both(own, c.nested_paging()), c.to().disabled_quirks ? Needs::guest_cpuid : Needs::quirks,
                c.in_header(true, header_offset("hdr.svm.gpat")));
}
, Certainty::fails, Answer::einval, from_7
}
, {"S27", "the vCPU's own CR3, which is L2's, lies below 2^MAXPHYADDR", "",
   Needs::registers | Needs::maxphyaddr, Reached::vmcb12, Keeps::l2_active, "",
   KVM_NESTED_JUDGE{if (!c.to().cr3) return c.unknown(Needs::registers, 0);
return c.legal_cr3(*c.to().cr3, 0);
}
, Certainty::fails, Answer::einval, everywhere, {}, "KVM_SET_SREGS2 with L2's CR3 comes before"
}
,
});

#undef KVM_NESTED_JUDGE

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// All rules of SVM in the kernel's order.
inline constexpr auto svm_rules =
    detail::joined(detail::common_rules<SvmCase>, detail::svm_rules_after_the_common_ones);

} // namespace kvm::nested
