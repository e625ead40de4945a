#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that boost::pfr::tuple_size counts the members of a struct, as boost::pfr::names_as_array names them. For a
# struct with C arrays it counts what can be initialised one by one: kvm_lapic_state, whose one member is regs[1024], has
# 1024, kvm_dtable has 5 instead of 3 (padding[3]), kvm_vmx_nested_state_data 8192 instead of 2. The structs without arrays
# are right, so that a test with kvm_regs or kvm_segment shows nothing. Naming or visiting the members of a struct that was
# counted so does not compile.
#
# Why it matters: a static_assert on the number of fields, which is to notice when a newer kernel header adds one, notices
# nothing or the wrong thing for half of KVM's structs. Write std::array mirrors of them.
# Seen: libboost1.88-dev 1.88.0-1 and kvm.h of linux-libc-dev 6.1.176-1, with g++ 12 and clang 19. Of the system: g++, the C
# library's headers.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 300 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg g++ tar; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

only='./usr/include/boost/pfr*'
fetch trixie libboost1.88-dev=1.88.0-1
only='./usr/include/*'
fetch bookworm linux-libc-dev=6.1.176-1
cat >"$work/count.cpp" <<'END'
#include <boost/pfr.hpp>
#include <cstdio>
#include <linux/kvm.h>
template <class T> void count(const char *name) { std::printf("%s %zu\n", name, boost::pfr::tuple_size_v<T>); }
int main() {
  count<kvm_regs>("kvm_regs"), count<kvm_segment>("kvm_segment"), count<kvm_vmx_nested_state_hdr>("kvm_vmx_nested_state_hdr");
  count<kvm_dtable>("kvm_dtable"), count<kvm_lapic_state>("kvm_lapic_state");
  count<kvm_vmx_nested_state_data>("kvm_vmx_nested_state_data");
#ifdef VISIT
  VISIT visited{};
  boost::pfr::for_each_field(visited, [](const auto &) {});
#endif
}
END
compile() {
  g++ -std=c++20 -isystem "$work/root/usr/include" -isystem "$work/root/usr/include/x86_64-linux-gnu" "$@" -o "$work/count" \
    "$work/count.cpp" 2>"$work/errors"
}
compile || fail "it does not compile: $(head -n 1 "$work/errors")"
"$work/count" | tee "$work/counts"
for before in 'kvm_regs 18' 'kvm_segment 13' 'kvm_vmx_nested_state_hdr 6' 'kvm_dtable 5' 'kvm_lapic_state 1024' \
  'kvm_vmx_nested_state_data 8192'; do
  grep -qxF "$before" "$work/counts" || fail "not seen any more: $before"
done
compile -DVISIT=kvm_segment || fail 'kvm_segment cannot be visited'
if compile -DVISIT=kvm_dtable; then fail 'kvm_dtable can be visited now'; fi
echo 'verdict: Boost.PFR counts the elements of C arrays as members of their struct'
