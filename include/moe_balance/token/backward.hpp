// One token's gradient: from dL/dweights and the balancing losses to dL/dlogits, written once on a tile. Scores are computed again
// from the logits; nothing of the forward pass but the ids and the counts was kept.
#pragma once

#include <moe_balance/token/forward.hpp>
#include <moe_balance/token/loss.hpp>
#include <moe_balance/token/saved.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

template <class Scoring, class TopKT, class Balancer>
struct BackwardProblem {
  Scoring scoring;
  TopKT top_k;
  Balancer balancer;
  ConstAnyMatrix logits;
  MatrixView<const std::int32_t> experts;
  ConstAnyMatrix grad_weights;  ///< null data: zeros
  AnyMatrix grad_logits;
  SavedView saved;
  const std::uint8_t* active;
  const std::int64_t* tokens_on_device;
  const float* grad_loss;
  float loss_scale;
  int ranks;
  Segments segments;
  bool logits_hold_quads;
  bool grad_holds_quads;
  std::int64_t first_token = 0;  ///< which of the call's tokens row 0 of the views is
};

/// How far a problem's views move on, see ForwardStep.
struct BackwardStep {
  std::int64_t tokens;
  std::int64_t active;
  std::int64_t logits_bytes;
  std::int64_t expert_ids;
  std::int64_t grad_weights_bytes;
  std::int64_t grad_logits_bytes;

  template <class Problem>
  MOEB_INLINE BackwardStep(const Problem& problem, std::int64_t token_count)
      : tokens(token_count),
        active(problem.active == nullptr ? 0 : token_count),
        logits_bytes(opaque(token_count * row_bytes(problem.logits))),
        expert_ids(opaque(token_count * problem.experts.stride)),
        grad_weights_bytes(opaque(problem.grad_weights.data == nullptr ? 0 : token_count * row_bytes(problem.grad_weights))),
        grad_logits_bytes(opaque(token_count * row_bytes(problem.grad_logits))) {}

  template <class Problem>
  MOEB_INLINE void advance(Problem& problem) const {
    problem.logits.data = static_cast<const std::byte*>(problem.logits.data) + logits_bytes;
    problem.experts.data += expert_ids;
    problem.grad_weights.data = static_cast<const std::byte*>(problem.grad_weights.data) + grad_weights_bytes;
    problem.grad_logits.data = static_cast<std::byte*>(problem.grad_logits.data) + grad_logits_bytes;
    problem.active += active;
    problem.first_token += tokens;
  }

  /// What a usual call's problem is from `row` on, see engine/usual_call.hpp.
  template <class Problem>
  MOEB_INLINE static void place(const Problem& problem, std::uint32_t row, std::uint32_t logits_bytes, Problem& own) {
    constexpr std::uint32_t k = decltype(problem.top_k)::k;
    own.logits.data = moved(problem.logits.data, row, logits_bytes);
    own.experts.data = moved(problem.experts.data, row, k * sizeof(std::int32_t));
    own.grad_weights.data = moved(problem.grad_weights.data, row, k * sizeof(float));
    own.grad_logits.data = moved(problem.grad_logits.data, row, logits_bytes);
  }
};

/// The part of the gradient that no token changes.
template <class Real>
struct LossSlopes {
  const float* slope = nullptr;  ///< dL/dp_ti by expert, one value for each up to the layout's capacity
  Real token_factor = 0;         ///< multiplies token losses' slopes: loss_scale / tokens
};

/// What multiplies a loss's slope: 1 / tokens it averages over, and over sequences for a sequence loss; 0 without tokens.
[[nodiscard]] MOEB_INLINE float mean_factor(LossScope scope, std::int64_t tokens, std::int64_t segment_tokens,
                                            std::int64_t segments) {
  const std::int64_t averaged = scope == LossScope::sequence ? segment_tokens : tokens;
  if (averaged == 0) return 0.0f;
  const float mean = div(1.0f, static_cast<float>(averaged));
  return scope == LossScope::sequence ? div(mean, static_cast<float>(segments)) : mean;
}

/// The upstream gradient of the loss.
template <class Problem>
[[nodiscard]] MOEB_INLINE float upstream_of(const Problem& problem) {
  return problem.grad_loss == nullptr ? problem.loss_scale : mul(problem.loss_scale, *problem.grad_loss);
}

template <class Problem>
[[nodiscard]] MOEB_INLINE float token_loss_factor(const Problem& problem) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::token_losses == 0)
    return 0.0f;
  else
    return mul(upstream_of(problem), mean_factor(LossScope::micro_batch, *problem.saved.tokens, 0, 1));
}

