// SPDX-License-Identifier: MIT
#include "qemu.hpp"

#include "vmstate.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <format>
#include <optional>
#include <span>
#include <utility>

import kvm.nested;

namespace kvm::tool {

namespace {

/// QEMU_VM_FILE_MAGIC, and version 3, the only one since 2008.
constexpr std::array<unsigned char, 8> beginning{'Q', 'E', 'V', 'M', 0, 0, 0, 3};
constexpr std::size_t magic_size = 4;

constexpr std::string_view report = "report this, with the version of the QEMU that wrote it";

/// The machine's type, which QEMU writes first; nothing where it does not.
std::string machine_of(Bytes stream) {
    constexpr std::byte configuration{0x07};
    constexpr auto header = beginning.size() + 1 + 4;
    if (stream.size() < header || stream[beginning.size()] != configuration)
        return {};
    const auto size = big_endian(stream.subspan(header - 4, 4));
    if (size == 0 || size > std::min<std::size_t>(stream.size() - header, 64))
        return {};
    const auto name = stream.subspan(header, static_cast<std::size_t>(size));
    return printable({reinterpret_cast<const char*>(name.data()), name.size()});
}

// --- the nested state of one vCPU

/// Puts together what QEMU took apart: the header's members are fields, each page is an array of bytes.
class NestedState {
  public:
    NestedState(Bytes stream, const DeviceSection& section) : stream_{stream}, section_{section} {}

    std::expected<FoundState, Trouble> read();

  private:
    /// A field, which must have `size` bytes; nothing where there is none.
    std::optional<Bytes> field(std::string_view name, std::size_t size) {
        const auto found = section_.fields.find(name);
        if (found == section_.fields.end())
            return std::nullopt;
        const auto place = found->second;
        if (place.size != size && !trouble_)
            trouble_ =
                Trouble{.reason = std::format("{} has {} bytes, and should have {}", name, place.size, size),
                        .offset = place.offset,
                        .next_step = std::string{report}};
        return trouble_ ? std::nullopt : std::optional{stream_.subspan(place.offset, place.size)};
    }

    /// To the byte order of the header. One that is not there leaves what is.
    template <class T>
    void number(std::string_view name, std::size_t offset) {
        if (const auto bytes = field(name, sizeof(T))) {
            const auto value = static_cast<T>(big_endian(*bytes));
            std::memcpy(state_.data() + offset, &value, sizeof value);
        }
    }
    bool page(std::string_view name) {
        const auto bytes = field(name, uapi::page_size);
        if (bytes)
            state_.insert(state_.end(), bytes->begin(), bytes->end());
        return bytes.has_value();
    }
    template <class T>
    T header(std::size_t offset) const {
        T value;
        std::memcpy(&value, state_.data() + offset, sizeof value);
        return value;
    }

    void read_svm();
    void read_vmx();
    void note_losses();
    void note_svm_without_state();
    void make_canonical();
    void read_registers(FoundState& found);

