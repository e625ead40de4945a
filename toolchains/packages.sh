# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# What toolchains/setup and tests/lab/setup are made of: packages of Debian, some installed and some only unpacked into the
# cache, of which either keeps its own entries.
#
# What the system is meant to have (compiler, CMake, QEMU) is installed by its apt.  What is only looked at (kernels, kernel
# headers of several generations, the PFR headers) comes from releases that must never enter the system's own package
# sources; it is fetched through an apt root of our own and unpacked in the cache.
#
# The script that sources this sets
#   script      in front of what it says
#   packages    what is to be installed
# and has a function in_place (the files that it is there for are there: tests only, since it runs in an "if", where bash
# looks over failures) and a function install_all. Then it calls set_up.
#
# No function with more than one step may stand behind "||", "&&", "if" or "!", nor what it prints be read by "< <(...)":
# bash goes on there after a step that failed.
shopt -s inherit_errexit

# shellcheck source=toolchains/cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
readonly cache
readonly layout=2 # of one cache entry; raise it when what is unpacked, or where, changes

# Generation of the kernel, and what its package versions begin with.  The newest version that a package of the releases
# below offers is taken, so that nothing here goes stale with the next point release.
readonly generations=(6.1 6.12 7)
readonly kernel_releases=(bookworm trixie trixie-backports forky)
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

release='' codename='' # of the system
archive='' security=''  # where it gets its packages
also_needed=''          # what a person has to get who installs by hand
refresh=false

# --- talking -----------------------------------------------------------------------------------------------------------

if [[ -t 1 ]]; then readonly bold=$'\e[1m' plain=$'\e[0m'; else readonly bold='' plain=''; fi
if [[ -t 2 ]]; then readonly red=$'\e[31m' plain_err=$'\e[0m'; else readonly red='' plain_err=''; fi

step() { printf '%s%s:%s %s\n' "$bold" "$script" "$plain" "$*"; }

# die MESSAGE NEXT-STEP
die() {
  printf '%s%s: %s%s\n       next: %s\n' "$red" "$script" "$1" "$plain_err" "$2" >&2
  exit 1
}

# Runs a command with its output in the log, and shows the end of the log if it fails.
quietly() {
  "$@" >"$work/log" 2>&1 && return
  printf '%s%s: this failed:%s %s\n' "$red" "$script" "$plain_err" "$*" >&2
  tail -n 15 "$work/log" | sed 's/^/       | /' >&2
  return 1
}

# --- the machine -------------------------------------------------------------------------------------------------------

# Prints the packages for a person who has to install them by hand.
package_list() {
  local IFS=,
  printf '%s' "${packages[*]}" | sed 's/,/, /g'
}

check_distribution() {
  local id='' system='this system'
  if [[ -r /etc/os-release ]]; then
    # shellcheck disable=SC1091
    IFS='|' read -r id release codename system < <(. /etc/os-release &&
      printf '%s|%s|%s|%s\n' "${ID:-}" "${VERSION_ID:-}" "${VERSION_CODENAME:-}" "${PRETTY_NAME:-this system}")
  fi
  case "$id-$release" in
    debian-12 | debian-13) ;;
    *) die "$system is not one this script knows (Debian 12 and Debian 13)." \
      "install the counterparts of these packages by hand: $(package_list)${also_needed:+; and $also_needed}" ;;
  esac
  [[ "$(dpkg --print-architecture)" == amd64 ]] ||
    die "KVM's nested state exists on x86 only, and this is $(dpkg --print-architecture)." 'use an amd64 machine'
}

