// SPDX-License-Identifier: MIT
module;
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
module kvm.nested;

namespace kvm::nested {
namespace {

using detail::Writer;

/// What a vCPU's paging and segmentation amount to.
std::string_view mode(std::uint64_t cr0, bool long_mode, bool cs_l, std::uint64_t rflags) noexcept {
    if (!has(cr0, Cr0::pe))
        return "real mode";
    if (long_mode)
        return cs_l ? "64-bit mode" : "compatibility mode";
    if (has(rflags, Rflags::vm))
        return "virtual-8086 mode";
    return has(cr0, Cr0::pg) ? "protected mode with paging" : "protected mode";
}

/// The summary: a label and what is to be said, a line each.
class Summary {
  public:
    Summary(Writer& out, bool redact) noexcept : out_{out}, redact_{redact} {}

    void operator()(const Empty&) const noexcept {}
    void operator()(const Unrecognised&) const noexcept {}
    void operator()(const vmx::Off&) const noexcept {
        line("L1", "has not executed VMXON, or has executed VMXOFF");
    }
    void operator()(const vmx::VmxonOnly& view) const noexcept {
        vmxon(view);
        line("vmcs12", "none: L1 has loaded no VMCS with VMPTRLD");
    }
    void operator()(const vmx::CurrentVmcs& view) const noexcept {
        vmxon(view);
        current(view);
        line("L1", "runs; KVM has checked nothing of the vmcs12 and will at VMLAUNCH or VMRESUME");
        l2(view.fields());
    }
    void operator()(const vmx::L2Active& view) const noexcept {
        vmxon(view);
        current(view);
        about_to(view);
        l2(view.fields());
        memory(view.fields());
        last_exit(view.fields());
        l1(view.fields());
    }
    void operator()(const vmx::SmmVmxonOnly& view) const noexcept {
        smm("L1 in VMX operation");
        vmxon(view);
        line("vmcs12", "none: L1 has loaded no VMCS with VMPTRLD");
    }
    void operator()(const vmx::SmmCurrentVmcs& view) const noexcept {
        smm("L1 in VMX operation");
        vmxon(view);
        current(view);
        l2(view.fields());
    }
    void operator()(const vmx::SmmInterruptedL2& view) const noexcept {
        smm("L2, to which RSM returns");
        vmxon(view);
        current(view);
        l2(view.fields());
        memory(view.fields());
        last_exit(view.fields());
        l1(view.fields());
    }
    void operator()(const svm::WithGif& view) const noexcept {
        line("L1", "runs, or nesting is unused, or an SMI came from L2: the state does not tell which");
        line("GIF", view.gif() ? "set" : "clear: interrupts, NMIs and SMIs are held off");
    }
    void operator()(const svm::L2Active& view) const noexcept {
        const auto vmcb = view.fields();
        address("vmcb12", view.vmcb12_pa());
        line("GIF", view.gif() ? "set" : "clear: interrupts, NMIs and SMIs are held off");
        about_to(view);
        memory(vmcb);
        intercepts(vmcb);
        last_exit(vmcb);
        l1(vmcb);
        line("L2's registers", "are not in a nested state: KVM_GET_REGS, KVM_GET_SREGS2");
    }

  private:
    static constexpr std::size_t column = 18;

    Writer& label(std::string_view text) const noexcept {
        out_ << "  " << text;
        return out_.at(column);
    }
    void line(std::string_view name, std::string_view text) const noexcept {
        label(name) << text;
        out_.end_line();
    }
    void address(std::string_view name, std::uint64_t address) const noexcept {
        label(name);
        detail::write_address(out_, address, redact_);
        out_.end_line();
    }
    void value(std::string_view before, std::uint64_t value) const noexcept {
        out_ << before;
        if (redact_ && value != 0)
            out_ << "masked";
        else
            out_.hexadecimal(value);
    }
    void explain(const BitLayout& layout, std::uint64_t value, std::string_view before) const noexcept {
        detail::explain(out_, layout, value, redact_, before);
    }

