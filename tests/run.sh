#!/usr/bin/env bash
# Builds and runs the whole test suite in build/tests, with whatever of CUDA is there. Further arguments go to ctest (-L host, say).
# Installs what is missing from the distribution's packages when it may; otherwise says what to install.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
started=$SECONDS

bash cmake/install_packages.sh \
  g++=g++ cmake=cmake ninja-build=ninja git=git \
  doctest-dev=/usr/include/doctest/doctest.h nlohmann-json3-dev=/usr/include/nlohmann/json.hpp \
  libboost-context-dev=/usr/include/boost/context/fiber.hpp \
  -- ccache=ccache doxygen=doxygen clang=clang++ libclang-rt-dev libbenchmark-dev=/usr/include/benchmark/benchmark.h \
  zlib1g-dev=/usr/include/zlib.h libtorch-dev=/usr/include/torch/csrc/api/include/torch/torch.h \
  libopenblas0-pthread gnuplot-nox=gnuplot libopenmpi-dev=mpicxx openmpi-bin=mpirun \
  libeigen3-dev=/usr/include/eigen3/Eigen/Core gcc=gcc python3=python3 pkg-config=pkg-config \
  python3-torch=/usr/lib/python3/dist-packages/torch/__init__.py $(python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv) </dev/null

options=(-G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O2)
if command -v ccache >/dev/null; then
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1  # one clone's results serve another's
  options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi

# One architecture for the test programs: this machine's GPU, or sm_90. The compile tests cover sm_80, sm_90 and sm_100.
if [ -z "${CUDACXX:-}" ] && ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  export CUDACXX=/usr/local/cuda/bin/nvcc
fi
if [ -z "${CUDACXX:-}" ] && ! command -v nvcc >/dev/null; then
  cuda="CUDA: no nvcc, so the CUDA tests are absent"
  options+=(-DMOE_BALANCE_CUDA=OFF)
else
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || capability=
  if [ -n "$capability" ]; then
    architecture=$capability-real
    cuda="CUDA: nvcc and a GPU of compute capability $capability, so the CUDA tests run"
    options+=(-DCMAKE_CUDA_FLAGS_RELEASE=-O2 -DMOE_BALANCE_CUDA_CHECK_ONLY=OFF)
  else
    # What cannot run is checked only (cmake/nvcc_checks.cmake). The tests of registers go on to machine code, optimised.
    cuda="CUDA: nvcc but no GPU, so the CUDA tests are checked by nvcc and reported as skipped"
    architecture=90-virtual
    options+=(-DCMAKE_CUDA_FLAGS_RELEASE= -DMOE_BALANCE_CUDA_CHECK_ONLY=ON)
  fi
  options+=(-DMOE_BALANCE_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$architecture")
fi

cmake -S . -B build/tests "${options[@]}" </dev/null
cmake --build build/tests --parallel "$(nproc)" </dev/null
echo "Built in $((SECONDS - started)) s"

echo "$cuda"
# One more than there are cores: some tests wait, for other processes or for memory.
exec ctest --test-dir build/tests --output-on-failure --parallel "$(($(nproc) + 1))" "$@" </dev/null