    Bytes stream_;
    const DeviceSection& section_;
    std::vector<std::byte> state_;
    std::vector<std::string> notes_;
    std::optional<Trouble> trouble_;
};

// Offsets in the header of a nested state, of which format and size are common to both vendors.
constexpr std::size_t flags_at = header_offset("flags"), format_at = header_offset("format");
constexpr std::size_t size_at = header_offset("size"), vmcb_pa_at = header_offset("hdr.svm.vmcb_pa");
constexpr std::size_t vmxon_pa_at = header_offset("hdr.vmx.vmxon_pa");
constexpr std::size_t vmcs12_pa_at = header_offset("hdr.vmx.vmcs12_pa");
constexpr std::size_t smm_flags_at = header_offset("hdr.vmx.smm.flags");

std::expected<FoundState, Trouble> NestedState::read() {
    FoundState found{.vcpu = static_cast<unsigned>(section_.instance), .bytes = {}, .notes = {}};
    if (section_.fields.contains("cpu/kvm_nested_state:flags")) {
        state_.resize(uapi::header_size);
        number<std::uint16_t>("cpu/kvm_nested_state:flags", flags_at);
        number<std::uint16_t>("cpu/kvm_nested_state:format", format_at);
        number<std::uint32_t>("cpu/kvm_nested_state:size", size_at);
        if (header<std::uint16_t>(format_at) == uapi::state_format::svm)
            read_svm();
        else
            read_vmx();
        make_canonical();
    } else if (const auto other = section_.fields.find("cpu/nested_state:env.nested_state");
               other != section_.fields.end()) {
        trouble_ = Trouble{.reason = "the subsection cpu/nested_state does not hold what it should",
                           .offset = other->second.offset,
                           .next_step = std::string{report}};
    } else {
        note_svm_without_state();
    }
    if (trouble_)
        return std::unexpected{*trouble_};
    read_registers(found);
    if (trouble_)
        return std::unexpected{*trouble_};
    found.bytes = std::move(state_);
    found.notes = std::move(notes_);
    return found;
}

/// What KVM_SET_NESTED_STATE asks of the vCPU and the stream has. CPUID and the VMX capability MSRs are not
/// among it: QEMU makes them anew, of -cpu.
void NestedState::read_registers(FoundState& found) {
    const auto cr0 = field("cpu:env.cr[0]", 8), cr3 = field("cpu:env.cr[3]", 8);
    const auto cr4 = field("cpu:env.cr[4]", 8), efer = field("cpu:env.efer", 8);
    const auto hflags = field("cpu:env.hflags", 4);
    if (!cr0 || !cr3 || !cr4 || !efer || !hflags)
        return;
    constexpr std::uint64_t smm = 1 << 19; // QEMU's HF_SMM_MASK
    const Destination saved{.smm = (big_endian(*hflags) & smm) != 0,
                            .efer = big_endian(*efer),
                            .cr0 = big_endian(*cr0),
                            .cr3 = big_endian(*cr3),
                            .cr4 = big_endian(*cr4)};
    found.on_host = [saved](const Destination& host) {
        auto vcpu = host;
        vcpu.smm = saved.smm;
        vcpu.efer = saved.efer;
        vcpu.cr0 = saved.cr0;
        vcpu.cr3 = saved.cr3;
        vcpu.cr4 = saved.cr4;
        return vcpu;
    };
}

void NestedState::read_svm() {
    number<std::uint64_t>("cpu/kvm_nested_state/svm:hdr.svm.vmcb_pa", vmcb_pa_at);
    page("cpu/kvm_nested_state/svm:data.svm[0].vmcb12");
}

void NestedState::read_vmx() {
    constexpr auto none = uapi::no_address;
    std::memcpy(state_.data() + vmxon_pa_at, &none, sizeof none);
    std::memcpy(state_.data() + vmcs12_pa_at, &none, sizeof none);
    number<std::uint64_t>("cpu/kvm_nested_state/vmx:hdr.vmx.vmxon_pa", vmxon_pa_at);
    number<std::uint64_t>("cpu/kvm_nested_state/vmx:hdr.vmx.vmcs12_pa", vmcs12_pa_at);
    number<std::uint16_t>("cpu/kvm_nested_state/vmx:hdr.vmx.smm.flags", smm_flags_at);
    if (page("cpu/kvm_nested_state/vmx/vmcs12:data.vmx[0].vmcs12"))
        page("cpu/kvm_nested_state/vmx/shadow_vmcs12:data.vmx[0].shadow_vmcs12");
}

/// The stream of any QEMU up to 10.0 has all of a nested state but two members of the header.
void NestedState::note_losses() {
    if ((header<std::uint16_t>(flags_at) & uapi::state_flag::guest_mode) == 0
        || state_.size() < uapi::header_size + uapi::page_size)
        return;
    const auto page = std::span{std::as_const(state_)}.subspan(uapi::header_size).first<uapi::page_size>();
    constexpr std::uint64_t preemption_timer = 1 << 6, nested_paging = 1 << 0;
    if (header<std::uint16_t>(format_at) == uapi::state_format::vmx
        && (Vmcs12Fields{page}["pin_based_vm_exec_control"] & preemption_timer) != 0)
        notes_.emplace_back(
            "L2 runs with the VMX-preemption timer. QEMU does not carry its deadline: after a restore the "
            "timer begins again with the value in the vmcs12.");
    if (header<std::uint16_t>(format_at) == uapi::state_format::svm
        && (Vmcb12Fields{page}["misc_ctl"] & nested_paging) != 0)
        notes_.emplace_back(
            "QEMU does not carry gpat, L2's PAT. Linux has it since 7.x, and it is 0 there, too, unless "
            "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT was disabled.");
}

/// Of a vCPU outside L2 QEMU carries GIF alone, and in a register of its own.
void NestedState::note_svm_without_state() {
    constexpr std::uint64_t svme = 1 << 12, gif = 1 << 0; // EFER.SVME, and QEMU's HF2_GIF_MASK
    const auto efer = field("cpu:env.efer", 8), hflags2 = field("cpu:env.hflags2", 4);
    if (efer && hflags2 && (big_endian(*efer) & svme) != 0)
        notes_.push_back(
            std::format("L1 has SVM on, and L2 is not active. Of this QEMU carries GIF alone, which is {}.",
                        (big_endian(*hflags2) & gif) != 0 ? "set" : "clear"));
}

void NestedState::make_canonical() {
    if (const auto parsed = NestedStateBuffer::parse(state_)) {
        state_.assign(parsed->bytes().begin(), parsed->bytes().end());
        note_losses();
    } else {
        notes_.push_back(
            std::format("these bytes are not a nested state: {}", parsed.error().message().view()));
    }
}

} // namespace

bool is_qemu_stream(Bytes input) {
    return input.size() >= magic_size
           && std::ranges::equal(input.first(magic_size),
                                 std::as_bytes(std::span{beginning}).first(magic_size));
}

Reading read_qemu_stream(Bytes input) {
    const auto matching =
        std::ranges::mismatch(input, std::as_bytes(std::span{beginning})).in1 - input.begin();
    if (const auto offset = static_cast<std::size_t>(matching); offset < beginning.size())
        return std::unexpected{Trouble{
            .reason = offset < magic_size
                          ? "this is no migration stream of QEMU"
                          : "this migration stream has another version than 3, the only one since 2008",
            .offset = offset,
            .next_step = std::string{report}}};
    const auto cpus = device_sections(input, "cpu");
    if (!cpus)
        return std::unexpected{cpus.error()};
    if (cpus->empty())
        return std::unexpected{Trouble{.reason = "there is no vCPU in the stream",
                                       .offset = input.size(),
                                       .next_step = std::string{report}}};
    const auto machine = machine_of(input);
    Contents contents{.format = machine.empty() ? "QEMU migration stream"
                                                : std::format("QEMU migration stream ({})", machine),
                      .states = {}};
    for (const auto& cpu : *cpus) {
        auto state = NestedState{input, cpu}.read();
        if (!state)
            return std::unexpected{state.error()};
        contents.states.push_back(*std::move(state));
    }
    return contents;
}

} // namespace kvm::tool
