// The kernels of the largest tier with most to keep in registers, for sm_80, whose compiler is the first to run out of them: every balancer at once,
// with the code of both selections, for each scoring; and one of a few that have spilled there alone.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

namespace {

constexpr int largest_tier = mb::cuda_tier_count - 1;
using EveryPart = mb::Combine<mb::AuxLoss, mb::SequenceLoss, mb::GlobalBatchLoss, mb::ZLoss, mb::LossFreeBias>;

/// Taking a kernel's address is what has it compiled.
template <class Scoring, class Selection, class Balancer>
bool kernel_exists() {
  using Problem = mb::ForwardProblem<Scoring, Selection, Balancer>;
  return mb::moe_balance_forward<largest_tier, false, Problem> != nullptr;
}

template <class... Scorings>
bool kernels_of_scorings_exist() {
  return (kernel_exists<Scorings, mb::Replay<mb::GroupLimitedTopK<8>>, EveryPart>() && ...);
}

}  // namespace

bool kernels_exist();
bool kernels_exist() {
  return kernels_of_scorings_exist<mb::Softmax, mb::SoftmaxOverSelected, mb::Sigmoid, mb::SqrtSoftplus, mb::Identity>() &&
         kernel_exists<mb::Sigmoid, mb::GroupLimitedTopK<8>, mb::ZLoss>();
}
