#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that the word behind `qemu-img snapshot -a` and behind `-d` means the same snapshot. It does not: -a (apply)
# looks for a snapshot with that ID first and for one with that name only then; -d (delete) looks at names alone. Nor does the
# word behind `convert -l` mean what `snapshot.name=` says: it is an ID first, too. IDs are numbers that count up from 1, so a
# snapshot that was named with a number is enough: with the names "2" and "1" at the IDs 1 and 2, `-a 1` brings back one and
# `-d 1` removes the other. Where there is no such name, `-a 3` works and `-d 3` says "snapshot not found".
#
# Why it matters: "apply, then delete what was applied" loses the state of another moment, and the saved machine with it.
# Seen: qemu-utils 10.0.2. Of the system: the libraries of Debian 12's qemu-utils.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd awk; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

fetch bookworm-backports qemu-utils=1:10.0.2+ds-2+deb13u1~bpo12+1
PATH=$work/root/usr/bin:$PATH
! ldd "$work/root/usr/bin/qemu-img" | grep -F 'not found' || fail "the libraries of Debian 12's qemu-utils are missing"
qemu-img --version | head -n 1
disk=$work/disk.qcow2 copy=$work/copy.qcow2

holds() { qemu-io -f "$1" -c 'read -v 0 1' "$2" | sed -n 's/^00000000:  \(..\).*/\1/p'; } # FORMAT FILE: its first byte
convert() { qemu-img convert -l "$1" -O raw "$disk" "$work/raw" && holds raw "$work/raw"; }
expect() { printf '%-38s %s\n' "$1" "$3" && [[ "$2" == "$3" ]] || fail "$1: $2 was seen before"; } # WHAT BEFORE NOW

qemu-img create -q -f qcow2 "$disk" 1M
for name in 2 1; do
  qemu-io -c "write -q -P 0xa$name 0 64k" "$disk"
  qemu-img snapshot -c "$name" "$disk"
done
qemu-img snapshot -l "$disk"

cp "$disk" "$copy" && qemu-img snapshot -a 1 "$copy"
expect '-a 1 brings back the bytes of' a2 "$(holds qcow2 "$copy")"
cp "$disk" "$copy" && qemu-img snapshot -d 1 "$copy"
expect '-d 1 leaves the ID and name' '1 2' "$(qemu-img snapshot -l "$copy" | awk '/^[0-9]/ { print $1, $2 }')"
expect 'convert -l 1 gives the bytes of' a2 "$(convert 1)"
expect 'convert -l snapshot.name=1' a1 "$(convert snapshot.name=1)"

qemu-img snapshot -c nameless "$disk"
if qemu-img snapshot -d 3 "$disk"; then fail '-d takes an ID, too'; fi
qemu-img snapshot -a 3 "$disk" || fail '-a takes no ID any more'
echo 'verdict: `qemu-img snapshot -a 1` goes by the ID, `-d 1` by the name: they mean two different snapshots'
