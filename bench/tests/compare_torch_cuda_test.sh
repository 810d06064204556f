#!/usr/bin/env bash
# compare_torch_cuda_test.sh WORK: runs compare_torch_cuda_test.py with the CPU's library. 77 without torch (Debian: python3-torch; or $PYTHON).
set -euo pipefail
bench=$(dirname "$(readlink -f "$0")")/..
python=${PYTHON:-/usr/bin/python3}
"$python" -c 'import torch' 2>/dev/null || { echo "SKIPPED: $python has no torch"; exit 77; }
mkdir -p "$1"
"${CXX:-g++}" -std=c++20 -O0 -fPIC -shared -I"$bench/../include" "$bench"/compare_{dispatch,library}.cpp -o "$1/libcompare.so"
exec "$python" "$bench/tests/compare_torch_cuda_test.py" "$1/libcompare.so"
