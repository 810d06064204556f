#!/usr/bin/env bash
# conan.sh RECIPE BUILD VERSION CXX: makes the package with Conan, in a cache of its own and without remotes, builds and runs its test package, and
# says no to C++17. Run with conan in PATH.
set -euo pipefail
recipe=$1 build=$2 version=$3
export CXX=$4
rm -rf "$build"
mkdir -p "$build"
export CONAN_HOME=$build/home
conan profile detect >"$build/log.txt" 2>&1
create=(conan create "$recipe" --no-remote -s build_type=Debug -c "tools.cmake.cmake_layout:test_folder=$build/test_package")

"${create[@]}" -s compiler.cppstd=20 >>"$build/log.txt" 2>&1 || { cat "$build/log.txt"; exit 1; }
package=$(conan cache path "moe_balance/$version:$(conan list "moe_balance/$version:*" --format=json 2>/dev/null |
  python3 -c 'import json, sys
[recipe] = json.load(sys.stdin)["Local Cache"].values()
[revision] = recipe["revisions"].values()
print(*revision["packages"])')" 2>/dev/null)
diff -r "$recipe/../../../include" "$package/include" # all headers, and nothing else
cmp "$recipe/../../../LICENSE" "$package/licenses/LICENSE"

if "${create[@]}" -s compiler.cppstd=17 >"$build/old.txt" 2>&1; then
  echo "the recipe took C++17"
  exit 1
fi
grep -q 'lower than the required C++ standard (20)' "$build/old.txt" || { cat "$build/old.txt"; exit 1; }
if [ -n "$(find "$recipe" -name CMakeUserPresets.json -o -name build -o -name __pycache__)" ]; then
  echo "Conan left files beside the sources"
  exit 1
fi
echo "$(conan --version): moe_balance/$version made, used by its test package, and refused for C++17"
