// SPDX-License-Identifier: MIT
//
// That what L1 wrote into its VMCB is what we print, and that the save area is L1's: every field, from a
// guest whose values are all different.
#include "support/svm.hpp"

#include "guests/svm_fields.h"

#include "support/capture.hpp"
#include "support/printed.hpp"

TEST_SUITE_BEGIN("svm");

namespace {

using kvm::nested::Field;
using kvm::nested::FieldGroup;
using kvm::nested::OnSet;
using lab::must;
using lab::Values;

// --- the guest

/// svm_fields.S: PORT_PHASE.
namespace at {
constexpr std::uint32_t about_to_run = 1, l2 = 2, exited = 3;
}

/// What L1 writes into the control area, by names.
Values written_controls() {
    using Value = std::pair<const std::string_view, std::uint64_t>;
#define CONTROL(name, offset, size, value)                                                                   \
    Value {                                                                                                  \
        name, value##u                                                                                       \
    }
#define COMMA ,
    return {SVM_FIELDS(CONTROL, COMMA)};
#undef COMMA
#undef CONTROL
}

kvm::nested::Vmcb12Fields fields_of(const lab::svm::State& state) {
    if (state.bytes().size() < lab::svm::state_size)
        lab::give_up("the state has no VMCB");
    return kvm::nested::Vmcb12Fields{
        state.bytes().subspan(lab::header_size).first<kvm::nested::uapi::page_size>()};
}

const Field& field(std::string_view name) {
    return *kvm::nested::find_vmcb12_field(name);
}

void put(std::span<std::byte> page, const Field& field, std::uint64_t value) {
    std::memcpy(page.subspan(field.offset, field.size).data(), &value, field.size);
}

// --- values

/// A value that shows which field it belongs to, in each 16 bits of it, and which 16 bits these are.
std::uint64_t distinct(const Field& field) {
    const auto index = static_cast<std::uint64_t>(&field - kvm::nested::vmcb12_fields.data());
    if (field.size == 1)
        return 0x80 | index;
    std::uint64_t value = 0;
    for (unsigned part = 0; part < field.size / 2u; ++part)
        value |= (0x4000 | part << 8 | index) << 16 * part;
    return value;
}

/// Of a state that KVM_SET_NESTED_STATE has to take. Nothing where the value has to stay as it is.
std::optional<std::uint64_t> settable(const Field& field) {
    static constexpr std::string_view left[] = {"cs.attrib", "efer", "cr0", "cr4"};
    static constexpr std::pair<std::string_view, std::uint64_t> chosen[] = {
        {"event_inj", 0x8000'0202}, // an NMI
        {"cpl", 3},
        {"cr3", guests::l1_cr3 | 0x18},
        {"dr6", 0xffff'4ff1},
        {"dr7", 0x700},
        {"rflags", 0x240002}, // ID, AC
    };
    if (std::ranges::contains(left, field.name))
        return std::nullopt;
    for (const auto& [name, value] : chosen)
        if (name == field.name)
            return value;
    static const auto controls = written_controls();
    const auto control = controls.find(field.name);
    return control == controls.end() ? distinct(field) : control->second;
}

/// L1's registers under the names that the save area has for them. L1 stands in front of the two instructions
/// that end with VMRUN.
Values registers_of_l1(const machine::Machine& machine) {
    constexpr std::uint64_t length_of_both = 8;
    kvm_regs regs = {};
    lab::must_ioctl(machine.vcpu_fd(), KVM_GET_REGS, &regs, "KVM_GET_REGS");
    kvm_debugregs debug = {};
    lab::must_ioctl(machine.vcpu_fd(), KVM_GET_DEBUGREGS, &debug, "KVM_GET_DEBUGREGS");
    const auto sregs = lab::get_sregs(machine);
    Values values{{"rip", regs.rip + length_of_both},
                  {"rsp", regs.rsp},
                  {"rflags", regs.rflags},
                  {"rax", guests::vmcb12_address},
                  {"cr0", sregs.cr0},
                  {"cr2", sregs.cr2},
                  {"cr3", sregs.cr3},
                  {"cr4", sregs.cr4},
                  {"efer", sregs.efer},
                  {"dr6", debug.dr6},
                  {"dr7", debug.dr7},
                  {"gdtr.limit", sregs.gdt.limit},
                  {"gdtr.base", sregs.gdt.base},
                  {"idtr.limit", sregs.idt.limit},
                  {"idtr.base", sregs.idt.base}};
    const auto segment = [&](const kvm_segment& segment, std::string_view selector, std::string_view attrib,
                             std::string_view limit, std::string_view base) {
        values[selector] = segment.selector;
        values[attrib] = static_cast<std::uint64_t>(segment.type | segment.s << 4 | segment.dpl << 5
                                                    | segment.present << 7 | segment.avl << 8 | segment.l << 9
                                                    | segment.db << 10 | segment.g << 11);
        values[limit] = segment.limit;
        values[base] = segment.base;
    };
    segment(sregs.es, "es.selector", "es.attrib", "es.limit", "es.base");
    segment(sregs.cs, "cs.selector", "cs.attrib", "cs.limit", "cs.base");
    segment(sregs.ss, "ss.selector", "ss.attrib", "ss.limit", "ss.base");
    segment(sregs.ds, "ds.selector", "ds.attrib", "ds.limit", "ds.base");
    segment(sregs.fs, "fs.selector", "fs.attrib", "fs.limit", "fs.base");
    segment(sregs.gs, "gs.selector", "gs.attrib", "gs.limit", "gs.base");
    segment(sregs.ldt, "ldtr.selector", "ldtr.attrib", "ldtr.limit", "ldtr.base");
    segment(sregs.tr, "tr.selector", "tr.attrib", "tr.limit", "tr.base");
    static constexpr std::pair<std::string_view, std::uint32_t> msrs[] = {
        {"star", 0xc0000081},    {"lstar", 0xc0000082},          {"cstar", 0xc0000083},
        {"sfmask", 0xc0000084},  {"kernel_gs_base", 0xc0000102}, {"sysenter_cs", 0x174},
        {"sysenter_esp", 0x175}, {"sysenter_eip", 0x176},        {"g_pat", 0x277},
    };
    for (const auto& [name, index] : msrs)
        values[name] = lab::get_msr(machine, index).value_or(0);
    return values;
}

// --- what a kernel drops

/// Of two words of intercepts, those of instructions that the vCPU's CPUID has not.
struct Masks {
    std::uint64_t word4, word5;
};
Masks intercepts_without_use() {
    const auto has = [](std::uint32_t leaf, std::uint32_t kvm_cpuid_entry2::* reg, unsigned bit) {
        constexpr std::size_t most_entries = 256;
        struct {
            std::uint32_t count = most_entries, padding = 0;
            std::array<kvm_cpuid_entry2, most_entries> entries{};
        } cpuid;
        static const machine::Descriptor system{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
        lab::must_ioctl(system.get(), KVM_GET_SUPPORTED_CPUID, &cpuid, "KVM_GET_SUPPORTED_CPUID");
        for (const auto& entry : std::span{cpuid.entries}.first(cpuid.count))
            if (entry.function == leaf && entry.index == 0)
                return (entry.*reg >> bit & 1) != 0;
        return false;
    };
    using kvm::nested::svm::mask, kvm::nested::svm::Intercept;
    Masks masks{};
    if (!has(0x8000'0001, &kvm_cpuid_entry2::ecx, 12))
        masks.word4 |= mask(Intercept::skinit);
    if (!has(0x8000'0001, &kvm_cpuid_entry2::edx, 27))
        masks.word4 |= mask(Intercept::rdtscp);
    if (!has(1, &kvm_cpuid_entry2::ecx, 26))
        masks.word4 |= mask(Intercept::xsetbv);
    if (!has(0x8000'0008, &kvm_cpuid_entry2::ebx, 4))
        masks.word4 |= mask(Intercept::rdpru);
    if (!has(7, &kvm_cpuid_entry2::ebx, 10))
        masks.word5 |= mask(Intercept::invpcid);
    return masks;
}

/// What this kernel does with bits that mean nothing to it, told from one field.
bool masks_what_it_does_not_know(const kvm::nested::Vmcb12Fields& fields) {
    return fields["int_vector"] == (written_controls().at("int_vector") & 0xff);
}

/// What GET shows of a control area on the kernel at hand.
Values shown_of_controls(const Values& written, const kvm::nested::Vmcb12Fields& fields) {
    Values shown;
    for (const auto& [name, value] : written)
        if (field(name).group == FieldGroup::control)
            shown[name] = field(name).on_set == OnSet::ignores ? 0 : value;
    shown["clean"] = 0;
    if (fields["erap_ctl"] == 0) // of a kernel that does not know the field
        shown["erap_ctl"] = 0;
    if (masks_what_it_does_not_know(fields)) {
        const auto masks = intercepts_without_use();
        shown["intercepts[4]"] &= ~masks.word4;
        shown["intercepts[5]"] &= ~masks.word5;
        shown["int_vector"] &= 0xff;
        shown["int_state"] &= 1;
    }
    return shown;
}

/// What GET shows of a save area that was set: L1's registers, so far as SET restores them.
Values shown_of_save_area(const Values& set, const kvm::nested::Vmcb12Fields& fields) {
    Values shown;
    for (const auto& [name, value] : set) {
        if (field(name).group != FieldGroup::l1_save)
            continue;
        const bool restored =
            field(name).on_set == OnSet::uses || field(name).on_set == OnSet::checks_and_uses;
        shown[name] = restored ? value : fields[field(name)];
    }
    // A kernel that does not know a feature, or not on this processor, keeps its own of all fields of it.
    struct OfFeature {
        std::string_view name, first;
    };
    for (const auto& [name, first] : std::to_array<OfFeature>({
             {"s_cet", "s_cet"},
             {"ssp", "s_cet"},
             {"isst_addr", "s_cet"},
             {"dbgctl", "dbgctl"},
             {"br_from", "dbgctl"},
             {"br_to", "dbgctl"},
             {"last_excp_from", "dbgctl"},
             {"last_excp_to", "dbgctl"},
         }))
        if (fields[field(first)] == 0)
            shown[name] = 0;
    return shown;
}

/// The fields of which something else is shown than was written, but for those that no kernel keeps: "clean
/// int_state".
std::string dropped(const Values& written, const Values& shown) {
    std::string names;
    for (const auto& field : kvm::nested::vmcb12_fields)
        if (const auto value = written.find(field.name);
            value != written.end() && field.on_set != OnSet::ignores && shown.at(field.name) != value->second)
            names += std::format(" {}", field.name);
    return names;
}

} // namespace

TEST_CASE("what L1 writes into its VMCB is printed by name, and the save area has L1's own registers") {
    const auto machine = must(machine::Machine::create());
    must(guests::start(machine, IMAGE(svm_fields), {.flags = guests::nested_paging}));
    lab::run_to(machine, at::about_to_run);
    lab::complete_io(machine);
    const auto written = written_controls();
    for (const auto& field : kvm::nested::vmcb12_fields)
        if (field.group == FieldGroup::control && field.is_number()) {
            CAPTURE(field.name);
            CHECK(written.contains(field.name));
        }
    auto registers = registers_of_l1(machine);

    lab::run_to(machine, at::l2);
    lab::complete_io(machine);
    const auto state = must(lab::svm::nested(machine).nested_state());
    CHECK(state.phase() == kvm::nested::Phase::svm_l2_active);
    const auto fields = fields_of(state);
    auto expected = shown_of_controls(written, fields);
    // L2's by then: its interrupt shadow, and the instruction behind the last #VMEXIT where the processor
    // tells it.
    expected["int_state"] = 0;
    expected["next_rip"] = fields["next_rip"];
    std::println("note: of a VMCB that L1 wrote, this kernel's GET does not show{}",
                 dropped(written, expected));
    // A task state segment that is in use is busy; KVM says so in SREGS, whatever the processor says.
    constexpr std::uint64_t busy = 2;
    if ((fields["tr.attrib"] & busy) == 0)
        registers["tr.attrib"] &= ~busy;
    expected.insert(registers.begin(), registers.end());
    CHECK(lab::differing(state.bytes(), fields, expected) == "");
    CHECK(lab::bytes_of_no_field(fields) == "");
    lab::capture("l2-distinct-values", machine);

    lab::run_to(machine, at::exited);
    lab::complete_io(machine);
    CHECK(must(lab::svm::nested(machine).nested_state()).phase()
          == kvm::nested::Phase::svm_outside_l2_gif_clear);
    for (const auto& [name, value] : registers_of_l1(machine)) {
        CAPTURE(name);
        const auto on_set = field(name).on_set;
        if (name != "rip" && (on_set == OnSet::uses || on_set == OnSet::checks_and_uses))
            CHECK(value == registers[name]);
    }
}

TEST_CASE("what KVM_SET_NESTED_STATE keeps of a VMCB, and what it drops, is what the table of fields says") {
    const auto source = must(lab::svm::nested(lab::svm::shared_l2()).nested_state());
    lab::Bytes bytes{source.bytes().begin(), source.bytes().end()};
    const auto page = std::span{bytes}.subspan(lab::header_size).first<kvm::nested::uapi::page_size>();
    Values set;
    for (const auto& field : kvm::nested::vmcb12_fields) {
        if (!field.is_number())
            std::ranges::fill(page.subspan(field.offset, field.size), std::byte{SVM_FIELDS_JUNK});
        else if (const auto value = settable(field))
            put(page, field, *value);
        if (field.is_number())
            set[field.name] = read(page, field);
    }
    const auto machine = must(machine::Machine::create());
    lab::set_sregs(machine, lab::get_sregs(lab::svm::shared_l2())); // brings EFER.SVME
    const auto vcpu = lab::svm::nested(machine);
    must(vcpu.set_nested_state(must(lab::svm::State::parse(bytes))));

    const auto after = must(vcpu.nested_state());
    const auto fields = fields_of(after);
    auto expected = shown_of_controls(set, fields);
    expected.merge(shown_of_save_area(set, fields));
    std::println("note: of a VMCB that is set, this kernel's GET does not show{}", dropped(set, expected));
    CHECK(lab::differing(after.bytes(), fields, expected) == "");
    CHECK(lab::bytes_of_no_field(fields) == "");
    for (const auto [field, value] : fields) // and of DR6 and DR7 the table's notes say it
        if (field->is_number()
            && (field->on_set == OnSet::ignores || field->name == "dr6" || field->name == "dr7")) {
            CAPTURE(field->name);
            CHECK(value != set[field->name]);
        }
}

TEST_SUITE_END();
