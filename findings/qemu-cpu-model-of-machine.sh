#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that `-cpu EPYC` of a QEMU of 2025 is the newest definition of EPYC it has, or at least that it is the same CPU
# on every machine of that QEMU. Neither: on pc and q35, whatever their version, a model without a version is its first one,
# of 2017, for ever (EPYC-v1); on microvm it is the newest (EPYC-v4). The same command line but for -M gives guests different
# CPUID bits. A machine that was to follow the newest definitions has to say so by its own version suffix.
#
# Why it matters: neither the stream nor the snapshot carries CPUID, so whoever writes down "-cpu EPYC" beside a saved machine
# has written down two CPUs. Expand the alias (query-cpu-definitions, alias-of) on the machine type in question.
# Seen: qemu-system-x86 10.0.2; the alias on pc also with 7.2.22 and 11.1.3. Of the system: the libraries of Debian 12's
# qemu-system-x86, python3.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd python3; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

# alias MACHINE MODEL
alias_of() {
  printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-cpu-definitions"}' '{"execute":"quit"}' |
    qemu -S -M "$1" -qmp stdio | python3 -c '
import json, sys
for line in sys.stdin:
    said = json.loads(line).get("return")
    if isinstance(said, list):
        print(*[cpu["alias-of"] for cpu in said if cpu["name"] == sys.argv[1]])' "$2"
}

qemu --version | head -n 1
for case in pc:EPYC:EPYC-v1 q35:EPYC:EPYC-v1 pc-q35-10.0:EPYC:EPYC-v1 microvm:EPYC:EPYC-v4 \
  q35:Cascadelake-Server:Cascadelake-Server-v1 microvm:Cascadelake-Server:Cascadelake-Server-v5; do
  IFS=: read -r machine model before <<<"$case"
  now=$(alias_of "$machine" "$model")
  printf -- '-M %-12s -cpu %-20s is %s\n' "$machine" "$model" "$now"
  [[ "$now" == "$before" ]] || fail "it was $before"
done
echo 'verdict: a CPU model without a version is the oldest on pc and q35 and the newest on microvm'
