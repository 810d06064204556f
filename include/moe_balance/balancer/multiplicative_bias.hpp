// MultiplicativeBias<Rule>: another rule, whose bias multiplies: experts are ranked by score * (1 + b), so that a b of 0 changes nothing, as of any bias. With a b of -1
// or less an expert is worth nothing: it ranks as by a score of 0, below none that is.
// It moves what experts are worth in proportion to their scores: at a token whose scores are small it moves choices that an added bias would overrule.
// A variant of the same study as loss-free balancing, which prefers the sum: with LossFreeBias its factor is 1 + b, b_i += update_rate * sign(mean - c_i).
// Source: Wang et al. 2024, arXiv 2408.15664 (multiplicative bias).
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/requirements.hpp>

MOEB_NAMESPACE_BEGIN

/// Beside scores that are never negative (Softmax, Sigmoid, SqrtSoftplus): of others a larger factor would lower some. Its base is the rule, options and all (no
/// final class): MultiplicativeBias{LossFreeBias{.update_rate = 1e-3f}}; rates are in parts of a score. A trained bias needs it in inference, too, and
/// load_state does not know a bias of the one kind from the other. Not beside Threshold, whose cutoffs are minus a bias that is added. An infinite score times a factor of 0 is NaN, and ranks last.
template <class Rule = LossFreeBias>
struct MultiplicativeBias : Rule {
  static_assert(BiasBalancer<Rule>, "the rule of MultiplicativeBias lacks: balancer.next_bias(bias, expert, load) const");
  static_assert(requirements::of_balancer<Rule>());
  static_assert(!BiasFromMargins<Rule>, "the rule of MultiplicativeBias reads margins, which say what to add to a score");
  static constexpr bool bias_is_factor = true;  ///< see moe_balance::bias_is_factor
};
template <class Rule>
MultiplicativeBias(Rule) -> MultiplicativeBias<Rule>;
static_assert(BiasBalancer<MultiplicativeBias<>>);

MOEB_NAMESPACE_END
