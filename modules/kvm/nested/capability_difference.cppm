// SPDX-License-Identifier: MIT
//
// What one host can do in VMX or SVM and the other cannot, bit by bit. KVM takes a capability MSR from
// another host only if it asks for nothing that its own vCPUs lack, and says of all the rest EINVAL or a
// short count.
module;
#include <cstddef>
#include <cstdint>
#include <string_view>
export module kvm.nested:capability_difference;
import :bit_layout;
import :capabilities;
import :capability;
import :feature_name;
import :sink;
import :report;

export namespace kvm::nested {

/// Which of two has what the other lacks.
enum class Holder : std::uint8_t {
    a,
    b,
    neither, ///< a number of which none is more than the other, such as a revision
};

/// A bit, or a number, in which two sets of capabilities differ.
struct CapabilityDifference {
    const CapabilityLayout* layout;
    /// In the MSR, of a control in one half of it. Without a name where it is reserved or not known here.
    NamedBits bits;
    AllowedSetting setting;
    /// Who has the feature, or the greater number; where setting is must_be_1: with whom the bit may be 0.
    Holder holder;
    std::uint64_t a, b;         ///< what each has there: 0, 1 or a number
    const FeatureName* feature; ///< null if neither QEMU nor libvirt has a name for it
};

/// Hands over each difference, in the order of the MSRs, and answers how many there are. An MSR that is
/// known of one side only is left out, as are the four that say what the TRUE ones say, where those are
/// known.
std::size_t capability_difference(const vmx::Capabilities& a, const vmx::Capabilities& b,
                                  Receiver<const CapabilityDifference&> receiver) noexcept;
std::size_t capability_difference(const svm::Capabilities& a, const svm::Capabilities& b,
                                  Receiver<const CapabilityDifference&> receiver) noexcept;

/// What the two are called in text.
struct CapabilityDifferenceOptions {
    std::string_view a = "a", b = "b";
};

/// The same as text, a line for each difference, and one that names what was not compared.
std::size_t capability_difference(const vmx::Capabilities& a, const vmx::Capabilities& b, TextSink sink,
                                  const CapabilityDifferenceOptions& options = {}) noexcept;
std::size_t capability_difference(const svm::Capabilities& a, const svm::Capabilities& b, TextSink sink,
                                  const CapabilityDifferenceOptions& options = {}) noexcept;

/// One difference alone, without the end of the line:
/// "b only  0x48b  enable VM functions may be 1  vmx-vmfunc".
void describe(const CapabilityDifference& what, TextSink sink,
              const CapabilityDifferenceOptions& options = {}) noexcept;

/// For argument-dependent look-up.
namespace vmx {
using nested::capability_difference;
}
namespace svm {
using nested::capability_difference;
}

} // namespace kvm::nested

namespace kvm::nested::detail {

/// "vmx-ept", "vmx-invept-single-context, libvirt: vmx-invvpid-single-context".
void write_feature(Writer& out, const FeatureName& feature) noexcept;

} // namespace kvm::nested::detail
