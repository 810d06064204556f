#!/usr/bin/env bash
# single_cuda_header.sh PYTHON ROOT BUILD NVCC...: the amalgamated moe_balance.cuh compiles without ROOT's include folder and without warnings, beside a
# host file that includes the amalgamated moe_balance.hpp; both in one file is an error that says so.
set -euo pipefail
python=$1 root=$2 build=$3
shift 3
rm -rf "$build"
mkdir -p "$build/moe_balance"
for header in moe_balance.hpp moe_balance.cuh; do
  "$python" "$root/cmake/amalgamate.py" "$build/moe_balance/$header" "$header"
  if grep -n '#include <moe_balance/' "$build/moe_balance/$header"; then echo "an include of the library is left"; exit 1; fi
done

consumer=$root/tests/packaging/consumer
"$@" -std=c++20 -O0 "-I$build" -c "$consumer/consumer.cu" -o "$build/gpu.o"
"$@" -std=c++20 -O0 "-I$build" -c "$consumer/consumer.cpp" -o "$build/host.o"
"$@" "$build/gpu.o" "$build/host.o" -o "$build/consumer"
"$build/consumer"

printf '#include <moe_balance/moe_balance.hpp>\n#include <moe_balance/moe_balance.cuh>\n' >"$build/both.cu"
if "$@" -std=c++20 "-I$build" -E "$build/both.cu" -o "$build/both.i" 2>"$build/both.txt"; then echo "two single files were taken"; exit 1; fi
grep -q 'two single files in one translation unit' "$build/both.txt" || { cat "$build/both.txt"; exit 1; }
