#!/usr/bin/env bash
# Compiles the handlers and trains the layer, from a fresh clone on a bare Debian machine too: bash examples/jax_moe_layer/run.sh [STEPS]
# Takes the JAX of python3 (or of PYTHON) if it has one; otherwise installs it in a virtual environment under build/.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/jax_moe_layer
python=${PYTHON:-python3}
export JAX_PLATFORMS=cpu

bash "$root/cmake/install_packages.sh" g++=g++ python3="$python"
mkdir -p "$build"
if ! "$python" -c 'import jax' 2>/dev/null; then
  "$python" -c 'import ensurepip' 2>/dev/null || bash "$root/cmake/install_packages.sh" python3-venv
  [ -e "$build/venv/bin/python" ] || "$python" -m venv "$build/venv"
  python=$build/venv/bin/python
  "$python" -c 'import jax' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check "jax>=0.5"
fi

include=$("$python" -c 'import jax; print(jax.ffi.include_dir())')
g++ -std=c++20 -O2 -fPIC -shared -I "$root/include" -isystem "$include" "$here/handlers.cpp" -o "$build/libjax_moe_layer.so" -pthread
exec "$python" "$here/main.py" "$build/libjax_moe_layer.so" "$@"