    void vmxon(const vmx::InVmxOperation& view) const noexcept { address("VMXON region", view.vmxon_pa()); }
    void current(const vmx::WithVmcs12& view) const noexcept {
        label("vmcs12");
        if (const auto pa = view.vmcs12_pa())
            detail::write_address(out_, *pa, redact_);
        else
            out_ << "an enlightened VMCS, whose address is in the VP assist page";
        explain(bit_layout::launch_state, view.fields()["launch_state"], ", ");
        out_.end_line();
    }
    void smm(std::string_view what) const noexcept {
        label("SMM") << "the SMI interrupted " << what;
        out_.end_line();
    }

    void event(std::string_view before, const BitLayout& kind, std::uint64_t event,
               std::uint64_t error_code) const noexcept {
        using enum vmx::VectoringEvent; // all four kinds have these bits in one place
        clear(event, valid);            // goes without saying
        explain(kind, event, before);
        if (has(event, error_code_valid))
            (out_ << " ").hexadecimal(error_code);
    }

    void about_to(const vmx::L2Active& view) const noexcept {
        const auto vmcs = view.fields();
        label("L2 is about to");
        if (view.run_pending()) {
            out_ << "begin: VMLAUNCH or VMRESUME was accepted";
            if (const auto info = vmcs["vm_entry_intr_info_field"]; has(info, vmx::EntryEvent::valid))
                event("; to inject: ", bit_layout::entry_event, info, vmcs["vm_entry_exception_error_code"]);
        } else {
            out_ << "go on";
        }
        if (const auto activity = vmcs["guest_activity_state"]; activity != 0)
            explain(bit_layout::activity_state, activity, "; activity state ");
        if (const auto blocking = vmcs["guest_interruptibility_info"]; blocking != 0)
            explain(bit_layout::interruptibility, blocking, "; ");
        if (view.mtf_pending())
            out_ << "; an MTF VM exit is pending";
        if (const auto deadline = view.preemption_timer_deadline())
            value("; preemption timer deadline ", *deadline);
        out_.end_line();
    }
    void about_to(const svm::L2Active& view) const noexcept {
        const auto vmcb = view.fields();
        label("L2 is about to");
        out_ << (view.run_pending() ? "begin: VMRUN was accepted" : "go on");
        if (const auto info = vmcb["event_inj"]; has(info, svm::Event::valid))
            event("; to inject: ", bit_layout::svm_event, info, vmcb["event_inj_err"]);
        if (const auto control = vmcb["int_ctl"]; has(control, svm::IntCtl::v_irq))
            (out_ << "; virtual interrupt ").decimal(vmcb["int_vector"] & 0xff);
        if (const auto shadow = vmcb["int_state"]; shadow != 0)
            explain(bit_layout::int_state, shadow, "; ");
        out_.end_line();
    }

