#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that the clocks of a machine that was saved all stand still until it is loaded, or that all go on. They part:
# QEMU's real-time clock follows the host's (-rtc clock=host is the default) even while the machine lies in a file, while
# everything that follows its virtual time stands still. Nor does `-rtc base=` of the loading QEMU set the clock: it is
# ignored. Even a machine that never ran, and was saved stopped, has another time of day when it is loaded.
#
# Why it matters: two loads of one file differ in their guests' memory as soon as these look at the clock, and a test that
# compares them fails now and then. `clock=vm`, on both sides, makes the clock part of the state.
# Seen: qemu-system-x86 10.0.2. Of the system: the libraries of Debian 12's qemu-system-x86, python3 (sums with dates).
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
fetch bookworm-backports qemu-system-{x86,common,data}=1:10.0.2+ds-2+deb13u1~bpo12+1 qemu-utils=1:10.0.2+ds-2+deb13u1~bpo12+1 seabios=1.16.3-2~bpo12+1
! ldd "$(type -P qemu-system-x86_64)" | grep -F 'not found' || fail "the libraries of Debian 12's qemu-system-x86 are missing"
qemu() {
  QEMU_MODULE_DIR="$work/root/usr/lib/x86_64-linux-gnu/qemu" qemu-system-x86_64 -accel tcg -m 16 \
    -nodefaults -display none -L "$work/root/usr/share/seabios" -L "$work/root/usr/share/qemu" "$@"
}

qemu-img create -q -f qcow2 "$work/disk" 1M

# clock COMMANDS OPTION...: seconds since the year 2001 on the machine's clock, and its TSC
clock() {
  printf '%bqom-get /machine rtc-time\nquit\n' "$1" |
    qemu -S -M pc -drive "if=none,format=qcow2,file=$work/disk" -monitor stdio "${@:2}" | tr -d '\r' >"$work/monitor"
  python3 - "$work/monitor" <<'END'
import calendar, re, sys
time = dict(re.findall(r'"(tm_\w+)": (\d+)', open(sys.argv[1]).read()))
parts = [int(time["tm_" + part]) for part in ("year", "mon", "mday", "hour", "min", "sec")]
print(calendar.timegm((parts[0] + 1900, parts[1] + 1, *parts[2:])) - calendar.timegm((2001, 1, 1, 0, 0, 0)))
END
}

qemu --version | head -n 1
for kind in host vm; do
  saved=$(clock "savevm $kind\n" -rtc "base=2001-01-01T00:00:00,clock=$kind")
  sleep 5
  loaded=$(clock '' -rtc "base=2031-07-07T07:07:07,clock=$kind" -loadvm "$kind")
  echo "clock=$kind: saved at $saved s, loaded at $loaded s (in 2001; the loading QEMU was told 2031)"
  case $kind in
    host) ((loaded >= saved + 5 && loaded < saved + 600)) || fail 'the clock did not run on in the file' ;;
    vm) ((loaded - saved < 2)) || fail 'the clock of clock=vm ran on, too' ;;
  esac
done
echo "verdict: QEMU's default real-time clock runs on while the machine lies in a file"
