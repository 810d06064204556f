// Every call of a router with every part, for compilation under unusual settings.
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

void every_call(const mb::RouteArgs& route, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss,
                mb::BiasRef bias, mb::LoadRef load, mb::Workspace workspace);

void every_call(const mb::RouteArgs& route, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss,
                mb::BiasRef bias, mb::LoadRef load, mb::Workspace workspace) {
  const mb::Router router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                          mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}, mb::ZLoss{}}};
  const mb::Host host{.threads = 2};
  router.route(route, workspace, host);
  router.forward(forward, workspace, host);
  router.backward(backward, workspace, host);
  router.loss(loss, workspace, host);
  router.update(bias, load, workspace, host);
}

struct DispatchCalls {
  mb::PermutationArgs permutation;
  mb::PermuteArgs permute;
  mb::PermuteBackwardArgs permute_backward;
  mb::CombineArgs combine;
  mb::CombineBackwardArgs combine_backward;
  mb::CapacityArgs capacity;
  mb::PhysicalExpertsArgs physical_experts;
  mb::LocalExpertsArgs local_experts;
  mb::TensorParallelMaskArgs tensor_parallel_mask;
  mb::SharedExpertsArgs shared_experts;
  mb::RankSplitsArgs rank_splits;
  mb::PlacementArgs placement;
};

mb::Placement every_dispatch_call(const DispatchCalls& calls, mb::Workspace workspace);
mb::Placement every_dispatch_call(const DispatchCalls& calls, mb::Workspace workspace) {
  const mb::Host host{};
  mb::permutation(calls.permutation, workspace, host);
  mb::permute(calls.permute, workspace, host);
  mb::permute_backward(calls.permute_backward, workspace, host);
  mb::combine(calls.combine, workspace, host);
  mb::combine_backward(calls.combine_backward, workspace, host);
  mb::limit_to_capacity(calls.capacity, workspace, host);
  mb::physical_experts(calls.physical_experts, workspace, host);
  mb::local_experts(calls.local_experts, workspace, host);
  mb::tensor_parallel_mask(calls.tensor_parallel_mask, workspace, host);
  mb::append_shared_experts(calls.shared_experts, workspace, host);
  mb::rank_splits(calls.rank_splits, workspace, host);
  return mb::place_experts(calls.placement);
}