is_installed() { [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }

need_root() {
  [[ $(id -u) == 0 || -n "$(type -P sudo)" ]] ||
    die 'installing packages needs root, and there is no sudo here.' "have these installed, then run this again: $(package_list)"
}

# Without the lock of the cache: what a package starts may live longer than this.
as_root() {
  if [[ $(id -u) == 0 ]]; then
    env DEBIAN_FRONTEND=noninteractive "$@" 9>&-
  else
    sudo env DEBIAN_FRONTEND=noninteractive "$@" 9>&-
  fi
}

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do is_installed "$package" || missing+=("$package"); done
  if ((${#missing[@]} == 0)); then
    step "installed already: all ${#packages[@]} packages that are needed"
    return
  fi
  need_root
  step "installing ${missing[*]}"
  quietly as_root apt-get -o DPkg::Lock::Timeout=300 update ||
    die 'the package lists could not be read.' 'look at the network and at the sources in /etc/apt, then run this again'
  quietly as_root apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" ||
    die 'the packages could not be installed.' 'mend what apt-get says above, then run this again'
}

# --- where packages come from ------------------------------------------------------------------------------------------

# The address from which this machine's own sources take a release, whatever their format; nothing if they do not.
# Read from the sources alone: the package lists may not be there (yet).
# shellcheck disable=SC2016 # apt-get expands what is between $( and )
address_of() {
  apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$1" '$1 == release && !found { print $2; found = 1 }'
}

find_addresses() {
  archive=$(address_of "$codename")
  [[ -n "$archive" ]] || die "no package source of this machine offers $codename." \
    "add one for $codename to /etc/apt, run apt-get update, then run this again"
  security=$(address_of "$codename-security")
}

# An apt that sees only the given sources (standard input). What it reads of them stays in the cache under that name, so that
# the next one has to ask only for what is new.
make_apt_root() {
  local root="$work/$1" lists="$cache/lists/$1"
  mkdir -p "$lists/partial" "$root/cache/archives/partial"
  : >"$root/status"
  cat >"$root/sources.list"
  cat >"$root/apt.conf" <<END
Dir::Etc::SourceList "$root/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$lists";
Acquire::GzipIndexes "true";
Dir::Cache "$root/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
END
}

source_line() { # ADDRESS RELEASE
  printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$keyring" "$1" "$2"
}

# The private root in which is looked up what is only unpacked.  A release that cannot be had is not the end: what it
# alone would have offered is missed later, by name.
open_library() {
  local release
  {
    for release in "${kernel_releases[@]}"; do source_line "$archive" "$release"; done
    if [[ -n "$security" ]]; then
      for release in bookworm trixie; do source_line "$security" "$release-security"; done
    fi
  } | make_apt_root library
  printf 'Dir::State::status "%s";\n' "$work/library/status" >>"$work/library/apt.conf"
  step "reading the package lists of ${kernel_releases[*]}${security:+, and security}"
  quietly apt-get -c "$work/library/apt.conf" update || step 'not every list could be read; going on with the rest'
}

library() { # TOOL ARGUMENT...
  "$1" -c "$work/library/apt.conf" "${@:2}"
}

# newest PACKAGE PREFIX: the highest version that begins so.
newest() {
  local version best=''
  while read -r version; do
    [[ "$version" == "$2"* ]] || continue
    [[ -z "$best" ]] || dpkg --compare-versions "$version" gt "$best" || continue
    best=$version
  done < <(library apt-cache madison "$1" | awk -F ' *[|] *' '{ print $2 }')
  [[ -n "$best" ]] || die "no package source offers $1 $2*." 'see whether the mirror in /etc/apt carries all of Debian, then run this again'
  printf '%s\n' "$best"
}

# The packages behind a meta package, from which an image and its modules come: PACKAGE=VERSION, one a line.
# In 7.x the image package only points on, to a linux-binary and a linux-modules package.
# No filter here may stop reading early: apt-cache would die of the broken pipe, and the rest of the list with it.
behind() {
  library apt-cache show "$1" | sed -n '/^Depends: /{s///;s/, */\n/g;p}' | awk -v version="${1#*=}" '
    $1 ~ /^linux-(image|binary|modules)-[0-9]/ { v = $2 == "(=" ? substr($3, 1, length($3) - 1) : version; print $1 "=" v }' |
    while read -r package; do
      printf '%s\n' "$package"
      behind "$package"
    done | sort -u
}

# Fetches packages and unpacks them whole into the folder named first.
unpack() {
  local into=$1 deb
  shift
  mkdir -p "$into" "$work/debs"
  (cd "$work/debs" && quietly library apt-get download "$@") ||
    die "these packages could not be fetched: $*." 'look at the network, then run this again'
  for deb in "$work"/debs/*.deb; do
    quietly dpkg-deb -x "$deb" "$into" || die "$(basename "$deb") could not be unpacked." "see whether there is space in $cache"
  done
  rm -rf "$work/debs"
}

# The same for packages of a release together with all that they depend on, as apt works it out for an empty system.
unpack_with_libraries() { # INTO RELEASE PACKAGE...
  local into=$1 release=$2 deb
  shift 2
  mkdir -p "$into"
  quietly library apt-get install --download-only -y --no-install-recommends -t "$release" "$@" ||
    die "these packages could not be fetched: $*." 'look at the network, then run this again'
  for deb in "$work"/library/cache/archives/*.deb; do
    quietly dpkg-deb -x "$deb" "$into" || die "$(basename "$deb") could not be unpacked." "see whether there is space in $cache"
  done
  rm -f "$work"/library/cache/archives/*.deb
}

# --- entries of the cache: made aside, then moved into place, so that a half one is never seen -------------------------

# describe PACKAGE=VERSION...: what stands in the VERSION file of an entry made of these.
describe() { printf '%s\n' "layout $layout" "${@/=/ }"; }

# is_current ENTRY PACKAGE=VERSION...
is_current() {
  local entry=$1
  shift
  [[ -r "$cache/$entry/VERSION" ]] && cmp -s <(describe "$@") "$cache/$entry/VERSION"
}

# place FOLDER ENTRY PACKAGE=VERSION...
place() {
  local made=$1 entry=$2
  shift 2
  describe "$@" >"$made/VERSION"
  mkdir -p "$(dirname "$cache/$entry")"
  if [[ -e "$cache/$entry" ]]; then mv -T "$cache/$entry" "$work/old.${entry//\//.}"; fi
  mv -T "$made" "$cache/$entry"
}

# --- the whole ---------------------------------------------------------------------------------------------------------

# One setup at a time works on a cache. What one that was killed has left there is removed by the next.
take_turn() {
  mkdir -p "$cache" || die "$cache cannot be made." 'set KVM_NESTED_CACHE to a folder you may write to'
  exec 9>"$cache/setup.lock" || die "$cache cannot be written to." 'set KVM_NESTED_CACHE to a folder you may write to'
  if ! flock -n 9; then
    step 'another setup is at work on this cache; waiting for it'
    flock 9
  fi
  rm -rf "$cache"/work.*
}

nothing_to_do() { # STAMP FINGERPRINT
  [[ $refresh == false && -r "$cache/$1.stamp" && "$(<"$cache/$1.stamp")" == "$2" ]] && in_place
}

# set_up STAMP FILE...: what is in place is so for what these files say.
set_up() {
  local stamp=$1 fingerprint
  shift
  # What separates folders in a search path, or pieces of a list of CMake's, cannot be a part of one.
  [[ $cache != *[:\;$'\n']* ]] || die "$cache: neither ':' nor ';' can be in its name." 'set KVM_NESTED_CACHE to another folder'
  fingerprint=$(cat -- "$@" | sha256sum)
  fingerprint=${fingerprint%% *}
  if nothing_to_do "$stamp" "$fingerprint"; then
    step "everything is in place ($cache)"
    return
  fi
  check_distribution
  take_turn
  if nothing_to_do "$stamp" "$fingerprint"; then
    step "everything is in place ($cache)"
    return
  fi
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  install_packages
  find_addresses
  install_all
  printf '%s\n' "$fingerprint" >"$cache/$stamp.stamp"
  rm -rf "$work"
  exec 9>&-
  step "done; the cache is $cache ($(du -sh --exclude='work.*' "$cache" | cut -f1))"
}
