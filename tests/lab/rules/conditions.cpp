// SPDX-License-Identifier: MIT
#include "conditions.hpp"

namespace rules {
namespace {

using kvm::nested::FeatureBit;
using lab::bit;
using lab::store;

bool read_memory(void* context, std::uint64_t address, std::span<std::byte> to) noexcept {
    const auto memory = static_cast<const machine::Machine*>(context)->memory();
    if (address > memory.size() || memory.size() - address < to.size())
        return false;
    std::memcpy(to.data(), memory.data() + address, to.size());
    return true;
}

lab::Bytes with_room(lab::Bytes state) {
    state.resize(room);
    return state;
}

lab::Bytes saved() {
    return with_room(lab::read_back(lab::with_l2_active().vcpu_fd()));
}

// --- VMX

/// All that the vCPU offers, switched on as far as it fits together.
lab::Bytes rich_vmx(const machine::Machine& machine) {
    using namespace lab::vmx;
    constexpr std::uint32_t everything = 0xffff'ffff;
    auto state = built_l2(machine);
    const auto secondary =
        adjusted(machine, msr::secondary, everything)
        & ~(secondary::apic_accesses | secondary::shadow_vmcs | secondary::virtual_interrupts);
    const auto pin = adjusted(machine, msr::pin, everything) & ~pin::posted_interrupts;
    lab::vmx::store(state, field::pin_controls, pin);
    lab::vmx::store(state, field::primary_controls, adjusted(machine, msr::primary, everything));
    lab::vmx::store(state, field::secondary_controls, secondary);
    lab::vmx::store(state, field::exit_controls, adjusted(machine, msr::exit, everything));
    constexpr std::uint32_t to_smm = 3u << 10;
    lab::vmx::store(state, field::entry_controls, adjusted(machine, msr::entry, everything & ~to_smm));
    const std::pair<Field, std::uint64_t> values[] = {
        {field::io_bitmap_a, 0x10000},
        {field::io_bitmap_b, 0x11000},
        {field::msr_bitmap, 0x12000},
        {field::virtual_apic_page_addr, 0x13000},
        {field::apic_access_addr, 0x14000},
        {field::posted_intr_desc_addr, 0x15000},
        {field::pml_address, 0x16000},
        {field::eptp_list_address, 0x17000},
        {field::vmread_bitmap, 0x18000},
        {field::vmwrite_bitmap, 0x19000},
        {field::vm_exit_msr_load_addr, 0x1a000},
        {field::vm_exit_msr_load_count, 1},
        {field::vm_exit_msr_store_addr, 0x1b000},
        {field::vm_exit_msr_store_count, 1},
        {field::vm_entry_msr_load_addr, 0x1c000},
        {field::vm_entry_msr_load_count, 1},
        {field::virtual_processor_id, 1},
        {field::vm_entry_intr_info_field, 0x8000'0b0e}, // #PF with its error code
        {field::vm_function_control, (secondary & secondary::vm_functions) != 0 ? 1 : 0},
    };
    for (const auto& [where, value] : values)
        lab::vmx::store(state, where, value);
    return state;
}

std::vector<lab::Bytes> good_vmx(const machine::Machine& machine) {
    using namespace lab::vmx;
    auto pending = rich_vmx(machine);
    store<std::uint16_t>(pending, lab::flags_at, 3);
    auto current = built_l2(machine);
    store<std::uint16_t>(current, lab::flags_at, 0);
    auto in_smm = current;
    store<std::uint16_t>(in_smm, smm_flags_at, 2);
    auto software = built_l2(machine);
    lab::vmx::store(software, field::vm_entry_intr_info_field, 0x8000'0603); // a software exception, #BP
    lab::vmx::store(software, field::vm_entry_instruction_len, 1);
    lab::Bytes vmxon(lab::header_size), off(lab::header_size);
    for (auto* state : {&vmxon, &off}) {
        store<std::uint32_t>(*state, lab::size_at, lab::header_size);
        store<std::uint64_t>(*state, vmxon_at, state == &vmxon ? vmxon_address : ~0ull);
        store<std::uint64_t>(*state, vmcs12_at, ~0ull);
    }
    std::vector<lab::Bytes> good{rich_vmx(machine),
                                 built_l2(machine),
                                 built_l2_with_shadow(machine),
                                 pending,
                                 software,
                                 saved(),
                                 current,
                                 in_smm,
                                 vmxon,
                                 off};
    for (auto& state : good)
        state.resize(room);
    return good;
}

std::vector<Recipe> recipes_vmx() {
    using enum FeatureBit::Register;
    constexpr std::uint32_t secondary = 0x48b, ept_vpid = 0x48c, misc = 0x485, entry = 0x490, exit = 0x48f,
                            functions = 0x491, primary = 0x48e;
    const auto high = [](unsigned number) { return bit(32 + number); };
    return {
        {.name = "plain"},
        {.name = "64-bit", .long_mode = true},
        {.name = "MAXPHYADDR 36", .maxphyaddr = 36},
        {.name = "MAXPHYADDR 52", .maxphyaddr = 52},
        {.name = "without VMX", .function = 1, .in = ecx, .without = 1u << 5},
        {.name = "without PCID, XSAVE", .function = 1, .in = ecx, .without = 1u << 17 | 1u << 26},
        {.name = "without SMEP, SMAP, FSGSBASE", .function = 7, .in = ebx, .without = 1u << 7 | 1u << 20 | 1},
        {.name = "without UMIP, PKU, LA57",
         .function = 7,
         .in = ecx,
         .without = 1u << 2 | 1u << 3 | 1u << 16},
        {.name = "without NX", .function = 0x8000'0001, .in = edx, .without = 1u << 20},
        {.name = "in SMM", .smm = true},
        {.name = "enlightened VMCS", .enlightened_vmcs = true},
        {.name = "enlightened VMCS, Hyper-V", .enlightened_vmcs = true, .hyperv = true},
        {.name = "FREEZE_IN_SMM refused", .disabled_quirks = kvm::nested::quirk::vmcs12_allow_freeze_in_smm},
        {.name = "without EPT", .narrowed_msr = secondary, .narrowed_bits = high(1)},
        {.name = "without VPID and PML", .narrowed_msr = secondary, .narrowed_bits = high(5) | high(17)},
        {.name = "without unrestricted guest", .narrowed_msr = secondary, .narrowed_bits = high(7)},
        {.name = "without EPT A/D flags", .narrowed_msr = ept_vpid, .narrowed_bits = bit(21)},
        {.name = "without five-level EPT", .narrowed_msr = ept_vpid, .narrowed_bits = bit(7)},
        {.name = "without injection of length 0", .narrowed_msr = misc, .narrowed_bits = bit(30)},
        {.name = "without monitor trap flag", .narrowed_msr = primary, .narrowed_bits = high(27)},
        {.name = "without entry's load PAT", .narrowed_msr = entry, .narrowed_bits = high(14)},
        {.name = "without exit's load EFER", .narrowed_msr = exit, .narrowed_bits = high(21)},
        {.name = "without EPTP switching", .narrowed_msr = functions, .narrowed_bits = bit(0)},
    };
}

// --- SVM

lab::Bytes built_svm(std::uint64_t event) {
    auto state = saved();
    const auto put = [&](std::string_view name, std::uint64_t value) {
        const auto* field = kvm::nested::find_vmcb12_field(name);
        std::memcpy(state.data() + lab::header_size + field->offset, &value, field->size);
    };
    put("event_inj", event);
    return state;
}

std::vector<lab::Bytes> good_svm() {
    lab::Bytes set(lab::header_size), clear(lab::header_size);
    for (auto* state : {&set, &clear}) {
        store<std::uint16_t>(*state, lab::flags_at, state == &set ? 0x100 : 0);
        store<std::uint16_t>(*state, lab::format_at, 1);
        store<std::uint32_t>(*state, lab::size_at, lab::header_size);
    }
    auto pending = built_svm(0x8000'0b0e);
    store<std::uint16_t>(pending, lab::flags_at, 0x103);
    return {saved(), built_svm(0x8000'0b0e), pending, with_room(set), with_room(clear)};
}

std::vector<Recipe> recipes_svm() {
    using enum FeatureBit::Register;
    return {
        {.name = "plain"},
        {.name = "MAXPHYADDR 36", .maxphyaddr = 36},
        {.name = "MAXPHYADDR 52", .maxphyaddr = 52},
        {.name = "EFER.SVME clear", .svme = false},
        {.name = "in SMM", .smm = true},
        {.name = "without NPT", .function = 0x8000'000a, .in = edx, .without = 1},
        {.name = "without SVM's later features",
         .function = 0x8000'000a,
         .in = edx,
         .without = ~std::uint32_t{1}}, // nested paging alone
        {.name = "without FFXSR", .function = 0x8000'0001, .in = edx, .without = 1u << 25},
        {.name = "without PCID, XSAVE", .function = 1, .in = ecx, .without = 1u << 17 | 1u << 26},
        {.name = "without SMEP, SMAP, FSGSBASE", .function = 7, .in = ebx, .without = 1u << 7 | 1u << 20 | 1},
        {.name = "without UMIP, PKU, LA57",
         .function = 7,
         .in = ecx,
         .without = 1u << 2 | 1u << 3 | 1u << 16},
        {.name = "L2 with a PAT of its own", .disabled_quirks = kvm::nested::quirk::nested_svm_shared_pat},
        {.name = "an illegal CR3", .cr3 = bit(45)},
    };
}

// --- both

Condition made(const Recipe& recipe, bool vmx, const kvm::nested::Destination& host) {
    const kvm::vcpu::Requirements requirements{.exception_payload = false,
                                               .triple_fault_event = false,
                                               .disabled_quirks = recipe.disabled_quirks,
                                               .enlightened_vmcs = recipe.enlightened_vmcs};
    Condition condition{.name = std::string{recipe.name},
                        .vm = {lab::must(machine::Machine::create({.supported_cpuid = false})),
                               kvm::vcpu::already_prepared(requirements)},
                        .to = {},
                        .smm = recipe.smm,
                        .good = {},
                        .maxphyaddr = recipe.maxphyaddr};
    const auto& machine = condition.machine();
    lab::set_cpuid(
        machine,
        [&](kvm_cpuid_entry2& entry) {
            if (entry.function == 0x8000'0008)
                entry.eax = (entry.eax & ~0xffu) | recipe.maxphyaddr;
            if (recipe.without != 0 && entry.function == recipe.function && entry.index == 0) {
                auto& word = recipe.in == FeatureBit::Register::eax   ? entry.eax
                             : recipe.in == FeatureBit::Register::ebx ? entry.ebx
                             : recipe.in == FeatureBit::Register::ecx ? entry.ecx
                                                                      : entry.edx;
                word &= ~recipe.without;
            }
        },
        recipe.hyperv);
    if (recipe.disabled_quirks != 0)
        lab::disable_quirk(machine, recipe.disabled_quirks);
    if (vmx) {
        static_cast<void>(lab::set_msr(machine, 0x3a, 5)); // refused without VMX
        if (recipe.enlightened_vmcs)
            lab::vmx::enable_enlightened_vmcs(machine);
        if (recipe.narrowed_msr != 0) {
            const auto value = lab::get_msr(machine, recipe.narrowed_msr);
            if (!value || !lab::set_msr(machine, recipe.narrowed_msr, *value & ~recipe.narrowed_bits))
                lab::give_up(
                    std::format("{}: MSR {:#x} cannot be narrowed", recipe.name, recipe.narrowed_msr));
        }
        if (recipe.long_mode)
            lab::must(machine.start_long_mode(0x9000, 0xf000));
        lab::vmx::place_shadow_vmcs(machine);
        condition.sregs = lab::get_sregs(machine);
        const bool without_vmx = !lab::get_msr(machine, 0x480);
        static const auto usual = lab::vmx::bare_machine();
        condition.good = good_vmx(without_vmx ? usual : machine);
    } else {
        condition.sregs = lab::get_sregs(lab::with_l2_active());
        if (!recipe.svme)
            condition.sregs.efer &= ~bit(12);
        if (recipe.cr3 != 0) {
            const auto fresh = lab::get_sregs(machine); // paging off
            condition.sregs = fresh;
            condition.sregs.efer |= bit(12);
            condition.sregs.cr3 = recipe.cr3;
        }
        lab::set_sregs(machine, condition.sregs);
        condition.good = good_svm();
    }
    if (host.host[kvm::nested::Feature::shstk] == kvm::nested::Known::yes)
        condition.one_regs = lab::must(condition.vm.whole().save()).one_regs;
    condition.reset();
    condition.to = lab::must(condition.vm.whole().capture(host));
    return condition;
}

std::vector<Condition> all_conditions() {
    const machine::Descriptor system{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    const auto host = lab::must(kvm::vcpu::capture_host(kvm::nested::SystemFd{system.get()}));
    const bool vmx = lab::is_vmx();
    std::vector<Condition> all;
    const auto recipes = vmx ? recipes_vmx() : recipes_svm();
    all.reserve(recipes.size()); // each is referred to by its reader of guest memory
    for (const auto& recipe : recipes) {
        all.push_back(made(recipe, vmx, host));
        all.back().to.memory = {read_memory, const_cast<machine::Machine*>(&all.back().machine())};
    }
    return all;
}

} // namespace

const std::vector<Condition>& conditions() {
    static const auto all = all_conditions();
    return all;
}

} // namespace rules