/// Writes slope[e] for e = first, first + step, ... below `capacity`, 0 for padding. Other lanes may write the others: the tile is
/// needed only to add counts.
template <class Problem, class TileT>
MOEB_INLINE void prepare_slopes(const Problem& problem, const TileT& tile, std::int64_t segment, int first, int step,
                                int capacity, float* slope) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::losses > 0) {
    const int experts = static_cast<int>(problem.logits.columns);
    const float upstream = upstream_of(problem);
    for (int e = first; e < capacity; e += step) slope[e] = 0.0f;
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      using Part = std::remove_cvref_t<decltype(part)>;
      if constexpr (LossBalancer<Part>) {
        constexpr LossScope scope = loss_scope<Part>;
        const LoadView load =
            load_of_scope(tile, problem.saved, experts, decltype(problem.top_k)::k, problem.ranks, scope, segment);
        const std::int64_t segment_tokens = scope == LossScope::sequence ? problem.saved.segment_tokens[segment] : 0;
        const float factor =
            mul(upstream, mean_factor(scope, *problem.saved.tokens, segment_tokens, problem.segments.count()));
        for (int e = first; e < experts; e += step) slope[e] = fma(part.slope(e, load), factor, slope[e]);
      }
    });
  }
}

/// dL/dscores of the losses: the slope itself where scores are probabilities, else through the normalisation p = s / sum.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void loss_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                               const LossSlopes<Real>& slopes, const Slots<Real, LayoutT>& scores,
                               Slots<Real, LayoutT>& grad) {
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if constexpr (Traits::losses == 0) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = Real(0); });
  } else if constexpr (is_normalised<decltype(problem.scoring)>) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = static_cast<Real>(slopes.slope[layout.expert(slot)]); });
  } else {
    const Real inverse = inverse_of_total(tile, layout, scores);
    const Real mean = canonical_sum<Real>(tile, layout, [&](int slot, Real sum) MOEB_LAMBDA {
      return fma(static_cast<Real>(slopes.slope[layout.expert(slot)]), mul(scores[slot], inverse), sum);
    });
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      grad[slot] = mul(sub(static_cast<Real>(slopes.slope[layout.expert(slot)]), mean), inverse);
    });
  }
}

/// What a row of a Scatter holds between uses: the number whose addition changes nothing, not even -0.
template <class Real>
inline constexpr Real nothing_to_add = -Real(0);

/// A tile's way from the lanes that hold chosen experts to the lanes that hold their slots: a row of memory that the tile's lanes share, one value
/// for each expert up to the layout's capacity. Without one (null) every lane looks at every choice.
template <class Real>
struct Scatter {
  Real* row = nullptr;

  /// Adds each chosen expert's value to the slot that holds it; false, and nothing is added, where an expert was chosen twice.
  template <class TileT, class LayoutT, class ChosenT, int PerLane>
  [[nodiscard]] MOEB_INLINE bool add_to(const TileT& tile, const LayoutT& layout, const ChosenT& chosen,
                                        const Real (&value)[PerLane], Slots<Real, LayoutT>& slots) const {
    for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = mark(tile, r); });
    tile.barrier();
    int overwritten = 0;
    for_each_chosen(chosen,
                    [&](int r) MOEB_LAMBDA { overwritten |= static_cast<int>(row[chosen.expert[r]] != mark(tile, r)); });
    const bool distinct = !tile.any(overwritten != 0);
    if (distinct) {
      for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = value[r]; });
      tile.barrier();
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA { slots[slot] = add(slots[slot], row[layout.expert(slot)]); });
      tile.barrier();
    }
    for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = nothing_to_add<Real>; });
    tile.barrier();
    return distinct;
  }

 private:
  template <class ChosenT, class Function>
  MOEB_INLINE static void for_each_chosen(const ChosenT& chosen, Function&& f) {
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      if (chosen.expert[r] >= 0) f(r);
    }
  }
  /// A number that no other choice of the token has.
  template <class TileT>
  [[nodiscard]] MOEB_INLINE static Real mark(const TileT& tile, int r) {
    return static_cast<Real>(tile.lane() + TileT::width * r);
  }
};

/// Adds value k of the chosen experts to the slots that hold them. Empty slots hold expert -1, which no slot has.
template <int K, class TileT, class LayoutT, class ChosenT, class Real, int PerLane>
MOEB_INLINE void scatter_add(const TileT& tile, const LayoutT& layout, const ChosenT& chosen, const Real (&value)[PerLane],
                             const Scatter<Real>& scatter, Slots<Real, LayoutT>& slots) {
  if constexpr (LayoutT::in_registers) {
    if (scatter.row != nullptr && scatter.add_to(tile, layout, chosen, value, slots)) return;
  }
  MOEB_UNROLL
  for (int r = 0; r < PerLane; ++r) {
    const int sources = K - TileT::width * r < TileT::width ? K - TileT::width * r : TileT::width;
    MOEB_NO_UNROLL
    for (int source = 0; source < sources; ++source) {
      const std::int32_t expert = tile.shuffle(chosen.expert[r], source);
      const Real addend = tile.shuffle(value[r], source);
      if constexpr (LayoutT::in_registers) {
        MOEB_UNROLL
        for (int slot = 0; slot < LayoutT::capacity; ++slot) {
          slots[slot] = layout.is_expert(slot, expert) ? add(slots[slot], addend) : slots[slot];
        }
      } else if (expert >= 0) {
        slots[expert] = add(slots[expert], addend);
      }
    }
  }
}

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

