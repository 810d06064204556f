#!/usr/bin/env bash
# single_header.sh PYTHON ROOT BUILD COMPILER...: the amalgamated header compiles without ROOT's include folder and without warnings, gives the
# consumer's result, and is made the same twice.
set -euo pipefail
python=$1 root=$2 build=$3
shift 3
rm -rf "$build"
mkdir -p "$build/moe_balance"
header=$build/moe_balance/moe_balance.hpp

"$python" "$root/cmake/amalgamate.py" "$header"
cp -p "$header" "$build/first.hpp"
sleep 0.01
"$python" "$root/cmake/amalgamate.py" "$header"
cmp "$header" "$build/first.hpp"
if [ "$header" -nt "$build/first.hpp" ]; then echo "an unchanged header was written again"; exit 1; fi
if grep -n '#include <moe_balance/' "$header"; then echo "an include of the library is left"; exit 1; fi

"$@" -std=c++20 -O0 -Wall -Wextra -Wpedantic -Werror "-I$build" "$root/tests/packaging/consumer/consumer.cpp" -o "$build/consumer" -pthread
"$build/consumer"

# Headers outside the umbrella, in the same file.
"$python" "$root/cmake/amalgamate.py" "$build/more/moe_balance/moe_balance.hpp" moe_balance.hpp sync/thread.hpp
cat >"$build/more.cpp" <<'EOF'
#include <moe_balance/moe_balance.hpp>
int main() { return moe_balance::ThreadSync::group(2)[1].ranks() == 2 ? 0 : 1; }
EOF
"$@" -std=c++20 -O0 -Wall -Wextra -Wpedantic -Werror "-I$build/more" "$build/more.cpp" -o "$build/more.out" -pthread
"$build/more.out"

# And asked for by themselves.
"$python" "$root/cmake/amalgamate.py" "$build/asked.hpp" sync/thread.hpp
cmp <(tail -n +2 "$build/asked.hpp") <(tail -n +2 "$build/more/moe_balance/moe_balance.hpp")
