// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

#include <algorithm>
#include <format>
#include <utility>

import kvm.nested.json;

namespace kvm::tool {
namespace {

std::string in_hexadecimal(std::uint64_t value, bool redact) {
    return redact && value != 0 ? "masked" : std::format("{:#x}", value);
}

/// What the input says beyond the state.
void show_surroundings(Output& out, const FoundState& state, bool redact) {
    if (const auto& registers = state.registers) {
        const bool l2 = !state.bytes.empty()
                        && (std::to_integer<unsigned>(state.bytes[0]) & uapi::state_flag::guest_mode);
        out << std::format("  {:16}{} RIP {}, RSP {}, CR3 {}, RFLAGS {}\n", "beside it", l2 ? "L2's" : "L1's",
                           in_hexadecimal(registers->rip, redact), in_hexadecimal(registers->rsp, redact),
                           in_hexadecimal(registers->cr3, redact), in_hexadecimal(registers->rflags, redact));
    }
    for (const auto& note : state.notes)
        out << std::format("  {:16}{}\n", "note", note);
}

int show_fields(Output& out, const Show& arguments, const FoundState& state) {
    int status = fine;
    for (const auto& field : arguments.fields)
        if (describe_field(state.bytes, field, out.sink(), {.redact = arguments.redact}) == 0)
            status = complain(field, {"no field is called that in this state", std::nullopt,
                                      "kvm-nested show --all FILE names all of them"});
    return status;
}

int show_text(Output& out, const Show& arguments, const StateOfFile& what) {
    const auto& state = what.state;
    out.heading(title(what));
    if (state.bytes.empty()) {
        out << "  no nested state: none was saved for this vCPU\n";
        show_surroundings(out, state, arguments.redact);
        return fine;
    }
    if (!arguments.fields.empty())
        return show_fields(out, arguments, state);
    describe(state.bytes, out.sink(),
             {.fields = FieldsShown::none, .ranges = false, .redact = arguments.redact});
    show_surroundings(out, state, arguments.redact);
    if (!arguments.brief)
        describe(state.bytes, out.sink(),
                 {.summary = false,
                  .fields = arguments.all ? FieldsShown::all : FieldsShown::non_zero,
                  .redact = arguments.redact});
    return fine;
}

void show_json(Output& out, const Show& arguments, const FoundState& state) {
    out << (state.bytes.empty() ? "null\n"
                                : to_json(state.bytes, {.zeros = arguments.all, .redact = arguments.redact}));
}

} // namespace

int run(const Show& arguments) {
    Output out;
    bool first = true;
    const int status = for_each_state(arguments.files, arguments.vcpu, [&](const StateOfFile& what) {
        int answer = fine;
        if (arguments.json) {
            show_json(out, arguments, what.state);
        } else {
            if (!std::exchange(first, false))
                out << "\n";
            answer = show_text(out, arguments, what);
        }
        return std::max(answer,
                        complain_if_refused(what, "the fields are shown as they were found; look at the "
                                                  "one at that offset first"));
    });
    return out.flush(status);
}

} // namespace kvm::tool
