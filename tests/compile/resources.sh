#!/usr/bin/env bash
# resources.sh OUTPUT NVCC FLAGS... SOURCE: compiles SOURCE to a cubin and fails when any kernel or function in it spills registers
# or needs a stack frame. Prints registers and shared memory of every kernel; OUTPUT.txt keeps what ptxas said.
set -euo pipefail
output=$1
shift
"$@" -Xptxas=-v -cubin -o "$output.cubin" 2>&1 | c++filt >"$output.txt" || { cat "$output.txt"; exit 1; }

awk '
  function short(name) {  # without namespaces and parameters
    gsub(/moe_balance::v[0-9_]*::(cuda_[0-9a-z_]*::)?/, "", name)
    sub(/\(.*/, "", name)
    sub(/^void /, "", name)
    return name
  }
  /Compiling entry function/ { ++kernels }
  /Function properties for/ { sub(/.*Function properties for /, ""); name = short($0) }
  /bytes stack frame/ {
    sub(/^ +/, "")
    clean = $0 ~ /^0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/
    if (!clean) { ++bad; print "FAILED " name ": " $0 }
  }
  /Used [0-9]+ registers/ { sub(/.*: /, ""); print name ": " $0 }
  END {
    if (!kernels) { print "no kernel was compiled"; exit 1 }
    print kernels " kernels, " bad + 0 " with spills or a stack frame"
    exit bad > 0
  }' "$output.txt"
