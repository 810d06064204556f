// The operators torch.ops.moe for PyTorch 2.10 and every later version; moe_ops.py adds autograd, ops_stable.cu tensors on a GPU.
#define TORCH_TARGET_VERSION 0x020a000000000000
#include <moe_balance/interop/torch_stable.hpp>

#include "router.hpp"

STABLE_TORCH_LIBRARY(moe, m) {
  moe_balance::pytorch_stable::define_ops<moe_router>(m);
  moe_balance::pytorch_stable::define_fused_ops<moe_router>(m);
  moe_balance::pytorch_stable::define_dispatch_ops(m);
}

STABLE_TORCH_LIBRARY_IMPL(moe, CPU, m) {
  moe_balance::pytorch_stable::implement_ops<moe_router>(m);
  moe_balance::pytorch_stable::implement_fused_ops<moe_router>(m);
  moe_balance::pytorch_stable::implement_dispatch_ops(m);
}
