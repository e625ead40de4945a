// SPDX-License-Identifier: MIT
#include "stream.hpp"

#include <cstring>

namespace stream {

namespace {

template <class T>
T take(std::span<const std::byte> state, std::size_t offset) {
    T value;
    std::memcpy(&value, state.data() + offset, sizeof value);
    return value;
}

constexpr std::size_t header = 128, page = 4096;

} // namespace

Part nested_state(std::span<const std::byte> state) {
    const auto format = take<std::uint16_t>(state, 2);
    Part vendor, kvm, result;
    kvm.field("flags", take<std::uint16_t>(state, 0), 2)
        .field("format", format, 2)
        .field("size", take<std::uint32_t>(state, 4), 4);
    if (format == 1) {
        vendor.field("hdr.svm.vmcb_pa", take<std::uint64_t>(state, 8), 8);
        vendor.array("data.svm[0].vmcb12", state.subspan(header, page));
    } else {
        vendor.field("hdr.vmx.vmxon_pa", take<std::uint64_t>(state, 8), 8)
            .field("hdr.vmx.vmcs12_pa", take<std::uint64_t>(state, 16), 8)
            .field("hdr.vmx.smm.flags", take<std::uint16_t>(state, 24), 2);
        if (state.size() >= header + page)
            vendor.subsection("cpu/kvm_nested_state/vmx/vmcs12",
                              Part{}.array("data.vmx[0].vmcs12", state.subspan(header, page)));
        if (state.size() >= header + 2 * page)
            vendor.subsection("cpu/kvm_nested_state/vmx/shadow_vmcs12",
                              Part{}.array("data.vmx[0].shadow_vmcs12", state.subspan(header + page, page)));
    }
    kvm.subsection(format == 1 ? "cpu/kvm_nested_state/svm" : "cpu/kvm_nested_state/vmx", vendor);
    return result.structure("env.nested_state", "cpu/kvm_nested_state", kvm);
}

Part cpu(std::uint64_t efer, std::uint32_t hflags2) {
    Part part;
    part.field("env.eip", 0x401000, 8)
        .array("env.regs", Bytes(128))
        .field("env.efer", efer, 8)
        .field("env.hflags2", hflags2, 4);
    part.subsection("cpu/tsc_khz", Part{}.field("env.tsc_khz", 2'000'000, 8));
    return part;
}

Part cpu_with(std::span<const std::byte> state) {
    return cpu(0x1000).subsection("cpu/nested_state", nested_state(state));
}

Bytes Stream::before_description() const {
    Bytes result;
    append(result, "QEVM");
    append(result, 3, 4);
    append(result, 7, 1);
    append(result, machine.size(), 4);
    append(result, machine);
    result.insert(result.end(), memory, std::byte{0x04});
    std::uint32_t id = 0x01020304;
    for (const auto& [name, instance, part] : devices) {
        append(result, 4, 1);
        append(result, ++id, 4);
        append_name(result, name);
        append(result, instance, 4);
        append(result, 12, 4);
        append(result, part.bytes);
        append(result, 0x7e, 1);
        append(result, id, 4);
    }
    append(result, 0, 1);
    return result;
}

std::string Stream::description() const {
    std::string text;
    for (const auto& [name, instance, part] : devices)
        (text += text.empty() ? "" : ", ") +=
            "{\"name\": \"" + name + "\", \"instance_id\": " + std::to_string(instance)
            + ", \"vmsd_name\": \"" + name + "\", \"version\": 12, " + part.description() + "}";
    return "{\"page_size\": 4096, \"devices\": [" + text + "]}";
}

Bytes Stream::with_description(std::string_view text) const {
    auto result = before_description();
    append(result, 6, 1);
    append(result, text.size(), 4);
    append(result, text);
    return result;
}

Stream of(std::span<const std::byte> state) {
    return {.devices = {{.name = "timer", .part = Part{}.field("cpu_ticks_offset", 5, 8)},
                        {.name = "cpu", .instance = 0, .part = cpu()},
                        {.name = "apic", .instance = 0, .part = Part{}.field("apicbase", 0xfee00000, 4)},
                        {.name = "cpu", .instance = 1, .part = cpu_with(state)},
                        {.name = "serial", .part = Part{}}}};
}

} // namespace stream
