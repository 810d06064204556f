#!/usr/bin/env bash
# Builds the Mixture-of-Experts layer and checks it against its dense reference, from a fresh clone on a bare Debian machine too:
#   bash examples/moe_layer/run.sh [tokens experts hidden inner]
# On the CPU; where the project is built with CUDA, moe_layer_cuda does the same on a GPU.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/moe_layer

bash "$root/cmake/install_packages.sh" g++=g++ cmake=cmake make=make libeigen3-dev=/usr/include/eigen3/Eigen/Core
mkdir -p "$build"
if ! { cmake -S "$here" -B "$build" && cmake --build "$build" --parallel "$(nproc)"; } >"$build/build.log" 2>&1; then
  tail -n 20 "$build/build.log" >&2
  echo "run.sh: the build failed; all of its output is in $build/build.log" >&2
  exit 1
fi
exec "$build/moe_layer" "$@"
