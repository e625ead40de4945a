// SPDX-License-Identifier: MIT
//
// The fields of a VMCB's control area: where the AMD APM (Vol. 2, appendix B) has them, and what svm_fields.S
// writes there. The names are those under which kvm.nested prints them, which has a table of places of its
// own.
//
// It is read by the assembler and by C++, like layout.h: FIELD(name, offset, bytes, value), between them
// SEPARATOR. A value shows which field it belongs to, in each 16 bits of it. Those that cannot be just
// anything:
//   intercepts[4]   VMRUN, which an L1 must intercept, and VMMCALL, with which L2 calls it; also SKINIT,
//   RDTSCP, XSETBV
//                   and RDPRU, of which CPUID tells whether there are such instructions; intercepts[5]:
//                   INVPCID
//   iopm, msrpm     pages that are zero: nothing exits
//   tlb_ctl         flush all
//   int_ctl         V_INTR_MASKING, V_IGN_TPR, V_INTR_PRIO 7, V_TPR 5
//   misc_ctl        NP_ENABLE
//   nested_cr3      PCD and PWT besides the address
#ifndef GUESTS_SVM_FIELDS_H
#define GUESTS_SVM_FIELDS_H

#define SVM_FIELDS(FIELD, SEPARATOR)                                                                         \
    FIELD("intercepts[0]", 0x000, 4, 0x41004000)                                                             \
    SEPARATOR FIELD("intercepts[1]", 0x004, 4, 0x41014001) SEPARATOR FIELD(                                  \
        "intercepts[2]", 0x008, 4, 0x41024002) SEPARATOR FIELD("intercepts[3]", 0x00c, 4, 0x41034003)        \
        SEPARATOR FIELD("intercepts[4]", 0x010, 4, 0x410460c7) SEPARATOR FIELD(                              \
            "intercepts[5]", 0x014, 4, 0x41054005) SEPARATOR FIELD("pause_filter_thresh", 0x03c, 2, 0x4006)  \
            SEPARATOR FIELD("pause_filter_count", 0x03e, 2, 0x4007) SEPARATOR FIELD(                         \
                "iopm_base_pa", 0x040, 8, 0x1d000) SEPARATOR FIELD("msrpm_base_pa", 0x048, 8, 0x28000)       \
                SEPARATOR FIELD("tsc_offset", 0x050, 8, 0x4308420841084008) SEPARATOR FIELD(                 \
                    "asid", 0x058, 4, 0x41094009) SEPARATOR FIELD("tlb_ctl", 0x05c, 1, 0x01)                 \
                    SEPARATOR FIELD("erap_ctl", 0x05d, 1, 0x8a) SEPARATOR FIELD(                             \
                        "int_ctl", 0x060, 4, 0x01170005) SEPARATOR FIELD("int_vector", 0x064, 4, 0x410b400b) \
                        SEPARATOR FIELD("int_state", 0x068, 4, 0x410c400c) SEPARATOR FIELD(                  \
                            "exit_code", 0x070,                                                              \
                            8,                                                                               \
                            0x430d420d410d400d) SEPARATOR FIELD("exit_info_1", 0x078, 8, 0x430e420e410e400e) \
                            SEPARATOR FIELD("exit_info_2", 0x080, 8, 0x430f420f410f400f) SEPARATOR FIELD(    \
                                "exit_int_info", 0x088,                                                      \
                                4, 0x41104010) SEPARATOR FIELD("exit_int_info_err", 0x08c, 4, 0x41114011)    \
                                SEPARATOR FIELD("misc_ctl", 0x090, 8, 0x1) SEPARATOR FIELD(                  \
                                    "avic_vapic_bar",                                                        \
                                    0x098, 8, 0x4312421241124012) SEPARATOR FIELD("ghcb_gpa", 0x0a0,         \
                                                                                  8, 0x4313421341134013)     \
                                    SEPARATOR FIELD("event_inj", 0x0a8, 4, 0) SEPARATOR FIELD(               \
                                        "event_inj_err", 0x0ac,                                              \
                                        4, 0x41144014) SEPARATOR FIELD("nested_cr3", 0x0b0, 8, 0x4018)       \
                                        SEPARATOR FIELD("misc_ctl2", 0x0b8, 8, 0x4315421541154015)           \
                                            SEPARATOR FIELD("clean", 0x0c0, 4, 0x41164016)                   \
                                                SEPARATOR FIELD("next_rip", 0x0c8, 8, 0x4317421741174017)    \
                                                    SEPARATOR FIELD("insn_len", 0x0d0, 1, 0x98)              \
                                                        SEPARATOR FIELD("avic_backing_page", 0x0e0, 8,       \
                                                                        0x4319421941194019)                  \
                                                            SEPARATOR FIELD("avic_logical_id", 0x0f0, 8,     \
                                                                            0x431a421a411a401a)              \
                                                                SEPARATOR FIELD("avic_physical_id", 0x0f8,   \
                                                                                8, 0x431b421b411b401b)       \
                                                                    SEPARATOR FIELD("vmsa_pa", 0x108, 8,     \
                                                                                    0x431c421c411c401c)      \
                                                                        SEPARATOR FIELD("bus_lock_counter",  \
                                                                                        0x120, 2, 0x401d)    \
                                                                            SEPARATOR FIELD(                 \
                                                                                "allowed_sev_features",      \
                                                                                0x138, 8,                    \
                                                                                0x431e421e411e401e)          \
                                                                                SEPARATOR FIELD(             \
                                                                                    "guest_sev_features",    \
                                                                                    0x140, 8,                \
                                                                                    0x431f421f411f401f)

#define SVM_CONTROL_AREA_SIZE 0x400
#define SVM_FIELDS_JUNK 0x5a // all over the control area where there is no field

#endif
