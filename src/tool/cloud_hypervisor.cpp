// SPDX-License-Identifier: MIT
#include "cloud_hypervisor.hpp"

#include "raw.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <format>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

import kvm.vcpu;

namespace kvm::tool {
namespace {

using Json = nlohmann::json;

constexpr auto newer =
    "is it the state.json of a snapshot? If a newer Cloud Hypervisor wrote it, report this";

std::string_view text_of(Bytes input) {
    return {reinterpret_cast<const char*>(input.data()), input.size()};
}

std::unexpected<Trouble> trouble(std::string reason, std::string next_step = newer) {
    return std::unexpected{Trouble{std::move(reason), std::nullopt, std::move(next_step)}};
}

/// A member of an object; null of anything else.
const Json& member(const Json& json, const char* name) {
    static const Json none;
    const auto found = json.is_object() ? json.find(name) : json.end();
    return found == json.end() ? none : *found;
}

std::expected<Json, Trouble> parse(std::string_view text, std::string_view what) {
    auto json = Json::parse(text, nullptr, false);
    if (json.is_discarded())
        return trouble(std::format("{} is not JSON", what), "the file may be cut off: take another copy");
    return json;
}

std::expected<std::vector<std::byte>, Trouble> bytes_of(const Json& numbers) {
    std::vector<std::byte> bytes;
    bytes.reserve(numbers.size());
    for (const auto& number : numbers) {
        if (!number.is_number_unsigned() || number.get<std::uint64_t>() > 0xff)
            return trouble(std::format("byte {} of a nested_state is no number up to 255", bytes.size()));
        bytes.push_back(static_cast<std::byte>(number.get<std::uint64_t>()));
    }
    return bytes;
}

/// kvm-bindings writes the kernel's structures byte by byte.
std::optional<Registers> registers_of(const Json& vcpu) {
    const auto regs = bytes_of(member(vcpu, "regs")), sregs = bytes_of(member(vcpu, "sregs"));
    vcpu::uapi::Regs general;
    std::uint64_t cr3;
    constexpr auto cr3_at =
        offsetof(vcpu::uapi::Sregs2, cr3); // struct kvm_sregs begins like struct kvm_sregs2
    if (!regs || regs->size() < sizeof general || !sregs || sregs->size() < cr3_at + sizeof cr3)
        return std::nullopt;
    std::memcpy(&general, regs->data(), sizeof general);
    std::memcpy(&cr3, sregs->data() + cr3_at, sizeof cr3);
    return Registers{general.rip, general.rsp, cr3, general.rflags};
}

/// A structure of the kernel's: byte by byte, or by the names of its members, as newer versions have it.
template <class T, std::size_t N>
std::optional<T> structure(const Json& json,
                           const std::array<std::pair<const char*, std::uint32_t T::*>, N>& members) {
    T result{};
    if (json.is_array()) {
        const auto bytes = bytes_of(json);
        if (!bytes || bytes->size() < sizeof result)
            return std::nullopt;
        std::memcpy(&result, bytes->data(), sizeof result);
        return result;
    }
    for (const auto& [name, where] : members) {
        const Json& number = member(json, name);
        if (!number.is_number_unsigned() || number.get<std::uint64_t>() > 0xffff'ffff)
            return std::nullopt;
        result.*where = number.get<std::uint32_t>();
    }
    return result;
}

/// What a restore gives the vCPU before its nested state; nothing where the snapshot does not have all of it.
std::optional<vcpu::VcpuState> surroundings_of(const Json& json) {
    using vcpu::uapi::CpuidEntry;
    using vcpu::uapi::Msr;
    constexpr auto cpuid_members = std::to_array<std::pair<const char*, std::uint32_t CpuidEntry::*>>(
        {{"function", &CpuidEntry::function},
         {"index", &CpuidEntry::index},
         {"flags", &CpuidEntry::flags},
         {"eax", &CpuidEntry::eax},
         {"ebx", &CpuidEntry::ebx},
         {"ecx", &CpuidEntry::ecx},
         {"edx", &CpuidEntry::edx}});
    constexpr auto msr_members =
        std::to_array<std::pair<const char*, std::uint32_t Msr::*>>({{"index", &Msr::index}});

    vcpu::VcpuState state;
    const auto &cpuid = member(json, "cpuid"), &msrs = member(json, "msrs");
    if (!cpuid.is_array() || cpuid.empty() || !msrs.is_array())
        return std::nullopt;
    for (const auto& entry : cpuid) {
        const auto read = structure(entry, cpuid_members);
        if (!read)
            return std::nullopt;
        state.cpuid.push_back(*read);
    }
    for (const auto& entry : msrs) {
        auto read = structure(entry, msr_members);
        const auto& data = member(entry, "data");
        if (!read || (entry.is_object() && !data.is_number_unsigned()))
            return std::nullopt;
        if (entry.is_object())
            read->value = data.get<std::uint64_t>();
        state.msrs.push_back(*read);
    }
    const auto sregs = bytes_of(member(json, "sregs")), events = bytes_of(member(json, "vcpu_events"));
    constexpr auto from_efer_on =
        offsetof(vcpu::uapi::Sregs2, efer) + sizeof(std::uint64_t); // as struct kvm_sregs has it
    if (!sregs || sregs->size() < from_efer_on || !events || events->size() < sizeof state.events)
        return std::nullopt;
    std::memcpy(&state.sregs, sregs->data(), from_efer_on);
    std::memcpy(&state.events, events->data(), sizeof state.events);
    return state;
}

std::expected<FoundState, Trouble> read_vcpu(std::string_view id, const Json& snapshot) {
    FoundState found;
    if (const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), found.vcpu);
        error != std::errc{} || end != id.data() + id.size())
        return trouble(std::format("a vCPU is called \"{}\", which is no number", id));

