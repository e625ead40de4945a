#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that an emulator of 2022 has CMPXCHG16B right: it changes the zero flag and no other. In QEMU 7.2 (Debian 12) it
# leaves rubbish in the flags register when a CMP, ADD or SUB has been the last to set them: an operand of that instruction
# comes out as EFLAGS, high bits and all. After an XOR only the parity flag is wrong, and with a jump between the two nothing
# is. CMPXCHG8B has the same fault. QEMU 10 does not.
#
# Why it matters: Linux's slab allocator compares and then uses CMPXCHG16B, and an interrupt between puts the rubbish on the
# stack: kernels under emulation die now and then, at places that mean nothing. A lab for KVM in QEMU 7.2 takes cx16 away:
# -cpu max,-cx16.
# Seen: qemu-user 7.2+dfsg-7+deb12u18+b3, and not qemu-user 10.0.2. Of the system: gcc, the C library to link statically, the
# libraries of Debian 12's qemu-user.
set -euo pipefail

[[ -n "${limited:-}" ]] || limited=yes exec timeout -k 5 120 bash "$0"
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2 && exit 1; }
for tool in apt-get dpkg gcc tar; do [[ -n "$(type -P "$tool")" ]] || fail "this needs $tool of the system"; done
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

cat >"$work/flags.c" <<'END'
#include <stdio.h>
static unsigned long pair[2] __attribute__((aligned(16)));

/* EFLAGS behind CMPXCHG16B, which finds what it compares with, after the given instructions on R8 and R9 */
#define FLAGS_AFTER(before)                                                                                            \
  ({                                                                                                                   \
    unsigned long flags;                                                                                               \
    pair[0] = 1, pair[1] = 2;                                                                                          \
    __asm__ volatile("sub $256, %%rsp; pushq $0x202; popfq; jmp 1f; 1: mov $1, %%eax; mov $2, %%edx; mov $3, %%ebx;"   \
                     "mov $4, %%ecx; mov $0x12345678, %%r8d; mov $0x11, %%r9d;" before "; cmpxchg16b %1;"              \
                     "pushfq; popq %0; add $256, %%rsp"                                                                \
                     : "=r"(flags), "+m"(pair)::"rax", "rbx", "rcx", "rdx", "r8", "r9", "cc", "memory");               \
    flags;                                                                                                             \
  })

int main(void) {
  printf("xor:%lx cmp:%lx cmp,jmp:%lx\n", FLAGS_AFTER("xor %%r8, %%r8"), FLAGS_AFTER("cmp %%r8, %%r9"),
         FLAGS_AFTER("cmp %%r8, %%r9; jmp 2f; 2:"));
}
END
gcc -static -mcx16 -o "$work/flags" "$work/flags.c"

only=./usr/bin/qemu-x86_64
fetch bookworm qemu-user=1:7.2+dfsg-7+deb12u18+b3
old=$("$work/root/usr/bin/qemu-x86_64" "$work/flags")
echo "$("$work/root/usr/bin/qemu-x86_64" --version | head -n 1): $old"
rm -r "$work/root"
fetch bookworm-backports qemu-user=1:10.0.2+ds-2+deb13u1~bpo12+1
new=$("$work/root/usr/bin/qemu-x86_64" "$work/flags")
echo "$("$work/root/usr/bin/qemu-x86_64" --version | head -n 1): $new"

sane() { (((0x$1 & ~0x8d5) == 0x202)); } # nothing but bit 1, IF and arithmetic flags
flags_of() { sed "s/.*$1:\([0-9a-f]*\).*/\1/" <<<"$2"; }
for kind in xor cmp,jmp; do sane "$(flags_of "$kind" "$old")" || fail "$kind: rubbish after it, too"; done
if sane "$(flags_of cmp "${old/cmp,jmp*/}")"; then fail '7.2 is right after cmp'; fi
for kind in xor cmp,jmp; do sane "$(flags_of "$kind" "$new")" || fail "10.0.2 is wrong after $kind"; done
sane "$(flags_of cmp "${new/cmp,jmp*/}")" || fail '10.0.2 is wrong after cmp, too'
echo 'verdict: CMPXCHG16B behind CMP leaves rubbish in the flags in QEMU 7.2, and not in 10.0'
