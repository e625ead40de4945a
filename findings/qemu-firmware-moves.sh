#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that firmware belongs to the QEMU that runs, as the program does: a machine that is loaded by another QEMU gets
# that one's BIOS. It keeps its old one: read-only memory is sent like RAM, and what was loaded from -bios is overwritten with
# the source's. It stays through a reset of the loaded machine, too; only a new process brings the new BIOS. The size has to
# be equal, or loading fails ("Size mismatch").
#
# Why it matters: a mended BIOS reaches no machine that is only ever saved and loaded. And a reader of streams has to expect
# blocks that are not RAM: pc.bios, and the ACPI tables as the source made them.
# Seen: qemu-system-x86 10.0.2 (same on 7.2.22 and 11.1.3, without the reset). Of the system: libraries of Debian 12's
# qemu-system-x86, cmp.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd cmp; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

# Firmware of 64 KiB that does nothing: the first of its letters tells them apart.
for name in old new; do
  { printf '%s firmware' "$name" && head -c 65536 /dev/zero; } | head -c 65536 >"$work/$name"
done
head -c 131072 /dev/zero >"$work/longer"
qemu-img create -q -f qcow2 "$work/disk" 1M

# machine FIRMWARE COMMANDS OPTION...: without commands it takes those on standard input
machine() {
  { if [[ -n "$2" ]]; then printf '%b' "$2"; else cat; fi; } | qemu -S -M pc -bios "$work/$1" -drive "if=none,format=qcow2,file=$work/disk" -monitor stdio "${@:3}" \
    >"$work/monitor" 2>"$work/errors"
}
look="pmemsave 0xffff0000 65536 \"$work/seen\"\nquit\n"

qemu --version | head -n 1
machine new "$look" && cmp "$work/seen" "$work/new" || fail 'a new machine has not the firmware it was given'
machine old 'savevm moved\nquit\n' || fail 'not saved'
machine new "$look" -loadvm moved || fail 'not loaded'
echo "given: $(head -c 12 "$work/new"); after loading: $(head -c 12 "$work/seen")"
cmp "$work/seen" "$work/old" || fail 'the firmware did not move'
{ echo system_reset && sleep 2 && printf '%b' "$look"; } | machine new '' -loadvm moved || fail 'not loaded'
echo "after a reset: $(head -c 12 "$work/seen")"
cmp "$work/seen" "$work/old" || fail 'a reset brings the new firmware'
if machine longer "$look" -loadvm moved; then fail 'firmware of another size is taken'; fi
grep -m1 -o 'Size mismatch.*' "$work/errors"
echo "verdict: a loaded machine has the firmware of the QEMU that saved it, not of the one that runs it"
