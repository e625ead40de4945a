#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that a disassembler's "privileged" attribute covers the instructions of AMD's virtualization as it covers
# Intel's. In Zydis it does not: VMRUN, VMLOAD, VMSAVE, STGI, CLGI and SKINIT, which fault at any level but 0, have no
# ZYDIS_ATTRIB_IS_PRIVILEGED, while VMLAUNCH, VMREAD, INVEPT and, of the SVM ones, INVLPGA alone do. VMGEXIT is not known as
# such, it is VMMCALL with a prefix that means nothing.
#
# Why it matters: a monitor or emulator that takes the attribute for "has to be intercepted" or "raises #GP in ring 3" is
# right on Intel and lets an L1 hypervisor on AMD run into its other path. Have a list of mnemonics of one's own.
# Seen: libzydis4.0 4.0.0-1 (same with 4.1.1-3+b2). Of the system: awk.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg awk; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

fetch bookworm zydis-tools=4.0.0-1 libzydis4.0=4.0.0-1 libzycore1.4=1.4.1-1
# about CODE: mnemonic, and whether it is privileged
about() {
  local bytes=()
  read -ra bytes <<<"$1"
  LD_LIBRARY_PATH="$work/root/usr/lib/x86_64-linux-gnu" "$work/root/usr/bin/ZydisInfo" -64 "${bytes[@]}" | sed 's/\x1b\[[0-9;]*m//g' |
    awk '$1 == "MNEMONIC:" { name = $2 } /IS_PRIVILEGED/ { is = 1 } END { print name, is ? "privileged" : "not" }'
}

while read -r before code; do
  now=$(about "$code")
  printf '%-12s %s\n' "${code// /}" "$now"
  [[ "$now" == "${before/:/ }" ]] || fail "it was ${before/:/ }"
done <<'END'
vmrun:not 0f 01 d8
vmload:not 0f 01 da
vmsave:not 0f 01 db
stgi:not 0f 01 dc
clgi:not 0f 01 dd
skinit:not 0f 01 de
invlpga:privileged 0f 01 df
vmlaunch:privileged 0f 01 c2
vmread:privileged 0f 78 d8
invept:privileged 66 0f 38 80 08
hlt:privileged f4
vmmcall:not 0f 01 d9
vmmcall:not f3 0f 01 d9
END
echo "verdict: to Zydis, VMRUN, VMLOAD, VMSAVE, STGI, CLGI and SKINIT are not privileged; Intel's counterparts are"
