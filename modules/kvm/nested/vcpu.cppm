// SPDX-License-Identifier: MIT
//
// Host: the proof of vendor and capacity, made once. Vcpu: KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE.
module;
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <type_traits>
#include <utility>
export module kvm.nested:vcpu;
import :uapi;
import :vendor;
import :header;
import :error;
import :ioctl;
import :state_view;
import :state;
import :buffer;

namespace kvm::nested::detail {

template <VendorOrAny V>
struct StateOf {
    using type = NestedState<V>;
};
template <>
struct StateOf<Any> {
    using type = NestedStateBuffer;
};

/// The Error of a failed GET or SET, which has no detail. Without it two registers hold it: a caller who only
/// asks whether the call succeeded needs no stack for the answer, and its prologue stays that of the bare
/// ioctl (tests/bench).
struct Failure {
    Errc code;
    Operation operation;
    Effect effect;
    IoctlResult result;

    explicit constexpr Failure(const Error& error) noexcept
        : code{error.code}, operation{error.operation}, effect{error.effect},
          result{error.raw_result, error.error_number} {}

    constexpr Error error() const noexcept {
        return {.code = code,
                .operation = operation,
                .effect = effect,
                .raw_result = result.value,
                .error_number = result.error_number};
    }
};
static_assert(sizeof(Failure) <= 2 * sizeof(void*) && std::is_trivially_copyable_v<Failure>);

// The failing paths: out of line, so that the succeeding ones stay as short as the bare ioctl.
std::expected<VendorId, Error> probe(IoctlRef ioctl, int fd) noexcept;
Failure get_failed(IoctlRef ioctl, int fd, IoctlResult result) noexcept;
Failure set_failed(IoctlRef ioctl, int fd, IoctlResult result, std::span<const std::byte> attempted) noexcept;

} // namespace kvm::nested::detail

export namespace kvm::nested {

/// What kind of descriptor `fd` is. Asks KVM with requests that change nothing; meant for failing paths.
/// Waits while another thread is in KVM_RUN on a vCPU.
DescriptorKind descriptor_kind(IoctlRef ioctl, int fd) noexcept;

/// Proof that this machine's KVM nests guests of vendor `V` and that its states fit into our objects. Only
/// probe() makes one; without it there is no Vcpu, and so no way to hand the kernel an object that is too
/// small.
template <VendorOrAny V>
class Host {
  public:
    /// Asks /dev/kvm: KVM_CAP_NESTED_STATE must be exactly V's capacity and KVM_GET_SUPPORTED_CPUID must
    /// offer V.
    /// @return Errc::not_supported to Errc::wrong_vendor, or what is wrong with the descriptor. Nesting off
    ///         (nested=0) shows as a missing CPUID bit up to Linux 6.12 and as capacity 0 on 7.x; both are
    ///         Errc::nesting_off.
    [[nodiscard]] static inline std::expected<Host, Error> probe(SystemFd system,
                                                                 IoctlRef ioctl = system_call) noexcept {
        const auto found = detail::probe(ioctl, system.number);
        if (!found)
            return std::unexpected(found.error());
        if (*found != V::id)
            return std::unexpected(Error{.code = Errc::wrong_vendor, .operation = Operation::probe});
        return Host{};
    }

    static constexpr VendorId vendor() noexcept { return V::id; }

  private:
    friend class Host<Any>;
    constexpr Host() noexcept = default;
};

/// The same where the vendor is found out at run time.
template <>
class Host<Any> {
  public:
    [[nodiscard]] static inline std::expected<Host, Error> probe(SystemFd system,
                                                                 IoctlRef ioctl = system_call) noexcept {
        const auto found = detail::probe(ioctl, system.number);
        if (!found)
            return std::unexpected(found.error());
        return Host{*found};
    }

    /// A host whose vendor is fixed is a host.
    template <Vendor V>
    constexpr Host(const Host<V>&) noexcept : vendor_{V::id} {}

    constexpr VendorId vendor() const noexcept { return vendor_; }

    /// The way back: the proof for vendor `V`, where this host is one of it.
    /// @return Errc::wrong_vendor
    template <Vendor V>
    [[nodiscard]] constexpr std::expected<Host<V>, Error> narrow() const noexcept {
        if (vendor_ != V::id)
            return std::unexpected(Error{.code = Errc::wrong_vendor, .operation = Operation::narrow});
        return Host<V>{};
    }

  private:
    explicit constexpr Host(VendorId vendor) noexcept : vendor_{vendor} {}
    VendorId vendor_;
};

/// The nested state of one vCPU. Does not own the descriptor. KVM serialises the calls with KVM_RUN on the
/// same vCPU: they block while another thread is in it.
///
/// @tparam V     Vmx, Svm or Any: what State is
/// @tparam Ioctl the seam; IoctlRef for one that is chosen at run time
template <VendorOrAny V, class Ioctl = SystemCall>
class Vcpu {
    static_assert(IoctlSeam<const Ioctl>,
                  "a seam is callable as noexcept IoctlResult(int, unsigned long, void*)");

  public:
    using State = typename detail::StateOf<V>::type;

