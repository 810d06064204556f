// The operators torch.ops.moe, with autograd, for the version of PyTorch that this is compiled with.
#include <moe_balance/interop/torch.hpp>

#include "router.hpp"

TORCH_LIBRARY(moe, m) {
  moe_balance::pytorch::define_ops<moe_router>(m);
  moe_balance::pytorch::define_fused_ops<moe_router>(m);
  moe_balance::pytorch::define_dispatch_ops(m);
}
