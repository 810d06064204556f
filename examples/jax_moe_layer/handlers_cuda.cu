// The same on a GPU, for the platform "CUDA". Compiled by tests; no GPU has run it yet.
#include "router.hpp"

#include <moe_balance/interop/xla_ffi.cuh>

MOEB_XLA_HANDLERS(jax_moe_layer, router, cudaStream_t)
