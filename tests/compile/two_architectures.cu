// The library's smallest kernels and what launches them, for two_architectures.sh.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

__attribute__((visibility("default"))) void MOE_BALANCE_ENTRY(const mb::LossArgs& args, mb::LoadRef load,
                                                              const mb::PermutationArgs& order, const mb::PermuteArgs& move,
                                                              const mb::RouteArgs& route, const mb::LocalExpertsArgs& local,
                                                              mb::Workspace workspace, cudaStream_t stream);
void MOE_BALANCE_ENTRY(const mb::LossArgs& args, mb::LoadRef load, const mb::PermutationArgs& order,
                       const mb::PermuteArgs& move, const mb::RouteArgs& route, const mb::LocalExpertsArgs& local,
                       mb::Workspace workspace, cudaStream_t stream) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::GlobalBatchLoss{}};
  router.loss(args, {}, stream);
  router.update({}, load, {}, stream);
  mb::permutation(order, workspace, stream);
  mb::permute(move, {}, stream);
  mb::local_experts(local, {}, stream);
  const mb::Router limited{mb::Sigmoid{}, mb::WithCapacity<mb::TopK<2>>{}};
  limited.route(route, workspace, stream);
  mb::route_and_permute(mb::Router{mb::Sigmoid{}, mb::TopK<2>{}}, route, order, workspace, stream);
}
