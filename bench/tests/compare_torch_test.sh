#!/usr/bin/env bash
# compare_torch_test.sh WORK: the CPU half of compare_torch.py finds a library's results to be PyTorch's, whatever the logits' type, and those of one that
# scales weights otherwise not. 77 without torch (Debian: python3-torch; or $PYTHON).
set -euo pipefail
bench=$(dirname "$(readlink -f "$0")")/..
python=${PYTHON:-/usr/bin/python3}
"$python" -c 'import torch' 2>/dev/null || { echo "SKIPPED: $python has no torch"; exit 77; }
work=$1
rm -rf "$work"
mkdir -p "$work/scaled"
cp "$bench"/compare_{library.cpp,library.hpp,place.hpp} "$work/scaled"
sed -i 's/scaling_factor = 2.5f/scaling_factor = 2.4f/' "$work/scaled/compare_library.hpp"
build() { "${CXX:-g++}" -std=c++20 -O0 -fPIC -shared -I"$bench/../include" "$1/compare_library.cpp" -o "$2"; }
build "$bench" "$work/right.so"
build "$work/scaled" "$work/scaled.so"
compare() { "$python" "$bench/compare_torch.py" "$@" --tokens 64 --experts 16 --threads 1 --repeats 1; }
for type in float32 bfloat16 float16; do
  compare "$work/right.so" --dtype "$type" --json "$work/$type.json"
  [ "$(grep -c '"ratio_of_medians"' "$work/$type.json")" -eq 8 ]
done
for router in sigmoid_bias sigmoid_groups; do
  status=0
  compare "$work/scaled.so" --router "$router" 2>"$work/$router" || status=$?
  [ "$status" -eq 1 ] && grep -q weights "$work/$router"
done