    void l2(const Vmcs12Fields& vmcs) const noexcept {
        const bool long_mode = has(vmcs["vm_entry_controls"], vmx::EntryControl::ia_32e_mode_guest);
        const bool cs_l = has(vmcs["guest_cs_ar_bytes"], vmx::AccessRight::l);
        label("L2") << mode(vmcs["guest_cr0"], long_mode, cs_l, vmcs["guest_rflags"]);
        out_ << ", CPL ";
        out_.decimal(bits(bit_layout::vmx_access_rights, "DPL").of(vmcs["guest_ss_ar_bytes"]));
        value(", RIP ", vmcs["guest_rip"]);
        value(", RSP ", vmcs["guest_rsp"]);
        value(", CR3 ", vmcs["guest_cr3"]);
        out_.end_line();
    }
    void memory(const Vmcs12Fields& vmcs) const noexcept {
        const auto secondary =
            has(vmcs["cpu_based_vm_exec_control"], vmx::Primary::activate_secondary_controls)
                ? vmcs["secondary_vm_exec_control"]
                : 0;
        label("L2's memory");
        if (has(secondary, vmx::Secondary::enable_ept))
            explain(bit_layout::ept_pointer, vmcs["ept_pointer"], "EPT: ");
        else
            out_ << "no EPT: L2's page table maps to L1's memory";
        if (has(secondary, vmx::Secondary::enable_vpid))
            (out_ << "; VPID ").decimal(vmcs["virtual_processor_id"]);
        if (has(secondary, vmx::Secondary::unrestricted_guest))
            out_ << "; unrestricted guest";
        out_.end_line();
    }
    void last_exit(const Vmcs12Fields& vmcs) const noexcept {
        label("last VM exit");
        if (vmcs["vm_exit_reason"] == 0 && vmcs["vm_exit_intr_info"] == 0)
            out_ << "none is recorded";
        else
            explain(bit_layout::exit_reason, vmcs["vm_exit_reason"], "");
        if (const auto event = vmcs["vm_exit_intr_info"]; has(event, vmx::ExitEvent::valid))
            this->event("; ", bit_layout::exit_event, event, vmcs["vm_exit_intr_error_code"]);
        if (const auto event = vmcs["idt_vectoring_info_field"]; has(event, vmx::VectoringEvent::valid))
            this->event("; while delivering: ", bit_layout::vectoring_event, event,
                        vmcs["idt_vectoring_error_code"]);
        if (const auto error = vmcs["vm_instruction_error"]; error != 0)
            explain(bit_layout::vm_instruction_error, error, "; an instruction failed: ");
        out_.end_line();
    }
    void l1(const Vmcs12Fields& vmcs) const noexcept {
        const bool wide = has(vmcs["vm_exit_controls"], vmx::ExitControl::host_address_space_size);
        label("L1") << "goes on at the next VM exit: " << (wide ? "64-bit mode" : "32-bit mode");
        value(", RIP ", vmcs["host_rip"]);
        value(", RSP ", vmcs["host_rsp"]);
        value(", CR3 ", vmcs["host_cr3"]);
        out_.end_line();
    }

    void memory(const Vmcb12Fields& vmcb) const noexcept {
        label("L2's memory");
        if (has(vmcb["misc_ctl"], svm::MiscCtl::np_enable)) {
            out_ << "nested paging, root ";
            detail::write_address(out_, vmcb["nested_cr3"], redact_);
        } else {
            out_ << "no nested paging: L2's page table maps to L1's memory";
        }
        (out_ << "; ASID ").decimal(vmcb["asid"]);
        out_.end_line();
    }
    void intercepts(const Vmcb12Fields& vmcb) const noexcept {
        const auto all = std::popcount(vmcb["intercepts[0]"]) + std::popcount(vmcb["intercepts[1]"])
                         + std::popcount(vmcb["intercepts[2]"]) + std::popcount(vmcb["intercepts[3]"])
                         + std::popcount(vmcb["intercepts[4]"]) + std::popcount(vmcb["intercepts[5]"]);
        label("intercepts").decimal(static_cast<std::uint64_t>(all));
        const auto word3 = vmcb["intercepts[3]"];
        if (has(word3, svm::Intercept::ioio_prot))
            out_ << "; I/O by permission map";
        if (has(word3, svm::Intercept::msr_prot))
            out_ << "; MSRs by permission map";
        if (vmcb["intercepts[2]"] != 0)
            explain(bit_layout::exceptions, vmcb["intercepts[2]"], "; exceptions ");
        out_.end_line();
    }
    void last_exit(const Vmcb12Fields& vmcb) const noexcept {
        label("last #VMEXIT");
        if (vmcb["exit_code"] == 0 && vmcb["exit_info_1"] == 0 && vmcb["exit_info_2"] == 0)
            out_ << "none is recorded";
        else if (find(bit_layout::svm_exit_codes, vmcb["exit_code"]))
            explain(bit_layout::svm_exit_code, vmcb["exit_code"], "");
        else
            value("unknown code ", vmcb["exit_code"]);
        if (const auto event = vmcb["exit_int_info"]; has(event, svm::Event::valid))
            this->event("; while delivering: ", bit_layout::svm_event, event, vmcb["exit_int_info_err"]);
        out_.end_line();
    }
    void l1(const Vmcb12Fields& vmcb) const noexcept {
        const bool long_mode = has(vmcb["efer"], Efer::lma);
        const bool cs_l = has(vmcb["cs.attrib"], svm::Attribute::l);
        label("L1") << "goes on at the next #VMEXIT: " << mode(vmcb["cr0"], long_mode, cs_l, vmcb["rflags"]);
        value(", RIP ", vmcb["rip"]);
        value(", RSP ", vmcb["rsp"]);
        value(", CR3 ", vmcb["cr3"]);
        out_.end_line();
    }

