#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that a seccomp rule for an ioctl compares what the kernel looks at: the 32 bits of the number. libseccomp's
# SCMP_A1 compares the 64 bits of the register. Numbers with the top bit set, those of all ioctls that read, come from glibc
# as they are and from musl, where the parameter is an int, with 32 more ones above. One list of allowed numbers then lets
# KVM_SET_NESTED_STATE (0x4...) through from both, and KVM_GET_NESTED_STATE (0xc...) from the program built with glibc alone:
# with musl it gets EPERM from a rule that names it. strace shows the same call for both.
#
# SCMP_A1_32 does not help: it cuts the number of the rule to 32 bits, and compares 64 all the same.
#
# Why it matters: monitors are built with musl and filtered like this; restoring then works and saving does not. Compare with
# SCMP_CMP_MASKED_EQ and a mask of 32 ones.
# Seen: libseccomp-dev 2.5.4-1+deb12u1, musl 1.2.3-1. Of the system: gcc, glibc's headers and static library.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg gcc; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

fetch bookworm libseccomp-dev=2.5.4-1+deb12u1 musl-dev=1.2.3-1
# runs a program that may do everything but use ioctls other than two, with rules of the kind that is named first
cat >"$work/allow.c" <<'END'
#include <errno.h>
#include <seccomp.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
  const unsigned allowed[] = {0xc080aebe, 0x4080aebf}; /* KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE */
  const scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
  for (int call = 0; call < 450; ++call)
    if (call != SCMP_SYS(ioctl))
      seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
  for (int i = 0; i < 2; ++i)
    seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                     !strcmp(words[1], "A1")      ? SCMP_A1(SCMP_CMP_EQ, allowed[i])
                     : !strcmp(words[1], "A1_32") ? SCMP_A1_32(SCMP_CMP_EQ, allowed[i])
                                                  : SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, allowed[i]));
  return count < 3 || seccomp_load(filter) ? 126 : execv(words[2], words + 2);
}
END
# says what the two ioctls give on a file that knows neither
cat >"$work/monitor.c" <<'END'
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void) {
  static char state[8320];
  const int file = open("/dev/null", O_RDWR);
  const unsigned long numbers[] = {0xc080aebe, 0x4080aebf};
  for (int i = 0; i < 2; ++i) {
    errno = 0;
    ioctl(file, numbers[i], state);
    printf("%s %s%s", i ? "SET" : "GET", errno == ENOTTY ? "reached" : errno == EPERM ? "refused" : "?", i ? "\n" : ", ");
  }
}
END
gcc -I"$work/root/usr/include" -o "$work/allow" "$work/allow.c" "$work/root/usr/lib/x86_64-linux-gnu/libseccomp.a"
gcc -static -o "$work/glibc" "$work/monitor.c"
musl=$work/root/usr/lib/x86_64-linux-musl
gcc -nostdinc -isystem "$work/root/usr/include/x86_64-linux-musl" -static -nostdlib -o "$work/musl" "$musl/crt1.o" "$work/monitor.c" \
  "$musl/libc.a" -lgcc

while read -r library kind before; do
  now=$("$work/allow" "$kind" "$work/$library")
  printf '%-5s, rules with %-6s: %s\n' "$library" "$kind" "$now"
  [[ "$now" == "$before" ]] || fail "it was $before"
done <<'END'
glibc A1 GET reached, SET reached
glibc A1_32 GET reached, SET reached
glibc masked GET reached, SET reached
musl A1 GET refused, SET reached
musl A1_32 GET refused, SET reached
musl masked GET reached, SET reached
END
echo 'verdict: a seccomp rule that allows KVM_GET_NESTED_STATE allows it to a program of glibc, and refuses it to one of musl'
