#!/usr/bin/env bash
# install_nvdisasm.sh DIR NVCC PYTHON: puts the disassembler of CUDA binaries at DIR/nvdisasm: the toolkit's own (beside NVCC or on PATH) or the one that
# PyPI has. Exit status 0 also where there is none: what needs it then says so and skips.
set -euo pipefail
folder=$1 nvcc=$2 python=$3
[ ! -x "$folder/nvdisasm" ] || exit 0
mkdir -p "$folder"
beside=$(dirname "$(command -v "$nvcc")")/nvdisasm
for own in "$beside" "$(command -v nvdisasm || true)"; do
  if [ -x "$own" ]; then
    ln -sf "$own" "$folder/nvdisasm"
    exit 0
  fi
done
if ! "$python" -m pip install --quiet --no-deps --target "$folder/package" nvidia-cuda-nvdisasm==13.5.37; then
  echo "no nvdisasm: not in the toolkit, and pip could not install it"
  exit 0
fi
found=$(find "$folder/package" -path '*/bin/nvdisasm' -type f | sed 1q)
chmod +x "$found"
ln -sf "$found" "$folder/nvdisasm"
