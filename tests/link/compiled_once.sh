#!/usr/bin/env bash
# compiled_once.sh NM FILE: fails and names each function of the engine whose body is in FILE.
set -euo pipefail
bodies=$("$1" -C "$2" | grep -E ' [WwTtVu] .*Engine<' || true)
if [ -n "$bodies" ]; then
  printf '%s\n' "$bodies" | head -n 5 | cut -c 1-120 | sed 's/$/...   <- compiled here as well/'
  exit 1
fi
echo "no body of the engine in $(basename "$2")"
