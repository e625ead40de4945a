#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that a saved QEMU machine knows its CPU model, so that loading it into another is refused. It is not: neither
# stream nor snapshot holds CPUID or the model, and nothing compares them. Here a machine on an AMD model with SVM, saved
# after its guest has switched SVM on, is loaded into an Intel model without SVM. No word is said; the guest goes on with
# EFER.SVME set, on a processor that calls itself GenuineIntel from one instruction to the next. The machine type, in
# contrast, is checked.
#
# Why it matters: nested state is the first to suffer, for it makes no sense on the other vendor's CPU. Whoever keeps saved
# machines has to keep the CPU model beside them, with its version, and to compare it before loading.
# Seen: qemu-system-x86 10.0.2 under TCG (model change taken by 7.2.22 and 11.1.3, too). Of the system: the libraries of
# Debian 12's qemu-system-x86, as, objcopy.
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

# The whole firmware and guest: sets EFER.SVME, then stores the vendor's first four letters over and over.
cat >"$work/guest.s" <<'END'
.code16
start: mov $0xc0000080, %ecx
       mov $0x1000, %eax
       xor %edx, %edx
       wrmsr
1:     xor %eax, %eax
       cpuid
       mov %ebx, 0x500
       out %al, $0xe9
       jmp 1b
.org 0xfff0
       jmp start
.org 0x10000
END
as -o "$work/guest.o" "$work/guest.s" && objcopy -O binary -j .text "$work/guest.o" "$work/guest"
qemu-img create -q -f qcow2 "$work/disk" 1M

# machine COMMANDS OPTION...: runs the guest for a while, then gives the commands to the monitor
machine() {
  : >"$work/signs"
  {
    until (($(stat -c %s "$work/signs") > 64)); do sleep 0.1; done
    printf 'stop\nxp/4cb 0x500\ninfo registers\n%bquit\n' "$1"
  } | qemu -M pc -bios "$work/guest" -drive "if=virtio,format=qcow2,file=$work/disk" \
    -chardev "file,id=signs,path=$work/signs" -device isa-debugcon,chardev=signs -monitor stdio "${@:2}" >"$work/monitor"
  sed -n "s/^0*500: \(.*\)/vendor in the guest: \1/p; s/^\(EFER=[0-9a-f]*\).*/\1/p" "$work/monitor" | tr -d '\r' | tee "$work/seen"
}

qemu --version | head -n 1
echo 'saved on -cpu qemu64 (svm):' && machine 'savevm moved\n' -cpu qemu64
grep -q "'A' 'u' 't' 'h'" "$work/seen" && grep -q 'EFER=0000000000001000' "$work/seen" || fail 'the guest did not come up'
echo 'loaded into -cpu Nehalem:' && machine '' -cpu Nehalem -loadvm moved 2>"$work/errors"
if grep -v 'warning: TCG' "$work/errors"; then fail 'QEMU says something about it now'; fi
grep -q "'G' 'e' 'n' 'u'" "$work/seen" && grep -q 'EFER=0000000000001000' "$work/seen" || fail 'the guest did not go on so'
if qemu -S -M q35 -bios "$work/guest" -drive "if=virtio,format=qcow2,file=$work/disk" -loadvm moved </dev/null 2>"$work/errors"; then
  fail 'another machine type is taken'
fi
echo "loaded into -M q35: $(grep -o 'Machine type.*' "$work/errors")"
echo 'verdict: QEMU loads a guest that uses SVM into an Intel CPU without SVM, and says nothing'
