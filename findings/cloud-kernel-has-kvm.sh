#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that Debian's "cloud" kernel, a small image for guests without drivers for real machines, cannot be a host: to
# run or test a hypervisor one takes the generic image, which is two to three times as large. It has kvm-intel and kvm-amd,
# whole. What it lacks is the driver for AMD's security processor: here kvm-amd needs kvm alone, where the generic one needs
# ccp as well, and so there is no SEV.
#
# Why it matters: the smallest kernel package that can be an L0 or an L1 is this one. And "SEV is off" in a cloud guest may be
# the kernel's kind and not the processor.
# Seen: linux-image-6.1.0-50-cloud-amd64 6.1.176-1 (6.12 and 7.3 likewise). Of the system: objcopy, tar.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg objcopy tar; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch RELEASE PACKAGE=VERSION...: unpacks what $only matches into $work/root. apt keeps its state in $work and takes the release from
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
  for deb in "$work"/apt/debs/*.deb; do dpkg --fsys-tarfile "$deb" | tar -x -C "$work/root" --wildcards "$only" && rm "$deb"; done
}

only='*/kvm*.ko'
fetch bookworm linux-image-6.1.0-50-cloud-amd64=6.1.176-1
for module in kvm kvm-intel kvm-amd; do
  file=$(find "$work/root" -name "$module.ko")
  [[ -n "$file" ]] || fail "there is no $module"
  objcopy -O binary --only-section=.modinfo "$file" "$work/info"
  tr '\0' '\n' <"$work/info" >"$work/$module"
  printf '%-9s depends on %-8s nested=%s\n' "$module" "$(sed -n 's/^depends=//p' "$work/$module")," \
    "$(sed -n 's/^parmtype=nested:\(.*\)/\1/p' "$work/$module")"
done
grep -qx 'depends=kvm' "$work/kvm-amd" || fail 'kvm-amd depends on other modules now'
grep -q '^parmtype=nested:' "$work/kvm-intel" && grep -q '^parmtype=nested:' "$work/kvm-amd" || fail 'there is no parameter for nesting'
echo "verdict: Debian's cloud kernel has kvm-intel and kvm-amd with nesting, and no SEV"
