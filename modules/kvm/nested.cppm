// SPDX-License-Identifier: MIT
//
// import kvm.nested;  The nested state of a KVM vCPU on x86: saved, understood, carried and restored.
//
// The library from the bottom up. Each partition imports only partitions above it.
export module kvm.nested;

export import :uapi;                  // the kernel's layouts, flags and ioctl numbers, in our own words
export import :vendor;                // Vmx, Svm, Any, and what differs between them
export import :bit_layout;            // what the bits of a value mean
export import :vmx_bit_layout;        // of vmcs12 fields
export import :svm_bit_layout;        // of VMCB fields
export import :capability_bit_layout; // of capabilities
export import :capabilities;          // what a vCPU or a host can do in VMX or SVM
export import :field;                 // one field as data; a page by the names of its fields
export import :header;                // the header, field by field
export import :vmcs12;                // the vmcs12, field by field
export import :vmcb12;                // the page of an SVM state, field by field
export import :parts;                 // the parts that a state consists of
export import :text;                  // text of fixed capacity, without a heap
export import :effect;                // what became of a vCPU
export import :error;                 // Errc, Operation, Error, classify()
export import :ioctl;                 // descriptors as types, the seam to the kernel
export import :destination;           // the vCPU that a state is to be set on, as far as it is known
export import :rule;                  // what a rule of KVM_SET_NESTED_STATE is
export import :state_case;            // what the rules of both vendors look at
export import :vmx_rules;             // the rules of VMX, in the kernel's order
export import :svm_rules;             // the rules of SVM
export import :phase;                 // Phase and the tables that decide it
export import :view;                  // phases as types, with the accessors that mean something there
export import :state_view;            // NestedStateView: bytes that are somebody else's, recognised once
export import :state;                 // NestedState<Vendor>
export import :compose;               // a state of a header and edited pages
export import :buffer;                // NestedStateBuffer, for either vendor
export import :vcpu;                  // Host, Vcpu: the two ioctls
export import :sink;                  // where results of any size go, piece by piece
export import :pages;                 // the guest memory that a state refers to
export import :report;                // a state as text, every field by its name
export import :difference;            // what differs between two states
export import :feature_name;          // what QEMU and libvirt call a capability
export import :capability;            // capability MSRs and CPUID.8000000AH as data, and as text
export import :capability_difference; // what one host can do and the other cannot
export import :capability_usage;      // and whether a state needs it
export import :check;                 // which rules a state breaks on a destination
export import :checked_set;           // setting a state after asking
export import :format;                // std::formatter
