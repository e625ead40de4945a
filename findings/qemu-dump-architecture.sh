#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that dump-guest-memory of a 64-bit machine makes a 64-bit file of its kind each time. The file's architecture,
# and the form of the registers of all vCPUs in it, follow what the first vCPU does at that moment: long mode makes x86-64,
# anything else Intel 80386 with 32-bit registers in NT_PRSTATUS. A 64-bit L1 whose L2 is a 32-bit one is dumped as i386 while
# L2 runs, and as x86-64 in between; so is a 64-bit system while firmware runs. (The class may say ELF64 all the same, because
# of addresses above 4 GiB: 64-bit class, 32-bit machine.)
#
# Why it matters: gdb, crash and others choose by that field. Take several dumps of a nested guest, or look at QEMU's own
# notes, which are of full width always.
# Seen: qemu-system-x86 10.0.2 under TCG. Of the system: the libraries of Debian 12's qemu-system-x86, as, objcopy, readelf.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd as objcopy readelf; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

# The whole firmware and guest: L1 in long mode; with NESTED it enters a 32-bit L2.
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
       .if NESTED == 0
       out %al, $0xe9
1:     jmp 1b
       .endif
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

# dump NAME: with a second vCPU that waits, in real mode, to be started
dump() {
  : >"$work/signs"
  {
    until [[ -s "$work/signs" ]]; do sleep 0.1; done
    printf 'dump-guest-memory %s\nquit\n' "$work/$1.elf"
  } | qemu -M pc -cpu max -smp 2 -bios "$work/$1" -chardev "file,id=signs,path=$work/signs" -device isa-debugcon,chardev=signs \
    -monitor stdio >"$work/monitor"
  { readelf -h "$work/$1.elf" | sed -n 's/^ *\(Class\|Machine\): */\1 /p'
    readelf -n "$work/$1.elf" | awk '/NT_PRSTATUS/ { print "NT_PRSTATUS " $2 }'; } | paste -sd, | tee "$work/$1.txt"
}

for nested in 0 1; do
  as --defsym NESTED=$nested -o "$work/guest.o" "$work/guest.s"
  objcopy -O binary -j .text "$work/guest.o" "$work/in_l$((nested + 1))"
done
qemu --version | head -n 1
echo 'a 64-bit L1 runs:' && dump in_l1
grep -q 'Machine Advanced Micro Devices X86-64,NT_PRSTATUS 0x00000150,NT_PRSTATUS 0x00000150' "$work/in_l1.txt" || fail 'it was x86-64'
echo 'its 32-bit L2 runs:' && dump in_l2
grep -q 'Machine Intel 80386,NT_PRSTATUS 0x00000090,NT_PRSTATUS 0x00000090' "$work/in_l2.txt" || fail 'it was i386'
echo "verdict: the architecture of QEMU's dump is that of the first vCPU's mode of the moment, L2's included"
