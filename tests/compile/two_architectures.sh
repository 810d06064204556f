#!/usr/bin/env bash
# two_architectures.sh OUTPUT NVCC FLAGS... SOURCE: SOURCE compiled for sm_80 and for sm_90, as two shared objects that one process may load, and
# linked into one. Fails when a kernel or a launcher is exported, where another object's would take its place, or when those of the two
# architectures have the same name, so that a linker keeps one of them only.
set -euo pipefail
output=$1
shift
own='moe_balance_(forward|backward|loss|update|clear|publish|dispatch|forward_and_count)|::Cuda(Dispatch)?Engine::|check_cuda'

for arch in 80 90; do
  "$@" -arch=sm_$arch -DMOE_BALANCE_ENTRY=entry_$arch -Xcompiler=-fPIC -c -o "$output.$arch.o"
  g++ -shared -o "$output.$arch.so" "$output.$arch.o"
  symbols=$(nm -C "$output.$arch.so" | grep -E "$own" || true)
  [ -n "$symbols" ] || { echo "sm_$arch: no kernel and no launcher"; exit 1; }
  untagged=$(grep -vE "cuda_${arch}0" <<<"$symbols" || true)
  [ -z "$untagged" ] || { echo "sm_$arch: outside the namespace of its architecture:"; echo "$untagged"; exit 1; }
  readelf --dyn-syms --wide "$output.$arch.so" | awk '$5 != "LOCAL" && $7 != "UND" { print $8 }' | c++filt >"$output.$arch.exported"
  grep -q "entry_$arch" "$output.$arch.exported" || { echo "sm_$arch: its entry is not exported"; exit 1; }
  exported=$(grep -E "$own" "$output.$arch.exported" || true)  # the calls of users may be: their names carry the architectures, see below
  [ -z "$exported" ] || { echo "sm_$arch: exported:"; echo "$exported"; exit 1; }
done

# What is compiled for a stream and has the same name in both objects would be taken for one function. SingleDevice's do nothing in both.
shared=$(comm -12 <(sort "$output.80.exported") <(sort "$output.90.exported") | grep CUstream_st | grep -v '::SingleDevice::' || true)
[ -z "$shared" ] || { echo "exported by both:"; echo "$shared"; exit 1; }

g++ -shared -o "$output.both.so" "$output.80.o" "$output.90.o"
for arch in 80 90; do
  kept=$(nm -C "$output.both.so" | grep -cE "cuda_${arch}0_experts_[0-9_]+::CudaEngine::(loss|update)" || true)
  [ "$kept" -ge 2 ] || { echo "linked into one object, sm_$arch keeps $kept launchers of 2"; exit 1; }
done
echo "kernels and launchers are hidden and carry their architectures"
