#!/usr/bin/env bash
# jax_page.sh PAGE.md BUILD EXAMPLE COMPILER...: a newcomer with docs/interop_jax.md. Compiles its c++ block and runs its python block.
set -euo pipefail
page=$1 build=$2 example=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$build"
blocks() { awk -v open="\`\`\`$1" '$0 == open { inside = 1; next } /^```/ { inside = 0 } inside' "$page"; }
blocks c++ >"$build/my_moe.cpp"
blocks python >"$build/train.py"
[ -s "$build/my_moe.cpp" ] && [ -s "$build/train.py" ] || { echo "$page has no c++ or no python block"; exit 1; }
bash "$here/build_handlers.sh" "$build/libmy_moe.so" "$build/my_moe.cpp" "$@"
cp "$example/moe_balance_jax.py" "$build/"
cd "$build"
python train.py | tee output.txt
fewest=$(sed -n '$s/.*expert \([0-9]*\) to.*/\1/p' output.txt)
[ "$fewest" -ge 40 ] || { echo "after training an expert has $fewest tokens; 64 would be balance"; exit 1; }
