#!/usr/bin/env bash
# build.sh LIBRARY SOURCE [OPTION...]: compiles operators (ops.cpp, ops_stable.cpp or your own) into a shared object for the PyTorch of $PYTHON, python3
# by default. Options go to the compiler, $CXX or g++. With sources for a GPU, link also what nvcc makes of them, -ltorch_cuda and -lcudart.
set -euo pipefail
library=$1 source=$2
shift 2

folder=$("${PYTHON:-python3}" -W ignore -c 'import torch; print(torch.__path__[0])')
headers=$folder/include
[ -d "$headers" ] || headers=/usr/include  # Debian's python3-torch and libtorch-dev
# Hidden: PyTorch loads libraries into one namespace of symbols, where a router of the same name in another one would take the place of this one's.
"${CXX:-g++}" -std=c++20 -O2 -shared -fPIC -fvisibility=hidden -I"$(dirname "$(readlink -f "$0")")/../../include" \
  -isystem "$headers/torch/csrc/api/include" $([ "$headers" = /usr/include ] || echo -isystem "$headers") \
  "$source" -o "$library" "$@" -L"$folder/lib" -Wl,--as-needed -ltorch -ltorch_cpu -lc10 -pthread
