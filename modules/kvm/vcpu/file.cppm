// SPDX-License-Identifier: MIT
//
// The file form of a VcpuState, and of a VmState with the VcpuStates of all its vCPUs, for disks and sockets
// alike.
//
// All numbers are little-endian. A file is a header and sections behind each other, nothing between and
// nothing behind. Every byte is covered by a checksum or has one possible value, so that no flipped bit goes
// unseen; the length is in the header, so that no cut does.
//
// Header, 64 bytes:
//      0   8  magic: 8f 4b 56 43 50 55 0d 0a
//      8   2  version: 1
//     10   2  bytes of this header: 64
//     12   4  vendor: 0 VMX, 1 SVM
//     16   8  bytes of the whole file
//     24   4  number of sections
//     28   4  requirements: bit 0 exception payload, bit 1 triple fault event, bit 2 enlightened VMCS, bit 3
//             SynIC, bit 4 SynIC2 (not both)
//     32   8  requirements: quirks that are disabled (KVM_CAP_DISABLE_QUIRKS2)
//     40   4  requirements: flags of KVM_CAP_X2APIC_API
//     44   4  requirements: nanoseconds of KVM_CAP_X86_APIC_BUS_CYCLES_NS; 0: as KVM has it
//     48  12  zero
//     60   4  CRC-32 (zlib's) of bytes 0 to 59
//
// Section, 24 bytes, then its payload, then zeroes up to a multiple of 8:
//      0   4  type; bit 31 set: the caller's own
//      4   4  flags: bit 0 mandatory: who does not know the type must not go on; bits 31:16 the vCPU that it
//             belongs to, counted from 0, and 0 where it belongs to none; the other bits are zero
//      8   8  bytes of the payload
//     16   4  CRC-32 of the payload
//     20   4  CRC-32 of bytes 0 to 19
//
// Types of a vCPU. All are mandatory and, but for lapic, tsc_offset and one_regs, must be there, each once
// for each vCPU; all sections of a vCPU come before those of the next. The layouts are those of :uapi.
//      1  cpuid         CpuidEntry, 40 bytes each, at most 256
//      2  feature_msrs  Msr, 16 bytes each, at most 4096; bytes 4 to 7 of each are zero
//      3  msrs          the same
//      4  tsc_khz       4 bytes
//      5  sregs2        320 bytes
//      6  regs          144 bytes
//      7  xsave         4096 to 65536 bytes: the XSAVE area (Intel SDM Vol. 1, standard format)
//      8  xcrs          392 bytes; the count at most 16
//      9  debugregs     128 bytes
//     10  vcpu_events   64 bytes
//     11  mp_state      4 bytes
//     12  lapic         1024 bytes; only where the interrupt controller is in the kernel
//     13  nested_state  128 to 8320 bytes: what NestedStateBuffer::parse() takes, of the header's vendor
//     14  tsc_offset    8 bytes; only where the kernel tells it
//     15  one_regs      OneReg, 16 bytes each, at most 64; only where the kernel lists some
//
// Types of a VM. All are mandatory. They are in no file of a single vCPU, and clock is in every file of a VM.
//     64  clock         64 bytes: VmClock
//     65  irqchips      1560 bytes: Irqchips; only where they are in the kernel
//     66  pit           112 bytes; only where it is in the kernel
module;
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>
export module kvm.vcpu:file;
import kvm.nested;
import :error;
import :state;
import :vm_state;

export namespace kvm::vcpu {

/// Version of the file form that encode() writes, and the only one that parse_vcpu() reads.
inline constexpr std::uint16_t file_version = 1;

/// Set in the types of a caller's own sections.
inline constexpr std::uint32_t callers_section = 0x8000'0000;

/// A section of the caller's: guest memory, devices, whatever belongs to the vCPU's state.
struct Section {
    std::uint32_t type; ///< has callers_section set; may repeat
    std::span<const std::byte> bytes;
};

/// Where encode() puts the bytes, piece by piece: std::expected<void, Error>(std::span<const std::byte>).
/// Refers to the function, does not own it.
class ByteSink {
  public:
    template <class F>
        requires(!std::is_same_v<std::remove_cvref_t<F>, ByteSink>
                 && std::is_invocable_r_v<std::expected<void, Error>, F&, std::span<const std::byte>>)
    constexpr ByteSink(F&& function) noexcept
        : function_{const_cast<void*>(static_cast<const void*>(std::addressof(function)))},
          call_{[](void* object, std::span<const std::byte> bytes) -> std::expected<void, Error> {
              return (*static_cast<std::remove_reference_t<F>*>(object))(bytes);
          }} {}

    [[nodiscard]] inline std::expected<void, Error> operator()(std::span<const std::byte> bytes) const {
        return call_(function_, bytes);
    }

  private:
    void* function_;
    std::expected<void, Error> (*call_)(void*, std::span<const std::byte>);
};

/// Writes the file form. Nothing is written if the state has none.
/// @return Errc::no_state, Errc::wrong_vendor, Errc::malformed_section (detail: the type), or what the sink
///         said
[[nodiscard]] std::expected<void, Error> encode(const VcpuState& state, ByteSink sink,
                                                std::span<const Section> callers = {});

/// The same for a whole VM: what belongs to it, and its vCPUs in their order.
/// @return what is said above; Errc::no_state without a vCPU, Errc::wrong_vendor where vCPUs differ in it,
///         Errc::not_prepared or Errc::requirement_differs where they or the VM contradict each other
[[nodiscard]] std::expected<void, Error> encode(const VmState& vm, std::span<const VcpuState> vcpus,
                                                ByteSink sink, std::span<const Section> callers = {});

/// How many bytes encode() will write, for who has to announce it.
[[nodiscard]] std::uint64_t encoded_size(const VcpuState& state, std::span<const Section> callers = {});
[[nodiscard]] std::uint64_t encoded_size(const VmState& vm, std::span<const VcpuState> vcpus,
                                         std::span<const Section> callers = {});

/// Bytes of the beginning of a file that file_size() needs.
inline constexpr std::size_t file_header_size = 64;

/// How many bytes a file has in all, for who receives it from a socket. The beginning is checked.
/// @param beginning file_header_size bytes or more
/// @return Errc::not_our_file, Errc::too_short, Errc::unknown_file_version, Errc::damaged_file,
///         Errc::malformed_section; detail: offset in the file
[[nodiscard]] std::expected<std::uint64_t, Error> file_size(std::span<const std::byte> beginning);

/// A state and the caller's sections, in the order of the file. Their bytes are those of the input.
struct ParsedFile {
    VcpuState state;
    std::vector<Section> sections;
};

/// Makes a state of exactly the bytes of a file. Trusts nothing, and allocates no more than there are bytes.
/// @return Errc::not_our_file to Errc::missing_section, Errc::too_short, Errc::too_long, Errc::wrong_vendor
///         (the nested state is not of the header's vendor), or what NestedStateBuffer::parse() says;
///         detail: offset in the file, for missing_section the type. A file of a VM says
///         Errc::unknown_mandatory_section: see parse_vm()
[[nodiscard]] std::expected<ParsedFile, Error> parse_vcpu(std::span<const std::byte> bytes);

/// What is in a file, whether of a VM or of a single vCPU.
struct ParsedVm {
    std::optional<VmState> vm;     ///< none: the file is of a single vCPU
    std::vector<VcpuState> vcpus;  ///< one at least
    std::vector<Section> sections; ///< the caller's, in the order of the file; bytes of the input
};

/// The same for a whole VM.
[[nodiscard]] std::expected<ParsedVm, Error> parse_vm(std::span<const std::byte> bytes);

} // namespace kvm::vcpu
