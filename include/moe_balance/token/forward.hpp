// One token from logits to expert ids, weights and its share of every sum: the whole forward pass, written once on a tile.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/select_k.hpp>
#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/scores.hpp>
#include <moe_balance/token/segments.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// All that the forward pass needs to know; trivially copyable, so that it is a kernel's parameter as it is.
template <class Scoring, class TopKT, class Balancer>
struct ForwardProblem {
  Scoring scoring;
  TopKT top_k;
  Balancer balancer;
  ConstAnyMatrix logits;
  MatrixView<std::int32_t> experts;
  AnyMatrix weights;
  const float* bias;
  const std::uint8_t* active;
  const std::int64_t* tokens_on_device;
  ReplayRef replay;
  Segments segments;
  bool rows_hold_quads;
};

[[nodiscard]] MOEB_INLINE bool is_active(const std::uint8_t* active, const std::int64_t* tokens_on_device,
                                         std::int64_t token) {
  return (active == nullptr || active[token] != 0) && (tokens_on_device == nullptr || token < *tokens_on_device);
}

/// Ranking keys: score + bias, or logit + bias where the scoring says so. The sum is written as value * 1 + bias, so that a user's
/// score that ends in a product is rounded before the bias is added. `bias` has a value for every slot's expert, padding included, or is
/// null for none.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void rank_keys(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                           const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, const float* bias,
                           Slots<Key<Real>, LayoutT>& keys) {
  using Scoring = decltype(problem.scoring);
  const auto rank = [&](const auto& ranking_of, const auto& key_of) MOEB_LAMBDA {
    for_each_logit(tile, layout, problem.logits, token, problem.rows_hold_quads, logits,
                   [&](int slot, Real logit) MOEB_LAMBDA {
                     const Real ranking = ranking_of(is_over_selected<Scoring> ? logit : scores[slot], slot);
                     keys[slot] = either_is_nan(ranking, logit) ? nan_key<Key<Real>> : key_of(ranking);
                   });
  };
  constexpr bool ranks_non_negative = is_non_negative<Scoring> && !is_over_selected<Scoring>;
  if (LayoutT::rereads_logits || bias != nullptr) {  // one way where registers are scarce
    rank(
        [&](Real value, int slot) MOEB_LAMBDA {
          return fma(value, Real(1), bias == nullptr ? Real(0) : static_cast<Real>(bias[layout.expert(slot)]));
        },
        [](Real ranking) MOEB_LAMBDA {  // +0 and any zero are +0
          return ranks_non_negative ? key_without_minus_zero(ranking) : key_of_number(ranking);
        });
  } else {
    rank([](Real value, int) MOEB_LAMBDA { return value; },
         [](Real ranking)
             MOEB_LAMBDA { return ranks_non_negative ? key_of_non_negative(ranking) : key_of_number(ranking); });
  }
  if (layout.has_padding()) {
    for_each_padding_slot(layout, [&](int slot) MOEB_LAMBDA { keys[slot] = excluded_key<Key<Real>>; });
  }
}

/// The caller's ids of a replayed token; invalid ones become -1 and are reported to the sink.
template <class Problem, class TileT, class ChosenT, class Sink>
MOEB_INLINE void take_replayed(const Problem& problem, const TileT& tile, int experts, std::int64_t token, ChosenT& chosen,
                               Sink& sink) {
  constexpr int k_count = decltype(problem.top_k)::k;
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    const int k = ChosenT::rank(tile, r);
    chosen.expert[r] = -1;
    if (k >= k_count) continue;
    const std::int32_t id = problem.replay.experts.data[token * problem.replay.experts.stride + k];
    if (id >= -1 && id < experts)
      chosen.expert[r] = id;
    else
      sink.invalid_expert();
  }
}

/// A token on its way through the forward pass. A lane that has the row in memory selects early, see begin_token.
template <class Real, class Problem, class TileT, class LayoutT>
struct ForwardToken {
  using Scoring = decltype(Problem::scoring);
  struct InMemory {
    Slots<Key<Real>, LayoutT> keys;
    MemorySelection<LayoutT, Key<Real>, decltype(Problem::top_k)::k> selection;
  };
  struct Nothing {};

  std::int64_t token;
  bool active;
  bool replayed = false;
  Slots<Real, LayoutT> logits;
  Slots<Real, LayoutT> scores;
  FiniteSlots<LayoutT> finite;
  typename RowOf<Scoring, Real>::type row{};
  std::conditional_t<LayoutT::in_registers, Nothing, InMemory> early;
};

/// The ranking keys of the experts that may be chosen.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void candidate_keys(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, const float* bias,
                                Slots<Key<Real>, LayoutT>& keys) {
  rank_keys(problem, tile, layout, token, logits, scores, bias, keys);
  problem.top_k.template narrow<Real>(tile, layout, keys);
}

