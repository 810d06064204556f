#!/usr/bin/env bash
# hidden_kernels.sh OUTPUT.so NVCC FLAGS... SOURCE: links SOURCE into a shared object and fails when it exports a kernel, or when a
# kernel's name lacks the version's and architectures' inline namespaces: two shared objects built from different versions or for
# different architectures must never call each other's kernels.
set -euo pipefail
output=$1
shift
"$@" -shared -Xcompiler=-fPIC -Xptxas=-v -o "$output" 2>"$output.txt" || { cat "$output.txt"; exit 1; }

# The host side of a kernel is a function of the same name.
kernels=$(sed -n "s/.*Compiling entry function '\([^']*\)'.*/\1/p" "$output.txt" | sort -u)
[ -n "$kernels" ] || { echo "no kernel was compiled"; exit 1; }
exported=$(nm --dynamic --defined-only "$output" | awk '{ print $NF }' | grep -Fx -f <(printf '%s\n' "$kernels") || true)
if [ -n "$exported" ]; then
  echo "exported kernels:"
  c++filt <<<"$exported"
  exit 1
fi
unversioned=$(c++filt <<<"$kernels" | grep -vE 'moe_balance::v[0-9]+_[0-9]+_[0-9]+::[a-z_]*[0-9]+' || true)
if [ -n "$unversioned" ]; then
  echo "kernels outside the inline namespaces of version and architectures:"
  echo "$unversioned"
  exit 1
fi
echo "$(wc -l <<<"$kernels") kernels, none exported"
