// SPDX-License-Identifier: MIT
#include "commands.hpp"
#include "output.hpp"

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

int show_text(Output& out, const Show& arguments, const Contents& contents, const FoundState& state,
              const std::string& file) {
    out.heading(title(file, contents, state));
    if (state.bytes.empty()) {
        out << "  no nested state: none was saved for this vCPU\n";
        show_surroundings(out, state, arguments.redact);
        return fine;
    }
    if (!arguments.fields.empty())
        return show_fields(out, arguments, state);
    const auto fields = arguments.all     ? FieldsShown::all
                        : arguments.brief ? FieldsShown::none
                                          : FieldsShown::non_zero;
    describe(state.bytes, out.sink(),
             {.fields = FieldsShown::none, .ranges = false, .redact = arguments.redact});
    show_surroundings(out, state, arguments.redact);
    if (fields != FieldsShown::none)
        describe(state.bytes, out.sink(),
                 {.first_screen = false, .fields = fields, .redact = arguments.redact});
    return fine;
}

int show_state(Output& out, const Show& arguments, const Contents& contents, const FoundState& state,
               const std::string& file) {
    int status = fine;
    if (arguments.json)
        out << (state.bytes.empty()
                    ? "null\n"
                    : to_json(state.bytes, {.zeros = arguments.all, .redact = arguments.redact}));
    else
        status = show_text(out, arguments, contents, state, file);
    if (const auto refused = state.refused())
        status =
            complain(file, {std::format("no vCPU can be in this state: {}", description(refused->code)),
                            static_cast<std::size_t>(refused->detail),
                            "the fields above are as they were found; look at the one at that offset first"});
    return status;
}

} // namespace

int run(const Show& arguments) {
    Output out;
    int status = fine;
    bool first = true;
    for (const auto& file : arguments.files) {
        const auto contents = states_of(file, arguments.vcpu);
        if (!contents) {
            status = in_trouble;
            continue;
        }
        for (const auto& state : contents->states) {
            if (!std::exchange(first, false) && !arguments.json)
                out << "\n";
            if (show_state(out, arguments, *contents, state, file) != fine)
                status = in_trouble;
        }
    }
    return out.flush(status);
}

} // namespace kvm::tool
