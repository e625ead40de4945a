// SPDX-License-Identifier: MIT
//
// KVM_GET_NESTED_STATE of either vendor: into memory of every kind, and through every call of the library,
// with objects whose last byte is the last one before a page that nobody can touch. Where the kernel writes
// further than it says is for svm/get.test.cpp and vmx/get.test.cpp to show.
#include "support/get.hpp"

namespace {

using lab::l2_state_size;
using lab::must;
using lab::never_nested;
using lab::size_in;
using lab::untouched;
using lab::vcpu_at;
using lab::written;

/// A state that parse() takes and this vCPU's KVM refuses, before it has changed anything.
lab::Bytes refused_unchanged() {
    auto bytes = lab::read_back(vcpu_at(true).vcpu_fd());
    if (lab::is_vmx())
        lab::store<std::uint64_t>(bytes, 8, std::uint64_t{1} << 51); // V6: VMXON beyond MAXPHYADDR
    else
        lab::store<std::uint64_t>(bytes, lab::header_size + 0x558, 0); // S17: L1's CR0 without PE and PG
    return bytes;
}

} // namespace

// --- the bare ioctl

TEST_CASE("told of enough, KVM writes what the state takes and no byte more") {
    for (const std::uint32_t declared : {4224u, 4225u, 8320u, 0xffff'ffffu}) {
        for (const bool l2_active : {false, true}) {
            CAPTURE(declared);
            CAPTURE(l2_active);
            lab::Bytes buffer(8320, untouched);
            lab::store(buffer, lab::size_at, declared);
            CHECK(lab::raw_get(vcpu_at(l2_active).vcpu_fd(), buffer.data()).value == 0);
            const std::size_t size = l2_active ? l2_state_size : lab::header_size;
            CHECK(size_in(buffer) == size);
            CHECK(written(buffer, size) == 0);
        }
    }
    lab::Bytes header(8320, untouched);
    lab::store<std::uint32_t>(header, lab::size_at, 128);
    CHECK(lab::raw_get(never_nested().vcpu_fd(), header.data()).value == 0);
    CHECK(written(header, 128) == 0);
}

namespace {

enum class Memory : std::uint8_t { fenced, read_only, null, low, kernel };

struct Row {
    const char* name;
    Memory memory;
    std::size_t mapped;
    std::uint32_t declared;
    bool l2_active;
    int expect; ///< errno; 0: success
};

constexpr std::array rows = std::to_array<Row>({
    {"header alone, 128 bytes", Memory::fenced, 128, 128, false, 0},
    {"header alone, 128 bytes and a lie", Memory::fenced, 128, 0xffff'ffff, false, 0},
    {"L2, 4224 bytes", Memory::fenced, 4224, 4224, true, 0},
    {"L2, 4224 bytes and a lie", Memory::fenced, 4224, 0xffff'ffff, true, 0},
    {"L2, 4223 bytes and a lie", Memory::fenced, 4223, 4224, true, EFAULT},
    {"L2, 128 bytes and a lie", Memory::fenced, 128, 4224, true, EFAULT},
    {"L2, header and control area and a lie", Memory::fenced, 1152, 4224, true, EFAULT},
    {"header alone, half of it mapped", Memory::fenced, 64, 128, false, EFAULT},
    {"header alone, 8 bytes mapped", Memory::fenced, 8, 4224, false, EFAULT},
    {"size not mapped", Memory::fenced, 4, 0, false, EFAULT},
    {"header alone, read only", Memory::read_only, 4224, 4224, false, EFAULT},
    {"L2, read only", Memory::read_only, 4224, 4224, true, EFAULT},
    {"NULL", Memory::null, 0, 0, true, EFAULT},
    {"address 0x10", Memory::low, 0, 0, true, EFAULT},
    {"a kernel address", Memory::kernel, 0, 0, true, EFAULT},
});

void* address(const Row& row, const lab::Fenced& memory) {
    switch (row.memory) {
    case Memory::null:
        return nullptr;
    case Memory::low:
        return reinterpret_cast<void*>(0x10);
    case Memory::kernel:
        return reinterpret_cast<void*>(0xffff'8880'0000'0000);
    case Memory::fenced:
    case Memory::read_only:
        break;
    }
    return memory.data();
}

} // namespace

TEST_CASE("KVM_GET_NESTED_STATE into memory of every kind ends as the table says, and changes no vCPU") {
    for (const auto& row : rows) {
        INFO("row: " << std::string_view{row.name});
        const int fd = vcpu_at(row.l2_active).vcpu_fd();
        const auto before = lab::read_back(fd);
        const lab::Fenced memory{row.mapped};
        if (row.mapped >= 8)
            lab::store(memory.bytes(), lab::size_at, row.declared);
        if (row.memory == Memory::read_only)
            memory.make_read_only();
        const auto got = lab::raw_get(fd, address(row, memory));
        CHECK(lab::errno_name(got.value < 0 ? got.error_number : 0) == lab::errno_name(row.expect));
        if (got.value < 0) {
            const auto error =
                kvm::nested::classify(kvm::nested::Operation::get_nested_state, got.value, got.error_number,
                                      {.descriptor = kvm::nested::DescriptorKind::vcpu});
            CHECK(error.code == kvm::nested::Errc::bad_address);
            CHECK(error.effect == kvm::nested::Effect::unchanged);
        }
        CHECK(lab::read_back(fd) == before);
    }
    std::println("count: KVM_GET_NESTED_STATE into {} kinds of memory", rows.size());
}

// --- the library, with objects that end at a fence

namespace {

/// What there is to do with a state of either kind, and what the kernel should have said.
template <kvm::nested::VendorOrAny V>
struct Through {
    using Vcpu = kvm::nested::Vcpu<V>;
    using State = typename Vcpu::State;
    using Maybe = std::expected<State, kvm::nested::Error>;

    static Vcpu vcpu(const machine::Machine& machine) {
        return {must(kvm::nested::Host<V>::probe(kvm::nested::SystemFd{machine.system_fd()})),
                kvm::nested::VcpuFd{machine.vcpu_fd()}};
    }

    static void check_all(const machine::Machine& machine) {
        const auto told = lab::read_back(machine.vcpu_fd());
        const auto vcpu = Through::vcpu(machine);

        const lab::EndingAtFence<Maybe> by_value{[&] { return vcpu.nested_state(); }};
        REQUIRE(by_value->has_value());
        CHECK(std::ranges::equal((*by_value)->bytes(), told));

        const lab::EndingAtFence<State> in_place{[] { return State{}; }};
        for (int again = 0; again < 2; ++again) { // the second time over a size of 128
            CHECK(vcpu.nested_state(*in_place));
            CHECK(std::ranges::equal(in_place->bytes(), told));
        }

        const lab::EndingAtFence<State> copy{[&] { return *in_place; }};
        CHECK(*copy == *in_place);
        *in_place = *copy;
        CHECK(kvm::nested::equivalent(*copy, *in_place));
        CHECK_FALSE(kvm::nested::summary(*copy).view().empty());
        CHECK(vcpu.verify_nested_state(*copy));
        CHECK(vcpu.set_nested_state(*copy));
        CHECK_FALSE(kvm::nested::first_difference(lab::read_back(machine.vcpu_fd()), told));

        const lab::Fenced wire{told.size()};
        std::ranges::copy(told, wire.data());
        const lab::EndingAtFence<Maybe> parsed{[&] { return State::parse(wire.bytes()); }};
        REQUIRE(parsed->has_value());
        CHECK(**parsed == *copy);
        CHECK(State::parse_prefix(wire.bytes()).has_value());
    }

    /// A SET that the kernel refuses looks at the vCPU with a GET of its own.
    static void check_failing_set(const machine::Machine& machine) {
        const auto told = lab::read_back(machine.vcpu_fd());
        const auto bytes = refused_unchanged();
        const lab::EndingAtFence<State> bad{[&] { return must(State::parse(bytes)); }};
        CHECK_FALSE(Through::vcpu(machine).set_nested_state(*bad));
        CHECK(lab::read_back(machine.vcpu_fd()) == told);
    }
};

} // namespace

TEST_CASE("no call with an object in front of a fence reaches the fence") {
    for (const bool l2_active : {false, true}) {
        CAPTURE(l2_active);
        lab::with_vendor([&]<class V> {
            Through<V>::check_all(vcpu_at(l2_active));
            Through<V>::check_failing_set(vcpu_at(l2_active));
        });
        Through<kvm::nested::Any>::check_all(vcpu_at(l2_active));
        Through<kvm::nested::Any>::check_failing_set(vcpu_at(l2_active));
    }
}

TEST_CASE("a smaller object for GET than this host's capacity does not exist") {
    lab::with_vendor([]<class V> {
        CHECK(sizeof(typename Through<V>::State) == V::capacity);
        CHECK(sizeof(typename Through<kvm::nested::Any>::State) >= V::capacity);
    });
}

// --- the library, with a fence behind what it declares

namespace {

/// Gives the kernel exactly the memory that the library declares, in front of a fence. Whatever object the
/// library uses inside (verify, the GET after a failed SET), more would be EFAULT.
struct AtFence {
    std::vector<std::uint32_t>* declared;

    kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) const noexcept {
        if (request != KVM_GET_NESTED_STATE)
            return kvm::nested::system_call(fd, request, argument);
        std::uint32_t size = 0;
        std::memcpy(&size, static_cast<std::byte*>(argument) + lab::size_at, sizeof size);
        declared->push_back(size);
        if (size != kvm::nested::Svm::capacity && size != kvm::nested::Vmx::capacity)
            return {-1, ENOSYS}; // the test finds it in `declared`
        const lab::Fenced memory{size};
        std::memcpy(memory.data() + lab::size_at, &size, sizeof size);
        const auto result = kvm::nested::system_call(fd, request, memory.data());
        std::memcpy(argument, memory.data(), size);
        return result;
    }
};

/// Answers every GET with this result and size, and touches nothing else.
struct Hostile {
    int value;
    int error_number;
    std::uint32_t size;

    kvm::nested::IoctlResult operator()(int fd, unsigned long request, void* argument) const noexcept {
        if (request != KVM_GET_NESTED_STATE)
            return kvm::nested::system_call(fd, request, argument);
        std::memcpy(static_cast<std::byte*>(argument) + lab::size_at, &size, sizeof size);
        return {value, error_number};
    }
};

} // namespace

TEST_CASE(
    "every GET of the library declares full capacity, also those inside of verify and of a failed SET") {
    const auto bytes = refused_unchanged();
    for (const bool l2_active : {false, true}) {
        CAPTURE(l2_active);
        const auto& machine = vcpu_at(l2_active);
        const auto check = [&](const auto& host, std::uint32_t capacity) {
            std::vector<std::uint32_t> declared;
            const kvm::nested::Vcpu vcpu{host, kvm::nested::VcpuFd{machine.vcpu_fd()}, AtFence{&declared}};
            using State = typename decltype(vcpu)::State;
            const auto saved = must(vcpu.nested_state());
            State into;
            CHECK(vcpu.nested_state(into));
            CHECK(vcpu.nested_state(into));
            CHECK(into == saved);
            CHECK(vcpu.verify_nested_state(saved));
            CHECK(declared.size() == 4);
            CHECK_FALSE(vcpu.set_nested_state(must(State::parse(bytes))));
            CHECK(declared.size() > 4);
            for (const auto size : declared) // a failed SET looks with a buffer for either vendor
                CHECK((size == capacity || size == kvm::nested::Any::capacity));
        };
        lab::with_vendor([&]<class V> { check(lab::host_of<V>(), V::capacity); });
        check(lab::host(), kvm::nested::Any::capacity);
    }
}

TEST_CASE("after any answer of a seam the next GET into the same object is armed again") {
    const auto& machine = vcpu_at(true);
    const auto told = lab::read_back(machine.vcpu_fd());
    const auto check = [&](const auto& host, const Hostile& seam, auto cleared) {
        using State = decltype(cleared);
        const lab::EndingAtFence<State> state{[] { return State{}; }};
        const kvm::nested::Vcpu hostile{host, kvm::nested::VcpuFd{machine.vcpu_fd()}, seam};
        CHECK(hostile.nested_state(*state).has_value() == (seam.error_number == 0));
        CHECK(state->bytes().size() <= sizeof(State));
        if (seam.error_number != 0)
            CHECK(*state == cleared);
        const kvm::nested::Vcpu real{host, kvm::nested::VcpuFd{machine.vcpu_fd()}};
        CHECK(real.nested_state(*state));
        CHECK(std::ranges::equal(state->bytes(), told));
    };
    for (const int error_number : {0, E2BIG, EFAULT})
        for (const std::uint32_t size : {0u, 127u, 128u, 4223u, 4224u, 4225u, 8320u, 8321u, 0xffff'ffffu}) {
            CAPTURE(error_number);
            CAPTURE(size);
            const Hostile seam{error_number == 0 ? 0 : -1, error_number, size};
            lab::with_vendor([&]<class V> {
                check(lab::host_of<V>(), seam, kvm::nested::NestedState<V>::not_in_nested_operation());
            });
            check(lab::host(), seam, kvm::nested::NestedStateBuffer{}); // empty
        }
}
