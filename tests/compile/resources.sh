#!/usr/bin/env bash
# resources.sh OUTPUT BUDGETS NVCC FLAGS... SOURCE: compiles SOURCE to a cubin and fails when any kernel or function in it spills registers,
# needs a stack frame, or has more registers than its kind may have in its tier. BUDGETS is the program that prints tuning.hpp's budgets
# (kernel_budgets.cpp). So it does when a kernel for sm_90 and later does not wait for the one before it, which all but those launched the ordinary
# way must. Prints registers and shared memory of every kernel; OUTPUT.txt keeps what ptxas said.
set -euo pipefail
output=$1 budgets=$2
shift 2
rm -rf "$output.keep"
mkdir "$output.keep"
trap 'rm -rf "$output.keep"' EXIT
"$@" -Xptxas=-v -cubin --keep --keep-dir "$output.keep" -o "$output.cubin" 2>&1 | c++filt >"$output.txt" || { cat "$output.txt"; exit 1; }

awk '
  function short(name) {  # without namespaces and parameters
    gsub(/moe_balance::v[0-9_]*::(cuda_[0-9a-z_]*::)?/, "", name)
    sub(/\(.*/, "", name)
    sub(/^void /, "", name)
    return name
  }
  FILENAME == ARGV[1] { if ($1 == "registers") budget[$2 " " $3 " " $4] = $5; next }
  /Compiling entry function/ { ++kernels }
  /Function properties for/ { sub(/.*Function properties for /, ""); name = short($0) }
  /bytes stack frame/ {
    sub(/^ +/, "")
    clean = $0 ~ /^0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/
    if (!clean) { ++bad; print "FAILED " name ": " $0 }
  }
  /Used [0-9]+ registers/ {
    sub(/.*: /, "")
    if (name ~ /^moe_balance_(forward|forward_and_count|backward)</) {
      split(name, part, /[<,] */)  # kernel, tier, whether it is that of usual calls
      kind = part[2] (part[1] ~ /backward/ ? " backward " : " forward ") (part[3] ~ /(true|1)$/ ? "true" : "false")
      if (!(kind in budget)) { ++bad; print "FAILED " name ": tuning.hpp has no budget of " kind }
      else if ($2 > budget[kind]) { ++bad; print "FAILED " name ": " $2 " registers, and its tier may have " budget[kind] }
    }
    print name ": " $0
  }
  END {
    if (!kernels) { print "no kernel was compiled"; exit 1 }
    print kernels " kernels, " bad + 0 " with spills, a stack frame or too many registers"
    exit bad > 0
  }' <("$budgets") "$output.txt"

cat "$output.keep"/*.ptx | awk '
  / \.entry / { name = $0; waits[name] = 0 }
  /^\.target sm_/ { split($2, part, /[_,a-z]+/); waiting = part[2] >= 90 }
  /griddepcontrol.wait/ { ++waits[name] }
  END {
    for (name in waits) {
      if (!waiting || waits[name] >= 1 || name ~ /moe_balance_sum_in_rank_order/) continue
      print "FAILED " name " does not wait for the kernel before it"
      ++bad
    }
    exit bad > 0
  }'
