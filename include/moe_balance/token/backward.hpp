// One token's gradient: from dL/dweights and the balancing losses to dL/dlogits, written once on a tile. Scores are computed again
// from the logits; nothing of the forward pass but the ids and the counts was kept.
#pragma once

#include <moe_balance/token/backward_problem.hpp>
#include <moe_balance/token/entropy.hpp>
#include <moe_balance/token/forward.hpp>
#include <moe_balance/token/loss_slopes.hpp>
#include <moe_balance/token/scatter.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class Balancer>
inline constexpr bool has_losses = BalancerTraits<Balancer>::losses + BalancerTraits<Balancer>::token_losses > 0;

/// What backward reads of a token. Lanes that read it ahead wait for nothing of it until they need it.
template <class Real, class Problem, class TileT, class LayoutT>
struct BackwardToken {
  static constexpr int per_lane = Chosen<Real, TileT, decltype(Problem::top_k)::k>::per_lane;
  Chosen<Real, TileT, decltype(Problem::top_k)::k> chosen;
  Real grad_chosen[per_lane];
  Slots<Real, LayoutT> logits;
};

/// The ids that forward chose, as they are in memory, and the weights' gradients.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void load_chosen(const Problem& problem, const TileT& tile, std::int64_t token,
                             BackwardToken<Real, Problem, TileT, LayoutT>& state) {
  constexpr int k_count = decltype(problem.top_k)::k;
  MOEB_UNROLL
  for (int r = 0; r < state.per_lane; ++r) {
    const int k = state.chosen.rank(tile, r);
    const bool is_rank = k < k_count;
    state.chosen.expert[r] = is_rank ? problem.experts.data[token * problem.experts.stride + k] : -1;
    const bool has_gradient = is_rank && problem.grad_weights.data != nullptr;
    state.grad_chosen[r] = has_gradient ? load_element<Real>(problem.grad_weights, token, k) : Real(0);
  }
}

/// Makes -1 of ids that no expert has, and 0 of their weights' gradients; false for a token that has no gradient: one without ids, unless it has a loss.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE bool check_chosen(const TileT& tile, int experts,
                                            BackwardToken<Real, Problem, TileT, LayoutT>& state) {
  bool any = false;
  MOEB_UNROLL
  for (int r = 0; r < state.per_lane; ++r) {
    std::int32_t& expert = state.chosen.expert[r];
    const bool is_expert = expert >= 0 && expert < experts;
    expert = is_expert ? expert : -1;
    state.grad_chosen[r] = is_expert ? state.grad_chosen[r] : Real(0);
    any = any || is_expert;
  }
  return has_losses<decltype(Problem::balancer)> || tile.any(any);
}

/// In: dL/dweight of each chosen expert; out: dL/dscore (dL/dlogit where weights are a softmax over the selected).
template <class Scoring, int K, class TileT, class ChosenT, class Real, int PerLane>
MOEB_INLINE void weight_gradient(const TileT& tile, const ChosenT& chosen, const WeightRow<Real>& weights, bool renormalise,
                                 Real (&grad)[PerLane]) {
  Real mean = 0;
  if (renormalise) {
    mean = sum_over_chosen<Real, K>(tile,
                                    [&](int r) MOEB_LAMBDA { return mul(grad[r], mul(chosen.score[r], weights.factor)); });
  }
  const Real factor = mul(weights.scaling, weights.factor);
  MOEB_UNROLL
  for (int r = 0; r < PerLane; ++r) {
    const Real centred = mul(factor, sub(grad[r], mean));
    const Real result = is_over_selected<Scoring> ? mul(chosen.score[r], centred) : centred;
    grad[r] = chosen.expert[r] >= 0 ? result : Real(0);
  }
}

/// A slope that the factor makes infinite pulls nowhere. A factor that is no finite number itself is the caller's, and stays to be seen.
template <class Real>
[[nodiscard]] MOEB_INLINE Real times_factor(Real slope, Real factor) {
  const Real product = mul(slope, factor);
  return is_finite(factor) ? finite_slope(product) : product;
}

/// What multiplies a token's softmax in the gradient of the token losses.
template <class Real, class Problem>
[[nodiscard]] MOEB_INLINE Real slope_of_token_losses(const Problem& problem, const LossSlopes<Real>& slopes,
                                                     const SoftmaxRow<Real>& softmax) {
  const Real log_sum_exp = softmax.log_sum_exp();
  Real slope = 0;
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (TokenLossBalancer<std::remove_cvref_t<decltype(part)>>) {
      slope = add(slope, token_slope_of(part, log_sum_exp));
    }
  });
  return times_factor(slope, slopes.token_factor);
}

