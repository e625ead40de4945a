// SPDX-License-Identifier: MIT
//
// That what L1 wrote into its VMCS is what we print. L1 knows fields by their encodings, KVM has its own
// table of their places, and we have ours: here the two tables meet, field by field, in both directions.
#include "scenarios.hpp"

#include "support/capture.hpp"
#include "support/printed.hpp"

TEST_SUITE_BEGIN("vmx");

namespace {

using kvm::nested::Field;
using kvm::nested::FieldGroup;
using lab::must;

// --- the guest and its list

/// vmx_fields.S: PORT_PHASE.
namespace at {
constexpr std::uint32_t nothing_written = 1, written = 2, read = 3, l2_written = 4, l2_read = 5, l2 = 6,
                        exited = 7, exited_read = 8;
}

/// vmx_fields.S: ROW_*.
struct Row {
    std::uint32_t encoding;
    std::uint32_t outcome = 0;
    std::uint64_t value = 0;
};
static_assert(sizeof(Row) == 16);

/// VM-instruction errors (Intel SDM Vol. 3, 31.4).
constexpr std::uint32_t succeeded = 0, unsupported_component = 12, read_only_component = 13;

/// vmx_fields.S: FIELD_LIST.
constexpr std::size_t list_address = 0x20000, rows_address = list_address + 16;

void give_list(const machine::Machine& machine, std::span<const Row> rows) {
    lab::store<std::uint64_t>(machine.memory(), list_address, rows.size());
    std::ranges::copy(std::as_bytes(rows), machine.memory().subspan(rows_address).begin());
}

std::vector<Row> taken_list(const machine::Machine& machine) {
    std::vector<Row> rows(lab::load<std::uint64_t>(machine.memory(), list_address));
    const auto bytes = std::as_writable_bytes(std::span{rows});
    std::ranges::copy(machine.memory().subspan(rows_address, bytes.size()), bytes.begin());
    return rows;
}

machine::Machine guest_at(guests::Image image, std::uint32_t phase) {
    auto machine = must(machine::Machine::create());
    must(guests::start(machine, image, {.flags = guests::nested_paging}));
    lab::run_to(machine, phase);
    return machine;
}

lab::vmx::State state_of(const machine::Machine& machine) {
    return must(lab::vmx::nested(machine).nested_state());
}

kvm::nested::Vmcs12Fields fields_of(const lab::vmx::State& state) {
    if (state.bytes().size() < lab::vmx::state_size)
        lab::give_up("the state has no vmcs12");
    return kvm::nested::Vmcs12Fields{
        state.bytes().subspan(lab::header_size).first<kvm::nested::uapi::page_size>()};
}

// --- fields and values

/// All that VMREAD and VMWRITE know, the error of the last VMX instruction behind the others: whatever fails
/// writes into it.
std::vector<const Field*> vmcs_fields() {
    std::vector<const Field*> fields;
    for (const auto& field : kvm::nested::vmcs12_fields)
        if (field.encoding != kvm::nested::no_encoding)
            fields.push_back(&field);
    std::ranges::stable_partition(fields,
                                  [](const Field* field) { return field->name != "vm_instruction_error"; });
    return fields;
}

bool is_access_rights(const Field& field) {
    return field.bit_layout == &kvm::nested::bit_layout::vmx_access_rights;
}

/// A value that shows which field it belongs to, in each 16 bits of it, and which 16 bits these are. What
/// access rights have no meaning for, KVM drops, as some processors do: bits 11:8 and 31:17.
std::uint64_t distinct(const Field& field) {
    const auto index = static_cast<std::uint64_t>(&field - kvm::nested::vmcs12_fields.data());
    std::uint64_t value = 0;
    for (unsigned part = 0; part < field.size / 2u; ++part)
        value |= (0x4000 | part << 8 | index) << 16 * part;
    return is_access_rights(field) ? value & 0x1f0ff : value;
}

// --- an L2

std::uint64_t canonical(std::uint64_t value) {
    return value & 0x7fff'ffff'ffff;
}

/// What L1 gives an L2 that has to start: as distinct as VM entry allows (Intel SDM Vol. 3, 27.2 and 27.3).
/// Nothing where L2 needs what vmx_fields.S gives it.
std::optional<std::uint64_t> distinct_for_l2(const Field& field) {
    static constexpr std::string_view left[] = {"pin_based_vm_exec_control",
                                                "cpu_based_vm_exec_control",
                                                "secondary_vm_exec_control",
                                                "vm_exit_controls",
                                                "vm_entry_controls",
                                                "cr3_target_count",
                                                "vm_exit_msr_store_count",
                                                "vm_exit_msr_load_count",
                                                "vm_entry_msr_load_count",
                                                "vm_entry_intr_info_field",
                                                "ept_pointer",
                                                "vmcs_link_pointer",
                                                "guest_cr4",
                                                "host_cr4",
                                                "guest_rip",
                                                "host_rip",
                                                "guest_pending_dbg_exceptions",
                                                "guest_interruptibility_info",
                                                "guest_activity_state",
                                                "guest_cs_ar_bytes",
                                                "guest_ss_ar_bytes",
                                                "guest_ldtr_ar_bytes",
                                                "guest_tr_ar_bytes"};
    static constexpr std::pair<std::string_view, std::uint64_t> chosen[] = {
        {"io_bitmap_a", 0x1d000}, // pages that are zero: nothing exits
        {"io_bitmap_b", 0x1e000},
        {"msr_bitmap", 0x1f000},
        {"guest_ia32_debugctl", 0x2}, // BTF
        {"guest_ia32_pat", 0x0007'0406'0007'0405},
        {"host_ia32_pat", 0x0007'0406'0007'0401},
        {"guest_ia32_efer", 0x501}, // LMA, LME, SCE
        {"host_ia32_efer", 0xd00},  // NXE, LMA, LME
        {"guest_cr0", 0x8005'0031}, // PG, AM, WP, NE, ET, PE
        {"host_cr0", 0x8001'0031},
        {"guest_cr3", guests::l2_cr3 | 0x18}, // PCD, PWT
        {"host_cr3", guests::l1_cr3 | 0x8},
        {"guest_dr7", 0x700},
        {"guest_rflags", 0x240002},    // ID, AC
        {"guest_es_ar_bytes", 0xc0f3}, // of different privilege levels, and available or not
        {"guest_ds_ar_bytes", 0xc0b3},
        {"guest_fs_ar_bytes", 0xd093},
        {"guest_gs_ar_bytes", 0xd0f3},
        {"host_rsp", guests::l1_stack - 0x100},
    };
    if (std::ranges::contains(left, field.name))
        return std::nullopt;
    for (const auto& [name, value] : chosen)
        if (name == field.name)
            return value;
    const auto value = distinct(field);
    const auto index = static_cast<std::uint64_t>(&field - kvm::nested::vmcs12_fields.data());
    if (field.name.ends_with("_selector"))
        return 0x4000 | index << 3; // RPL and TI are 0
    if (field.name == "guest_tr_limit" || field.name.ends_with("dtr_limit"))
        return value & 0xffff;
    if (field.name.ends_with("_limit"))
        return value | 0xfff; // counted in pages
    if (field.name.ends_with("_base"))
        return field.name == "guest_es_base" || field.name == "guest_cs_base" || field.name == "guest_ss_base"
                       || field.name == "guest_ds_base"
                   ? value & 0xffff'ffff
                   : canonical(value);
    if (field.name == "guest_rsp" || field.name.contains("sysenter_e"))
        return canonical(value);
    return value;
}

// --- what L1 may do

bool may_write_any_field(const machine::Machine& machine) {
    return (*lab::vmx::get_msr(machine, lab::vmx::msr::misc) >> 29 & 1) != 0;
}

/// A control without which a field has no use (Intel SDM Vol. 3, appendix B: "this field exists only on
/// processors that support the 1-setting of").
struct Control {
    std::uint32_t capability; ///< MSR
    unsigned bit;
    const char* name;
};

std::optional<Control> control_of(std::string_view field) {
    namespace msr = lab::vmx::msr;
    struct ForFields {
        std::string_view begins; ///< of the names of the fields
        Control control;
    };
    static constexpr ForFields controls[] = {
        {"virtual_processor_id", {msr::secondary, 5, "enable VPID"}},
        {"posted_intr_", {msr::pin, 7, "process posted interrupts"}},
        {"guest_intr_status", {msr::secondary, 9, "virtual-interrupt delivery"}},
        {"eoi_exit_bitmap", {msr::secondary, 9, "virtual-interrupt delivery"}},
        {"guest_pml_index", {msr::secondary, 17, "enable PML"}},
        {"pml_address", {msr::secondary, 17, "enable PML"}},
        {"vm_function_control", {msr::secondary, 13, "enable VM functions"}},
        {"eptp_list_address", {msr::vm_functions, 0, "EPTP switching"}},
        {"ept_pointer", {msr::secondary, 1, "enable EPT"}},
        {"guest_physical_address", {msr::secondary, 1, "enable EPT"}},
        {"guest_pdptr", {msr::secondary, 1, "enable EPT"}},
        {"vmread_bitmap", {msr::secondary, 14, "VMCS shadowing"}},
        {"vmwrite_bitmap", {msr::secondary, 14, "VMCS shadowing"}},
        {"xss_exit_bitmap", {msr::secondary, 20, "enable XSAVES/XRSTORS"}},
        {"encls_exiting_bitmap", {msr::secondary, 15, "enable ENCLS exiting"}},
        {"tsc_multiplier", {msr::secondary, 25, "use TSC scaling"}},
        {"virtual_apic_page_addr", {msr::primary, 21, "use TPR shadow"}},
        {"tpr_threshold", {msr::primary, 21, "use TPR shadow"}},
        {"apic_access_addr", {msr::secondary, 0, "virtualize APIC accesses"}},
        {"vmx_preemption_timer_value", {msr::pin, 6, "activate VMX-preemption timer"}},
        {"guest_ia32_perf_global_ctrl", {msr::entry, 13, "load IA32_PERF_GLOBAL_CTRL"}},
        {"host_ia32_perf_global_ctrl", {msr::exit, 12, "load IA32_PERF_GLOBAL_CTRL"}},
        {"guest_bndcfgs", {msr::entry, 16, "load IA32_BNDCFGS"}},
        {"guest_s_cet", {msr::entry, 20, "load CET state"}},
        {"guest_ssp", {msr::entry, 20, "load CET state"}},
        {"host_s_cet", {msr::exit, 28, "load CET state"}},
        {"host_ssp", {msr::exit, 28, "load CET state"}},
    };
    for (const auto& [begins, control] : controls)
        if (field.starts_with(begins))
            return control;
    return std::nullopt;
}

/// Whether L1 may set it: of a capability of controls the upper half tells.
bool is_offered(const machine::Machine& machine, const Control& control) {
    const auto value = lab::vmx::get_msr(machine, control.capability);
    const bool functions = control.capability == lab::vmx::msr::vm_functions;
    return value && (*value >> (control.bit + (functions ? 0 : 32)) & 1) != 0;
}

/// Checks that a field that is there for a purpose is not refused, and lists one that is.
class Refusals {
  public:
    explicit Refusals(const machine::Machine& machine) : machine_{machine} {}

    void add(const Field& field) {
        const auto control = control_of(field.name);
        CHECK(control); // the processors and kernels that are still in use have all the others
        if (control)
            CHECK_FALSE(is_offered(machine_, *control));
        list_[control ? control->name : "?"] += std::format(" {}", field.name);
    }
    void tell() const {
        for (const auto& [control, names] : list_)
            std::println("note: VMWRITE knows no{}: L1 is not offered \"{}\"", names, control);
    }

  private:
    const machine::Machine& machine_;
    std::map<std::string, std::string> list_;
};

// --- comparing

using lab::Values;

std::string differing(const lab::vmx::State& state, const Values& expected) {
    return lab::differing(state.bytes(), fields_of(state), expected);
}

std::string unexpected_bytes(const lab::vmx::State& state) {
    return lab::bytes_of_no_field(fields_of(state));
}

// --- the life of an L2

std::vector<Row> rows_of_all() {
    std::vector<Row> rows;
    for (const auto* field : vmcs_fields())
        rows.push_back({.encoding = field->encoding});
    return rows;
}

std::vector<Row> rows_for_l2(bool with_read_only) {
    std::vector<Row> rows;
    for (const auto* field : vmcs_fields())
        if (const auto value = distinct_for_l2(*field);
            value && (with_read_only || field->group != FieldGroup::read_only))
            rows.push_back({.encoding = field->encoding, .value = *value});
    return rows;
}

/// What VMREAD has brought.
Values values(const std::vector<Row>& rows) {
    Values values;
    for (const auto& row : rows)
        if (row.outcome == succeeded)
            values[kvm::nested::find_vmcs12_field(row.encoding)->name] = row.value;
    return values;
}

/// What the ioctls of registers say of L2, by the names that the vmcs12 has for it.
Values registers_of_l2(const machine::Machine& machine) {
    kvm_regs regs = {};
    lab::must_ioctl(machine.vcpu_fd(), KVM_GET_REGS, &regs, "KVM_GET_REGS");
    const auto sregs = lab::get_sregs(machine);
    return {
        {"guest_rip", regs.rip},
        {"guest_rsp", regs.rsp},
        {"guest_rflags", regs.rflags},
        {"guest_cr3", sregs.cr3},
        {"guest_gdtr_base", sregs.gdt.base},
        {"guest_gdtr_limit", sregs.gdt.limit},
        {"guest_idtr_base", sregs.idt.base},
        {"guest_idtr_limit", sregs.idt.limit},
        {"guest_es_base", sregs.es.base},
        {"guest_cs_base", sregs.cs.base},
        {"guest_ss_base", sregs.ss.base},
        {"guest_ds_base", sregs.ds.base},
        {"guest_fs_base", sregs.fs.base},
        {"guest_gs_base", sregs.gs.base},
        {"guest_tr_base", sregs.tr.base},
        {"guest_es_limit", sregs.es.limit},
        {"guest_cs_limit", sregs.cs.limit},
        {"guest_ss_limit", sregs.ss.limit},
        {"guest_ds_limit", sregs.ds.limit},
        {"guest_fs_limit", sregs.fs.limit},
        {"guest_gs_limit", sregs.gs.limit},
        {"guest_tr_limit", sregs.tr.limit},
        {"guest_es_selector", sregs.es.selector},
        {"guest_cs_selector", sregs.cs.selector},
        {"guest_ss_selector", sregs.ss.selector},
        {"guest_ds_selector", sregs.ds.selector},
        {"guest_fs_selector", sregs.fs.selector},
        {"guest_gs_selector", sregs.gs.selector},
        {"guest_tr_selector", sregs.tr.selector},
    };
}

Values values(const lab::vmx::State& state) {
    Values values;
    for (const auto [field, value] : fields_of(state))
        if (field->encoding != kvm::nested::no_encoding)
            values[field->name] = value;
    return values;
}

/// vmx_fields in L2, and what L1 had read of its VMCS before that.
struct RunningL2 {
    lab::Vm vm;
    Values given;
};

RunningL2 l2_with_distinct_values(guests::Image image) {
    auto vm = lab::started(image, {.flags = guests::nested_paging});
    const auto& machine = vm.machine;
    lab::run_to(machine, at::read); // the lists are empty so far
    give_list(machine, rows_for_l2(may_write_any_field(machine)));
    lab::run_to(machine, at::l2_written);
    for (const auto& row : taken_list(machine))
        if (row.outcome != succeeded)
            CHECK(row.outcome == unsupported_component);
    give_list(machine, rows_of_all());
    lab::run_to(machine, at::l2_read);
    auto given = values(taken_list(machine));
    CHECK(differing(state_of(machine), given) == "");
    lab::run_to(machine, at::l2);
    lab::complete_io(machine);
    return {std::move(vm), std::move(given)};
}

/// Lets L2 exit. L1 must find in its VMCS what is printed then, and what L2 had when it exited.
void check_left_to_l1(const machine::Machine& machine, const Values& of_l2) {
    lab::run_to(machine, at::exited);
    const auto state = state_of(machine);
    CHECK(state.phase() == kvm::nested::Phase::vmx_current_vmcs);
    CHECK(unexpected_bytes(state) == "");
    give_list(machine, rows_of_all());
    lab::run_to(machine, at::exited_read);
    const auto seen_by_l1 = values(taken_list(machine));
    CHECK(differing(state, seen_by_l1) == "");
    for (const auto& [name, value] : seen_by_l1) {
        if (kvm::nested::find_vmcs12_field(name)->group == FieldGroup::read_only)
            continue;
        CAPTURE(name);
        CHECK(value == of_l2.at(name));
    }
    CHECK(seen_by_l1.at("vm_exit_reason") == 18);         // VMCALL
    CHECK(seen_by_l1.at("vm_exit_instruction_len") == 3); // its length
}

} // namespace

TEST_CASE("what L1 writes with VMWRITE, by encodings, is printed by name, field by field") {
    const auto machine = guest_at(IMAGE(vmx_fields), at::nothing_written);
    const auto before = state_of(machine);
    CHECK(differing(before, {}) == "");
    CHECK(unexpected_bytes(before) == "");

    std::vector<Row> rows;
    for (const auto* field : vmcs_fields())
        rows.push_back({.encoding = field->encoding, .value = distinct(*field)});
    give_list(machine, rows);
    lab::run_to(machine, at::written);

    Refusals refusals{machine};
    std::uint32_t last_error = 0;
    unsigned taken = 0;
    Values expected;
    for (const auto& row : taken_list(machine)) {
        const auto& field = *kvm::nested::find_vmcs12_field(row.encoding);
        CAPTURE(field.name);
        switch (row.outcome) {
        case succeeded:
            CHECK((field.group != FieldGroup::read_only || may_write_any_field(machine)));
            expected[field.name] = row.value;
            ++taken;
            continue;
        case read_only_component:
            CHECK(field.group == FieldGroup::read_only);
            CHECK_FALSE(may_write_any_field(machine));
            break;
        case unsupported_component:
            refusals.add(field);
            break;
        default:
            FAIL_CHECK("VMWRITE fails with ", row.outcome);
        }
        last_error = row.outcome;
    }
    expected.try_emplace("vm_instruction_error", last_error);
    refusals.tell();
    std::println("note: L1 wrote {} of {} fields of its VMCS, {} read-only ones", taken, rows.size(),
                 may_write_any_field(machine) ? "with the" : "without the");

    const auto state = state_of(machine);
    CHECK(state.phase() == kvm::nested::Phase::vmx_current_vmcs);
    CHECK(differing(state, expected) == "");
    CHECK(unexpected_bytes(state) == "");
    lab::capture("current-vmcs-distinct-values", machine);
}

TEST_CASE("what a state has in a field L1 reads there with VMREAD, and KVM has no field that we lack") {
    const auto machine = guest_at(IMAGE(vmx_fields), at::nothing_written);
    auto bytes = lab::read_back(machine.vcpu_fd());
    for (const auto* field : vmcs_fields()) {
        const auto value = distinct(*field);
        std::memcpy(bytes.data() + lab::header_size + field->offset, &value, field->size);
    }
    const auto state = must(lab::vmx::State::parse(bytes));
    must(lab::vmx::nested(machine).set_nested_state(state));
    CHECK(must(lab::vmx::nested(machine).nested_state()) == state);
    lab::run_to(machine, at::written); // the list is empty

    // All encodings that a field could have: type of access, index, type and width; bit 12 is reserved. KVM's
    // largest index is a third of this one.
    constexpr std::uint32_t most_index = 63;
    std::vector<Row> rows;
    for (std::uint32_t width = 0; width < 4; ++width)
        for (std::uint32_t type = 0; type < 4; ++type)
            for (std::uint32_t index_and_access = 0; index_and_access <= 2 * most_index + 1;
                 ++index_and_access)
                rows.push_back({.encoding = width << 13 | type << 10 | index_and_access});
    give_list(machine, rows);
    lab::run_to(machine, at::read);

    Refusals refusals{machine};
    std::string wrong;
    std::uint32_t largest_index = 0;
    std::uint32_t last_error =
        distinct(*kvm::nested::find_vmcs12_field("vm_instruction_error")) & 0xffff'ffff;
    for (const auto& row : taken_list(machine)) {
        const auto* field = kvm::nested::find_vmcs12_field(row.encoding);
        const bool high_half = (row.encoding & 1) != 0;
        if (row.outcome != succeeded) {
            CHECK(row.outcome == unsupported_component);
            if (field != nullptr && !high_half)
                refusals.add(*field);
            last_error = row.outcome;
            continue;
        }
        largest_index = std::max(largest_index, row.encoding >> 1 & 0x1ff);
        if (field == nullptr) {
            wrong += std::format("KVM has a field {:#06x}, and we do not\n", row.encoding);
            continue;
        }
        const auto whole = field->name == "vm_instruction_error" ? last_error : distinct(*field);
        if (const auto value = high_half ? whole >> 32 : whole; row.value != value)
            wrong += std::format("{} (VMCS encoding {:#06x}, offset {}): L1 reads {:#x} instead of {:#x}\n",
                                 field->name, row.encoding, field->offset, row.value, value);
    }
    CHECK(wrong == "");
    CHECK(largest_index == *lab::vmx::get_msr(machine, lab::vmx::msr::vmcs_enum) >> 1);
}

TEST_CASE("while L2 runs, and after its exit, all that L1 gave it is printed, but for what changes then") {
    const auto [vm, given] = l2_with_distinct_values(IMAGE(vmx_fields));
    const auto& machine = vm.machine;
    const auto state = state_of(machine);
    CHECK(state.phase() == kvm::nested::Phase::vmx_l2_active);
    lab::capture("l2-distinct-values", machine);
    auto expected = given;
    for (const auto& [name, value] : registers_of_l2(machine)) {
        CAPTURE(name);
        // vmx_fields.S: L2 has changed these, the others L1 has given it.
        constexpr std::array changed =
            std::to_array<std::string_view>({"guest_rip", "guest_rsp", "guest_gdtr_base", "guest_gdtr_limit",
                                             "guest_idtr_base", "guest_idtr_limit"});
        CHECK((expected[name] != value) == std::ranges::contains(changed, name));
        expected[name] = value;
    }
    // Of whatever exit of L2 had one last: KVM fetches it with the registers.
    expected["guest_linear_address"] = fields_of(state)["guest_linear_address"];
    CHECK(differing(state, expected) == "");
    CHECK(unexpected_bytes(state) == "");
    check_left_to_l1(machine, expected);
}

TEST_CASE("an L2 that moves finds all that L1 gave it, field by field, and L1 after its exit as well") {
    const auto [source, given] = l2_with_distinct_values(IMAGE(vmx_fields));
    const auto before = state_of(source.machine);
    const auto vm = lab::bare_vm();
    lab::restore(vm, lab::save(source));
    const auto after = state_of(vm.machine);
    auto expected = values(before);
    expected["guest_linear_address"] = fields_of(after)["guest_linear_address"];
    CHECK(differing(after, expected) == "");
    check_left_to_l1(vm.machine, expected);
}

TEST_SUITE_END();
