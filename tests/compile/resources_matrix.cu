// The kernels of one scoring in every tier, for any call and for usual ones, with each kind of selection and balancer that makes a kernel of its own.
// MOE_BALANCE_SCORING, given on the command line, is the scoring.
// What differs in numbers alone is one kernel: for any call LossFreeBias is NoBalancer with a bias pointer, and the scopes of a loss differ in a flush.
// EveryPart has all balancers at once, EveryPartPlain counts a plain selection beside them; Replay of GroupLimitedTopK has both selections' code.
// Kernels for usual calls have no register to spare, and few tiers have one for all parts at once: they are compiled with fewer parts, too.
// MOE_BALANCE_FEW_KINDS: of a scoring that leaves more registers than another one that works like it (docs/design.md, "Proof without a GPU"), tiers that have
// usual kernels, and what takes most there.
#include <moe_balance/moe_balance.cuh>

#include <utility>

namespace mb = moe_balance;

namespace {

using Scoring = mb::MOE_BALANCE_SCORING;
using TopK = mb::TopK<8>;
using Groups = mb::GroupLimitedTopK<8>;
#if defined(MOE_BALANCE_FEW_KINDS)
constexpr bool every_kind = false;
#else
constexpr bool every_kind = true;
#endif
using AnyTier = std::make_integer_sequence<int, every_kind ? mb::cuda_tier_count : mb::usual_tier_count>;
using UsualTier = std::make_integer_sequence<int, mb::usual_tier_count>;

using LossAndZ = mb::Combine<mb::GlobalBatchLoss, mb::ZLoss>;
using BiasAndLoss = mb::Combine<mb::LossFreeBias, mb::SequenceLoss>;
using BiasAndPlainLoss = mb::Combine<mb::LossFreeBias, mb::FromPlainTopK<mb::SequenceLoss>>;
using FirstChoices = mb::Combine<mb::LossFreeBias, mb::FromPlainTopK<mb::AuxLoss, 1>>;
using BiasAndArrivals = mb::Combine<mb::LossFreeBias, mb::CommunicationLoss<mb::SequenceLoss>>;
using EveryPart =
    mb::Combine<mb::WithZeroComputation<mb::DeviceLoss<mb::AuxLoss>>, mb::SequenceLoss, mb::GlobalBatchLoss, mb::ZLoss, mb::LossFreeBias>;
using Probabilities = mb::Combine<mb::DeviceLoss<mb::ImportanceLoss>, mb::MutualInformationLoss, mb::SequenceLoss, mb::GlobalBatchLoss, mb::ZLoss, mb::LossFreeBias>;
using EveryPartPlain = mb::Combine<mb::FromPlainTopK<mb::AuxLoss>, mb::FromPlainTopK<mb::SequenceLoss>, mb::CommunicationLoss<mb::SequenceLoss>, mb::ZLoss,
                                   mb::LossFreeBias, mb::BalancedTokens>;
using Marked = mb::Combine<mb::LossFreeBias, mb::SequenceLoss, mb::BalancedTokens>;
using MarkedLossAndZ = mb::Combine<mb::AuxLoss, mb::ZLoss, mb::BalancedTokens>;

/// Taking a kernel's address is what has it compiled.
template <int Tier, bool Usual, class Problem>
bool kernel_exists() {
  if constexpr (Usual && !mb::has_usual_kernel<Tier, Problem>)
    return true;
  else if constexpr (mb::is_backward<Problem>)
    return mb::moe_balance_backward<Tier, Usual, Problem> != nullptr;
  else
    return mb::moe_balance_forward<Tier, Usual, Problem> != nullptr;
}

template <bool Usual, class Problem, int... Tier>
bool kernels_exist(std::integer_sequence<int, Tier...> /*tiers*/) {
  return (kernel_exists<Tier, Usual, Problem>() && ...);
}

template <class Selection, class Balancer>
using Forward = mb::ForwardProblem<Scoring, Selection, Balancer>;
template <class Balancer>
using Backward = mb::BackwardProblem<Scoring, TopK, Balancer>;

template <class... Problem>
bool kernels_for_any_call() {
  return (kernels_exist<false, Problem>(AnyTier{}) && ...);
}
template <class... Problem>
bool kernels_for_usual_calls() {
  return (kernels_exist<true, Problem>(UsualTier{}) && ...);
}

/// The largest K, which leaves the fewest registers, among more experts than resources.cu has.
bool kernels_of_largest_k_exist() {
  using LargestK = Forward<mb::TopK<32>, mb::FromPlainTopK<mb::GlobalBatchLoss>>;
  if constexpr (!mb::is_over_selected<Scoring>)
    return true;
  else
    return kernel_exists<mb::cuda_tier_count - 2, false, LargestK>() &&
           kernel_exists<mb::cuda_tier_count - 1, false, LargestK>();
}

/// What QuantileBias counts margins with, and ThresholdBias scores.
template <int... Tier>
bool margin_kernels_exist(std::integer_sequence<int, Tier...> /*tiers*/) {
  using Problem = mb::MarginProblem<Scoring, TopK, mb::QuantileBias>;
  return ((mb::moe_balance_margins<Tier, Problem> != nullptr) && ...) && mb::moe_balance_margin_counts<Problem> != nullptr;
}
template <int... Tier>
bool score_kernels_exist(std::integer_sequence<int, Tier...> /*tiers*/) {
  using Problem = mb::MarginProblem<Scoring, mb::Threshold<8>, mb::ThresholdBias>;
  return ((mb::moe_balance_margins<Tier, Problem> != nullptr) && ...) && mb::moe_balance_margin_counts<Problem> != nullptr;
}

template <class... Balancer>
bool updates_exist() {
  return ((mb::moe_balance_update<mb::UpdateProblem<Balancer>> != nullptr) && ...);
}

}  // namespace

