// SPDX-License-Identifier: MIT
//
// KVM_SET_NESTED_STATE, row by row: what the kernel takes, what it refuses, what the vCPU holds afterwards,
// and whether the library says the same. Rule names (X1, V7, S7, ...) are those of the README.
//
// A row is one state and where it comes from. It is issued as a bare ioctl from each starting point that
// makes a difference, and what came of it is given to kvm::nested::classify(). Rows that a NestedState can
// express go through Vcpu::set_nested_state() as well, which has to come to the same end. After each failure
// clear_nested_state() has to lead back to a vCPU that is not in nested operation.
//
// Where kernels differ, the row pins both behaviours, and rows of the same trait have to agree with each
// other.
//
// A vendor's table is a struct (svm/set_table.test.cpp has one) with
//
//     Vendor, Nested        kvm::nested::Svm; the vendor's Vcpu
//     On, Base, Trait       enumerations: what the vCPU is, what the row changes, in what kernels differ
//     Failure               what a row says about the effect of its failure
//     Start                 an enumeration with `count`: what the vCPU holds before
//     scene(On)             a vCPU: machine(), reset(Start)
//     from(row, start)      whether the row is issued from there
//     bytes(Base)           the state that the row changes, input_size bytes
//     same(a, b)            whether GET showed the same in two runs
//     blurred(start, after) whether GET cannot show what was set, by a fault of the kernel's
//     why_not(row)          empty, or why this row cannot be tried on this machine
//     check_failure(...)    effect and what GET shows after a failure
//     check_success(...)    what GET shows after a success
//
// Include it last, like lab.hpp, which it includes.
#pragma once

#include "cpuid.hpp"

