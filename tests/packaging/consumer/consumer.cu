// Only has to compile and link: the machine may have no GPU.
#define MOE_BALANCE_CUDA_MAX_EXPERTS 8  // Mixtral's
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

void route_on_gpu(const mb::RouteArgs& arguments, mb::Workspace workspace, cudaStream_t stream) {
  const mb::CompiledRouter<mb::presets::Mixtral<>, cudaStream_t> router;
  router.route(arguments, workspace, stream);
}
