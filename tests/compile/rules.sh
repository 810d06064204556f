#!/usr/bin/env bash
# rules.sh ROOT: fails and names each line of ROOT's sources that breaks a rule which nvcc forces and no compiler reports
# (docs/design.md lists the rules). ROOT holds include/moe_balance and, optionally, tests, bench and examples.
set -euo pipefail
cd "$1"
code=$(mktemp -d)
trap 'rm -rf "$code"' EXIT
failed=0

# The same files without comments, line for line.
strip_comments='
  {
    out = ""
    while (length($0)) {
      if (inside) {
        end = index($0, "*/")
        if (!end) { $0 = ""; break }
        $0 = substr($0, end + 2); inside = 0
      } else {
        line = index($0, "//"); block = index($0, "/*")
        if (line && (!block || line < block)) { out = out substr($0, 1, line - 1); $0 = "" }
        else if (block) { out = out substr($0, 1, block - 1) " "; $0 = substr($0, block + 2); inside = 1 }
        else { out = out $0; $0 = "" }
      }
    }
    print out
  }'
while IFS= read -r file; do
  mkdir -p "$code/$(dirname "$file")"
  awk "$strip_comments" "$file" >"$code/$file"
done < <(find include tests bench examples -type f \( -name '*.hpp' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' \) \
  -not -path '*/compile/planted/*' 2>/dev/null)
cd "$code"

# forbid REASON REGEX FILES...: no line of FILES (those that exist) matches REGEX.
forbid() {
  local reason=$1 regex=$2 hits
  shift 2
  hits=$(grep -rnEs -e "$regex" "$@" || true)
  [ -n "$hits" ] || return 0
  printf '%s\n' "$hits" | sed "s|\$|   <- $reason|"
  failed=1
}

library=include/moe_balance
floors_3_to_6=("$library"/{numeric,concepts.hpp,{scoring,top_k,balancer,sync}_concepts.hpp,scoring,topk,balancer,sync,token})

forbid 'host and device lay [[no_unique_address]] out differently' 'no_unique_address' include
forbid 'cub/cub.cuh costs 9 s; no CUB, Thrust or cuda::mr types' '<(cub/cub\.cuh|thrust/[^>]*)>|cuda::mr|thrust::' \
  include tests bench examples
forbid 'the per-token algorithm is the same on host and device' '__CUDA_ARCH__' "${floors_3_to_6[@]}"
forbid 'the per-token algorithm exists once, for any width' 'if constexpr *\(.*width *== *1[^0-9]' "${floors_3_to_6[@]}"
forbid "doctest's main belongs in a .cpp" 'DOCTEST_CONFIG_IMPLEMENT' tests --include=*.cu

# A lambda inside a requires expression: nvcc's two passes disagree about it. A '[' that follows neither a name nor a closing
# bracket, and is no attribute, opens a lambda; a 'requires' after ')' or a name starts a clause, not an expression.
while IFS= read -r file; do
  awk -v file="$file" '
    { text = text $0 "\n" }
    function line_of(position,  head) { head = substr(text, 1, position); return gsub(/\n/, "", head) + 1 }
    END {
      gsub(/\[\[/, "  ", text); gsub(/\]\]/, "  ", text)
      position = 1
      while (match(substr(text, position), /[^A-Za-z0-9_]requires[^A-Za-z0-9_]/)) {
        start = position + RSTART; position = start + 8
        before = substr(text, 1, start - 1); sub(/[ \t\n]+$/, "", before)
        if (before !~ /[=&|(!,]$/ && before !~ /[^A-Za-z0-9_](requires|return|auto|bool)$/) continue
        depth = 0; opened = 0
        for (i = start + 8; i <= length(text); ++i) {
          c = substr(text, i, 1)
          if (c == "{" ) { ++depth; opened = 1 }
          if (c == "}" && --depth <= 0) break
          if (c == ";" && !opened) break
          if (c == "[" && depth > 0) {
            before = substr(text, 1, i - 1); sub(/[ \t\n]+$/, "", before)
            if (before !~ /[A-Za-z0-9_)\]]$/) { print file ":" line_of(i) ": a lambda inside a requires expression"; bad = 1 }
          }
        }
      }
      exit bad
    }' "$file" || failed=1
done < <(find include -type f)

[ "$failed" -eq 0 ] && echo "no rule is broken in $(find . -type f | wc -l) files"
exit "$failed"