namespace lab {

// --- a row

/// One thing done to the bytes of the state.
struct Change {
    enum class Kind : std::uint8_t { none, put, set_bits, clear_bits, fill };
    Kind kind = Kind::none;
    std::uint16_t offset = 0;
    std::uint16_t width = 0;
    std::uint64_t value = 0;
};

constexpr Change flags(std::uint64_t value) {
    return {Change::Kind::put, flags_at, 2, value};
}
constexpr Change format(std::uint64_t value) {
    return {Change::Kind::put, format_at, 2, value};
}
constexpr Change size(std::uint64_t value) {
    return {Change::Kind::put, size_at, 4, value};
}
/// Fields of the payload, by their offset in it.
constexpr Change put(std::uint16_t offset, std::uint16_t width, std::uint64_t value) {
    return {Change::Kind::put, static_cast<std::uint16_t>(header_size + offset), width, value};
}
constexpr Change set_bits(std::uint16_t offset, std::uint16_t width, std::uint64_t value) {
    return {Change::Kind::set_bits, static_cast<std::uint16_t>(header_size + offset), width, value};
}
constexpr Change clear_bits(std::uint16_t offset, std::uint16_t width, std::uint64_t value) {
    return {Change::Kind::clear_bits, static_cast<std::uint16_t>(header_size + offset), width, value};
}
constexpr Change fill(std::uint16_t begin, std::uint16_t end, std::uint8_t value) {
    return {Change::Kind::fill, static_cast<std::uint16_t>(header_size + begin),
            static_cast<std::uint16_t>(end - begin), value};
}
constexpr Change fill_header(std::uint16_t begin, std::uint16_t end, std::uint8_t value) {
    return {Change::Kind::fill, begin, static_cast<std::uint16_t>(end - begin), value};
}

constexpr std::uint64_t bit(unsigned number) {
    return std::uint64_t{1} << number;
}

/// Where the bytes are.
enum class Where : std::uint8_t { memory, odd_address, null, low, kernel, cut };

/// Which descriptor gets the ioctl.
enum class Into : std::uint8_t { vcpu, vm, system, closed, pipe, vcpu_of_parent };

/// How a SET ends: an errno, 0 for success, or minus the positive number that it returned.
using Outcome = int;
inline constexpr Outcome returned_2 = -2;

inline Outcome outcome_of(kvm::nested::IoctlResult result) {
    return result.value < 0 ? result.error_number : -result.value;
}
inline std::string outcome_name(Outcome outcome) {
    return outcome < 0 ? "returned " + std::to_string(-outcome) : errno_name(outcome);
}

template <class V>
struct SetRow {
    const char* name;
    typename V::On on = {};
    typename V::Base base = {};
    std::array<Change, 4> change = {};
    Outcome expect = 0;
    struct {
        typename V::Trait trait = {};
        Outcome expect = 0; ///< where the kernel has the trait
    } unless = {};
    Where where = Where::memory;
    std::uint16_t cut = 0; ///< Where::cut: bytes in front of a page that cannot be read
    Into into = Into::vcpu;
    typename V::Failure failure = {};
    typename V::Needs needs = {};
    bool rewritten = false;                ///< success, and GET shows other bytes than were set
    typename V::Trait rewritten_with = {}; ///< the same, where the kernel has the trait
};

// --- vCPUs

inline constexpr unsigned maxphyaddr = 40; // given to every vCPU of the tables
inline constexpr std::uint64_t beyond = bit(maxphyaddr);
inline constexpr std::uint64_t no_memory = 0x4000'0000;

/// KVM_GET_SUPPORTED_CPUID with MAXPHYADDR 40, given to a vCPU after `edit` has seen each entry.
/// @param hyperv with Hyper-V for the hypervisor instead of KVM
template <class Edit>
void set_cpuid(const machine::Machine& machine, Edit&& edit, bool hyperv = false) {
    SupportedCpuid cpuid{machine, KVM_GET_SUPPORTED_CPUID};
    if (hyperv)
        cpuid.replace_hypervisor({machine, KVM_GET_SUPPORTED_HV_CPUID});
    for (auto& entry : cpuid.entries()) {
        if (entry.function == 0x8000'0008)
            entry.eax = (entry.eax & ~0xffu) | maxphyaddr;
        edit(entry);
    }
    cpuid.give(machine);
}

/// Disables a quirk of KVM's; nothing where this kernel has no such quirk.
inline void disable_quirk(const machine::Machine& machine, std::uint64_t quirk) {
    kvm_enable_cap quirks = {};
    quirks.cap = KVM_CAP_DISABLE_QUIRKS2;
    quirks.args[0] = quirk;
    static_cast<void>(::ioctl(machine.vm_fd(), KVM_ENABLE_CAP, &quirks));
}

// --- making the bytes

inline constexpr std::size_t input_size = 8320; // more than any row declares and the kernel reads

inline void perform(const Change& change, std::span<std::byte> bytes) {
    if (change.kind == Change::Kind::none)
        return;
    const auto field = bytes.subspan(change.offset, change.width);
    if (change.kind == Change::Kind::fill) {
        std::ranges::fill(field, static_cast<std::byte>(change.value));
        return;
    }
    std::uint64_t value = 0;
    std::memcpy(&value, field.data(), field.size());
    switch (change.kind) {
    case Change::Kind::set_bits:
        value |= change.value;
        break;
    case Change::Kind::clear_bits:
        value &= ~change.value;
        break;
    default:
        value = change.value;
    }
    std::memcpy(field.data(), &value, field.size());
}

/// a == b, but by memcmp, which takes a tenth of the instructions: they are emulated.
inline bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

/// The bytes at the row's address.
class Placed {
  public:
    Placed(Where where, std::uint16_t cut, const Bytes& bytes)
        : where_{where}, memory_{in_front_of_fence(where == Where::cut ? cut : bytes.size())} {
        if (where_ == Where::odd_address)
            std::memcpy(odd_.data() + 1, bytes.data(), bytes.size());
        std::memcpy(memory_.data(), bytes.data(), memory_.bytes().size());
        readable_ = bytes.size();
        switch (where_) {
        case Where::null:
        case Where::low:
        case Where::kernel:
            readable_ = 0;
            break;
        case Where::cut:
            readable_ = cut;
            break;
        default:
            break;
        }
    }

    [[nodiscard]] const void* address() const {
        switch (where_) {
        case Where::null:
            return nullptr;
        case Where::low:
            return reinterpret_cast<const void*>(0x10);
        case Where::kernel:
            return reinterpret_cast<const void*>(0xffff'8880'0000'0000);
        case Where::odd_address:
            return odd_.data() + 1;
        default:
            return memory_.data();
        }
    }
    /// How many bytes can be read there.
    [[nodiscard]] std::size_t readable() const { return readable_; }

  private:
    /// One for each size: a new mapping costs more in the emulated machine than the SET.
    static const Fenced& in_front_of_fence(std::size_t size) {
        static std::map<std::size_t, Fenced> memory;
        return memory.try_emplace(size, size).first->second;
    }

    Where where_;
    const Fenced& memory_;
    alignas(8) std::array<std::byte, input_size + 8> odd_;
    std::size_t readable_;
};

// --- issuing it

struct Target {
    int fd;
    kvm::nested::DescriptorKind kind;
    bool in_child = false;
};

inline Target target(Into into, const machine::Machine& machine) {
    using enum kvm::nested::DescriptorKind;
    static std::array<int, 2> ends = {-1, -1};
    switch (into) {
    case Into::vm:
        return {machine.vm_fd(), vm};
    case Into::system:
        return {machine.system_fd(), system};
    case Into::closed:
        return {1000, not_open};
    case Into::pipe:
        if (ends[0] < 0 && ::pipe(ends.data()) != 0)
            give_up("pipe");
        return {ends[0], not_kvm};
    case Into::vcpu_of_parent:
        return {machine.vcpu_fd(), unknown, true};
    case Into::vcpu:
        break;
    }
    return {machine.vcpu_fd(), vcpu};
}

/// Runs `make` in a forked child if the target is to be used from there, else here. The result must be plain
/// bytes.
template <class Make>
auto at(const Target& target, Make&& make) {
    using Result = decltype(make());
    if (!target.in_child)
        return make();
    static_assert(std::is_trivially_copyable_v<Result>);
    std::array<int, 2> ends = {};
    if (::pipe(ends.data()) != 0)
        give_up("pipe");
    const auto child = ::fork();
    if (child == 0) {
        const Result result = make();
        ::_exit(::write(ends[1], &result, sizeof result) == sizeof result ? 0 : 1);
    }
    ::close(ends[1]);
    Result result = {};
    const bool whole = ::read(ends[0], &result, sizeof result) == sizeof result;
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
    if (!whole)
        give_up("the child said nothing");
    return result;
}

/// A typed SET as plain bytes.
struct TypedResult {
    bool done;
    kvm::nested::Error error;
};

// --- judging it

inline kvm::nested::Errc expected_code(Into into, Outcome outcome) {
    switch (into) {
    case Into::vm:
        return kvm::nested::Errc::vm_fd_given;
    case Into::system:
        return kvm::nested::Errc::system_fd_given;
    case Into::closed:
        return kvm::nested::Errc::bad_descriptor;
    case Into::pipe:
        return kvm::nested::Errc::not_a_kvm_descriptor;
    case Into::vcpu_of_parent:
        return kvm::nested::Errc::other_process_or_dead_vm;
    case Into::vcpu:
        break;
    }
    if (outcome < 0)
        return kvm::nested::Errc::entry_failed;
    return outcome == EFAULT ? kvm::nested::Errc::bad_address : kvm::nested::Errc::refused;
}

/// What a failed SET of a row has left, for the vendor's check_failure().
template <class V>
struct Failed {
    const SetRow<V>& row;
    typename V::Start start;
    const kvm::nested::Error& error;
    const Bytes& attempted; ///< all that the kernel could read of what was declared
    const Bytes& before;
    const Bytes& after;
};

/// A trait of the kernel: unknown until the first row of it has been tried.
template <class V>
using Traits = std::array<std::optional<bool>, std::to_underlying(V::Trait::count)>;

template <class V>
class SetTable {
  public:
    using Row = SetRow<V>;
    using Start = typename V::Start;
    using Trait = typename V::Trait;
    using State = kvm::nested::NestedState<typename V::Vendor>;

    void run(const Row& row) {
        INFO("row: " << std::string_view{row.name});
        if (const std::string reason = V::why_not(row); !reason.empty()) {
            std::println("note: {}: {}", row.name, reason);
            ++not_tried_;
            return;
        }
        std::optional<bool> typed;
        for (std::size_t start = 0; start < std::to_underlying(Start::count); ++start)
            if (V::from(row, Start(start)))
                typed = run(row, Start(start));
        if (!typed)
            FAIL_CHECK("no starting point for this row");
        else
            ++(*typed ? through_vcpu_ : raw_only_);
    }

    [[nodiscard]] std::size_t through_vcpu() const { return through_vcpu_; }
    [[nodiscard]] std::size_t raw_only() const { return raw_only_; }
    [[nodiscard]] std::size_t not_tried() const { return not_tried_; }
    /// How many SETs the rows made of it: each row from each starting point, bare and through Vcpu.
    [[nodiscard]] std::size_t issued() const { return issued_; }
    [[nodiscard]] const Traits<V>& traits() const { return traits_; }

  private:
    /// @return whether it went through Vcpu
    bool run(const Row& row, Start start) {
        INFO("starting point: " << std::string_view{V::start_names[std::to_underlying(start)]});
        auto& vcpu = V::scene(row.on);
        const int fd = vcpu.machine().vcpu_fd();
        auto bytes = V::bytes(row.base);
        for (const auto& change : row.change)
            perform(change, bytes);
        const Placed placed{row.where, row.cut, bytes};
        const std::size_t size = load<std::uint32_t>(bytes, size_at);
        // What classify() is told: all that was readable of what was declared, and the header even if that
        // was less.
        const auto given = std::min(std::max(size, header_size), placed.readable());
        const Bytes attempted{bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(given)};
        const auto to = target(row.into, vcpu.machine());

        vcpu.reset(start);
        const auto before = read_back(fd);
        const auto result = at(to, [&] { return raw_set(to.fd, placed.address()); });
        const auto after = read_back(fd);
        ++issued_;
        const auto outcome = outcome_of(result);
        INFO("the kernel: " << outcome_name(outcome));
        CHECK(outcome_name(outcome) == outcome_name(expectation(row, outcome)));
        if (outcome != 0) {
            const auto error = kvm::nested::classify(
                kvm::nested::Operation::set_nested_state, result.value, result.error_number,
                {.descriptor = to.kind, .attempted = attempted, .found = after});
            check_failure({row, start, error, attempted, before, after}, outcome);
        } else {
            V::check_success(row, start, bytes, after);
        }

        const auto state = expressed(row, bytes);
        if (!state)
            return false;
        vcpu.reset(start);
        CHECK(same_bytes(read_back(fd), before));
        const auto typed = at(to, [&] { return set_through_vcpu(to.fd, *state); });
        const auto after_typed = read_back(fd);
        ++issued_;
        CHECK(typed.done == (outcome == 0));
        CHECK(V::same(after_typed, after));
        if (!typed.done) {
            const Bytes canonical{state->bytes().begin(), state->bytes().end()};
            check_failure({row, start, typed.error, canonical, before, after_typed}, outcome);
        } else if (!V::blurred(start, after)) {
            check_verified(row, V::nested(vcpu.machine()).verify_nested_state(*state));
        }
        return true;
    }

    /// What a state of the library makes of the row; nothing if parse() refuses it or drops a flag, or if it
    /// is about an address.
    static std::optional<State> expressed(const Row& row, const Bytes& bytes) {
        if (row.where != Where::memory)
            return std::nullopt;
        const std::size_t size = load<std::uint32_t>(bytes, size_at);
        const auto parsed = State::parse(std::span{bytes}.first(std::min(size, bytes.size())));
        if (!parsed || parsed->flags() != load<std::uint16_t>(bytes, flags_at))
            return std::nullopt;
        return *parsed;
    }

    static TypedResult set_through_vcpu(int fd, const State& state) {
        const kvm::nested::Vcpu vcpu{host_of<typename V::Vendor>(), kvm::nested::VcpuFd{fd}};
        const auto put = vcpu.set_nested_state(state);
        return put ? TypedResult{true, {}} : TypedResult{false, put.error()};
    }

    static void check_failure(const Failed<V>& failed, Outcome outcome) {
        const auto& error = failed.error;
        CAPTURE(std::string{error.message().view()});
        CHECK(error.operation == kvm::nested::Operation::set_nested_state);
        CHECK(error.raw_result == (outcome < 0 ? -outcome : -1));
        CHECK(error.error_number == std::max(outcome, 0));
        CHECK(error.code == expected_code(failed.row.into, outcome));
        if (error.effect == kvm::nested::Effect::unchanged)
            CHECK(same_bytes(failed.before, failed.after));
        V::check_failure(failed);

        const auto& machine = V::scene(failed.row.on).machine();
        CHECK(V::nested(machine).clear_nested_state());
        const State none;
        CHECK(same_bytes(read_back(machine.vcpu_fd()), none.bytes()));
    }

    /// A first row of a trait finds out whether the kernel has it; the others have to agree.
    bool has(Trait trait, bool seen) {
        auto& known = traits_[std::to_underlying(trait)];
        if (!known)
            known = seen;
        return *known;
    }
    Outcome expectation(const Row& row, Outcome seen) {
        if (row.unless.trait == Trait::none)
            return row.expect;
        return has(row.unless.trait, seen == row.unless.expect) ? row.unless.expect : row.expect;
    }

    void check_verified(const Row& row, const std::expected<void, kvm::nested::Error>& verified) {
        const bool rewritten = row.rewritten_with != Trait::none
                                   ? has(row.rewritten_with, !verified.has_value())
                                   : row.rewritten;
        INFO("first difference at " << (verified ? 0 : verified.error().detail));
        CHECK(verified.has_value() == !rewritten);
    }

    Traits<V> traits_ = {};
    std::size_t through_vcpu_ = 0;
    std::size_t raw_only_ = 0;
    std::size_t not_tried_ = 0;
    std::size_t issued_ = 0;
};

// --- telling

/// What a kernel of that name was seen to do. Only told, not required: stable releases get backports.
template <class V>
struct KnownKernel {
    const char* name;
    std::array<bool, std::to_underlying(V::Trait::count)> has;
};

/// Prints the traits of this kernel and the known kernel that it resembles.
template <class V>
void tell_traits(const Traits<V>& traits, std::span<const char* const> names,
                 std::span<const KnownKernel<V>> known_kernels) {
    for (std::size_t trait = 1; trait < traits.size(); ++trait)
        std::println("trait: this kernel {}: {}", names[trait],
                     !traits[trait]   ? "cannot be told on this processor"
                     : *traits[trait] ? "yes"
                                      : "no");
    const auto fits = [&](const KnownKernel<V>& kernel) {
        for (std::size_t trait = 1; trait < traits.size(); ++trait)
            if (traits[trait].value_or(kernel.has[trait]) != kernel.has[trait])
                return false;
        return true;
    };
    const auto known = std::ranges::find_if(known_kernels, fits);
    if (known == known_kernels.end())
        std::println("note: no known kernel behaves like this one: backports?");
    else
        std::println("note: KVM_SET_NESTED_STATE checks what Linux {} checks", known->name);
}

} // namespace lab
