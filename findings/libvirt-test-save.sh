#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that libvirt's test driver, which is there to try things without a hypervisor, saves a machine in the format of
# the real one. virDomainSave() on test:///default writes another: "TestGuestMagic", a length of four bytes, the machine's
# XML, and the end; no header like a real one's, no memory, no state of a vCPU. virDomainRestore() takes it back. Tools that
# know save images of libvirt by "LibvirtQemudSave" do not know it.
#
# Why it matters: a reader of save images that was tried with the test driver has met none. Take a real one of QEMU's.
# Seen: libvirt0 9.0.0-4+deb12u2. Of the system: python3, and those libraries of Debian 12's libvirt0 that are not fetched
# here.
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

fetch bookworm libvirt0=9.0.0-4+deb12u2 libssh-4=0.10.6-0+deb12u2 libssh2-1=1.10.0-3+b1 libyajl2=2.1.0-3+deb12u2 \
  libnuma1=2.0.16-1 libtirpc3=1.3.3+ds-1
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu HOME=$work XDG_CACHE_HOME=$work
unset LIBVIRT_DEFAULT_URI XDG_CONFIG_HOME XDG_RUNTIME_DIR
library=$work/root/usr/lib/x86_64-linux-gnu/libvirt.so.0
! ldd "$library" | grep -F 'not found' || fail "libraries of Debian 12's libvirt0 are missing"

python3 - "$library" "$work/image" <<'END'
import ctypes, sys
libvirt = ctypes.CDLL(sys.argv[1])
libvirt.virConnectOpen.restype = libvirt.virDomainLookupByName.restype = ctypes.c_void_p
image = sys.argv[2].encode()
version = ctypes.c_ulong()
libvirt.virGetVersion(ctypes.byref(version), None, None)
host = ctypes.c_void_p(libvirt.virConnectOpen(b"test:///default"))
machine = ctypes.c_void_p(libvirt.virDomainLookupByName(host, b"test"))
print("libvirt", version.value, "active:", libvirt.virDomainIsActive(machine), "saved:", libvirt.virDomainSave(machine, image))
print("active:", libvirt.virDomainIsActive(machine), "restored:", libvirt.virDomainRestore(host, image))
END
magic=$(head -c 15 "$work/image" | tr '\0' .) size=$(stat -c %s "$work/image")
echo "the image has $size bytes, begins with $magic, and ends with $(tail -n 1 "$work/image")"
[[ "$magic" == TestGuestMagic. ]] || fail 'the format is another now'
((size < 4096)) && [[ "$(tail -n 1 "$work/image")" == '</domain>' ]] || fail 'there is more behind the XML'
echo "verdict: what libvirt's test driver saves is no save image: its own magic, XML, and no state"
