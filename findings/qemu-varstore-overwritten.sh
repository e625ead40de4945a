#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that loading a saved machine reads the file and writes to no disk, least of all to the file of UEFI variables
# that one names on the new command line. It writes: flash is sent like RAM, and when the loaded machine begins to run, QEMU
# writes the whole flash of the source into the file behind its own pflash. What was in there is gone, without a question.
#
# Why it matters: who starts a saved machine a second time, as a clone or for a look, with the variables of today, gets those
# of the day it was saved, for good. Give every load a copy of the variables.
# Seen: qemu-system-x86 10.0.2 (same on 7.2.22 and 11.1.3). Of the system: the libraries of Debian 12's qemu-system-x86, cmp.
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
fetch bookworm-backports qemu-system-{x86,common,data}=1:10.0.2+ds-2+deb13u1~bpo12+1 seabios=1.16.3-2~bpo12+1
! ldd "$(type -P qemu-system-x86_64)" | grep -F 'not found' || fail "the libraries of Debian 12's qemu-system-x86 are missing"
qemu() {
  QEMU_MODULE_DIR="$work/root/usr/lib/x86_64-linux-gnu/qemu" qemu-system-x86_64 -accel tcg -m 16 \
    -nodefaults -display none -L "$work/root/usr/share/seabios" -L "$work/root/usr/share/qemu" "$@"
}

head -c 262144 /dev/zero >"$work/code"
for name in saved today; do yes "$name" | head -c 262144 >"$work/$name" || true; done
cp "$work/today" "$work/before"

# machine VARIABLES OPTION...
machine() {
  qemu -M q35 -drive "if=pflash,unit=0,format=raw,readonly=on,file=$work/code" \
    -drive "if=pflash,unit=1,format=raw,file=$work/$1" -monitor stdio "${@:2}"
}

qemu --version | head -n 1
printf 'migrate "exec:cat > %s"\ninfo migrate\nquit\n' "$work/stream" | machine saved -S >"$work/monitor"
grep -q 'completed' "$work/monitor" || fail 'not saved'

# It shall run as soon as it is loaded, until it has been at the file.
{
  for _ in {1..150}; do
    cmp -s "$work/today" "$work/before" || break
    echo cont
    sleep 0.2
  done
  echo quit
} | machine today -incoming "exec:cat $work/stream" >"$work/monitor"
echo "before: $(head -n 1 "$work/before"); after it has run: $(head -n 1 "$work/today")"
cmp "$work/today" "$work/saved" || fail 'the variables were not overwritten'
echo "verdict: a loaded machine overwrites the destination's file of UEFI variables with the source's"
