#!/usr/bin/env bash
# gather_dependencies.sh [DIR]: copies what gpu_check.sh needs beside nvcc and cmake from the distribution's packages into DIR (.gpu_deps, which
# git ignores): doctest, nlohmann_json and Google Benchmark, each with a package file, so that CMAKE_PREFIX_PATH=DIR finds them on a machine
# that has none of them installed. About 2 MiB; no links, so that any copying tool can move the folder. Its file `revision` says which tree it was
# gathered in, for gpu_check.sh in a copy of it: gather anew before each copy.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
target=${1:-.gpu_deps}

include=/usr/include
library=
for candidate in /usr/lib/*/libbenchmark.so /usr/lib/libbenchmark.so; do
  [ -n "$library" ] || [ ! -e "$candidate" ] || library=$candidate
done
for needed in $include/doctest/doctest.h $include/nlohmann/json.hpp $include/benchmark/benchmark.h "${library:-/usr/lib/libbenchmark.so}"; do
  [ -e "$needed" ] || {
    echo "gather_dependencies: no $needed; install doctest-dev, nlohmann-json3-dev and libbenchmark-dev (Debian's names)" >&2
    exit 1
  }
done

rm -rf "$target"
revision=$(git rev-parse HEAD 2>/dev/null) || revision=
[ -z "$revision" ] || [ -z "$(git status --porcelain)" ] || revision="$revision with changes"
mkdir -p "$target/include" "$target/lib"
cp -rL $include/doctest $include/nlohmann $include/benchmark "$target/include/"
# Programs look the library up by the name that it has in itself.
soname=$(LC_ALL=C readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
cp -L "$library" "$target/lib/$soname"

# package NAME TARGET CONTENT: a package file that defines the imported target.
package() {
  mkdir -p "$target/lib/cmake/$1"
  cat >"$target/lib/cmake/$1/$1Config.cmake" <<PACKAGE
get_filename_component(_root "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET $2)
  add_library($2 $3 IMPORTED)
  set_target_properties($2 PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "\${_root}/include" $4)
endif()
PACKAGE
}
package doctest doctest::doctest INTERFACE ''
package nlohmann_json nlohmann_json::nlohmann_json INTERFACE ''
package benchmark benchmark::benchmark SHARED \
  "IMPORTED_LOCATION \"\${_root}/lib/$soname\" IMPORTED_SONAME \"$soname\" INTERFACE_LINK_LIBRARIES \"pthread\""

[ -z "$revision" ] || echo "$revision" >"$target/revision"
echo "gathered $(du -sh "$target" | cut -f 1) in $target"