template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
MOEB_INLINE void choose(const Problem& problem, const TileT& tile, const LayoutT& layout,
                        ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias, ChosenT& chosen) {
  constexpr int k_count = decltype(problem.top_k)::k;
  if constexpr (!LayoutT::in_registers) {
    state.early.selection.finish(state.early.keys);
    for (int k = 0; k < k_count; ++k) chosen.expert[k] = state.early.selection.slot(k);
  } else {
    Slots<Key<Real>, LayoutT> keys;
    candidate_keys<Real>(problem, tile, layout, state.token, state.logits, state.scores, bias, keys);
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) chosen.expert[r] = -1;
    select_k<k_count>(tile, layout, keys, [&](int k, std::int32_t expert) MOEB_LAMBDA {
      MOEB_UNROLL
      for (int r = 0; r < ChosenT::per_lane; ++r) chosen.expert[r] = ChosenT::rank(tile, r) == k ? expert : chosen.expert[r];
    });
  }
}

/// The logits of the chosen experts, read from the row.
template <class ChosenT>
MOEB_INLINE void read_chosen_logits(const ConstAnyMatrix& matrix, std::int64_t token, ChosenT& chosen) {
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    using Real = std::remove_reference_t<decltype(chosen.logit[r])>;
    chosen.logit[r] = load_element<Real>(matrix, token, chosen.expert[r] < 0 ? 0 : chosen.expert[r]);
  }
}

/// The same where the lane has the row. Lanes that keep slots in registers cannot index them and read the row again, from cache.
template <class Real, class LayoutT, class ChosenT>
MOEB_INLINE void load_chosen_logits(const ConstAnyMatrix& matrix, std::int64_t token, const Slots<Real, LayoutT>& logits,
                                    ChosenT& chosen) {
  if constexpr (LayoutT::in_registers) {
    read_chosen_logits(matrix, token, chosen);
  } else {
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) chosen.logit[r] = logits[chosen.expert[r] < 0 ? 0 : chosen.expert[r]];
  }
}

/// What turns the chosen scores into weights. A lane that has all scores in memory looks them up.
template <class Real, class Problem, class TileT, class LayoutT, class Row, class ChosenT>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh_chosen(const Problem& problem, const TileT& tile,
                                                       const Slots<Real, LayoutT>& scores, const Row& row, ChosenT& chosen) {
  using Scoring = decltype(problem.scoring);
  if constexpr (LayoutT::in_registers || is_over_selected<Scoring>)
    return weigh(problem.scoring, row, problem.top_k.weighting(), tile, chosen);
  else
    return weigh_scores<Scoring>(problem.top_k.weighting(), tile, chosen,
                                 [&](int r) MOEB_LAMBDA { return scores[chosen.expert[r] < 0 ? 0 : chosen.expert[r]]; });
}

template <class Problem, class TileT, class ChosenT, class Real>
MOEB_INLINE void store_chosen(const Problem& problem, const TileT& tile, std::int64_t token, const ChosenT& chosen,
                              const WeightRow<Real>& weights) {
  constexpr int k_count = decltype(problem.top_k)::k;
  std::int32_t* const experts = problem.experts.data + token * problem.experts.stride;
  with_element_type<Real>(problem.weights.type, [&](auto* tag) MOEB_LAMBDA {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const to = static_cast<T*>(problem.weights.data) + token * problem.weights.stride;
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      const int k = ChosenT::rank(tile, r);
      if (k >= k_count) continue;
      experts[k] = chosen.expert[r];
      to[k] = from_real<T>(weights.weight(chosen.score[r]));
    }
  });
}

/// Scores of all slots. Where logits are read again, elementwise scores are computed quad by quad: all at once they would need more
/// registers than there are.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE auto score_row(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                         std::int64_t token, bool quads, const Slots<Real, LayoutT>& logits,
                                         Slots<Real, LayoutT>& scores) {
  using Scoring = decltype(problem.scoring);
  if constexpr (!RowScoring<Scoring> && LayoutT::rereads_logits) {
    for_each_logit(tile, layout, problem.logits, token, quads, logits,
                   [&](int slot, Real logit) MOEB_LAMBDA { scores[slot] = elementwise_score(problem.scoring, logit); });
    return typename RowOf<Scoring, Real>::type{};
  } else {
    return prepare_scores(problem.scoring, tile, layout, logits, scores);
  }
}

/// A slot's probability, added to the sink; by its own way to add up what is not negative, if it has one.
template <class Scoring, class Real, class Sink>
MOEB_INLINE void add_probability(int slot, Real probability, Sink& sink) {
  if constexpr (is_non_negative<Scoring> && requires { sink.unit_probability(slot, probability); })
    sink.unit_probability(slot, probability);
  else
    sink.probability(slot, to_fixed<probability_fraction_bits>(probability));
}

/// Whether scores alone show where logits are not finite: 0, infinity or NaN.
template <class Scoring>
inline constexpr bool shows_non_finite = is_normalised<Scoring>&& is_non_negative<Scoring>;