template <class Real, class Problem, class TileT, class LayoutT, class Row>
MOEB_INLINE void add_token_loss_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                         std::int64_t token, const LossSlopes<Real>& slopes, Slots<Real, LayoutT>& logits,
                                         const Row& row, Slots<Real, LayoutT>& scores, Slots<Real, LayoutT>& grad) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::token_losses > 0) {
    SoftmaxRow<Real> softmax;
    if constexpr (requires { row.log_sum_exp(); })
      softmax = row;
    else {
      reload_row(tile, layout, problem.logits, token, problem.logits_hold_quads, logits);
      softmax = softmax_row(tile, layout, logits, scores);
    }
    const Real log_sum_exp = softmax.log_sum_exp();
    Real slope = 0;
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      if constexpr (TokenLossBalancer<std::remove_cvref_t<decltype(part)>>) {
        slope = add(slope, token_slope_of(part, log_sum_exp));
      }
    });
    slope = mul(slope, slopes.token_factor);
    if constexpr (requires { row.log_sum_exp(); }) {  // scores are the softmax
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = fma(slope, scores[slot], grad[slot]); });
    } else {  // not finite where the logit is not: set to 0 later
      for_each_logit(tile, layout, problem.logits, token, problem.logits_hold_quads, logits,
                     [&](int slot, Real logit)
                         MOEB_LAMBDA { grad[slot] = fma(slope, softmax.probability(logit), grad[slot]); });
    }
  }
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
  FiniteSlots<LayoutT> finite;
  if constexpr (LayoutT::rereads_logits) finite = finite_slots(layout, logits);
  const typename RowOf<Scoring, Real>::type row =
      score_row(problem, tile, layout, token, problem.logits_hold_quads, logits, scores);
  const Weighting weighting = problem.top_k.weighting();
  WeightRow<Real> weights;
  if constexpr (!LayoutT::in_registers) weights = weigh_in_row(problem.scoring, row, weighting, tile, scores, chosen);
  const bool all_finite = is_known_finite(tile, layout, logits, is_regular(row));
  const bool needs_mask = !(all_finite && is_finitely_scoring<Scoring>);
  if (!LayoutT::rereads_logits && needs_mask) finite = finite_slots(layout, logits);
  if (needs_mask) silence_non_finite(layout, finite, logits, scores);
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
  add_token_loss_gradient(problem, tile, layout, token, slopes, logits, row, scores, grad);
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
MOEB_INLINE void read_for_gradient(const Problem& problem, const LayoutT& layout, std::int64_t token,
                                   BackwardToken<Real, Problem, TileT, LayoutT>& state) {
  constexpr bool reads_row = !touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>;
  if constexpr (reads_row) load_row(layout, problem.logits, token, problem.logits_hold_quads, state.logits);
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
    return token_gradient(problem, tile, layout, token, slopes, scatter, state, grad);
}

/// Stores a token's gradient, 0 where it has none.
template <class Real, class Problem, class LayoutT>
MOEB_INLINE void store_gradient(const Problem& problem, const LayoutT& layout, std::int64_t token, bool has_gradient,
                                Slots<Real, LayoutT>& grad) {
  if (!has_gradient) clear_slots(layout, grad);
  store_row(layout, problem.grad_logits, token, problem.grad_holds_quads, grad);
}

/// The gradient of a token, if it has one, of which all was read ahead.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void backward_read_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                     bool has_gradient, BackwardToken<Real, Problem, TileT, LayoutT>& state,
                                     const LossSlopes<Real>& slopes, const Scatter<Real>& scatter) {
  Slots<Real, LayoutT> grad;
  if (has_gradient) has_gradient = gradient_of_read(problem, tile, layout, token, slopes, scatter, state, grad);
  store_gradient<Real>(problem, layout, token, has_gradient, grad);
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
    read_for_gradient(problem, layout, token, state);
    has_gradient = gradient_of_read(problem, tile, layout, token, slopes, scatter, state, grad);
  }
  store_gradient<Real>(problem, layout, token, has_gradient, grad);
}

MOEB_NAMESPACE_END
