#!/usr/bin/env bash
# extract.sh DIRECTORY FILE.md...: writes each ```cpp block of the files to DIRECTORY/<file>_<line>.cpp, or .cu when it includes
# moe_balance.cuh, and prints the paths. A compiler's messages point at the line of the .md. An unchanged snippet is not touched.
set -euo pipefail
directory=$1
shift
mkdir -p "$directory"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

for document in "$@"; do
  stem=$(basename "$document" .md)
  awk -v document="$document" -v prefix="$fresh/$stem" '
    /^```cpp[ \t]*$/ && !inside {
      inside = 1; first = FNR + 1; cuda = 0
      text = "#line " first " \"" document "\"\n"
      next
    }
    /^```[ \t]*$/ && inside {
      inside = 0
      path = prefix "_" first (cuda ? ".cu" : ".cpp")
      printf "%s", text > path
      close(path)
      next
    }
    inside { text = text $0 "\n"; if (/moe_balance\.cuh/) cuda = 1 }
    END { if (inside) { print document ": a ```cpp block does not end" > "/dev/stderr"; exit 1 } }' "$document"
done

# Remove what no document holds any more, then replace what changed.
find "$directory" -maxdepth 1 -type f \( -name '*.cpp' -o -name '*.cu' \) -printf '%f\n' | while IFS= read -r name; do
  [ -e "$fresh/$name" ] || rm "$directory/$name"
done
find "$fresh" -type f -printf '%f\n' | sort | while IFS= read -r name; do
  cmp -s "$fresh/$name" "$directory/$name" || cp "$fresh/$name" "$directory/$name"
  printf '%s\n' "$directory/$name"
done