/// A token's probabilities and token losses, added to the sink. `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT, class Row, class Sink>
MOEB_INLINE void add_losses(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                            const FiniteSlots<LayoutT>& finite, Slots<Real, LayoutT>& logits, Slots<Real, LayoutT>& scores,
                            const Row& row, Sink& sink) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if constexpr (Traits::losses > 0 && is_normalised<Scoring>) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      const Real probability = shows_non_finite<Scoring>
                                   ? choose(scores[slot] < infinity<Real>, scores[slot], Real(0))  // false for NaN, too
                                   : silenced(layout, finite, logits, scores, slot);
      add_probability<Scoring>(slot, probability, sink);
    });
  } else if constexpr (Traits::losses > 0) {
    silence_non_finite(layout, finite, logits, scores);
    const Real inverse = inverse_of_total(tile, layout, scores);
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { add_probability<Scoring>(slot, mul(scores[slot], inverse), sink); });
  }
  if constexpr (Traits::token_losses > 0) {
    Real log_sum_exp;
    if constexpr (requires { row.log_sum_exp(); })
      log_sum_exp = row.log_sum_exp();
    else {
      reload_row(tile, layout, problem.logits, token, problem.rows_hold_quads, logits);
      log_sum_exp = softmax_row(tile, layout, logits, scores).log_sum_exp();
    }
    int index = 0;
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      if constexpr (TokenLossBalancer<std::remove_cvref_t<decltype(part)>>) {
        if (tile.lane() == 0) sink.token_loss(index, to_fixed<token_loss_fraction_bits>(token_loss_of(part, log_sum_exp)));
        ++index;
      }
    });
  }
}

/// Reports to the sink what a plain top-k of the scores would choose, for losses that count that.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void count_plain_top_k(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                   const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, Sink& sink) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::plain_losses > 0) {
    Slots<Key<Real>, LayoutT> keys;
    rank_keys(problem, tile, layout, token, logits, scores, nullptr, keys);
    select_k<decltype(problem.top_k)::k>(tile, layout, keys, [&](int /*k*/, std::int32_t expert) MOEB_LAMBDA {
      if (tile.lane() == 0) sink.loss_count(expert);
    });
  }
}

/// The first half of a token's forward pass: its scores, and what of its selection does not wait for memory. A CPU thread begins a token before it
/// finishes the one before, so that one's chains of dependent instructions run beside the other's.
/// `bias`: one value per expert up to the layout's capacity, 0 where there is none.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void begin_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                             const float* bias, ForwardToken<Real, Problem, TileT, LayoutT>& state) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  state.token = token;
  state.active = is_active(problem.active, problem.tokens_on_device, token);
  if (!state.active) return;
  load_row(layout, problem.logits, token, problem.rows_hold_quads, state.logits);
  if constexpr (Traits::losses > 0 && !shows_non_finite<Scoring>) state.finite = finite_slots(layout, state.logits);
  if constexpr (!is_over_selected<Scoring> || Traits::losses + Traits::token_losses > 0) {
    state.row = score_row(problem, tile, layout, token, problem.rows_hold_quads, state.logits, state.scores);
  }
  if constexpr (is_replaying<decltype(problem.top_k)>)
    state.replayed = problem.replay.tokens == nullptr || problem.replay.tokens[token] != 0;
  if constexpr (!LayoutT::in_registers) {
    if (state.replayed) return;
    candidate_keys<Real>(problem, tile, layout, token, state.logits, state.scores, bias, state.early.keys);
    state.early.selection.begin(layout, state.early.keys);
  }
}

/// The second half: selection, weights, and what the token adds to sums.
/// Sink: where the token's contributions go. count(expert), invalid_expert() are called by the lane that holds the choice, probability(
/// slot, fixed) by the lane that holds the slot, token(), non_finite_token(), loss_count(expert) and token_loss(index, fixed) by lane 0.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void finish_token(const Problem& problem, const TileT& tile, const LayoutT& layout, const float* bias,
                              ForwardToken<Real, Problem, TileT, LayoutT>& state, Sink& sink) {
  constexpr int k_count = decltype(problem.top_k)::k;
  const std::int64_t token = state.token;
  Chosen<Real, TileT, k_count> chosen;
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) chosen.expert[r] = -1;
  if (!state.active) {
    store_chosen(problem, tile, token, chosen, WeightRow<Real>{.finite = false});
    return;
  }
  if constexpr (is_replaying<decltype(problem.top_k)>) {
    if (state.replayed) take_replayed(problem, tile, layout.experts, token, chosen, sink);
  }
  if (!state.replayed) choose(problem, tile, layout, state, bias, chosen);

  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) {
    if (chosen.expert[r] >= 0) sink.count(chosen.expert[r]);
  }
  count_plain_top_k(problem, tile, layout, token, state.logits, state.scores, sink);
  load_chosen_logits(problem.logits, token, state.logits, chosen);
  const WeightRow<Real> weights = weigh_chosen(problem, tile, state.scores, state.row, chosen);
  store_chosen(problem, tile, token, chosen, weights);
  if (tile.lane() == 0) {
    sink.token();
    if (!weights.finite) sink.non_finite_token();
  }
  if (weights.finite) add_losses(problem, tile, layout, token, state.finite, state.logits, state.scores, state.row, sink);
}

/// Both halves.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void forward_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                               const float* bias, Sink& sink) {
  ForwardToken<Real, Problem, TileT, LayoutT> state;
  begin_token(problem, tile, layout, token, bias, state);
  finish_token(problem, tile, layout, bias, state, sink);
}

MOEB_NAMESPACE_END
