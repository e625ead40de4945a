// SPDX-License-Identifier: MIT
//
// What the rules need to know about the vCPU that a state is to be set on. Each part may be unknown: a rule
// that needs it then answers that it cannot tell, and why, and never guesses.
module;
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module kvm.nested:destination;
import :uapi;
import :vendor;
import :capabilities;

export namespace kvm::nested {

/// A kernel's version, as far as its rules depend on it. Stable kernels take over changes, and distributions
/// more of them: rules stand for what was seen on the kernels 6.1.192, 6.12.118 and 7.3.4, and in the sources
/// of 6.12.107 and 7.2.12.
struct KernelVersion {
    std::uint16_t major = 0;
    std::uint16_t minor = 0;
    std::uint16_t patch = 0;
    auto operator<=>(const KernelVersion&) const = default;
};

/// The version that a release such as "6.12.118+deb13-amd64" begins with (uname -r).
std::optional<KernelVersion> kernel_version(std::string_view release) noexcept;

/// Processor features that a rule asks for.
enum class Feature : std::uint8_t {
    xsave,
    pcid,
    vmx,
    fsgsbase,
    smep,
    rtm,
    invpcid,
    smap,
    umip,
    pku,
    shstk,
    la57,
    bus_lock_detect,
    ibt,
    lam,
    svm,
    skinit,
    nx,
    fxsr_opt,
    rdtscp,
    lm,
    rdpru,
    npt,
    gmet,
    sev_es,
    autoibrs,
    /// Hyper-V's interface signature in leaf 0x40000001: KVM's own condition for Hyper-V enlightenments.
    hyperv,
};
inline constexpr std::size_t feature_count = static_cast<std::size_t>(Feature::hyperv) + 1;

/// Where CPUID says whether there is a feature.
struct FeatureBit {
    enum class Register : std::uint8_t { eax, ebx, ecx, edx };

