# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# The one place that says where the cache is. Scripts source this before they change folders, and then have its absolute
# path in "cache"; cache.cmake asks, too. Without HOME it is the home of the user that the system knows.
[[ -n "${HOME:-}" ]] || unset HOME
# shellcheck disable=SC2034 # for the script that sources this
cache=$(realpath --canonicalize-missing --no-symlinks -- "${KVM_NESTED_CACHE:-${XDG_CACHE_HOME:-$(printf '%s' ~)/.cache}/kvm-nested}")
export KVM_NESTED_CACHE=$cache # what is called from here on, in whatever folder, means the same
