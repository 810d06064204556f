#!/usr/bin/env bash
# compile_time.sh [--repeats N] [--cuda-arch sm_90] [--against REVISION]: how long the library takes to compile, as a Markdown table for docs/performance.md.
# Each case is compiled N times (default 3), in turns with REVISION's headers, without a compiler cache; the table has the median of user + system seconds, and
# of wall seconds. On a machine that others use wall seconds mean little. Compilers: $CXX (g++) and, where it is found, nvcc ($CUDACXX).
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "$0")")")
repeats=3
arch=sm_90
against=
while [ $# -gt 0 ]; do
  case $1 in
    --repeats) repeats=$2; shift 2 ;;
    --cuda-arch) arch=$2; shift 2 ;;
    --against) against=$2; shift 2 ;;
    *) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
  esac
done
compiler=${CXX:-g++}
nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CCACHE_DISABLE=1

# one_router NUMBER PLACE [SCORING BALANCER]: a function that makes every call of a router that no other number has.
one_router() {
  cat <<EOF
void train_$1(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, mb::BiasRef bias, mb::LoadRef load, $2 place) {
  const mb::Router router{mb::${3:-Sigmoid}{}, mb::TopK<$1>{}, mb::${4:-LossFreeBias}{}};
  router.forward(forward, {}, place);
  router.backward(backward, {}, place);
  router.update(bias, load, {}, place);
}
EOF
}
# source_of HEADER PLACE FIRST LAST [SCORING BALANCER]: a file with these routers.
source_of() {
  printf '#include <moe_balance/%s>\nnamespace mb = moe_balance;\n' "$1"
  for ((i = $3; i <= $4; ++i)); do one_router "$i" "$2" "${@:5}"; done
}

: >"$work/empty.cpp"
printf '#include <moe_balance/moe_balance.hpp>\n' >"$work/header.cpp"
source_of moe_balance.hpp 'const mb::Host&' 8 8 >"$work/one.cpp"
source_of moe_balance.hpp 'const mb::Host&' 8 8 Softmax AuxLoss >"$work/loss.cpp"
source_of moe_balance.hpp 'const mb::Host&' 1 10 >"$work/ten.cpp"
cat >"$work/compiled_elsewhere.cpp" <<'EOF'
#include <moe_balance/moe_balance.hpp>
namespace mb = moe_balance;
using Compiled = mb::CompiledRouter<mb::Router<mb::Sigmoid, mb::TopK<8>, mb::LossFreeBias>>;
extern template class mb::CompiledRouter<mb::Router<mb::Sigmoid, mb::TopK<8>, mb::LossFreeBias>>;
void train(const Compiled& router, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, mb::BiasRef bias, mb::LoadRef load) {
  router.forward(forward, {}, {});
  router.backward(backward, {}, {});
  router.update(bias, load, {}, {});
}
EOF
: >"$work/empty.cu"
source_of moe_balance.cuh cudaStream_t 8 8 >"$work/bias.cu"
source_of moe_balance.cuh cudaStream_t 8 8 Softmax AuxLoss >"$work/loss.cu"

median() { sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

trees=("$root")
if [ -n "$against" ]; then
  mkdir "$work/against"
  git -C "$root" archive "$against" include | tar -x -C "$work/against"
  trees+=("$work/against")
fi

# row WHAT COMMAND...: times COMMAND with each tree's headers and prints a line of the table.
row() {
  local what=$1 i t
  shift
  rm -f "$work"/cpu.* "$work"/wall.*
  for ((i = 0; i < repeats; ++i)); do
    for t in "${!trees[@]}"; do
      TIMEFORMAT='%U %S %R'
      { time "$@" "-I${trees[t]}/include" >"$work/log" 2>&1; } 2>"$work/time" || { cat "$work/log" >&2; exit 1; }
      awk '{ printf "%.2f\n", $1 + $2 }' "$work/time" >>"$work/cpu.$t"
      awk '{ print $3 }' "$work/time" >>"$work/wall.$t"
    done
  done
  printf '| %s |' "$what"
  for t in "${!trees[@]}"; do printf ' %s | %s |' "$(median <"$work/cpu.$t")" "$(median <"$work/wall.$t")"; done
  printf '\n'
}

printf '`bash bench/compile_time.sh --repeats %s%s`, %s, %s cores, load %s, %s, %s\n\n' "$repeats" "${against:+ --against $against}" \
  "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(cut -d ' ' -f 1 /proc/loadavg)" \
  "$("$compiler" --version | head -n 1)" "$(date -u +%Y-%m-%d)"
printf '| file | CPU seconds | wall seconds |%s\n|---|---|---|%s\n' "${against:+ CPU seconds, $against | wall seconds, $against |}" "${against:+---|---|}"
for level in -O0 -O2; do
  cpp=("$compiler" -std=c++20 "$level" -c -o "$work/object.o")
  row "empty .cpp, $level" "${cpp[@]}" "$work/empty.cpp"
  row "includes moe_balance.hpp, $level" "${cpp[@]}" "$work/header.cpp"
  row "one Router: forward, backward, update, $level" "${cpp[@]}" "$work/one.cpp"
  row "the same Router, compiled in another file, $level" "${cpp[@]}" "$work/compiled_elsewhere.cpp"
  row "one Router with a loss, $level" "${cpp[@]}" "$work/loss.cpp"
  row "ten Routers, $level" "${cpp[@]}" "$work/ten.cpp"
done
if [ -x "$nvcc" ]; then
  cu=("$nvcc" -std=c++20 -O2 "-arch=$arch" -c -o "$work/object.o")
  row "empty .cu, $arch" "${cu[@]}" "$work/empty.cu"
  for router in bias loss; do
    row "one Router in CUDA, with a $router, $arch" "${cu[@]}" "$work/$router.cu"
    row "the same, MOE_BALANCE_CUDA_MAX_EXPERTS=256" "${cu[@]}" -DMOE_BALANCE_CUDA_MAX_EXPERTS=256 "$work/$router.cu"
    row "the same, MOE_BALANCE_CUDA_MIN_EXPERTS=256, too" "${cu[@]}" -DMOE_BALANCE_CUDA_MIN_EXPERTS=256 \
      -DMOE_BALANCE_CUDA_MAX_EXPERTS=256 "$work/$router.cu"
  done
fi
