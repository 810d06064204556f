// BalancedTokens: calls say which of their tokens are balanced. The others are routed as all are, and counted in `counts`, and neither the load nor a
// loss sees them: prompts beside the answers that are trained on, or tokens of another task. (`active` marks tokens that are not routed at all.)
#pragma once

#include <moe_balance/balancer_concepts.hpp>

MOEB_NAMESPACE_BEGIN

/// A part of a Combine beside losses and a bias, Combine{AuxLoss{}, LossFreeBias{}, BalancedTokens{}}: forward and backward then take `balanced` [T], of which 0
/// marks a token that is left out of the load, the histograms of margins, and every loss, f, P, number of tokens and gradient, all of which are those of a call
/// without it. Its ids, weights, their gradient, `counts`, status and what a capacity does with it stay as they are. Null: all are balanced.
/// A GlobalBatchLoss and a bias divide by what the load has, on each rank that of its balanced tokens.
struct BalancedTokens {
  using is_idle = void;                                ///< by itself it balances nothing
  static constexpr bool marks_balanced_tokens = true;  ///< the trait
};
static_assert(BalancerPolicy<BalancedTokens>);

MOEB_NAMESPACE_END
