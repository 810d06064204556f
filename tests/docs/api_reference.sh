#!/usr/bin/env bash
# api_reference.sh DOXYGEN ROOT BUILD [HEADER...]: makes the API reference of ROOT in BUILD; a warning is an error. Then the pages of whatever the headers
# have as policies, argument structs, concepts and dispatch calls must be there, found by other means than Doxygen's.
# With HEADERs only those are read, and no page is asked for: for tests of what is refused.
set -euo pipefail
doxygen=$1 root=$2 build=$3
shift 3
rm -rf "$build"
mkdir -p "$build"
cd "$root"

settings=$(cat docs/Doxyfile)
[ $# -eq 0 ] || settings+=$'\n'"INPUT = $*"
MOE_BALANCE_API_REFERENCE=$build "$doxygen" - <<<"$settings" >"$build/log.txt" 2>&1 || { cat "$build/log.txt"; exit 1; }
[ ! -s "$build/log.txt" ] || { cat "$build/log.txt"; echo "Doxygen is not silent"; exit 1; }
[ $# -eq 0 ] || exit 0

html=$build/html missing=() checked=0
expect_page() {
  checked=$((checked + 1))
  [ -e "$html/$1" ] || missing+=("$1")
}
expect_function() {
  checked=$((checked + 1))
  grep -qE ">$1</a>" "$html/namespacemoe__balance.html" || missing+=("the function $1")
}

cd include/moe_balance
expect_page index.html
expect_page structmoe__balance_1_1Router.html
# One policy, one file: a file of a policy folder has a type whose static_assert stands beside it.
while read -r name; do
  expect_page "structmoe__balance_1_1$name.html"
done < <(sed -nE 's/^struct ([A-Z][A-Za-z0-9]*)( : [A-Za-z]+)? \{$/\1/p' scoring/*.hpp topk/*.hpp balancer/*.hpp sync/single_device.hpp |
  grep -vxE 'BalancerTraits|WindowCount')
while read -r name; do
  expect_page "structmoe__balance_1_1$name.html"
done < <(sed -nE 's/^struct ([A-Za-z]+Args) \{$/\1/p' ./*.hpp dispatch/*.hpp placement/*.hpp)
while read -r name; do
  expect_page "conceptmoe__balance_1_1$name.html"
done < <(sed -nE 's/^concept ([A-Za-z]+) = .*/\1/p' ./*concepts.hpp)
while read -r name; do
  expect_page "structmoe__balance_1_1presets_1_1${name}Model.html"
done < <(sed -nE 's/^using ([A-Za-z0-9]+) = Preset<.*/\1/p' presets.hpp)
# A dispatch call takes its struct of arguments and a place.
while read -r name; do
  expect_function "$name"
done < <(sed -nE 's/^void ([a-z_]+)\(const [A-Za-z]+Args& args, Workspace .*/\1/p' dispatch/*.hpp)
for name in route_and_permute place_experts permutation_rows permutation_workspace_bytes save_state load_state set_error_handler \
  matrix_of_dlpack vector_of_dlpack; do
  expect_function "$name"
done
for name in moeb_router_create moeb_route moeb_forward moeb_backward moeb_loss moeb_update; do
  checked=$((checked + 1))
  grep -q "$name" "$html/c__api_8h.html" || missing+=("the function $name")
done

if [ ${#missing[@]} -gt 0 ]; then
  printf 'The API reference lacks %s\n' "${missing[@]}"
  exit 1
fi
[ "$checked" -ge 70 ] || { echo "only $checked entities were looked for: the patterns do not match the headers"; exit 1; }
echo "$checked entities of the headers have their place in the API reference, without a warning"
