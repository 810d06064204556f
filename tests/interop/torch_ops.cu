// The operators through libtorch with CUDA: nvcc checks them, where no GPU is, too.
#include <moe_balance/interop/torch.cuh>
#include <moe_balance/moe_balance.cuh>

namespace {

namespace mb = moe_balance;
const mb::Router balanced{mb::Sigmoid{}, mb::TopK<2>{}, mb::Combine{mb::QuantileBias{}, mb::GlobalBatchLoss{}}};

const mb::Router limited{mb::Softmax{}, mb::WithCapacity<mb::Replay<mb::TopK<2>>>{}};

}  // namespace

TORCH_LIBRARY(moeb_test, m) {
  mb::pytorch::define_ops<balanced, mb::pytorch::CpuAndCuda>(m);
  mb::pytorch::define_fused_ops<balanced, mb::pytorch::CpuAndCuda>(m);
  mb::pytorch::define_fused_ops<limited, mb::pytorch::CpuAndCuda>(m, "limited_");
  mb::pytorch::define_dispatch_ops<mb::pytorch::CpuAndCuda>(m);
}
