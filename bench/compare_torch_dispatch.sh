#!/usr/bin/env bash
# Times dispatch on the CPU beside PyTorch's argsort, index_select and index_add. Needs g++ (or $CXX) and a Python with torch (Debian: python3-torch; or $PYTHON).
# Options go to compare_torch_dispatch.py, --pool among them: our parts run on OpenMP's threads, which are PyTorch's.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
python=${PYTHON:-/usr/bin/python3}
if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "compare_torch_dispatch: $python has no torch; install python3-torch or set PYTHON" >&2
  exit 1
fi
mkdir -p build/bench
flags=()
[[ " $* " != *" --pool "* ]] || flags+=(-fopenmp)
[[ " $* " =~ \ --top-k[=\ ]([0-9]+)\  ]] && flags+=("-DCOMPARE_TOP_K=${BASH_REMATCH[1]}")
"${CXX:-g++}" -std=c++20 -O2 "${flags[@]}" -fPIC -shared -Iinclude bench/compare_dispatch.cpp bench/compare_library.cpp -o build/bench/libcompare_dispatch.so
exec "$python" bench/compare_torch_dispatch.py build/bench/libcompare_dispatch.so "$@"
