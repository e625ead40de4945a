#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that the monitor's `x`, which takes virtual addresses, and gdb behind -gdb show memory as the running guest sees
# it. For an L2 with nested paging they do not: the walk ends at L2's own page tables, and an address of L2's memory is taken
# for one of L1's. The monitor then shows other bytes than those the instruction has just loaded, without an error; the
# registers beside it are right.
#
# Why it matters: "the memory at RIP" of a saved or stopped nested guest is not its code. Translate by hand: L2's tables, then
# the nested tables at nCR3, and read with `xp`.
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

# The whole firmware and guest. L1 maps L2's page at 2 MiB to 4 MiB; L2 has no page tables of its own, and loads EBX from there.
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
       mov %ax, %ss
       mov $0x8000, %esp
       movl $0x2007, 0x1000            # L1's page tables, 1 GiB as it is; L2's nested ones at 0x5000 differ by one page
       movl $0x3007, 0x2000
       movl $0x6007, 0x5000
       movl $0x7007, 0x6000
       mov $0xe7, %eax
       xor %edi, %edi
1:     mov %eax, 0x3000(,%edi,8)
       mov %eax, 0x7000(,%edi,8)
       add $0x200000, %eax
       inc %edi
       cmp $512, %edi
       jb 1b
       movl $0x4000e7, 0x7008
       movl $0x11111111, 0x200000
       movl $0x22222222, 0x400000
       mov $0x1000, %eax
       mov %eax, %cr3
       mov $0x20, %eax
       mov %eax, %cr4
       mov $0xc0000080, %ecx           # EFER: SVME and LME
       mov $0x1100, %eax
       xor %edx, %edx
       wrmsr
       mov $0x80000011, %eax
       mov %eax, %cr0
       ljmp $24, $0xf0000 + (long - base)
.code64
long:  mov $0xc0010117, %ecx           # VM_HSAVE_PA
       mov $0xd000, %eax
       xor %edx, %edx
       wrmsr
       mov $0xc000, %ebx               # the VMCB: intercepts, address space, nested paging, segments, registers
       movl $1 << 31, 0x0c(%rbx)
       movl $1, 0x10(%rbx)
       movl $0x10000, 0x40(%rbx)
       movl $0x14000, 0x48(%rbx)
       movl $1, 0x58(%rbx)
       movl $1, 0x90(%rbx)
       movl $0x5000, 0xb0(%rbx)
       .irp segment, 0x400, 0x420, 0x430
       movl $0x0c930010, \segment(%rbx)
       movl $-1, \segment + 4(%rbx)
       .endr
       movl $0x0c9b0008, 0x410(%rbx)
       movl $-1, 0x414(%rbx)
       movl $0x1000, 0x4d0(%rbx)
       movl $0x11, 0x558(%rbx)
       movl $2, 0x570(%rbx)
       movl $0xf0000 + (l2 - base), 0x578(%rbx)
       movl $0x00070406, 0x668(%rbx)
       mov $0xc000, %eax
       vmrun
       hlt
.code32
l2:    mov 0x200000, %ebx
       out %al, $0xe9
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

as -o "$work/guest.o" "$work/guest.s" && objcopy -O binary -j .text "$work/guest.o" "$work/guest"

qemu --version | head -n 1
: >"$work/signs"
{
  until [[ -s "$work/signs" ]]; do sleep 0.1; done
  printf 'stop\ninfo registers\nx/1wx 0x200000\nxp/1wx 0x400000\nquit\n'
} | qemu -M pc -cpu max -bios "$work/guest" -chardev "file,id=signs,path=$work/signs" -device isa-debugcon,chardev=signs \
  -monitor stdio | tr -d '\r' >"$work/monitor"
ebx=$(sed -n 's/.* EBX=\([0-9a-f]*\).*/\1/p' "$work/monitor")
shown=$(sed -n 's/^0*200000: 0x//p' "$work/monitor")
behind=$(sed -n 's/^0*400000: 0x//p' "$work/monitor")
echo "L2 loads $ebx from 0x200000; the monitor shows $shown there; behind the nested tables is $behind"
[[ "$ebx" == 22222222 && "$behind" == 22222222 ]] || fail 'L2 did not come up'
[[ "$shown" == 11111111 ]] || fail 'the monitor follows nested paging now'
echo "verdict: the monitor shows other memory at an L2's address than the L2 sees there"
