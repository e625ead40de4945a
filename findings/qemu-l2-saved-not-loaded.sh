#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that QEMU's own emulation of SVM is the simple case of nested migration: all of the state is in QEMU, no kernel
# is asked. Saving says so, too: savevm and migrate succeed at any moment. But a vCPU that was in its L2 then cannot be
# loaded, ever: "vCPU set in guest-mode inconsistent with migrated kernel nested state". The loader wants a KVM nested state
# for it although no KVM has been there. Nothing is wrong with the file, and outside L2 the same guest loads. After a failing
# loadvm the machine stands in "restore-vm".
#
# Why it matters: snapshots of emulated machines that run a hypervisor are lost by chance. Load each once before the original
# is let go, or save when no L2 runs.
# Seen: qemu-system-x86 10.0.2 (same on 7.2.22 and 11.1.3). Of the system: the libraries of Debian 12's qemu-system-x86, as,
# objcopy.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd as objcopy; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch RELEASE PACKAGE=VERSION...: unpacks them into $work/root. apt keeps its state in $work and takes the release from
# the address from which this machine takes its own.
fetch() {
  local address deb apt
  # shellcheck disable=SC2016 # apt-get expands what is between $( and )
  address=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v own="$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" '$1 == own && !found++ { print $2 }')
  [[ -n "$address" ]] || fail 'no package source of this machine is a release of Debian'
  mkdir -p "$work"/apt/{lists,cache/archives}/partial "$work/apt/debs" "$work/root"
  : >"$work/apt/status"
  printf 'deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$address" "$1" >"$work/apt/sources"
  apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/apt/sources" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o "Dir::State::Lists=$work/apt/lists"
    -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
  { "${apt[@]}" update && (cd "$work/apt/debs" && "${apt[@]}" download "${@:2}"); } >"$work/apt/log" 2>&1 ||
    fail "could not fetch ${*:2} of $1: $(tail -n 1 "$work/apt/log" | sed 's|[a-z]*://[^ ]*|(address)|g')"
  for deb in "$work"/apt/debs/*.deb; do dpkg -x "$deb" "$work/root" && rm "$deb"; done
}

PATH=$work/root/usr/bin:$PATH
fetch bookworm-backports qemu-system-{x86,common,data}=1:10.0.2+ds-2+deb13u1~bpo12+1 qemu-utils=1:10.0.2+ds-2+deb13u1~bpo12+1 seabios=1.16.3-2~bpo12+1
! ldd "$(type -P qemu-system-x86_64)" | grep -F 'not found' || fail "the libraries of Debian 12's qemu-system-x86 are missing"
qemu() {
  QEMU_MODULE_DIR="$work/root/usr/lib/x86_64-linux-gnu/qemu" qemu-system-x86_64 -accel tcg -m 16 \
    -nodefaults -display none -L "$work/root/usr/share/seabios" -L "$work/root/usr/share/qemu" "$@"
}

# The whole firmware and guest: with NESTED it enters an L2, which says so; else L1 says so itself.
cat >"$work/guest.s" <<'END'
base:
.code16
start: cli
       mov $0xf000, %ax
       mov %ax, %ds
       lgdtl table - base
       mov %cr0, %eax
       or $1, %al
       mov %eax, %cr0
       ljmpl $8, $0xf0000 + (flat - base)
.code32
flat:  mov $16, %ax
       mov %ax, %ds
       mov %ax, %es
       mov %ax, %ss
       mov $0x8000, %esp
       mov $0xc0000080, %ecx           # EFER.SVME
       mov $0x1000, %eax
       xor %edx, %edx
       wrmsr
       mov $0xc0010117, %ecx           # VM_HSAVE_PA
       mov $0xd000, %eax
       wrmsr
       mov $0xc000, %ebx               # the VMCB: intercepts, address space, segments, registers
       movl $INTERCEPTS, 0x0c(%ebx)
       movl $1, 0x10(%ebx)
       movl $0x10000, 0x40(%ebx)
       movl $0x14000, 0x48(%ebx)
       movl $1, 0x58(%ebx)
       .irp segment, 0x400, 0x420, 0x430
       movl $0x0c930010, \segment(%ebx)
       movl $-1, \segment + 4(%ebx)
       .endr
       movl $0x0c9b0008, 0x410(%ebx)
       movl $-1, 0x414(%ebx)
       movl $0x1000, 0x4d0(%ebx)
       movl $0x11, 0x558(%ebx)
       movl $2, 0x570(%ebx)
       movl $0xf0000 + (l2 - base), 0x578(%ebx)
       movl $0x7000, 0x5d8(%ebx)
       .if NESTED
       mov $0xc000, %eax
       vmrun
       .endif
l2:    out %al, $0xe9
1:     jmp 1b
.align 8
gdt:   .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
table: .word 31
       .long 0xf0000 + (gdt - base)
.org 0xfff0
.code16
       jmp start
.org 0x10000
END

qemu-img create -q -f qcow2 "$work/disk" 1M

# try NAME: saves the running guest, and loads it again
try() {
  : >"$work/signs"
  {
    until [[ -s "$work/signs" ]]; do sleep 0.1; done
    printf 'savevm %s\nloadvm %s\ninfo status\nquit\n' "$1" "$1"
  } | qemu -M pc -cpu max -bios "$work/$1" -drive "if=virtio,format=qcow2,file=$work/disk" -chardev "file,id=signs,path=$work/signs" \
    -device isa-debugcon,chardev=signs -monitor stdio 2>&1 | tr -d '\r' >"$work/monitor"
  grep -E '^(Error|vCPU|VM status)' "$work/monitor"
}

for nested in 0 1; do
  as --defsym NESTED=$nested --defsym INTERCEPTS=0x80000000 -o "$work/guest.o" "$work/guest.s"
  objcopy -O binary -j .text "$work/guest.o" "$work/in_l$((nested + 1))"
done
qemu --version | head -n 1
echo 'saved in L1:' && try in_l1
grep -q '^Error' "$work/monitor" && fail 'L1 alone is not loaded either'
echo 'saved in L2:' && try in_l2
grep -q '^vCPU set in guest-mode inconsistent with migrated kernel nested state' "$work/monitor" || fail 'it is loaded now'
[[ "$(qemu-img snapshot -l "$work/disk" | grep -c 'in_l[12]')" == 2 ]] || fail 'it was not saved at all'
echo 'verdict: what QEMU saves while an L2 runs in its own emulation, QEMU refuses to load'
