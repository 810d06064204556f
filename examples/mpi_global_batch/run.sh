#!/usr/bin/env bash
# Builds the example of many ranks and runs it on four processes of this machine; options as main.cpp's head says:
#   bash examples/mpi_global_batch/run.sh [options]
# Needs a C++20 compiler, CMake and an MPI; installs what is missing of them where that is allowed (Debian, Ubuntu).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/mpi_global_batch

bash "$root/cmake/install_packages.sh" g++=g++ cmake=cmake make=make libopenmpi-dev=mpicxx openmpi-bin=mpirun </dev/null
mkdir -p "$build"
if ! { cmake -S "$here" -B "$build" && cmake --build "$build"; } >"$build/build.log" 2>&1; then
  tail -n 20 "$build/build.log" >&2
  echo "run.sh: the build failed; all of its output is in $build/build.log" >&2
  exit 1
fi
exec bash "$here/launch.sh" "${RANKS:-4}" "$build/mpi_global_batch" "$@"
