#!/usr/bin/env bash
# build_handlers.sh OUTPUT SOURCE COMPILER...: compiles SOURCE with the XLA headers of the jaxlib that `python` has. OUTPUT is a shared object, or what the
# compiler writes where it is told -c.
set -euo pipefail
output=$1 source=$2
shift 2
include=$(JAX_PLATFORMS=cpu python -c 'import jax; print(jax.ffi.include_dir())')
mkdir -p "$(dirname "$output")"
case $output in
  *.so)  # in two steps, because compiler caches keep objects only
    "$@" -isystem "$include" -fPIC -c "$source" -o "$output.o"
    "$@" -shared "$output.o" -o "$output" -pthread ;;
  *) "$@" -isystem "$include" -c "$source" -o "$output" ;;
esac
echo "$output is compiled with $include"