    inline Vcpu(Host<V> host, VcpuFd fd, Ioctl ioctl = {}) noexcept
        : host_{host}, ioctl_{std::move(ioctl)}, fd_{fd.number} {}

    inline Host<V> host() const noexcept { return host_; }
    inline VcpuFd fd() const noexcept { return VcpuFd{fd_}; }

    /// KVM_GET_NESTED_STATE. KVM may fetch what L1 wrote to a shadow or enlightened VMCS while it is at it; a
    /// pending KVM_EXIT_IO or KVM_EXIT_MMIO should be completed before (KVM_RUN with immediate_exit), else
    /// RIP is stale.
    [[nodiscard]] inline std::expected<State, Error> nested_state() const noexcept {
        std::expected<State, Error> result{std::in_place, detail::Armed{}};
        if (const IoctlResult got = get(*result); got.value != 0) [[unlikely]]
            result = std::unexpected(detail::get_failed(seam(), fd_, got).error());
        return result;
    }

    /// The same into an object that the caller already has. After a failure it is not in nested operation (a
    /// NestedStateBuffer: empty), whatever it was before.
    [[nodiscard]] inline std::expected<void, Error> nested_state(State& into) const noexcept {
        into.arm();
        if (const IoctlResult got = get(into); got.value != 0) [[unlikely]] {
            into.clear();
            return std::unexpected(detail::get_failed(seam(), fd_, got).error());
        }
        return {};
    }

    /// KVM_SET_NESTED_STATE: the last thing to restore, see the README for the order. A success is
    /// provisional until the first KVM_RUN, at which KVM maps the pages that the state refers to.
    ///
    /// VMX, L1 running with a current VMCS, on a vCPU that was in L2 before: KVM still owes that L2's
    /// segments and lets the new vmcs12 pay (Linux 6.1, 6.12, 7.3). Read back, and set once more what has
    /// changed.
    /// @return Errc::refused for every check of the kernel's, Errc::entry_failed for a positive result; the
    ///         effect says what the vCPU holds now
    [[nodiscard]] inline std::expected<void, Error> set_nested_state(const State& state) const noexcept {
        if constexpr (std::same_as<V, Any>) {
            if (state.storage_.header.format != format(host_.vendor())) [[unlikely]]
                return std::unexpected(Error{.code = state.is_empty() ? Errc::no_state : Errc::wrong_vendor,
                                             .operation = Operation::set_nested_state,
                                             .detail_kind = offset_in(host_.vendor()),
                                             .detail = header_offset("format")});
        }
        void* argument = const_cast<uapi::StateHeader*>(&state.header()); // SET only reads
        if (const IoctlResult set = ioctl_(fd_, uapi::request::set_nested_state, argument); set.value != 0)
            [[unlikely]]
            return std::unexpected(detail::set_failed(seam(), fd_, set, state.bytes()).error());
        return {};
    }

    /// Takes the vCPU out of nested operation: before a restore into a vCPU that is not fresh, and after
    /// Effect::nested_state_lost. SVM: GIF becomes set.
    [[nodiscard]] inline std::expected<void, Error> clear_nested_state() const noexcept {
        if constexpr (std::same_as<V, Any>)
            return set_nested_state(NestedStateBuffer::not_in_nested_operation(host_.vendor()));
        else
            return set_nested_state(State::not_in_nested_operation());
    }

    /// Reads back and compares, see equivalent(). Says nothing about the pages that only KVM_RUN maps.
    ///
    /// VMX with an enlightened VMCS and L1 running: reading back between KVM_SET_NESTED_STATE and the first
    /// KVM_RUN spoils the vmcs12; set it once more (Linux 6.1, 6.12, 7.3).
    /// @return Errc::not_equivalent; detail: offset of the first byte that differs
    [[nodiscard]] inline std::expected<void, Error>
    verify_nested_state(const State& expected) const noexcept {
        State found{detail::Armed{}};
        if (const IoctlResult got = get(found); got.value != 0) [[unlikely]]
            return std::unexpected(detail::get_failed(seam(), fd_, got).error());
        if (const auto offset = first_difference(expected, found))
            return std::unexpected(Error{.code = Errc::not_equivalent,
                                         .operation = Operation::verify,
                                         .detail_kind = offset_in(host_.vendor()),
                                         .detail = *offset});
        return {};
    }

  private:
    inline IoctlResult get(State& state) const noexcept {
        return ioctl_(fd_, uapi::request::get_nested_state, &state.storage_);
    }
    inline IoctlRef seam() const noexcept {
        if constexpr (std::same_as<Ioctl, IoctlRef>)
            return ioctl_;
        else if constexpr (std::same_as<Ioctl, SystemCall>)
            return IoctlRef{system_call}; // not our own: this object would have to live in memory for it
        else
            return IoctlRef{ioctl_};
    }

    [[no_unique_address]] Host<V> host_;
    [[no_unique_address]] Ioctl ioctl_;
    int fd_;
};

template <VendorOrAny V>
Vcpu(Host<V>, VcpuFd) -> Vcpu<V, SystemCall>;
template <VendorOrAny V, class Ioctl>
Vcpu(Host<V>, VcpuFd, Ioctl) -> Vcpu<V, Ioctl>;

} // namespace kvm::nested
