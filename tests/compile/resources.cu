// The kernels that real models run, for the checks that need no GPU: registers, spills, stack, symbols. Registers are checked of those for up to 512
// experts (DeepSeek-V3 has 256): those for more took 43% of the time (docs/design.md), and resources_matrix.cu has these tiers.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

struct Calls {
  mb::RouteArgs route;
  mb::ForwardArgs forward;
  mb::BackwardArgs backward;
  mb::LossArgs loss;
  mb::BiasRef bias;
  mb::LoadRef load;
  mb::Workspace workspace;
};

template <class Router>
void run(const Router& router, const Calls& calls, cudaStream_t stream) {
  router.route(calls.route, calls.workspace, stream);
  router.forward(calls.forward, calls.workspace, stream);
  router.backward(calls.backward, calls.workspace, stream);
  router.loss(calls.loss, calls.workspace, stream);
  router.update(calls.bias, calls.load, calls.workspace, stream);
}

void deepseek_v3(const Calls& calls, cudaStream_t stream);
void deepseek_v3(const Calls& calls, cudaStream_t stream) {
  run(mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                 mb::Combine{mb::LossFreeBias{.update_rate = 1e-3f},
                             mb::FromPlainTopK{mb::SequenceLoss{.coefficient = 1e-4f}}}},
      calls, stream);
}

void softmax_with_losses(const Calls& calls, cudaStream_t stream);
void softmax_with_losses(const Calls& calls, cudaStream_t stream) {
  run(mb::Router{mb::Softmax{}, mb::TopK<8>{},
                 mb::Combine{mb::AuxLoss{.coefficient = 1e-2f}, mb::ZLoss{.coefficient = 1e-3f}}},
      calls, stream);
}

void deepseek_v4(const Calls& calls, cudaStream_t stream);
void deepseek_v4(const Calls& calls, cudaStream_t stream) {
  run(mb::Router{mb::SqrtSoftplus{}, mb::Replay{mb::TopK<6>{}}, mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}}}, calls,
      stream);
}

void largest_k(const Calls& calls, cudaStream_t stream);
void largest_k(const Calls& calls, cudaStream_t stream) {
  run(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<32>{}, mb::FromPlainTopK{mb::GlobalBatchLoss{}}}, calls, stream);
}

struct DispatchCalls {
  mb::PermutationArgs permutation;
  mb::PermuteArgs permute;
  mb::PermuteBackwardArgs permute_backward;
  mb::CombineArgs combine;
  mb::CombineBackwardArgs combine_backward;
  mb::CapacityArgs capacity;
  mb::PhysicalExpertsArgs physical_experts;
  mb::SharedExpertsArgs shared_experts;
  mb::RankSplitsArgs rank_splits;
  mb::ReceivedExpertsArgs received_experts;
  mb::ExpertOffsetsArgs expert_offsets;
  mb::LocalExpertsArgs local_experts;
  mb::TensorParallelMaskArgs tensor_parallel_mask;
  mb::OncePerRankArgs once_per_rank;
  mb::RoutingOfRowsArgs routing_of_rows;
  mb::RoutingOfRowsBackwardArgs routing_of_rows_backward;
  mb::NoiseArgs noise;
  mb::NoiseBackwardArgs noise_backward;
  mb::SinkhornArgs sinkhorn;
  mb::SmoothLoadArgs smooth_load;
  mb::LoadLossArgs load_loss;
  mb::SmoothLoadBackwardArgs smooth_load_backward;
};

void dispatch(const Calls& calls, const DispatchCalls& dispatch, cudaStream_t stream);
void dispatch(const Calls& calls, const DispatchCalls& dispatch, cudaStream_t stream) {
  mb::route_and_permute(mb::Router{mb::Softmax{}, mb::TopK<8>{}}, calls.route, dispatch.permutation, calls.workspace,
                        stream);
  mb::forward_and_permute(
      mb::Router{
          mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
          mb::Combine{mb::LossFreeBias{.update_rate = 1e-3f}, mb::FromPlainTopK{mb::SequenceLoss{.coefficient = 1e-4f}}}},
      calls.forward, dispatch.permutation, calls.workspace, stream);
  mb::permutation(dispatch.permutation, calls.workspace, stream);
  mb::permute(dispatch.permute, calls.workspace, stream);
  mb::permute_backward(dispatch.permute_backward, calls.workspace, stream);
  mb::combine(dispatch.combine, calls.workspace, stream);
  mb::combine_backward(dispatch.combine_backward, calls.workspace, stream);
  mb::limit_to_capacity(dispatch.capacity, calls.workspace, stream);
  (void)mb::WithCapacity<mb::TopK<8>>{}.before_backward(mb::Softmax{}, calls.backward, calls.workspace, stream);
  (void)mb::WithCapacity<mb::TopK<8>>{}.before_backward(mb::SoftmaxOverSelected{}, calls.backward, calls.workspace, stream);
  (void)mb::WithCapacity<mb::TopK<8>>{}.before_backward(mb::SqrtSoftplus{}, calls.backward, calls.workspace, stream);
  mb::physical_experts(dispatch.physical_experts, calls.workspace, stream);
  mb::append_shared_experts(dispatch.shared_experts, calls.workspace, stream);
  mb::rank_splits(dispatch.rank_splits, calls.workspace, stream);
  mb::received_experts(dispatch.received_experts, calls.workspace, stream);
  mb::expert_offsets(dispatch.expert_offsets, calls.workspace, stream);
  mb::local_experts(dispatch.local_experts, calls.workspace, stream);
  mb::tensor_parallel_mask(dispatch.tensor_parallel_mask, calls.workspace, stream);
  mb::once_per_rank(dispatch.once_per_rank, calls.workspace, stream);
  mb::routing_of_rows(dispatch.routing_of_rows, calls.workspace, stream);
  mb::routing_of_rows_backward(dispatch.routing_of_rows_backward, calls.workspace, stream);
  mb::add_noise(dispatch.noise, calls.workspace, stream);
  mb::add_noise_backward(dispatch.noise_backward, calls.workspace, stream);
  mb::sinkhorn(dispatch.sinkhorn, calls.workspace, stream);
  mb::smooth_load(dispatch.smooth_load, calls.workspace, stream);
  mb::load_loss(dispatch.load_loss, calls.workspace, stream);
  mb::smooth_load_backward(dispatch.smooth_load_backward, calls.workspace, stream);
}
