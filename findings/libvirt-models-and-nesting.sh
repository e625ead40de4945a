#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that libvirt's named CPU models treat the two vendors alike: all of them with the virtualization of the
# processor in question, or none. In its map, each AMD model from Opteron_G2 to EPYC-Genoa, and qemu64, has the feature svm,
# and no Intel model has vmx. At the same time most of the Intel models list up to dozens of vmx-... features (vmx-ept,
# vmx-vpid, ...), which say how VMX is and not that it is there. By its model alone, then, an AMD guest is nested and an Intel
# guest is not.
#
# Why it matters: whoever reads a saved machine's XML to learn whether there may be a nested state must not look for a model,
# nor for features that begin with vmx: for Intel it takes "vmx" itself, for AMD it takes the absence of a policy that
# disables svm.
# Seen: libvirt-common 11.3.0-3+deb13u3 (like this in 12.8.0-1; 9.0.0 has no vmx-... yet). Of the system: python3.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg python3; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

fetch trixie libvirt-common=11.3.0-3+deb13u3
python3 - "$work/root/usr/share/libvirt/cpu_map" <<'END' | tee "$work/models"
import collections, glob, sys
import xml.etree.ElementTree as xml
counts = collections.Counter()
for path in glob.glob(sys.argv[1] + "/x86_*.xml"):
    for model in xml.parse(path).getroot().iter("model"):
        vendor = model.find("vendor")
        if vendor is None:
            continue
        has = {feature.get("name") for feature in model.iter("feature")}
        key = vendor.get("name")
        counts[key, "models"] += 1
        counts[key, "with svm"] += "svm" in has
        counts[key, "with vmx"] += "vmx" in has
        counts[key, "with vmx-..."] += any(name.startswith("vmx-") for name in has)
for vendor in ("AMD", "Intel"):
    print(vendor, *[f"{kind}: {counts[vendor, kind]}" for kind in ("models", "with svm", "with vmx", "with vmx-...")], sep=", ")
END
grep -Eq '^AMD, models: ([0-9]+), with svm: ([1-9][0-9]*), with vmx: 0, with vmx-...: 0$' "$work/models" || fail 'AMD: it is different now'
grep -Eq '^Intel, models: [0-9]+, with svm: 0, with vmx: 0, with vmx-...: [1-9][0-9]+$' "$work/models" || fail 'Intel: it is different now'
echo "verdict: libvirt's AMD models have svm, its Intel models have vmx-... features and no vmx"
