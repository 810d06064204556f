// The handlers of xla_ffi.hpp on a GPU: MOEB_XLA_HANDLERS(my_moe, router, cudaStream_t) in a file that nvcc compiles, to be registered for the platform
// "CUDA". They enqueue on XLA's stream and return; nothing waits for the host.
// Compiled by tests; no GPU has run them yet.
#pragma once

#include <moe_balance/dispatch/cuda.cuh>
#include <moe_balance/engine/cuda.cuh>
#include <moe_balance/interop/xla_ffi.hpp>

/// XLA's stream is where a handler runs.

template <>
struct xla::ffi::CtxBinding<cudaStream_t> {
  using Ctx = xla::ffi::PlatformStream<cudaStream_t>;
};
