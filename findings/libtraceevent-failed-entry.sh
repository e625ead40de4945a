#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One guesses that trace-cmd tells what a KVM tracepoint says at least as well as the kernel's own text does. For kvm_exit it
# tells less: a plugin of libtraceevent replaces the kernel's format, and knows neither the top bit of VMX's exit reason,
# which means "VM entry failed", nor reason 33 (invalid guest state). The kernel writes "INVALID_STATE FAILED_VMENTRY", with
# vCPU, interrupt and error code; the plugin writes "UNKNOWN (2147483681)" without them. For kvm_nested_vmexit the plugin
# looks for a field that Linux renamed, and begins the line with "CANT FIND FIELD rip".
#
# Why it matters: a failed VM entry is what a wrongly restored nested guest ends in, and this is the tool with which one
# looks. Use `trace-cmd report -N` (no plugins), or the kernel's trace file.
# Seen: libtraceevent 1.7.1-1 (same with 1.8.4-2 and 1.9.0-2), with the fields of Linux 6.12 (7.3 has one more). Of the
# system: gcc.
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

fetch bookworm libtraceevent1=1:1.7.1-1 libtraceevent1-plugin=1:1.7.1-1 libtraceevent-dev=1:1.7.1-1
cat >"$work/show.c" <<'END'
#include <event-parse.h>
#include <stdio.h>
#include <string.h>
#include <trace-seq.h>

struct entry { /* of kvm_exit and kvm_nested_vmexit */
  unsigned short type;
  unsigned char flags, preempt_count;
  int pid;
  unsigned exit_reason;
  unsigned long guest_rip;
  unsigned isa;
  unsigned long info1, info2;
  unsigned intr_info, error_code, vcpu_id;
};

static char text[4096];

static void field(const char *declaration, unsigned long offset, unsigned long size) {
  sprintf(text + strlen(text), "\tfield:%s;\toffset:%lu;\tsize:%lu;\tsigned:0;\n", declaration, offset, size);
}

int main(int count, char **plugins) {
  const char *const names[] = {"kvm_exit", "kvm_nested_vmexit"};
  struct tep_handle *const tep = tep_alloc();
  tep_set_long_size(tep, 8);
  if (count > 1)
    tep_load_plugins(tep);
  for (int id = 0; id < 2; ++id) {
    sprintf(text, "name: %s\nID: %d\nformat:\n", names[id], id + 1);
#define FIELD(type, name, member) field(type " " name, __builtin_offsetof(struct entry, member), sizeof ((struct entry *)0)->member)
    FIELD("unsigned short", "common_type", type);
    FIELD("unsigned char", "common_flags", flags);
    FIELD("unsigned char", "common_preempt_count", preempt_count);
    FIELD("int", "common_pid", pid);
    strcat(text, "\n");
    FIELD("unsigned int", "exit_reason", exit_reason);
    FIELD("unsigned long", "guest_rip", guest_rip);
    FIELD("u32", "isa", isa);
    FIELD("u64", "info1", info1);
    FIELD("u64", "info2", info2);
    FIELD("u32", "intr_info", intr_info);
    FIELD("u32", "error_code", error_code);
    FIELD("unsigned int", "vcpu_id", vcpu_id);
    strcat(text, "\nprint fmt: \"vcpu %u reason %s%s rip 0x%lx\", REC->vcpu_id, __print_symbolic(REC->exit_reason & 0xffff, "
                 "{ 10, \"CPUID\" }, { 33, \"INVALID_STATE\" }), REC->exit_reason & 0x80000000 ? \" FAILED_VMENTRY\" : \"\", "
                 "REC->guest_rip\n");
    if (tep_parse_event(tep, text, strlen(text), "kvm"))
      return puts("the format is not understood"), 1;
    for (int failed = 0; failed < 2; ++failed) {
      struct entry entry = {.type = id + 1, .exit_reason = failed ? 0x80000021 : 10, .guest_rip = 0xfff0, .isa = 1, .vcpu_id = 3};
      struct tep_record record = {.data = &entry, .size = sizeof entry};
      struct trace_seq line;
      trace_seq_init(&line);
      tep_print_event(tep, &line, &record, "%s: %s", TEP_PRINT_NAME, TEP_PRINT_INFO);
      trace_seq_terminate(&line);
      trace_seq_do_printf(&line);
      puts("");
    }
  }
}
END
libraries=$work/root/usr/lib/x86_64-linux-gnu
gcc -I"$work/root/usr/include/traceevent" -o "$work/show" "$work/show.c" "$libraries/libtraceevent.so.1"
show() { LD_LIBRARY_PATH=$libraries TRACEEVENT_PLUGIN_DIR=$libraries/traceevent/plugins "$work/show" "$@"; }

echo 'without plugins:' && show | tee "$work/without"
echo 'with plugins, the default:' && show plugins | tee "$work/with"
for before in without:'kvm_exit: vcpu 3 reason INVALID_STATE FAILED_VMENTRY rip 0xfff0' with:'kvm_exit: reason CPUID rip 0xfff0 info 0 0' \
  with:'kvm_exit: reason UNKNOWN (2147483681) rip 0xfff0 info 0 0'; do
  grep -qxF "${before#*:}" "$work/${before%%:*}" || fail "not seen any more: ${before#*:}"
done
grep -q 'kvm_nested_vmexit: <CANT FIND FIELD rip>' "$work/with" || fail 'the plugin knows kvm_nested_vmexit now'
echo "verdict: the plugin that trace-cmd loads calls a failed VM entry UNKNOWN, where the kernel's own text names it"