    const auto& text = member(member(snapshot, "snapshot_data"), "state");
    if (!text.is_string())
        return trouble(std::format("vCPU {} has no state", id));
    const auto state = parse(text.get_ref<const std::string&>(), std::format("the state of vCPU {}", id));
    if (!state)
        return std::unexpected{state.error()};
    const auto& vcpu = member(*state, "Kvm");
    if (!vcpu.is_object())
        return trouble(std::format("vCPU {} has no KVM state", id),
                       "only what KVM ran has a KVM nested state");

    found.registers = registers_of(vcpu);
    found.skips_refused_msrs = true;
    if (auto around = surroundings_of(vcpu))
        found.on_host =
            [state = std::make_shared<const vcpu::VcpuState>(*std::move(around))](const Destination& host) {
                auto to = vcpu::destination_of(*state, host);
                // What a restore enables is not in the snapshot.
                to.enlightened_vmcs = host.enlightened_vmcs;
                to.disabled_quirks = host.disabled_quirks;
                to.exception_payload = host.exception_payload;
                return to;
            };
    const auto& nested = member(vcpu, "nested_state");
    if (nested.is_null()) {
        found.notes.emplace_back(
            "Cloud Hypervisor leaves out a state without a payload: VMXON without a VMCS, and a "
            "clear GIF, look like this, too");
        return found;
    }
    if (!nested.is_array())
        return trouble(std::format("the nested_state of vCPU {} is no array of bytes", id));
    const auto bytes = bytes_of(nested);
    if (!bytes)
        return std::unexpected{bytes.error()};
    auto raw = read_raw(*bytes);
    if (!raw)
        return trouble(std::format("vCPU {}: {}", id, raw.error().reason));
    found.bytes = std::move(raw->states.front().bytes);
    return found;
}

} // namespace

bool is_cloud_hypervisor_state(Bytes input) {
    return text_of(input).contains("\"cpu-manager\"");
}

Reading read_cloud_hypervisor_state(Bytes input) {
    const auto root = parse(text_of(input), "the file");
    if (!root)
        return std::unexpected{root.error()};
    const auto& vcpus = member(member(member(*root, "snapshots"), "cpu-manager"), "snapshots");
    if (!vcpus.is_object())
        return trouble("the snapshot has no vCPUs");
    Contents contents{"Cloud Hypervisor snapshot", {}};
    for (const auto& [id, snapshot] : vcpus.items()) {
        auto found = read_vcpu(id, snapshot);
        if (!found)
            return std::unexpected{std::move(found.error())};
        contents.states.push_back(*std::move(found));
    }
    std::ranges::sort(contents.states, {}, &FoundState::vcpu); // "10" comes before "2"
    return contents;
}

} // namespace kvm::tool
