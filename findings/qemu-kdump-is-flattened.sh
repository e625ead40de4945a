#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that dump-guest-memory in the format kdump-zlib writes what the format is called: a file that begins with
# "KDUMP". It writes the same thing folded for a pipe ("flattened"), which begins with "makedumpfile"; so it does into a file
# that could be seeked in. `makedumpfile -R` unfolds it. The formats whose names have "raw" in them, of QEMU 8.2 and later,
# are the real thing, byte for byte what -R makes. libkdumpfile 0.5.1, the library for such files, opens the latter and calls
# the former unknown.
#
# Why it matters: whoever looks into memory dumps of virtual machines meets both, under one name. Ask for kdump-raw-zlib
# (monitor: -z -R), or unfold.
# Seen: qemu-system-x86 10.0.2, makedumpfile 1.7.2-1, libkdumpfile10 0.5.1-1. Of the system: the libraries of Debian 12's
# qemu-system-x86, libdw1, python3, cmp.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg ldd python3 cmp; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

fetch bookworm makedumpfile=1:1.7.2-1 libkdumpfile10=0.5.1-1 liblzo2-2=2.10-2 libsnappy1v5=1.1.9-3
libraries=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
library=$work/root/usr/lib/x86_64-linux-gnu/libkdumpfile.so.10
! LD_LIBRARY_PATH=$libraries ldd "$(type -P makedumpfile)" "$library" | grep -F 'not found' || fail 'libraries are missing'

qemu --version | head -n 1
printf '%s\n' "dump-guest-memory -z $work/named" "dump-guest-memory -z -R $work/raw" quit |
  qemu -S -M pc -monitor stdio >"$work/monitor"
for name in named raw; do printf '%-5s begins with %s\n' "$name" "$(head -c 12 "$work/$name" | tr -d '\0')"; done
[[ "$(head -c 12 "$work/named")" == makedumpfile ]] || fail 'kdump-zlib is not flattened'
[[ "$(head -c 8 "$work/raw")" == 'KDUMP   ' ]] || fail 'kdump-raw-zlib is no KDUMP'
LD_LIBRARY_PATH=$libraries makedumpfile -R "$work/unfolded" <"$work/named" >"$work/log"
cmp "$work/unfolded" "$work/raw" && echo 'named, unfolded, is raw'

LD_LIBRARY_PATH=$libraries python3 - "$library" "$work/named" "$work/raw" <<'END' | tee "$work/opened"
import ctypes, os, sys
class Attribute(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("number", ctypes.c_uint64)]
library = ctypes.CDLL(sys.argv[1])
library.kdump_new.restype, library.kdump_get_err.restype = ctypes.c_void_p, ctypes.c_char_p
for path in sys.argv[2:]:
    context = ctypes.c_void_p(library.kdump_new())
    file = Attribute(2, os.open(path, os.O_RDONLY))
    library.kdump_set_attr(context, b"file.fd", ctypes.byref(file))
    print("libkdumpfile:", os.path.basename(path) + ":", (library.kdump_get_err(context) or b"opened").decode())
END
grep -q 'named: .*Unknown file format' "$work/opened" && grep -qxF 'libkdumpfile: raw: opened' "$work/opened" || fail 'libkdumpfile differs'
echo "verdict: QEMU's kdump-zlib is makedumpfile's flattened form, which libkdumpfile does not know; kdump-raw-zlib is KDUMP"
