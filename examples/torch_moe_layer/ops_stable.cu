// The operators of ops_stable.cpp for tensors on a GPU. nvcc compiles it with -DUSE_CUDA; the shared object then links libtorch_cuda, too.
#define TORCH_TARGET_VERSION 0x020a000000000000
#include <moe_balance/interop/torch_stable.cuh>

#include "router.hpp"

STABLE_TORCH_LIBRARY_IMPL(moe, CUDA, m) {
  moe_balance::pytorch_stable::implement_ops<moe_router, moe_balance::pytorch_stable::Cuda>(m);
  moe_balance::pytorch_stable::implement_fused_ops<moe_router, moe_balance::pytorch_stable::Cuda>(m);
  moe_balance::pytorch_stable::implement_dispatch_ops<moe_balance::pytorch_stable::Cuda>(m);
}
