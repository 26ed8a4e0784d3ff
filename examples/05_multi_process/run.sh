#!/usr/bin/env bash
# run.sh [--ranks P] [--limit SECONDS] [--namespaces] COMMAND...: a process for each of P ranks (3), on this machine.
#
# COMMAND is the example in any language, with what options it is to have. It is run once with --make-id, then P times with --rank,
# --world-size and --id-file. All that the processes need of each other is that file; between machines it is copied, or a scheduler
# hands its text on. Whoever can read it can join, so nobody else can.
#
# --namespaces   the same on "two machines": network namespaces of this one, joined by a cable (veth), with half of the ranks each.
#                Takes root, and what is made is removed again. Status 77 where that is not allowed.
#
# After --limit (60) a rank that is still at work is ended. The status is 0 if that of every rank is.
set -euo pipefail
ranks=3 limit=60 machines=1
while [[ ${1-} == --* ]]; do
  case $1 in
    --ranks) ranks=$2 && shift 2 ;;
    --limit) limit=$2 && shift 2 ;;
    --namespaces) machines=2 && shift ;;
    *) echo "no option $1" >&2 && exit 2 ;;
  esac
done
[[ $# -gt 0 ]] || { sed -n '2,/^$/s/^# \?//p' "$0" | head -n 1 >&2 && exit 2; }

umask 077
folder=$(mktemp -d)
pids=()
names=()
clean_up() {
  [[ ${#pids[@]} -eq 0 ]] || kill "${pids[@]}" 2>/dev/null || true
  for name in "${names[@]}"; do ip netns delete "$name" || true; done  # and with it its end of the cable
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Machine m is the namespace names[m], with the address 192.0.2.(m + 1): a net that is kept for examples (RFC 5737).
within() {  # within MACHINE COMMAND...; "ip netns exec" would mount /sys anew too, which not every container allows
  local machine=$1
  shift
  nsenter --net="/run/netns/${names[machine]}" "$@"
}
skip() {
  echo "skipped: $1" >&2
  exit 77
}
if ((machines == 2)); then
  command -v ip >/dev/null || skip "no program ip (Debian package iproute2)"
  [[ $(id -u) -eq 0 ]] || skip "network namespaces take root"
  for machine in 0 1; do
    name=ringattn-$$-$machine
    ip netns add "$name" 2>"$folder/why" || skip "no network namespaces here: $(cat "$folder/why")"
    names+=("$name")
  done
  ip link add cable netns "${names[0]}" type veth peer name cable netns "${names[1]}" 2>"$folder/why" ||
    skip "no cable between network namespaces here: $(cat "$folder/why")"
  for machine in 0 1; do
    within "$machine" ip address add "192.0.2.$((machine + 1))/24" dev cable
    within "$machine" ip link set lo up
    within "$machine" ip link set cable up
  done
fi

# become MACHINE COMMAND...: in a process of its own, which then is the time limit's.
become() {
  local machine=$1
  shift
  if ((machines == 1)); then
    exec timeout "$limit" "$@"
  else  # without --bind, ranks would see that they are on one machine after all
    exec timeout "$limit" nsenter --net="/run/netns/${names[machine]}" "$@" --bind "192.0.2.$((machine + 1))"
  fi
}

(become 0 "$@" --make-id) >"$folder/id"
for ((rank = 0; rank < ranks; ++rank)); do
  become $((rank * machines / ranks)) "$@" --rank "$rank" --world-size "$ranks" --id-file "$folder/id" &
  pids+=($!)
done
failed=0
for ((rank = 0; rank < ranks; ++rank)); do
  status=0
  wait "${pids[rank]}" 2>/dev/null || status=$?
  case $status in
    0) continue ;;
    124) echo "run.sh: rank $rank was not done after $limit s" >&2 ;;
    137) echo "run.sh: rank $rank was killed" >&2 ;;
    *) echo "run.sh: rank $rank ended with status $status" >&2 ;;
  esac
  failed=1
done
pids=()
if ((machines == 2)); then
  within 0 awk '/cable:/ { printf "the cable carried %d kB\n", ($2 + $10) / 1000 }' /proc/net/dev
fi
exit $failed
