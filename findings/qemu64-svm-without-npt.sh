#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that QEMU's plain default CPU, qemu64, has no virtualization at all, or else has what a hypervisor wants. It has
# half of it: SVM, but not nested paging, as have Opteron_G2 and Opteron_G3; phenom, which is older than G3, has both. Nothing
# says VMX. Linux's kvm-amd loads on it, says npt=N, and goes on with shadow paging: an L1 that prepares its VMCB with nested
# paging gets VMEXIT_INVALID.
#
# Why it matters: test machines that leave -cpu out test the path of KVM that nobody uses. Say `-cpu qemu64,+npt` or max.
# Seen: qemu-system-x86 10.0.2 under TCG (same for qemu64 on 7.2.22 and 11.1.3). Of the system: the libraries of Debian 12's
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

touch "$work/said"
{
  echo '{"execute":"qmp_capabilities"}'
  for model in qemu64 phenom Opteron_G2 Opteron_G3 Opteron_G4 EPYC max; do
    printf '{"execute":"query-cpu-model-expansion","id":"%s","arguments":{"type":"full","model":{"name":"%s"}}}\n' "$model" "$model"
  done
  until grep -q '"id": "max"' "$work/said"; do sleep 0.1; done
  echo '{"execute":"quit"}'
} | qemu -S -M q35 -qmp stdio 2>/dev/null >"$work/said"
python3 -c '
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    if "id" in said:
        cpu = said["return"]["model"]["props"]
        print(said["id"], *[name + ("+" if cpu[name] else "-") for name in ("svm", "npt", "vmx")])' <"$work/said" >"$work/models"
qemu --version | head -n 1 && cat "$work/models"
for before in 'qemu64 svm+ npt- vmx-' 'phenom svm+ npt+ vmx-' 'Opteron_G3 svm+ npt- vmx-' 'Opteron_G4 svm+ npt+ vmx-'; do
  grep -qxF "$before" "$work/models" || fail "not seen any more: $before"
done
type=$(printf 'qom-list /machine/unattached\nquit\n' | qemu -S -M q35 -monitor stdio | grep -o '(child<[^>]*x86_64-cpu>)')
echo "the CPU of a machine without -cpu: $type"
[[ "$type" == '(child<qemu64-x86_64-cpu>)' ]] || fail 'the default is another CPU'
echo "verdict: QEMU's default CPU has SVM and no nested paging"
