// The router as XLA's handlers on the CPU: a shared object with the symbols jax_moe_layer_route, jax_moe_layer_forward, ...
#include "router.hpp"

#include <moe_balance/interop/xla_ffi.hpp>

MOEB_XLA_HANDLERS(jax_moe_layer, router, mb::Host)