    Feature feature;
    std::string_view name; ///< as /proc/cpuinfo and QEMU spell it
    std::uint32_t function;
    std::uint32_t index;
    Register in;
    std::uint8_t bit;
};

/// All features but `hyperv`, which is no bit, in the order of the enumeration.
inline constexpr std::array feature_bits = std::to_array<FeatureBit>({
    {Feature::xsave, "xsave", 1, 0, FeatureBit::Register::ecx, 26},
    {Feature::pcid, "pcid", 1, 0, FeatureBit::Register::ecx, 17},
    {Feature::vmx, "vmx", 1, 0, FeatureBit::Register::ecx, 5},
    {Feature::fsgsbase, "fsgsbase", 7, 0, FeatureBit::Register::ebx, 0},
    {Feature::smep, "smep", 7, 0, FeatureBit::Register::ebx, 7},
    {Feature::rtm, "rtm", 7, 0, FeatureBit::Register::ebx, 11},
    {Feature::invpcid, "invpcid", 7, 0, FeatureBit::Register::ebx, 10},
    {Feature::smap, "smap", 7, 0, FeatureBit::Register::ebx, 20},
    {Feature::umip, "umip", 7, 0, FeatureBit::Register::ecx, 2},
    {Feature::pku, "pku", 7, 0, FeatureBit::Register::ecx, 3},
    {Feature::shstk, "shstk", 7, 0, FeatureBit::Register::ecx, 7},
    {Feature::la57, "la57", 7, 0, FeatureBit::Register::ecx, 16},
    {Feature::bus_lock_detect, "bus-lock-detect", 7, 0, FeatureBit::Register::ecx, 24},
    {Feature::ibt, "ibt", 7, 0, FeatureBit::Register::edx, 20},
    {Feature::lam, "lam", 7, 1, FeatureBit::Register::eax, 26},
    {Feature::svm, "svm", 0x8000'0001, 0, FeatureBit::Register::ecx, 2},
    {Feature::skinit, "skinit", 0x8000'0001, 0, FeatureBit::Register::ecx, 12},
    {Feature::nx, "nx", 0x8000'0001, 0, FeatureBit::Register::edx, 20},
    {Feature::fxsr_opt, "fxsr-opt", 0x8000'0001, 0, FeatureBit::Register::edx, 25},
    {Feature::rdtscp, "rdtscp", 0x8000'0001, 0, FeatureBit::Register::edx, 27},
    {Feature::lm, "lm", 0x8000'0001, 0, FeatureBit::Register::edx, 29},
    {Feature::rdpru, "rdpru", 0x8000'0008, 0, FeatureBit::Register::ebx, 4},
    {Feature::npt, "npt", svm::Capabilities::function, 0, FeatureBit::Register::edx, 0},
    {Feature::gmet, "gmet", svm::Capabilities::function, 0, FeatureBit::Register::edx, 17},
    {Feature::sev_es, "sev-es", 0x8000'001f, 0, FeatureBit::Register::eax, 3},
    {Feature::autoibrs, "auto-ibrs", 0x8000'0021, 0, FeatureBit::Register::eax, 8},
});
static_assert(feature_bits.size() == feature_count - 1);
static_assert([] {
    for (std::size_t i = 0; i < feature_bits.size(); ++i)
        if (static_cast<std::size_t>(feature_bits[i].feature) != i)
            return false;
    return true;
}());

/// As FeatureBit::name gives it.
constexpr std::string_view name(Feature feature) noexcept {
    const auto index = static_cast<std::size_t>(feature);
    return index < feature_bits.size() ? feature_bits[index].name : "hyperv";
}

/// yes, no, or nobody knows.
enum class Known : std::uint8_t { no, yes, unknown };
constexpr Known known(const std::optional<bool>& value) noexcept {
    return !value ? Known::unknown : *value ? Known::yes : Known::no;
}

/// Which features there are, as far as it is known.
class Features {
  public:
    constexpr Known operator[](Feature feature) const noexcept {
        return (known_ & bit(feature)) == 0 ? Known::unknown
               : (has_ & bit(feature)) != 0 ? Known::yes
                                            : Known::no;
    }
    constexpr void set(Feature feature, bool there) noexcept {
        known_ |= bit(feature);
        has_ = there ? has_ | bit(feature) : has_ & ~bit(feature);
    }
    constexpr bool empty() const noexcept { return known_ == 0; }
    bool operator==(const Features&) const = default;

  private:
    static constexpr std::uint64_t bit(Feature feature) noexcept {
        return std::uint64_t{1} << static_cast<unsigned>(feature);
    }
    std::uint64_t known_ = 0, has_ = 0;
};

/// Guest memory, read through a function of the caller's. Rules that look at it answer "may fail" without.
struct GuestMemory {
    /// Copies what is at a guest physical address; false: no memory is there.
    bool (*read)(void* context, std::uint64_t address, std::span<std::byte> to) noexcept = nullptr;
    void* context = nullptr;

    bool operator==(const GuestMemory&) const = default;
};

/// The vCPU that a state is to be set on, or what a vCPU of a host could at most be.
struct Destination {
    std::optional<VendorId> vendor = {};
    std::optional<KernelVersion> kernel = {};
    std::optional<bool> nested = {}; ///< whether KVM_CAP_NESTED_STATE is not 0
    /// The guest's, CPUID.80000008H:EAX[7:0]; KVM takes 36 without that leaf.
    std::optional<std::uint8_t> maxphyaddr = {};
    Features guest = {};          ///< what the guest's CPUID says
    Features host = {};           ///< what KVM_GET_SUPPORTED_CPUID says
    vmx::Capabilities vmx = {};   ///< the vCPU's VMX capability MSRs
    svm::Capabilities svm = {};   ///< of the guest's CPUID
    std::optional<bool> smm = {}; ///< the vCPU is in SMM (KVM_GET_VCPU_EVENTS)
    // The vCPU's registers, which are L2's to be.
    std::optional<std::uint64_t> efer = {};
    std::optional<std::uint64_t> cr0 = {};
    std::optional<std::uint64_t> cr3 = {};
    std::optional<std::uint64_t> cr4 = {};
    std::optional<bool> enlightened_vmcs = {}; ///< KVM_CAP_HYPERV_ENLIGHTENED_VMCS is enabled on the vCPU
    std::optional<std::uint64_t> disabled_quirks = {}; ///< KVM_CAP_DISABLE_QUIRKS2
    std::optional<bool> nested_paging = {};            ///< kvm_amd's parameter npt
    /// The bits that the vCPU has in IA32_PERF_GLOBAL_CTRL, one for each counter.
    std::optional<std::uint64_t> perf_global_ctrl = {};
    std::optional<bool> exception_payload = {}; ///< KVM_CAP_EXCEPTION_PAYLOAD is enabled
    std::optional<std::uint32_t> tsc_khz = {};  ///< of the vCPU
    GuestMemory memory = {};

    bool operator==(const Destination&) const = default;
};

/// Quirks that rules depend on (KVM_CAP_DISABLE_QUIRKS2).
namespace quirk {
/// From 6.12 on: bit 14 of L2's IA32_DEBUGCTL is tolerated.
inline constexpr std::uint64_t vmcs12_allow_freeze_in_smm = 1 << 10;
/// 7.x: L1 and L2 share one PAT.
inline constexpr std::uint64_t nested_svm_shared_pat = 1 << 11;
} // namespace quirk

} // namespace kvm::nested
