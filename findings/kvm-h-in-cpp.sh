#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that a header of ioctl numbers gives the same numbers to C and to C++. Debian 12's <linux/kvm.h> does not: it
# declares arrays without a size with the help of an empty struct, which has 0 bytes in C and 1 in C++. Structs that end in
# such an array grow by up to 8 bytes, and with them the numbers, which hold the size: KVM_SET_CPUID2, KVM_GET_MSRS,
# KVM_GET_SUPPORTED_CPUID and more are wrong in C++, and struct kvm_xsave is longer than its 4096 bytes. Nothing is said when
# it is compiled; the kernel says ENOTTY or EINVAL when it runs. KVM_GET_NESTED_STATE happens to be right, so that a VMM's
# nested state may work where its MSRs do not. Debian 13's header gives C++ what it gives C.
#
# Why it matters: whoever saves a vCPU in C++ on Debian 12 has to redefine __DECLARE_FLEX_ARRAY first, or to check the
# numbers.
# Seen: linux-libc-dev 6.1.176-1 (not 6.12.117-1, not 7.3.4), GCC 12. Of the system: gcc, g++, the C library's headers.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg gcc g++ tar; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

cat >"$work/numbers.c" <<'END'
#include <linux/kvm.h>
#include <stdio.h>
#define SHOW(what) printf(#what " %lx\n", (unsigned long)(what))
int main(void) {
  SHOW(KVM_GET_SUPPORTED_CPUID), SHOW(KVM_SET_CPUID2), SHOW(KVM_GET_MSRS), SHOW(KVM_SET_GSI_ROUTING);
  SHOW(sizeof(struct kvm_xsave)), SHOW(KVM_GET_NESTED_STATE), SHOW(KVM_SET_NESTED_STATE), SHOW(sizeof(struct kvm_nested_state));
}
END

# numbers LANGUAGE
numbers() {
  gcc -x "$1" -isystem "$work/root/usr/include" -isystem "$work/root/usr/include/x86_64-linux-gnu" -o "$work/numbers" \
    "$work/numbers.c" && "$work/numbers" | tee "$work/$1.txt"
}

only='./usr/*'
fetch bookworm linux-libc-dev=6.1.176-1
echo '6.1.176 in C:' && numbers c
echo '6.1.176 in C++:' && numbers c++
for expected in 'KVM_GET_SUPPORTED_CPUID c008ae05' 'KVM_SET_CPUID2 4008ae90' 'KVM_GET_MSRS c008ae88' \
  'KVM_SET_GSI_ROUTING 4008ae6a' 'sizeof(struct kvm_xsave) 1000'; do
  grep -qxF "$expected" "$work/c.txt" || fail "not in C: $expected"
done
for expected in 'KVM_GET_SUPPORTED_CPUID c00cae05' 'KVM_SET_CPUID2 400cae90' 'KVM_GET_MSRS c010ae88' \
  'KVM_SET_GSI_ROUTING 4010ae6a' 'sizeof(struct kvm_xsave) 1004' 'KVM_GET_NESTED_STATE c080aebe'; do
  grep -qxF "$expected" "$work/c++.txt" || fail "not in C++: $expected"
done

rm -r "$work/root"
fetch trixie linux-libc-dev=6.12.107-1
numbers c >"$work/c" && numbers c++ >"$work/c++"
cmp "$work/c" "$work/c++" || fail '6.12 differs, too'
echo "verdict: C++ gets other ioctl numbers than C from Debian 12's <linux/kvm.h>, and the same from Debian 13's"
