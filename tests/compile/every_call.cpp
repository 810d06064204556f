// Every call of the library with every part, for compilation under unusual settings.
#include <moe_balance/moe_balance.hpp>

#include <sstream>

namespace mb = moe_balance;

/// The arguments of every call.
struct Everything {
  mb::RouteArgs route;
  mb::ForwardArgs forward;
  mb::BackwardArgs backward;
  mb::LossArgs loss;
  mb::BiasRef bias;
  mb::LoadRef load;
  mb::PermutationArgs permutation;
  mb::PermuteArgs permute;
  mb::PermuteBackwardArgs permute_backward;
  mb::CombineArgs combine;
  mb::CombineBackwardArgs combine_backward;
  mb::CapacityArgs capacity;
  mb::PhysicalExpertsArgs physical;
  mb::LocalExpertsArgs local;
  mb::TensorParallelMaskArgs mask;
  mb::SharedExpertsArgs shared;
  mb::RankSplitsArgs splits;
};

void every_call(const Everything& args, mb::Workspace workspace);
void every_call_of_dispatch(const Everything& args, mb::Workspace workspace);
void every_call_of_state(const Everything& args, std::stringstream& stream);

void every_call(const Everything& args, mb::Workspace workspace) {
  const mb::Router router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                          mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}, mb::ZLoss{}}};
  const mb::Host host{.threads = 2};
  router.route(args.route, workspace, host);
  router.forward(args.forward, workspace, host);
  router.backward(args.backward, workspace, host);
  router.loss(args.loss, workspace, host);
  router.update(args.bias, args.load, workspace, host);

  const mb::Router other{mb::SoftmaxOverSelected{}, mb::WithCapacity<mb::Replay<mb::TopK<4>>>{},
                         mb::FromPlainTopK{mb::GlobalBatchLoss{}}, mb::ThreadSync::group(1).front()};
  other.forward(args.forward, workspace, host);
  other.backward(args.backward, workspace, host);
}

void every_call_of_dispatch(const Everything& args, mb::Workspace workspace) {
  const mb::Host host;
  mb::permutation(args.permutation, workspace, host);
  mb::permute(args.permute, workspace, host);
  mb::permute_backward(args.permute_backward, workspace, host);
  mb::combine(args.combine, workspace, host);
  mb::combine_backward(args.combine_backward, workspace, host);
  mb::limit_to_capacity(args.capacity, workspace, host);
  mb::physical_experts(args.physical, workspace, host);
  mb::local_experts(args.local, workspace, host);
  mb::tensor_parallel_mask(args.mask, workspace, host);
  mb::append_shared_experts(args.shared, workspace, host);
  mb::rank_splits(args.splits, workspace, host);
}

void every_call_of_state(const Everything& args, std::stringstream& stream) {
  mb::save_state(stream, args.bias, args.load, mb::load_state(stream, args.bias, args.load));
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
