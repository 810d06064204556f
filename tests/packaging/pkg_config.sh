#!/usr/bin/env bash
# pkg_config.sh PKG_CONFIG PREFIX BUILD VERSION COMPILER...: compiles and runs the consumer with what pkg-config says of the tree installed at
# PREFIX, and of the same tree moved to BUILD.
set -euo pipefail
pkg_config=$1 prefix=$2 build=$3 version=$4
shift 4
consumer=$(dirname "$(readlink -f "$0")")/consumer/consumer.cpp
rm -rf "$build"
mkdir -p "$build"
cp -r "$prefix" "$build/moved"

for tree in "$prefix" "$build/moved"; do
  export PKG_CONFIG_PATH=$tree/share/pkgconfig
  found=$("$pkg_config" --modversion moe_balance)
  [ "$found" = "$version" ] || { echo "pkg-config says version $found, not $version"; exit 1; }
  includes=$("$pkg_config" --variable=includedir moe_balance)
  [ "$(readlink -f "$includes")" = "$(readlink -f "$tree/include")" ] || { echo "includes are at $includes, not in $tree"; exit 1; }
done
read -ra flags <<<"$("$pkg_config" --cflags --libs moe_balance)"
"$@" -std=c++20 -O0 "$consumer" -o "$build/consumer" "${flags[@]}"
"$build/consumer"