/// A token's entropy, and what multiplies its gradient.
template <class Real>
struct EntropySlope {
  Real entropy = 0;
  Real slope = 0;

  EntropySlope() = default;
  template <class Problem>
  MOEB_INLINE EntropySlope(const Problem& problem, const LossSlopes<Real>& slopes, Real value) : entropy(value) {
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      if constexpr (EntropyLossBalancer<std::remove_cvref_t<decltype(part)>>)
        slope = add(slope, entropy_slope_of(part, value));
    });
    slope = times_factor(slope, slopes.token_factor);
  }
};
/// Of a row that is read again later, before its scores are found: a lane still has slots for the sum's terms.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE EntropySlope<Real> entropy_before_scores(const Problem& problem, const TileT& tile,
                                                                   const LayoutT& layout, std::int64_t token,
                                                                   const LossSlopes<Real>& slopes,
                                                                   Slots<Real, LayoutT>& logits) {
  const bool quads = problem.logits_hold_quads;
  Slots<Real, LayoutT> terms;
  const SoftmaxRow<Real> row = softmax_row(tile, layout, logits, terms);
  const Real entropy = entropy_of_row(problem.logits, quads, tile, layout, token, row, logits, terms);
  reload_row(tile, layout, problem.logits, token, quads, logits);  // or its exponentials would stay
  return {problem, slopes, entropy};
}

/// The entropy losses' gradient where the scores are no softmax. `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void add_entropy_gradient_apart(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                            std::int64_t token, const LossSlopes<Real>& slopes, Slots<Real, LayoutT>& logits,
                                            Slots<Real, LayoutT>& scores, Slots<Real, LayoutT>& grad) {
  const bool quads = problem.logits_hold_quads;
  reload_row(tile, layout, problem.logits, token, quads, logits);
  const SoftmaxRow<Real> row = softmax_row(tile, layout, logits, scores);
  const Real entropy = entropy_of_row(problem.logits, quads, tile, layout, token, row, logits, scores);
  const EntropySlope<Real> slope(problem, slopes, entropy);
  const auto probability_of = [&](int /*slot*/, Real logit) MOEB_LAMBDA { return row.probability(logit); };
  add_entropy_gradient(problem.logits, quads, tile, layout, token, row, entropy, slope.slope, logits, probability_of, grad);
}

/// The token losses' gradient where the scores are no softmax. It is not finite where the logit is not: set to 0 later. `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void add_token_loss_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                         std::int64_t token, const LossSlopes<Real>& slopes, Slots<Real, LayoutT>& logits,
                                         Slots<Real, LayoutT>& scores, Slots<Real, LayoutT>& grad) {
  reload_row(tile, layout, problem.logits, token, problem.logits_hold_quads, logits);
  const SoftmaxRow<Real> softmax = softmax_row(tile, layout, logits, scores);
  const Real slope = slope_of_token_losses(problem, slopes, softmax);
  for_each_logit(tile, layout, problem.logits, token, problem.logits_hold_quads, logits,
                 [&](int slot, Real logit) MOEB_LAMBDA { grad[slot] = fma(slope, softmax.probability(logit), grad[slot]); });
}

/// Whether a token's gradient reaches no logit but those of its chosen experts: then no other is read.
template <class Scoring, class Balancer>
inline constexpr bool touches_only_chosen = !has_losses<Balancer> && (is_over_selected<Scoring> || !RowScoring<Scoring>);

/// The gradient of such a token, whose chosen logits were read; false where its weights were not finite.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE bool chosen_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                               const Scatter<Real>& scatter,
                                               BackwardToken<Real, Problem, TileT, LayoutT>& state,
                                               Slots<Real, LayoutT>& grad) {
  using Scoring = decltype(problem.scoring);
  constexpr int k_count = decltype(problem.top_k)::k;
  auto& chosen = state.chosen;
  auto& grad_chosen = state.grad_chosen;
  const Weighting weighting = problem.top_k.weighting();
  const WeightRow<Real> weights = weigh(problem.scoring, typename RowOf<Scoring, Real>::type{}, weighting, tile, chosen);
  if (!weights.finite) return false;
  weight_gradient<Scoring, k_count>(tile, chosen, weights, renormalises<Scoring, k_count>(weighting), grad_chosen);
  if constexpr (!is_over_selected<Scoring>) {
    MOEB_UNROLL
    for (int r = 0; r < state.per_lane; ++r) {
      grad_chosen[r] = mul(grad_chosen[r], elementwise_derivative(problem.scoring, chosen.logit[r], chosen.score[r]));
      grad_chosen[r] = chosen.expert[r] >= 0 ? grad_chosen[r] : Real(0);
    }
  }
  clear_slots(layout, grad);
  scatter_add<k_count>(tile, layout, chosen, grad_chosen, scatter, grad);
  return true;
}

