#!/usr/bin/env bash
# preset.sh CMAKE ROOT BUILD PREFIX CXX: the preset `package` configures where no package but a compiler's own is found, and installs what lies in PREFIX.
set -euo pipefail
cmake=$1 root=$2 build=$3 prefix=$4 cxx=$5
rm -rf "$build"
cd "$root"
missing=()
for package in doctest nlohmann_json Boost benchmark Torch MPI; do missing+=("-DCMAKE_DISABLE_FIND_PACKAGE_$package=ON"); done
"$cmake" --preset package -B "$build/build" "-DCMAKE_CXX_COMPILER=$cxx" "${missing[@]}" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
"$cmake" --install "$build/build" --prefix "$build/prefix" >>"$build.log"
diff -r "$prefix" "$build/prefix"
