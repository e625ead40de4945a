// SPDX-License-Identifier: MIT
//
// The guests of the lab that many tests use, and what they say: they go on where <guests/guests.hpp> ends.
#pragma once

#include "images.hpp"
#include "lab_layout.h"

#include <array>
#include <cstdint>
#include <span>

namespace guests {

/// Where phases() is: the value on port::phase.
enum class Phase : std::uint32_t {
    svm_off = PHASE_SVM_OFF,           ///< SVM: L1, EFER.SVME clear
    svm_on = PHASE_SVM_ON,             ///< SVM: L1, EFER.SVME set
    gif_clear = PHASE_GIF_CLEAR,       ///< SVM: L1, after CLGI
    gif_set = PHASE_GIF_SET,           ///< SVM: L1, after STGI
    vmx_off = PHASE_VMX_OFF,           ///< VMX: L1, before VMXON
    vmx_on = PHASE_VMX_ON,             ///< VMX: L1, after VMXON
    vmcs_loaded = PHASE_VMCS_LOADED,   ///< VMX: L1, after VMCLEAR and VMPTRLD
    vmcs_written = PHASE_VMCS_WRITTEN, ///< VMX: L1, after its VMWRITEs
    l2 = PHASE_L2,                     ///< L2
    exited = PHASE_EXITED,             ///< L1, after L2 has called it; on SVM GIF is clear then
    exited_gif = PHASE_EXITED_GIF,     ///< SVM: L1, after #VMEXIT and STGI
    vmcs_cleared = PHASE_VMCS_CLEARED, ///< VMX: L1, after VMCLEAR of the current VMCS
    vmxoff = PHASE_VMXOFF,             ///< VMX: L1, after VMXOFF
};

/// The phases in the order in which phases() comes to them.
[[nodiscard]] inline std::span<const Phase> phase_order(Vendor vendor) {
    static constexpr std::array svm{Phase::svm_off, Phase::svm_on, Phase::gif_clear, Phase::gif_set,
                                    Phase::l2,      Phase::exited, Phase::exited_gif};
    static constexpr std::array vmx{Phase::vmx_off, Phase::vmx_on, Phase::vmcs_loaded,  Phase::vmcs_written,
                                    Phase::l2,      Phase::exited, Phase::vmcs_cleared, Phase::vmxoff};
    if (vendor == Vendor::svm)
        return svm;
    return vmx;
}

/// Shows each phase on port::phase, in the order of phase_order(), and halts.
[[nodiscard]] inline Image phases(Vendor vendor) {
    return vendor == Vendor::svm ? IMAGE(svm_phases) : IMAGE(vmx_phases);
}

/// L1 and L2 call each other as fast as it goes, `rounds` times, with no exit to user space before the end:
/// for interrupting it anywhere. At the end L1 writes port::l1_rounds (must be `rounds`) and port::rounds
/// (must be `rounds` * stress_increments), and halts.
[[nodiscard]] inline Image stress(Vendor vendor) {
    return vendor == Vendor::svm ? IMAGE(svm_stress) : IMAGE(vmx_stress);
}

inline constexpr std::uint64_t stress_increments = STRESS_INCREMENTS;

/// More ports, as those of <guests/guests.hpp>.
namespace port {
inline constexpr std::uint16_t phase = PORT_PHASE;         ///< a Phase
inline constexpr std::uint16_t l1_rounds = PORT_L1_ROUNDS; ///< from L1 at the end: what L1 counted
} // namespace port

} // namespace guests
