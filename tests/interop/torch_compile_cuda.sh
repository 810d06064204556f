#!/usr/bin/env bash
# torch_compile_cuda.sh NVCC INCLUDE SOURCE OBJECT OPTIONS...: whether a source with operators for a GPU compiles, with -c or -ptx among the OPTIONS, beside
# PyTorch's wheel, whose python is first in PATH.
# Whatever nvcc warns of is an error. For the smallest tier of experts: the others are the same templates.
set -euo pipefail
nvcc=$1 include=$2 source=$3 object=$4
shift 4
headers=$(python -W ignore -c 'import torch; print(torch.__path__[0])')/include
exec "$nvcc" -std=c++20 "$@" -arch=sm_90 --Werror=all-warnings -Xcompiler=-fPIC,-Wall,-Wextra,-Werror -DUSE_CUDA -DMOE_BALANCE_CUDA_MAX_EXPERTS=32 \
  -I"$include" -isystem "$headers" -isystem "$headers/torch/csrc/api/include" "$source" -o "$object"
