// The main kernels as they run in the common case, for instructions.py, which counts what one token takes: float32, rows that hold quads, one
// segment, no masks. What the caller decides at run time is a constant here, so that the code of all other cases is not there to be counted.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

namespace {

template <class Problem>
__device__ Problem common_case(Problem problem) {
  problem.logits.type = mb::DataType::float32;
  problem.active = nullptr;
  problem.tokens_on_device = nullptr;
  problem.segments.sequences.layout = mb::Sequences::Layout::sequence_major;
  return problem;
}

}  // namespace

template <int Tier, class Problem>
__global__ void __launch_bounds__(mb::cuda_tiers[Tier].threads, mb::cuda_tiers[Tier].blocks_per_sm)
    common_forward(const __grid_constant__ Problem given, const __grid_constant__ mb::Totals totals) {
  extern __shared__ __align__(16) std::byte memory[];
  Problem problem = common_case(given);
  problem.weights.type = mb::DataType::float32;
  if constexpr (mb::BalancerTraits<decltype(problem.balancer)>::biases == 0) problem.bias = nullptr;
  if (mb::BalancerTraits<decltype(problem.balancer)>::biases > 0 && problem.bias == nullptr) __builtin_unreachable();
  problem.rows_hold_quads = true;
  mb::forward_kernel<mb::KernelConfig<Tier>>(mb::CudaBlock{memory}, mb::CudaTile<mb::cuda_tiers[Tier].width>{}, problem,
                                             totals);
}

template <int Tier, class Problem>
__global__ void __launch_bounds__(mb::cuda_tiers[Tier].threads, mb::cuda_tiers[Tier].blocks_per_sm)
    common_backward(const __grid_constant__ Problem given) {
  extern __shared__ __align__(16) std::byte memory[];
  Problem problem = common_case(given);
  problem.grad_weights.type = mb::DataType::float32;
  problem.grad_logits.type = mb::DataType::float32;
  problem.logits_hold_quads = true;
  problem.grad_holds_quads = true;
  mb::backward_kernel<mb::KernelConfig<Tier>>(mb::CudaBlock{memory}, mb::CudaTile<mb::cuda_tiers[Tier].width>{}, problem);
}

/// Taking a kernel's address is what has it compiled.
template <class Scoring, class Selection, class Balancer, int... Tier>
bool kernels_of() {
  using Forward = mb::ForwardProblem<Scoring, Selection, Balancer>;
  using Backward = mb::BackwardProblem<Scoring, Selection, Balancer>;
  return ((common_forward<Tier, Forward> != nullptr && common_backward<Tier, Backward> != nullptr) && ...);
}

bool kernels_exist();
bool kernels_exist() {
  using DeepSeekSelection = mb::GroupLimitedTopK<8>;
  return kernels_of<mb::Softmax, mb::TopK<8>, mb::AuxLoss, 1, 2, 3, 4>() &&
         kernels_of<mb::Sigmoid, DeepSeekSelection, mb::LossFreeBias, 3>();
}