bool all_kernels_exist();
bool all_kernels_exist() {
  const bool any_call = kernels_for_any_call<Forward<TopK, EveryPart>, Forward<mb::Replay<Groups>, EveryPartPlain>,
                                             Backward<EveryPart>>();
  const bool usual_forward = kernels_for_usual_calls<Forward<TopK, mb::NoBalancer>, Forward<TopK, BiasAndLoss>,
                                                     Forward<Groups, BiasAndLoss>, Forward<mb::Replay<Groups>, EveryPart>, Forward<TopK, Marked>>();
  const bool usual_backward = kernels_for_usual_calls<Backward<mb::NoBalancer>, Backward<BiasAndLoss>, Backward<EveryPart>, Backward<Marked>>();
  bool others = true;
  if constexpr (every_kind) {
    others = kernels_for_any_call<Forward<TopK, mb::NoBalancer>, Backward<mb::NoBalancer>, Forward<mb::TopP<8>, Probabilities>,
                                  mb::BackwardProblem<Scoring, mb::TopP<8>, Probabilities>>() &&
             kernels_for_usual_calls<Forward<mb::Threshold<8>, BiasAndLoss>, Forward<TopK, FirstChoices>>() &&
             kernels_for_usual_calls<Forward<TopK, mb::AuxLoss>, Forward<TopK, LossAndZ>, Forward<TopK, BiasAndPlainLoss>,
                                     Forward<TopK, BiasAndArrivals>, Forward<Groups, BiasAndArrivals>, Forward<TopK, EveryPart>, Forward<Groups, mb::LossFreeBias>>() &&
             kernels_for_any_call<Backward<EveryPartPlain>>() && kernels_for_usual_calls<Forward<Groups, Marked>, Forward<TopK, MarkedLossAndZ>, Backward<MarkedLossAndZ>>() &&
             kernels_for_usual_calls<Backward<BiasAndArrivals>, Backward<mb::ZLoss>, Backward<mb::GlobalBatchLoss>, Backward<LossAndZ>>();
  }
  const bool update = updates_exist<mb::LossFreeBias, mb::ProportionalBias, mb::SmebuBias, mb::PidBias, mb::QuantileBias,
                                     mb::ThresholdBias>();
  return any_call && usual_forward && usual_backward && others && kernels_of_largest_k_exist() &&
         margin_kernels_exist(AnyTier{}) && score_kernels_exist(AnyTier{}) && update;
}
