#!/usr/bin/env bash
# torch_of_libtorch.sh VERSION COMMAND...: runs a command with PYTHON set to a Python whose PyTorch has libtorch's version (1.13, say); skips without one.
set -euo pipefail
version=$1
shift
for python in python3 /usr/bin/python3; do
  if "$python" -c "import sys, torch; sys.exit(not torch.__version__.startswith('$version.'))" 2>/dev/null; then
    PYTHON=$python exec "$@"
  fi
done
echo "Skipped: no python3 has PyTorch $version, which libtorch is of (Debian's python3-torch)"
exit 77
