// The library's smallest kernels and what launches them, for two_architectures.sh.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

__attribute__((visibility("default"))) void MOE_BALANCE_ENTRY(const mb::LossArgs& args, mb::LoadRef load, cudaStream_t stream);
void MOE_BALANCE_ENTRY(const mb::LossArgs& args, mb::LoadRef load, cudaStream_t stream) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::GlobalBatchLoss{}};
  router.loss(args, {}, stream);
  router.update({}, load, {}, stream);
}
