#!/usr/bin/env bash
# ring.sh PROGRAM RANKS [OPTION...]: a process for each rank, each with a GPU of its own, over NCCL.
#
# All that the ranks need of each other is a file that they can see, for the id of their group; across machines it lies on a shared
# disk, or a scheduler hands its text on. If one rank fails, the others are ended.
set -euo pipefail
program=$1 ranks=$2
shift 2

folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$folder"' EXIT
for ((rank = 0; rank < ranks; ++rank)); do
  "$program" --transport nccl --ranks "$ranks" --rank "$rank" --id "$folder/id" "$@" &
  pids+=($!)
done
for ((rank = 0; rank < ranks; ++rank)); do wait -n; done
