#!/usr/bin/env bash
# compare_revisions.sh REVISION [options]: times the CPU engine of a revision beside this tree's, both built by $CXX (g++) with -O2. Options go to
# compare_revisions.py; bits that differ are an error.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
revision=$1
shift
old=build/bench/revision
rm -rf "$old"
mkdir -p "$old"
git archive "$revision" include bench | tar -x -C "$old"
# Each library has variables of its own, which g++ would let two in one process share.
flags=()
[[ $("${CXX:-g++}" --version) == *clang* ]] || flags=(-fno-gnu-unique)
[[ " $* " =~ \ --top-k[=\ ]([0-9]+)\  ]] && flags+=("-DCOMPARE_TOP_K=${BASH_REMATCH[1]}")
build() { "${CXX:-g++}" -std=c++20 -O2 "${flags[@]}" -fPIC -shared -I"$1/include" "$1/bench/compare_library.cpp" -o "$2"; }
build "$old" build/bench/compare_old.so
build . build/bench/compare_new.so
exec "${PYTHON:-python3}" bench/compare_revisions.py build/bench/compare_old.so build/bench/compare_new.so "$@"
