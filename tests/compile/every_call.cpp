// Every call of the library with every part, for compilation under unusual settings.
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/thread.hpp>

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
  mb::ReceivedExpertsArgs received;
  mb::ExpertOffsetsArgs offsets;
  mb::OncePerRankArgs once_per_rank;
  mb::RoutingOfRowsArgs routing_of_rows;
  mb::RoutingOfRowsBackwardArgs routing_of_rows_backward;
  mb::NoiseArgs noise;
  mb::NoiseBackwardArgs noise_backward;
  mb::SinkhornArgs sinkhorn;
  mb::SmoothLoadArgs smooth_load;
  mb::LoadLossArgs load_loss;
  mb::SmoothLoadBackwardArgs smooth_load_backward;
  mb::PlacementArgs placement;
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
  mb::received_experts(args.received, workspace, host);
  mb::expert_offsets(args.offsets, workspace, host);
  mb::once_per_rank(args.once_per_rank, workspace, host);
  mb::routing_of_rows(args.routing_of_rows, workspace, host);
  mb::routing_of_rows_backward(args.routing_of_rows_backward, workspace, host);
  mb::add_noise(args.noise, workspace, host);
  mb::add_noise_backward(args.noise_backward, workspace, host);
  mb::sinkhorn(args.sinkhorn, workspace, host);
  mb::smooth_load(args.smooth_load, workspace, host);
  mb::load_loss(args.load_loss, workspace, host);
  mb::smooth_load_backward(args.smooth_load_backward, workspace, host);
  (void)mb::place_experts(args.placement);
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  mb::route_and_permute(router, args.route, args.permutation, workspace, host);
  mb::forward_and_permute(router, args.forward, args.permutation, workspace, host);
}

void every_call_of_state(const Everything& args, std::stringstream& stream) {
  mb::save_state(stream, args.bias, args.load, mb::load_state(stream, args.bias, args.load));
}
