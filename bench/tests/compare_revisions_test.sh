#!/usr/bin/env bash
# compare_revisions_test.sh PYTHON WORK: a library has its own bits, and not those of one whose loss counts twice.
set -euo pipefail
bench=$(dirname "$(readlink -f "$0")")/..
python=$1
work=$2
rm -rf "$work"
mkdir -p "$work/twice"
build() { "${CXX:-g++}" -std=c++20 -O0 -fPIC -shared -I"$bench/../include" "$1/compare_library.cpp" -o "$2"; }
cp "$bench"/compare_{library.cpp,library.hpp,place.hpp} "$work/twice"
sed -i 's/compare::backward(compare::softmax,/compare::backward(moe_balance::Router{moe_balance::Softmax{}, moe_balance::TopK<8>{}, moe_balance::AuxLoss{.coefficient = 2e-2f}},/' \
  "$work/twice/compare_library.cpp"
build "$bench" "$work/once.so"
build "$work/twice" "$work/twice.so"
compare() { "$python" "$bench/compare_revisions.py" "$@" --tokens 16 --repeats 1; }
compare "$work/once.so" "$work/once.so"
for type in bfloat16 float16; do
  compare "$work/once.so" "$work/once.so" --dtype "$type" --router sigmoid_bias --router softmax_over_selected >"$work/$type"
  [ "$(grep -c 'ns a token' "$work/$type")" -eq 4 ]
done
status=0
compare "$work/once.so" "$work/twice.so" >"$work/different" || status=$?
[ "$status" -eq 1 ] && grep -q 'softmax_backward .*DIFFERENT BITS' "$work/different"