    Writer& out_;
    bool redact_;
};

/// Fields that belong under one heading.
struct Section {
    Part part;
    FieldGroup group;
    bool restored; ///< SVM: whether KVM_SET_NESTED_STATE takes them
    std::string_view heading;
};
constexpr std::array sections = std::to_array<Section>({
    {Part::header, FieldGroup::header, true, "header"},
    {Part::header, FieldGroup::reserved, false, "header: reserved"},
    {Part::vmcs12, FieldGroup::header, true, "vmcs12: what it begins with"},
    {Part::vmcs12, FieldGroup::control, true, "vmcs12: L1's controls over L2"},
    {Part::vmcs12, FieldGroup::l2_guest, true, "vmcs12: L2's state (guest)"},
    {Part::vmcs12, FieldGroup::l1_host, true, "vmcs12: L1's state, for the next VM exit (host)"},
    {Part::vmcs12, FieldGroup::read_only, true, "vmcs12: the last VM exit (read-only)"},
    {Part::vmcs12, FieldGroup::reserved, true, "vmcs12: padding"},
    {Part::vmcs12, FieldGroup::reserved, false, "vmcs12: behind its 998 bytes, which KVM drops"},
    {Part::shadow_vmcs12, FieldGroup::header, true, "shadow vmcs12: what it begins with"},
    {Part::shadow_vmcs12, FieldGroup::control, true, "shadow vmcs12: controls"},
    {Part::shadow_vmcs12, FieldGroup::l2_guest, true, "shadow vmcs12: guest"},
    {Part::shadow_vmcs12, FieldGroup::l1_host, true, "shadow vmcs12: host"},
    {Part::shadow_vmcs12, FieldGroup::read_only, true, "shadow vmcs12: read-only"},
    {Part::shadow_vmcs12, FieldGroup::reserved, true, "shadow vmcs12: padding"},
    {Part::shadow_vmcs12, FieldGroup::reserved, false,
     "shadow vmcs12: behind its 998 bytes, which KVM drops"},
    {Part::vmcb, FieldGroup::control, true, "control area: L1's controls over L2"},
    {Part::vmcb, FieldGroup::control, false, "control area: what KVM drops"},
    {Part::vmcb, FieldGroup::l1_save, true, "save area: L1's state, for the next #VMEXIT; not L2's"},
    {Part::vmcb, FieldGroup::l1_save, false, "save area: what KVM does not restore and may report stale"},
    {Part::vmcb, FieldGroup::reserved, false, "reserved places, which KVM drops"},
});

bool belongs(const Field& field, const PartOfState& part, const Section& section) noexcept {
    return part.part == section.part && field.group == section.group
           && (field.on_set != OnSet::ignores) == section.restored;
}

void write_field(Writer& out, const Field& field, std::span<const std::byte> bytes, bool redact) noexcept {
    constexpr std::size_t names = 11, values = 42, meanings = 62;
    constexpr std::string_view blanks = "                    ";
    static_assert(blanks.size() == meanings - values);
    out << "  ";
    if (field.encoding != no_encoding)
        out.hexadecimal(field.encoding, 4);
    else
        (out << "+").hexadecimal(field.offset, 3);
    out.at(names) << field.name;
    out.at(values);
    detail::write_value(out, field, bytes, redact);
    if (field.is_number())
        detail::explain(out, *field.bit_layout, detail::number_in(bytes), redact,
                        out.column() < meanings ? blanks.substr(0, meanings - out.column()) : " ");
    out.end_line();
}

/// The names of the fields of a section that are zero, in lines of 100 columns.
void write_zeros(Writer& out, const PartOfState& part, const Section& section) noexcept {
    bool first = true;
    for (const auto& field : part.fields) {
        if (!belongs(field, part, section) || !detail::is_zero(part.bytes_of(field)))
            continue;
        out << (first ? "  zero:" : ",");
        first = false;
        if (out.column() + field.name.size() >= 100) {
            out.end_line();
            out << "       ";
        }
        out << " " << field.name;
    }
    if (!first)
        out.end_line();
}

/// What describe_field() says.
void write_everything(Writer& out, const PartOfState& part, const Field& field, bool redact) noexcept {
    out << name(part.part) << " " << field.name << " (" << name(field.group) << ")";
    out.end_line();
    out << "  place";
    (out.at(23) << "offset ").hexadecimal(field.offset, 3) << ", ";
    out.decimal(field.size) << (field.size == 1 ? " byte" : " bytes");
    if (field.encoding != no_encoding) {
        constexpr auto widths =
            std::to_array<std::string_view>({"16-bit", "64-bit", "32-bit", "natural-width"});
        (out << "; VMCS encoding ").hexadecimal(field.encoding, 4)
            << ", " << widths[static_cast<std::size_t>(vmcs_width(field.encoding))];
    }
    out.end_line();
    out << "  KVM_SET_NESTED_STATE";
    out.at(23) << name(field.on_set) << " it";
    if (!field.note.empty())
        out << " (" << field.note << ")";
    out.end_line();
    if (field.first_seen == FirstSeen::linux_7) {
        out << "  since";
        out.at(23) << "Linux 7.x (not in 6.12)";
        out.end_line();
    }
    out << "  value";
    out.at(23);
    detail::write_value(out, field, part.bytes_of(field), redact);
    if (field.is_number())
        detail::explain(out, *field.bit_layout, detail::number_in(part.bytes_of(field)), redact, "  ");
    out.end_line();
}

void write_section(Writer& out, const PartOfState& part, const Section& section,
                   const ReportOptions& options) noexcept {
    std::size_t all = 0, set = 0;
    for (const auto& field : part.fields)
        if (belongs(field, part, section)) {
            ++all;
            set += !detail::is_zero(part.bytes_of(field));
        }
    if (all == 0 || (set == 0 && options.fields != FieldsShown::all))
        return;
    out.end_line();
    out << section.heading << " (";
    out.decimal(set) << " of ";
    out.decimal(all) << " not zero)";
    out.end_line();
    for (const auto& field : part.fields)
        if (belongs(field, part, section) && !detail::is_zero(part.bytes_of(field)))
            write_field(out, field, part.bytes_of(field), options.redact);
    if (options.fields == FieldsShown::all)
        write_zeros(out, part, section);
}

void write_ranges(Writer& out, const NestedStateView& state, bool redact) noexcept {
    std::uint64_t count = 0;
    guest_ranges(state, [&](const GuestRange& range) noexcept {
        if (count++ == 0) {
            out.end_line();
            out << "guest memory that the state refers to";
            out.end_line();
        }
        out << "  ";
        detail::write_address(out, range.address, redact);
        out.at(28).decimal(range.size) << (range.size == 1 ? " byte" : " bytes");
        out.at(40) << name(range.access);
        out.at(58) << name(range.role);
        out.end_line();
    });
}

/// The last line of the summary: what does not belong there, so that nobody has to look for it.
void write_remarks(Writer& out, const NestedStateView& state, const PartsOfState& parts) noexcept {
    std::uint64_t ranges = 0, pages = 0, reserved = 0, undefined = 0;
    guest_ranges(state, [&](const GuestRange& range) noexcept {
        ++ranges;
        pages += range.pages();
    });
    for (const auto& part : parts)
        for (const auto& field : part.fields) {
            const auto bytes = part.bytes_of(field);
            if (field.group == FieldGroup::reserved)
                for (const auto byte : bytes)
                    reserved += byte != std::byte{0};
            else if (field.bit_layout->kind == ValueKind::bits)
                undefined += undefined_bits(*field.bit_layout, detail::number_in(bytes)) != 0;
        }
    if (ranges != 0) {
        out << "  guest memory";
        out.at(18).decimal(pages) << (pages == 1 ? " page in " : " pages in ");
        out.decimal(ranges) << (ranges == 1 ? " range" : " ranges");
        out.end_line();
    }
    if (reserved != 0 || undefined != 0) {
        out << "  unusual";
        out.at(18).decimal(reserved) << (reserved == 1 ? " byte" : " bytes");
        out << " in reserved places not zero; ";
        out.decimal(undefined) << (undefined == 1 ? " field" : " fields") << " with undefined bits";
        out.end_line();
    }
}

void write_first_line(Writer& out, const NestedStateView& state) noexcept {
    const auto size = state.bytes().size();
    if (size < uapi::header_size) {
        out << "no nested state: ";
        out.decimal(size) << " bytes, and the header takes 128";
        out.end_line();
        return;
    }
    const auto vendor = state.vendor();
    out << (vendor ? name(*vendor) : "unknown vendor") << ", ";
    if (const auto& phase = state.recognised())
        out << name(*phase);
    else
        out << "not a state that a vCPU can be in: " << description(phase.error().code) << " ("
            << describe_detail(phase.error().detail_kind, phase.error().detail) << ")";
    (out << ", ").decimal(size) << " bytes";
    out.end_line();
    if (const auto flags = state.header().flags; flags != 0) {
        out << "  flags";
        detail::explain(out.at(17), bit_layout::state_flags, flags, false, " ");
        out.end_line();
    }
}

void write_summary(Writer& out, const NestedStateView& state, const PartsOfState& parts,
                   bool redact) noexcept {
    write_first_line(out, state);
    state.visit(Summary{out, redact});
    write_remarks(out, state, parts);
}

} // namespace

PartsOfState::PartsOfState(const NestedStateView& state) noexcept {
    if (const auto vendor = state.vendor())
        for (const auto& part : parts_of(*vendor))
            if (state.bytes().size() >= part.end())
                parts_[count_++] = {part.part, part.begin,
                                    state.bytes().subspan(part.begin, part.end() - part.begin), part.fields};
}

void describe(const NestedStateView& state, TextSink sink, const ReportOptions& options) noexcept {
    Writer out{sink};
    const PartsOfState parts{state};
    if (options.summary)
        write_summary(out, state, parts, options.redact);
    if (options.fields != FieldsShown::none)
        for (const auto& section : sections)
            for (const auto& part : parts)
                write_section(out, part, section, options);
    if (options.ranges)
        write_ranges(out, state, options.redact);
}

std::size_t describe_field(const NestedStateView& state, std::string_view wanted, TextSink sink,
                           const ReportOptions& options) noexcept {
    Writer out{sink};
    std::size_t found = 0;
    for (const auto& part : PartsOfState{state})
        for (const auto& field : part.fields) {
            if (field.name != wanted)
                continue;
            ++found;
            write_everything(out, part, field, options.redact);
        }
    return found;
}

} // namespace kvm::nested
