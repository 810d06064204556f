// The kernels of one scoring in every tier, with each kind of selection and balancer that makes a kernel of its own. Two macros, given on the command
// line, make ten short compilations of one long one: MOE_BALANCE_SCORING is the scoring, MOE_BALANCE_USUAL says whether the kernels are those of usual
// calls.
// What differs in numbers alone is one kernel: where not only usual calls are served, LossFreeBias is NoBalancer with a bias pointer, and the scopes of a
// loss differ in a flush.
// EveryPart has all balancers at once; Replay of GroupLimitedTopK has both selections' code.
#include <moe_balance/moe_balance.cuh>

#include <array>
#include <utility>

namespace mb = moe_balance;

namespace {

using Scoring = mb::MOE_BALANCE_SCORING;
constexpr bool usual = MOE_BALANCE_USUAL;
using Tiers = std::make_integer_sequence<int, usual ? mb::usual_tier_count : mb::cuda_tier_count>;
using EveryPart = mb::Combine<mb::AuxLoss, mb::SequenceLoss, mb::GlobalBatchLoss, mb::ZLoss, mb::LossFreeBias>;

template <class Selection, class Balancer, int... Tier>
auto forward_kernels(std::integer_sequence<int, Tier...>) {
  using Problem = mb::ForwardProblem<Scoring, Selection, Balancer>;
  return std::array{mb::moe_balance_forward<Tier, (usual && mb::has_usual_kernel<Tier, Problem>), Problem>...};
}

template <class Selection, class Balancer, int... Tier>
auto backward_kernels(std::integer_sequence<int, Tier...>) {
  using Problem = mb::BackwardProblem<Scoring, Selection, Balancer>;
  return std::array{mb::moe_balance_backward<Tier, (usual && mb::has_usual_kernel<Tier, Problem>), Problem>...};
}

}  // namespace

/// Taking a kernel's address is what has it compiled.
bool kernels_exist();
bool kernels_exist() {
  const Tiers tiers;
  bool exist = forward_kernels<mb::TopK<8>, mb::NoBalancer>(tiers)[0] != nullptr;
  exist = exist && forward_kernels<mb::TopK<8>, EveryPart>(tiers)[0] != nullptr;
  exist = exist && forward_kernels<mb::Replay<mb::GroupLimitedTopK<8>>, EveryPart>(tiers)[0] != nullptr;
  if constexpr (usual) exist = exist && forward_kernels<mb::GroupLimitedTopK<8>, mb::LossFreeBias>(tiers)[0] != nullptr;
  exist = exist && backward_kernels<mb::TopK<8>, mb::NoBalancer>(tiers)[0] != nullptr;
  exist = exist && backward_kernels<mb::TopK<8>, EveryPart>(tiers)[0] != nullptr;
  return exist;
}