/// The gradient of a token that has one, whose row was read; false where its weights were not finite.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE bool token_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                              std::int64_t token, const LossSlopes<Real>& slopes,
                                              const Scatter<Real>& scatter,
                                              BackwardToken<Real, Problem, TileT, LayoutT>& state,
                                              Slots<Real, LayoutT>& grad) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  constexpr int k_count = decltype(problem.top_k)::k;
  auto& chosen = state.chosen;
  auto& grad_chosen = state.grad_chosen;
  Slots<Real, LayoutT>& logits = state.logits;
  Slots<Real, LayoutT> scores;
  if constexpr (!LayoutT::in_registers) load_chosen_logits(problem.logits, token, logits, chosen);
  [[maybe_unused]] EntropySlope<Real> entropy;
  constexpr bool has_entropy = Traits::entropy_losses > 0 && has_softmax_scores<Scoring>;
  if constexpr (has_entropy && LayoutT::rereads_logits)
    entropy = entropy_before_scores(problem, tile, layout, token, slopes, logits);
  FiniteSlots<LayoutT> finite;
  constexpr bool asks_scores = LayoutT::rereads_logits && shows_non_finite<Scoring>;  // no bits to keep in registers
  if constexpr (LayoutT::rereads_logits && !asks_scores) finite = finite_slots(layout, logits);
  const typename RowOf<Scoring, Real>::type row =
      score_row(problem, tile, layout, token, problem.logits_hold_quads, logits, scores);
  constexpr bool has_token_losses = Traits::token_losses > Traits::entropy_losses;
  constexpr bool scores_are_softmax = has_softmax_scores<Scoring>;
  Real token_slope = 0;  // found here, it takes the place of what the row knows in a lane's registers
  if constexpr (has_token_losses && scores_are_softmax) token_slope = slope_of_token_losses(problem, slopes, row);
  if constexpr (has_entropy && !LayoutT::rereads_logits)
    entropy = {problem, slopes, entropy_of_scores(tile, layout, row, logits, scores)};
  const Weighting weighting = problem.top_k.weighting();
  WeightRow<Real> weights;
  if constexpr (!LayoutT::in_registers) weights = weigh_in_row(problem.scoring, row, weighting, tile, scores, chosen);
  const bool all_finite = is_known_finite(tile, layout, logits, is_regular(row));
  const bool needs_mask = !(all_finite && is_finitely_scoring<Scoring>);
  if (!LayoutT::rereads_logits && needs_mask) finite = finite_slots(layout, logits);
  if constexpr (asks_scores) {
    for_each_slot(layout,
                  [&](int slot) MOEB_LAMBDA { scores[slot] = choose(is_finite(scores[slot]), scores[slot], Real(0)); });
  } else if (needs_mask) {
    silence_non_finite(layout, finite, logits, scores);
  } else if constexpr (!shows_non_finite<Scoring>) {  // then -inf, which padding is, may have a score
    if (layout.has_padding()) for_each_padding_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = Real(0); });
  }
  if constexpr (LayoutT::in_registers) weights = weigh(problem.scoring, row, weighting, tile, chosen);
  if (!weights.finite) return false;

  weight_gradient<Scoring, k_count>(tile, chosen, weights, renormalises<Scoring, k_count>(weighting), grad_chosen);
  loss_gradient(problem, tile, layout, slopes, scores, grad);
  if constexpr (!is_over_selected<Scoring>) scatter_add<k_count>(tile, layout, chosen, grad_chosen, scatter, grad);
  if constexpr (!RowScoring<Scoring> && LayoutT::rereads_logits) {
    for_each_logit(tile, layout, problem.logits, token, problem.logits_hold_quads, logits,
                   [&](int slot, Real logit) MOEB_LAMBDA {
                     const Real score = elementwise_score(problem.scoring, logit);
                     grad[slot] = mul(grad[slot], elementwise_derivative(problem.scoring, logit, score));
                   });
  } else if constexpr (!is_over_selected<Scoring> || Traits::losses > 0) {
    scores_backward(problem.scoring, tile, layout, logits, scores, grad, row);
  }
  if constexpr (is_over_selected<Scoring>) scatter_add<k_count>(tile, layout, chosen, grad_chosen, scatter, grad);
  if constexpr (has_token_losses && scores_are_softmax)
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = fma(token_slope, scores[slot], grad[slot]); });
  else if constexpr (has_token_losses)
    add_token_loss_gradient(problem, tile, layout, token, slopes, logits, scores, grad);
  if constexpr (has_entropy) {
    reload_row(tile, layout, problem.logits, token, problem.logits_hold_quads, logits);
    const auto probability_of = [&](int slot, Real /*logit*/) MOEB_LAMBDA { return scores[slot]; };
    add_entropy_gradient(problem.logits, problem.logits_hold_quads, tile, layout, token, row, entropy.entropy, entropy.slope,
                         logits, probability_of, grad);
  } else if constexpr (Traits::entropy_losses > 0) {
    add_entropy_gradient_apart(problem, tile, layout, token, slopes, logits, scores, grad);
  }
  if constexpr (LayoutT::rereads_logits) {  // asks the logits again: to know until here would keep them in registers
    for_each_logit(tile, layout, problem.logits, token, problem.logits_hold_quads, logits,
                   [&](int slot, Real logit) MOEB_LAMBDA { grad[slot] = choose(is_finite(logit), grad[slot], Real(0)); });
  } else if (!all_finite) {
    for_each_slot(layout,
                  [&](int slot) MOEB_LAMBDA { grad[slot] = choose(finite.holds(slot, logits), grad[slot], Real(0)); });
  }
  return true;
}

