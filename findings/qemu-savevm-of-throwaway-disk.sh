#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that `savevm` fails where it has no disk to write to that lasts, as it does for a disk that is not qcow2. With
# `-snapshot` it does not: QEMU has put a temporary qcow2 file in front of each disk, which can hold snapshots, so savevm says
# nothing, `info snapshots` lists the machine as saved and `loadvm` brings it back. The temporary file has no name any more
# and ends with QEMU; a raw disk, which could hold no snapshot by itself, makes no difference.
#
# Why it matters: a machine was "saved" and there is nothing afterwards. Save by migration where `-snapshot` is on, or look
# for the snapshot with qemu-img from outside.
# Seen: qemu-system-x86 10.0.2 (also 7.2.22). Of the system: the libraries of Debian 12's qemu-system-x86.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

qemu-img create -q -f qcow2 "$work/lasting" 1M
qemu-img create -q -f raw "$work/raw" 1M

# machine FORMAT FILE OPTION...
machine() {
  printf 'savevm moment\ninfo snapshots\nloadvm moment\nquit\n' |
    qemu -S -M pc -drive "if=virtio,format=$1,file=$work/$2" -monitor stdio "${@:3}" | tr -d '\r' >"$work/monitor"
  grep -E '^--|^Error|moment +[0-9]' "$work/monitor" || true
}

qemu --version | head -n 1
echo 'raw disk:' && machine raw raw
grep -q '^Error.*does not support snapshots' "$work/monitor" || fail 'a raw disk takes snapshots'
for disk in 'raw raw' 'qcow2 lasting'; do
  # shellcheck disable=SC2086 # two words
  echo "$disk with -snapshot:" && machine $disk -snapshot
  grep -q '^-- *moment ' "$work/monitor" || fail 'the snapshot is not listed'
  if grep '^Error' "$work/monitor"; then fail 'QEMU says something now'; fi
done
[[ -z "$(qemu-img snapshot -l "$work/lasting")" ]] || fail 'the snapshot is in the disk'
echo 'qcow2, seen from outside afterwards: no snapshots'
echo 'verdict: with -snapshot, savevm succeeds and what it saved is gone with the process'
