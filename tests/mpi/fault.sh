#!/usr/bin/env bash
# fault.sh FAULT PROGRAM: four ranks, of which one suffers FAULT. Succeeds when the three others end with a clear error in time.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
"${MPIRUN:-mpirun}" --version 2>&1 | grep -q 'Open MPI' || { echo "SKIPPED: only Open MPI lets ranks outlive one that dies"; exit 77; }
output=$(mktemp)
# count WORD: how many ranks ended with it. It may stand behind one of Open MPI's messages, which may lack the end of their line, but not behind a space,
# as in "MPI failed: ".
count() { (grep -oE "(^|[^ ])($1): " "$output" || true) | wc -l; }
MPI_KEEP_GOING=1 bash "$here/run.sh" 4 "$2" "$1" 2.0 >"$output" 2>&1 &
launcher=$!

waited=0
until [ "$(count 'survivor|failed')" -ge 3 ] || [ $((waited += 1)) -gt 300 ]; do
  kill -0 $launcher 2>/dev/null || break
  sleep 0.1
done

victim=$(grep -oE 'victim: [0-9]+' "$output" | grep -oE '[0-9]+' || true)
if [[ $1 == pause* && -n $victim ]]; then
  kill -CONT "$victim"
  waited=0
  until [ "$(count 'returned|failed')" -ge 1 ] || [ $((waited += 1)) -gt 200 ]; do sleep 0.1; done
  returned=$(count returned)
fi

# A stopped victim would hold up mpirun.
if [ -n "$victim" ]; then kill -KILL "$victim" 2>/dev/null || true; fi
kill -TERM $launcher 2>/dev/null || true
wait $launcher || true

cat "$output"
survivors=$(count survivor)
rm -f "$output"
[ "${returned:-1}" -eq 1 ] || { echo "FAILED: the rank that was stopped did not end with a clear error in time"; exit 1; }
[ "$survivors" -eq 3 ] || { echo "FAILED: $survivors of 3 ranks got a clear error in time"; exit 1; }
