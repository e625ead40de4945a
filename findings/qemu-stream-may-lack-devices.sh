#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that a saved machine has to fit the machine it is loaded into. It has to in one direction only. A device or vCPU
# in the stream that the machine lacks is an error. A device or vCPU of the machine that the stream lacks is none: here a
# machine with one vCPU is loaded into one with two, a random number generator and a network card, without a word. What was
# not in the stream stays as it was at reset.
#
# Why it matters: a truncated set of vCPUs, or the wrong file, loads; a nested guest with two vCPUs then has one in its L2 and
# one at the reset vector. QEMU's own success does not prove that everything came back: count the "cpu" sections.
# Seen: qemu-system-x86 10.0.2 (also 7.2.22; 11.1.3 takes the devices, and trips over the second vCPU in another device's
# data). Of the system: the libraries of Debian 12's qemu-system-x86.
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

qemu-img create -q -f qcow2 "$work/one" 1M && qemu-img create -q -f qcow2 "$work/two" 1M
small=(-S -M pc -smp 1) big=(-S -M pc -smp 2 -device virtio-rng-pci -device 'e1000,romfile=')

# machine DISK COMMANDS OPTION...
machine() {
  printf '%b' "$2" | qemu "${@:3}" -drive "if=none,format=qcow2,file=$work/$1" -monitor stdio >"$work/monitor" 2>"$work/errors"
}

qemu --version | head -n 1
machine one 'savevm moved\nquit\n' "${small[@]}" || fail 'the small machine was not saved'
machine two 'savevm moved\nquit\n' "${big[@]}" || fail 'the big machine was not saved'
if machine one '' "${small[@]}" -loadvm missing; then fail 'a snapshot that is not there is taken'; fi

machine one 'info cpus\ninfo status\nquit\n' "${big[@]}" -loadvm moved || fail "the big machine refuses the small one's state"
grep -v 'has no peer' "$work/errors" && fail 'QEMU says something about it now'
grep -E 'CPU #|VM status' "$work/monitor"
[[ $(grep -c 'CPU #' "$work/monitor") == 2 ]] || fail 'there are not two vCPUs'

if machine two 'quit\n' "${small[@]}" -loadvm moved; then fail "the small machine takes the big one's state"; fi
echo "the other way round: $(grep -o 'Unknown.*instance[^.]*' "$work/errors")"
echo 'verdict: a state without the second vCPU loads into a machine with two, a state with it not into a machine with one'
