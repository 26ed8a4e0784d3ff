#!/usr/bin/env bash
# kill_a_rank.sh VICTIM [OPTION OF run.sh...] COMMAND...: the example of many processes, with three ranks, of which one is killed at work.
# The two others say which, and are gone within a second.
set -euo pipefail
run=$(dirname "$0")/../../examples/05_multi_process/run.sh
victim=$1
shift
folder=$(mktemp -d)
trap 'kill "$launcher" 2>/dev/null || true; rm -rf "$folder"' EXIT

"$run" --ranks 3 "$@" --repeats 100000000 >"$folder/out" 2>"$folder/errors" &
launcher=$!
until [[ $(grep -c 'is process' "$folder/out") -eq 3 ]]; do
  if ! kill -0 "$launcher" 2>/dev/null; then
    status=0
    wait "$launcher" || status=$?
    cat "$folder/out" "$folder/errors"
    [[ $status -eq 77 ]] || status=1
    exit "$status"
  fi
  sleep 0.05
done
sleep 0.2  # all are in the midst of it

kill -KILL "$(sed -n "s/^rank $victim of 3 is process //p" "$folder/out")"
begin=$(date +%s%N)
wait "$launcher" && echo 'run.sh does not notice' && exit 1
took=$((($(date +%s%N) - begin) / 1000000))
cat "$folder/errors"
echo "all was over after $took ms"
for ((rank = 0; rank < 3; ++rank)); do
  [[ $rank -eq $victim ]] || grep "^rank $rank of 3: .*PEER_LOST: .*rank $victim" "$folder/errors" >"$folder/found"
done
[[ $took -le 1000 ]]