/// Reads what the gradient needs of the row of a token whose ids are known.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void read_for_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                   BackwardToken<Real, Problem, TileT, LayoutT>& state) {
  constexpr bool reads_row = !touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>;
  if constexpr (reads_row) load_row(tile, layout, problem.logits, token, problem.logits_hold_quads, state.logits);
  // A lane that has the row in memory looks them up there; others cannot index their registers and read them again, from cache.
  if constexpr (!reads_row || LayoutT::in_registers) read_chosen_logits(problem.logits, token, state.chosen);
}

/// The gradient of a token that has one, of which all was read; false where its weights were not finite.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE bool gradient_of_read(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                                std::int64_t token, const LossSlopes<Real>& slopes,
                                                const Scatter<Real>& scatter,
                                                BackwardToken<Real, Problem, TileT, LayoutT>& state,
                                                Slots<Real, LayoutT>& grad) {
  if constexpr (touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>)
    return chosen_gradient(problem, tile, layout, scatter, state, grad);
  else
    return token_gradient(problem, tile, layout, token, slopes_of_token(problem, token, slopes), scatter, state, grad);
}

/// The gradient of the first token, if it has one, of which all was read ahead. `plain`: see are_plain_rows.
template <class Problem, class TileT, class LayoutT>
MOEB_INLINE void backward_read_token(const Problem& problem, const TileT& tile, const LayoutT& layout, bool has_gradient,
                                     BackwardToken<float, Problem, TileT, LayoutT>& state, const LossSlopes<float>& slopes,
                                     const Scatter<float>& scatter, std::int32_t plain) {
  Slots<float, LayoutT> grad;
  if (has_gradient) has_gradient = gradient_of_read(problem, tile, layout, 0, slopes, scatter, state, grad);
  if (!has_gradient) clear_slots(layout, grad);
  store_first_row(tile, layout, problem.grad_logits, plain, grad);
}

template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void backward_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                const LossSlopes<Real>& slopes, const Scatter<Real>& scatter = {}) {
  BackwardToken<Real, Problem, TileT, LayoutT> state;
  Slots<Real, LayoutT> grad;
  bool has_gradient = is_active(problem, token);
  if (has_gradient) {
    load_chosen(problem, tile, token, state);
    has_gradient = check_chosen(tile, layout.experts, state);
  }
  if (has_gradient) {  // in one branch: a row that lives through two costs a lane registers
    read_for_gradient(problem, tile, layout, token, state);
    has_gradient = gradient_of_read(problem, tile, layout, token, slopes, scatter, state, grad);
  }
  if (!has_gradient) clear_slots(layout, grad);
  store_row(tile, layout, problem.grad_logits, token, problem.grad_holds_quads, grad);
}

MOEB_NAMESPACE_END
