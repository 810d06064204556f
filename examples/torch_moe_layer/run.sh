#!/usr/bin/env bash
# Builds the operators for the PyTorch of $PYTHON (python3 by default), trains the layer of layer.py with them, on the CPU, and spreads experts over two processes:
#   bash examples/torch_moe_layer/run.sh
# From PyTorch 2.10 on through its stable ABI, before through libtorch. OPTIONS go to the compiler.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
python=${PYTHON:-python3}
build=${BUILD:-../../build/torch_moe_layer}

if ! version=$("$python" -W ignore -c 'import torch; print("stable" if hasattr(torch.library, "register_autograd") else "")' 2>/dev/null); then
  echo "run.sh: $python has no PyTorch; pip install torch (any platform), or apt-get install python3-torch libtorch-dev" >&2
  exit 1
fi
mkdir -p "$build"
bash build.sh "$build/libops.so" "ops${version:+_$version}.cpp" ${OPTIONS:-}
"$python" -W ignore layer.py "$build/libops.so"
if "$python" -W ignore -c 'import sys, torch.distributed as d; sys.exit(not (d.is_available() and d.is_gloo_available()))' 2>/dev/null; then
  "$python" -W ignore expert_parallel.py "$build/libops.so"
else
  echo "run.sh: expert_parallel.py was not run, because this PyTorch has no torch.distributed with gloo"
fi
