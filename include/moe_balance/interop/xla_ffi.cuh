// The handlers of xla_ffi.hpp on a GPU: MOEB_XLA_HANDLERS(my_moe, router, cudaStream_t) in a file that nvcc compiles, to be registered for the platform
// "CUDA". They enqueue on XLA's stream and return; nothing waits for the host. Sums over ranks need a router with a Sync for GPUs.
// Compiled by tests; no GPU has run them yet.
#pragma once

#include <moe_balance/interop/xla_ffi.hpp>
#include <moe_balance/moe_balance.cuh>

template <>
struct xla::ffi::CtxBinding<cudaStream_t> {
  using Ctx = xla::ffi::PlatformStream<cudaStream_t>;
};
