// SPDX-License-Identifier: MIT
//
// import kvm.vcpu;  A whole KVM vCPU on x86, saved and restored around its nested state, so that a running
// nested guest survives a move. Gives all of kvm.nested, too.
//
// The library from the bottom up. Each partition imports only partitions above it.
export module kvm.vcpu;

export import kvm.nested;
export import :uapi;        // the registers' layouts and ioctl numbers, in our own words
export import :error;       // Error, Cause, Step: what failed where, and why
export import :prepare;     // Requirements, prepare(): what must be on before the guest runs
export import :msrs;        // what KVM serves and does not list, names, MsrLists
export import :state;       // VcpuState: everything that travels, and the table of its groups
export import :tsc;         // Downtime, TscShift: what becomes of the time in between
export import :order;       // restore_order: what has to come before what, and why
export import :vcpu;        // WholeVcpu: save, restore, the verdict of the first run
export import :capture;     // what check() needs to know of a host or a vCPU
export import :vm_state;    // VmState: what belongs to the VM
export import :vm;          // WholeVm: its clock and interrupt controllers
export import :file;        // the file form
export import :file_system; // whole files on a disk
export import :format;      // std::format
