#!/usr/bin/env bash
# floors.sh DIRECTORY: fails and names each include that climbs a floor in DIRECTORY (include/moe_balance), each header without
# a floor in floors.txt, and each include of the library that is not spelled <moe_balance/...>.
set -euo pipefail
table=$(dirname "$(readlink -f "$0")")/floors.txt
cd "$1"
mapfile -t headers < <(find . -type f \( -name '*.hpp' -o -name '*.cuh' -o -name '*.h' \) -printf '%P\n' | sort)
if [ ${#headers[@]} -eq 0 ]; then echo "no header under $1"; exit 1; fi

awk '
  function folder(path) { return match(path, /.*\//) ? substr(path, 1, RLENGTH) : "" }
  function floor_of(path) { return path in floors ? floors[path] : folder(path) in floors ? floors[folder(path)] : -1 }
  function report(text) { print file ":" line ": " text; bad = 1 }
  FNR == NR { if ($1 ~ /^[0-9]+$/) floors[$2] = $1; next }
  FNR == 1 {
    file = FILENAME; line = 1
    if (floor_of(file) < 0) report("has no floor; give it one in tests/compile/floors.txt")
  }
  { line = FNR }
  /^[ \t]*#[ \t]*include[ \t]*"/ { report("includes by quotes; write <moe_balance/...>") }
  /^[ \t]*#[ \t]*include[ \t]*<moe_balance\// {
    target = $0; sub(/^[^<]*<moe_balance\//, "", target); sub(/>.*/, "", target)
    here = floor_of(file); there = floor_of(target)
    if (there < 0) report("includes " target ", which has no floor")
    else if (there > here) report("floor " here " includes " target " of floor " there)
    else if (there == here && folder(file) != folder(target))
      report("floor " here " includes " target " of the same floor in another folder")
  }
  END { exit bad }
' "$table" "${headers[@]}"
echo "${#headers[@]} headers, no include climbs a floor"
