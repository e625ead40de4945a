#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that EXITINTINFO of the VMCB is empty, or valid and of an event whose delivery #VMEXIT cut short. QEMU's
# emulation leaves a third thing there: vector and type of the last exception that L2 took and handled, with the valid bit
# clear, at the next #VMEXIT of any kind. L2 here takes #UD, handles it, and is stopped by CPUID much later: L1 finds 0x306
# (type 3, vector 6).
#
# Why it matters: code that looks at the type without looking at the valid bit sees an exception being delivered. Linux 7.3's
# kvm-amd does so when it emulates MMIO, and ends the L1 in question with an internal error. Mask the field by its valid bit
# before comparing two VMCBs of saved states, too.
# Seen: qemu-system-x86 10.0.2 under TCG (same on 7.2.22 and 11.1.3). Of the system: libraries of Debian 12's qemu-system-x86,
# as, objcopy.
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
fetch bookworm-backports qemu-system-{x86,common,data}=1:10.0.2+ds-2+deb13u1~bpo12+1 seabios=1.16.3-2~bpo12+1
! ldd "$(type -P qemu-system-x86_64)" | grep -F 'not found' || fail "the libraries of Debian 12's qemu-system-x86 are missing"
qemu() {
  QEMU_MODULE_DIR="$work/root/usr/lib/x86_64-linux-gnu/qemu" qemu-system-x86_64 -accel tcg -m 16 \
    -nodefaults -display none -L "$work/root/usr/share/seabios" -L "$work/root/usr/share/qemu" "$@"
}

# The whole firmware and guest: L2 runs into UD2 if EXCEPTION is 1, and into CPUID, which L1 intercepts. L1 then says so.
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
       movl $31, 0x464(%ebx)           # GDT and IDT of L2
       movl $0xf0000 + (gdt - base), 0x468(%ebx)
       movl $0xff, 0x484(%ebx)
       movl $0x15000, 0x488(%ebx)
       movl $0x80000 + (ud - base), 0x15030
       movl $0xf8e00, 0x15034
       mov $0xc000, %eax
       vmrun
       out %al, $0xe9
1:     jmp 1b
ud:    addl $2, (%esp)
       iret
l2:    .if EXCEPTION
       ud2
       .endif
       mov $1000, %ecx
1:     loop 1b
       cpuid
.align 8
gdt:   .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
table: .word 31
       .long 0xf0000 + (gdt - base)
.org 0xfff0
.code16
       jmp start
.org 0x10000
END

# leaves EXCEPTION: the exit code and EXITINTINFO
leaves() {
  as --defsym EXCEPTION="$1" --defsym INTERCEPTS='0x80040000' -o "$work/guest.o" "$work/guest.s"
  objcopy -O binary -j .text "$work/guest.o" "$work/guest"
  : >"$work/signs"
  {
    until [[ -s "$work/signs" ]]; do sleep 0.1; done
    printf 'stop\nxp/1wx 0xc070\nxp/2wx 0xc088\nquit\n'
  } | qemu -M pc -cpu max -bios "$work/guest" -chardev "file,id=signs,path=$work/signs" -device isa-debugcon,chardev=signs \
    -monitor stdio | tr -d '\r' | sed -n 's/^0*c0[78][08]: //p' | paste -sd' '
}

qemu --version | head -n 1
without=$(leaves 0)
after=$(leaves 1)
echo "exit code, EXITINTINFO: $without (no exception in L2), $after (#UD, handled by L2)"
[[ "$without" == '0x00000072 0x00000000 0x00000000' ]] || fail 'the machine without an exception is another'
[[ "$after" == '0x00000072 0x00000306 0x00000000' ]] || fail 'what is left is another'
echo 'verdict: after an exception that L2 handled, EXITINTINFO has its type and vector, and no valid bit'
