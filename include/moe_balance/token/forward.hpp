// One token from logits to expert ids, weights and its share of every sum: the whole forward pass, written once on a tile.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/token/arrivals.hpp>
#include <moe_balance/token/choice.hpp>
#include <moe_balance/token/entropy.hpp>
#include <moe_balance/token/forward_problem.hpp>
#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstdint>

#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class Problem, class TileT, class ChosenT, class Real>
MOEB_INLINE void store_chosen(const Problem& problem, const TileT& tile, std::int64_t token, const ChosenT& chosen,
                              const WeightRow<Real>& weights) {
  constexpr int k_count = decltype(problem.top_k)::k;
  const bool is_real = !TileT::slots_in_registers && problem.weights.type == DataTypeOf<Real>::value;
  Real* const real_weights = static_cast<Real*>(problem.weights.data) + token * problem.weights.stride;
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    const int k = ChosenT::rank(tile, r);
    if (k >= k_count) continue;
    problem.experts.data[token * problem.experts.stride + k] = chosen.expert[r];
    const Real weight = weights.weight(chosen.score[r]);
    if (is_real)
      real_weights[k] = weight;
    else
      store_element(problem.weights, token, k, weight);
  }
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

/// A token's probabilities, added to the sink where losses read them. `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT, class Row, class Sink>
MOEB_INLINE void add_probabilities(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                   const FiniteSlots<LayoutT>& finite, Slots<Real, LayoutT>& logits,
                                   Slots<Real, LayoutT>& scores, const Row& row, Sink& sink) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if constexpr (Traits::losses > 0 && shows_non_finite<Scoring>) {
    if (!has_numbers<LayoutT>(row)) {
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA {  // false for NaN, too
        scores[slot] = choose(scores[slot] < infinity<Real>, scores[slot], Real(0));
      });
    }
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { add_probability<Scoring>(slot, scores[slot], sink); });
  } else if constexpr (Traits::losses > 0 && is_normalised<Scoring>) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      add_probability<Scoring>(slot, silenced(layout, finite, logits, scores, slot), sink);
    });
  } else if constexpr (Traits::losses > 0) {
    silence_non_finite(layout, finite, logits, scores);
    const Real inverse = inverse_of_total(tile, layout, scores);
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { add_probability<Scoring>(slot, mul(scores[slot], inverse), sink); });
  }
}

/// A token's own losses, from its log-sum-exp and its entropy, added to the sink.
template <class Problem, class TileT, class Real, class Sink>
MOEB_INLINE void add_losses_of_token(const Problem& problem, const TileT& tile, Real log_sum_exp, Real entropy, Sink& sink) {
  int index = 0;
  const auto add_loss = [&](Real loss) MOEB_LAMBDA {
    const auto most = static_cast<Real>(problem.largest_token_loss);
    if (tile.lane() == 0) sink.token_loss(index, to_fixed<token_loss_fraction_bits>(loss, most));
    ++index;
  };
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (TokenLossBalancer<Part>) add_loss(token_loss_of(part, log_sum_exp));
    if constexpr (EntropyLossBalancer<Part>) add_loss(entropy_loss_of(part, entropy));
  });
}

/// The same from its row. `logits` and `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT, class Row, class Sink>
MOEB_INLINE void add_token_losses(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                  Slots<Real, LayoutT>& logits, Slots<Real, LayoutT>& scores, const Row& row, Sink& sink) {
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if constexpr (Traits::token_losses > 0) {
    constexpr bool has_softmax = has_softmax_scores<decltype(problem.scoring)>;
    SoftmaxRow<Real> softmax;
    if constexpr (has_softmax) {
      softmax = row;
    } else {
      reload_row(tile, layout, problem.logits, token, problem.rows_hold_quads, logits);
      softmax = softmax_row(tile, layout, logits, scores);
    }
    Real entropy = 0;
    if constexpr (Traits::entropy_losses > 0 && has_softmax && !LayoutT::rereads_logits)
      entropy = entropy_of_scores(tile, layout, softmax, logits, scores);
    else if constexpr (Traits::entropy_losses > 0)
      entropy = entropy_of_row(problem.logits, problem.rows_hold_quads, tile, layout, token, softmax, logits, scores);
    add_losses_of_token(problem, tile, softmax.log_sum_exp(), entropy, sink);
  }
}

/// Reports to the sink what a plain top-k of the scores would choose, for losses that count that.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void count_plain_top_k(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                   const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, bool regular,
                                   Sink& sink) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::plain_losses > 0) {
    Slots<Key<Real>, LayoutT> keys;
    rank_keys(problem, tile, layout, token, logits, scores, regular, nullptr, keys);
    constexpr bool has_room = has_room_for_words<decltype(problem.scoring), decltype(problem.balancer), TileT>;
    select_k<counted_plain_choices<decltype(problem.balancer), decltype(problem.top_k)::k>, has_room>(
        tile, layout, keys, [&](int /*k*/, std::int32_t expert, Key<Real> /*key*/) MOEB_LAMBDA { sink.loss_count(expert); });
  }
}

/// The first step of an active token's forward pass: its scores. `state` has its logits.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void score_loaded(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                              ForwardToken<Real, Problem, TileT, LayoutT>& state) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  state.token = token;
  if constexpr (Traits::losses > 0 && !shows_non_finite<Scoring>) state.finite = finite_slots(layout, state.logits);
  if constexpr (!is_over_selected<Scoring> || Traits::losses + Traits::token_losses > 0) {
    state.row = score_row(problem, tile, layout, token, problem.rows_hold_quads, state.logits, state.scores);
  }
  if constexpr (is_replaying<decltype(problem.top_k)>)
    state.replayed = problem.replay.tokens == nullptr || problem.replay.tokens[token] != 0;
}

/// The same of a token whose logits are to be read.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void score_active(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                              ForwardToken<Real, Problem, TileT, LayoutT>& state) {
  load_row(tile, layout, problem.logits, token, problem.rows_hold_quads, state.logits);
  score_loaded(problem, tile, layout, token, state);
}

/// The second: which experts. Sink as below.
/// `bias`, here and below: one value per expert up to the layout's capacity, 0 where there is none; or null.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT, class Sink>
MOEB_INLINE void choose_active(const Problem& problem, const TileT& tile, const LayoutT& layout, const float* bias,
                               ForwardToken<Real, Problem, TileT, LayoutT>& state, ChosenT& chosen, Sink& sink) {
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) chosen.expert[r] = -1;
  if constexpr (is_replaying<decltype(problem.top_k)>) {
    if (state.replayed) take_replayed(problem, tile, layout.experts, state.token, chosen, sink);
  }
  if (!state.replayed) choose(problem, tile, layout, state, bias, chosen);
}

/// The weights of the chosen. Scores are read off keys, or looked up where a lane has them in memory, or computed from logits.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh_chosen(const Problem& problem, const TileT& tile,
                                                       const ForwardToken<Real, Problem, TileT, LayoutT>& state,
                                                       const float* bias, ChosenT& chosen) {
  using Scoring = decltype(problem.scoring);
  const Weighting weighting = problem.top_k.weighting();
  if constexpr (keys_are_scores<Scoring, LayoutT>) {
    const bool reads_keys = is_regular(state.row) && !state.replayed && bias == nullptr;
    const bool knows_scores = reads_keys && !tile.any(has_unclear_score(chosen));
    if (!knows_scores) find_scores(problem, state.token, state.row, chosen);
    MOEB_UNROLL
    for (int r = 0; r < chosen.per_lane; ++r) chosen.logit[r] = Real(0);  // scores say what there is to say
    return weigh_scores<Scoring>(weighting, tile, chosen, [&](int r) MOEB_LAMBDA { return chosen.score[r]; });
  } else {
    load_chosen_logits(problem.logits, state.token, state.logits, chosen);
    return weigh_in_row(problem.scoring, state.row, weighting, tile, state.scores, chosen);
  }
}

/// Empties the slots of experts whose logits are -infinity, if others are left and their weights are finite; else all stay as they were.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh_unmasked(const Problem& problem, const TileT& tile,
                                                         const ForwardToken<Real, Problem, TileT, LayoutT>& state,
                                                         const float* bias, ChosenT& chosen) {
  const WeightRow<Real> weights = weigh_chosen(problem, tile, state, bias, chosen);
  if (weights.finite) return weights;
  const ChosenT all = chosen;
  read_chosen_logits(problem.logits, state.token, chosen);
  bool any = false;
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    if (chosen.logit[r] == -infinity<Real>) chosen.expert[r] = -1;
    any = any || chosen.expert[r] >= 0;
  }
  if (tile.any(any)) {
    const WeightRow<Real> unmasked = weigh_chosen(problem, tile, state, bias, chosen);
    if (unmasked.finite) return unmasked;
  }
  chosen = all;
  return weights;
}

/// Empties the slots of experts that the selection does not keep, where the token's weights are finite.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
MOEB_INLINE void empty_unkept(const Problem& problem, const TileT& tile,
                              const ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias, ChosenT& chosen) {
  using Scoring = decltype(problem.scoring);
  constexpr int k_count = decltype(problem.top_k)::k;
  const WeightRow<Real> weights = weigh_unmasked(problem, tile, state, bias, chosen);
  if (!weights.finite) return;
  const auto score_of_slot = [&](int r) MOEB_LAMBDA {
    return is_over_selected<Scoring> ? mul(chosen.score[r], weights.factor) : chosen.score[r];
  };
  RankedExpert<Real> own[ChosenT::per_lane];
  Real before = 0;
  Real best = 0;
  bool has_best = false;
  MOEB_UNROLL
  for (int k = 0; k < k_count; ++k) {
    const int r = k / TileT::width;
    const Real score = tile.shuffle(score_of_slot(r), k % TileT::width);
    const bool is_used = tile.shuffle(chosen.expert[r], k % TileT::width) >= 0;
    best = is_used && !has_best ? score : best;
    has_best = has_best || is_used;
    if (tile.lane() == k % TileT::width) own[r].before = before;
    before = add(before, score);
  }
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    if (chosen.expert[r] < 0) continue;
    const Real added = bias == nullptr ? Real(0) : static_cast<Real>(bias[chosen.expert[r]]);
    own[r].score = score_of_slot(r);
    using Ranking = RankingKeys<Scoring, decltype(problem.balancer), Real>;
    own[r].ranking = Ranking::with_bias(is_over_selected<Scoring> ? chosen.logit[r] : chosen.score[r], added);
    own[r].best = best;
    own[r].rank = ChosenT::rank(tile, r);
    if (!is_kept(problem.top_k, own[r])) chosen.expert[r] = -1;
  }
}

/// The third: weights, and what the token adds to sums, but for losses; count_plain_top_k is left to callers whose lanes have rows in memory. Returns
/// whether losses are to be added.
/// Sink: where the token's contributions go. count(expert), arrival(expert) or on one lane arrivals_of(expert, number), invalid_expert() are called by the lane that holds the choice, probability(
/// slot, fixed) by the lane that holds the slot, loss_count(expert) by one lane, token_loss(index, fixed) by lane 0, token(), token_with_losses() and
/// non_finite_token() by all. Where calls mark balanced tokens load_count(expert) is called for those as count is, and of others count, invalid_expert and
/// non_finite_token only.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT, class Sink>
[[nodiscard]] MOEB_INLINE bool weigh_active(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                            const float* bias, ForwardToken<Real, Problem, TileT, LayoutT>& state,
                                            ChosenT& chosen, Sink& sink) {
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  const std::int64_t token = state.token;
  if constexpr (keeps_fewer<decltype(problem.top_k)>) {
    if (!state.replayed) empty_unkept(problem, tile, state, bias, chosen);
  }
  const bool balanced = is_balanced(problem, token);
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) {
    if (chosen.expert[r] < 0) continue;
    sink.count(chosen.expert[r]);
    if constexpr (Traits::marks_tokens) {
      if (balanced) sink.load_count(chosen.expert[r]);
    }
  }
  if (balanced) {
    if constexpr (Traits::arrival_losses > 0) count_arrivals_of(problem, tile, chosen, sink);
    if constexpr (LayoutT::in_registers)
      count_plain_top_k(problem, tile, layout, token, state.logits, state.scores, is_regular(state.row), sink);
  }
  const WeightRow<Real> weights = weigh_chosen(problem, tile, state, bias, chosen);
  store_chosen(problem, tile, token, chosen, weights);
  if (balanced) sink.token();
  if (!weights.finite) sink.non_finite_token();
  const bool has_losses = weights.finite && balanced;
  if (has_losses) sink.token_with_losses();
  return has_losses;
}

/// The last: losses.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void add_losses(const Problem& problem, const TileT& tile, const LayoutT& layout,
                            ForwardToken<Real, Problem, TileT, LayoutT>& state, Sink& sink) {
  add_probabilities(problem, tile, layout, state.finite, state.logits, state.scores, state.row, sink);
  add_token_losses(problem, tile, layout, state.token, state.logits, state.scores, state.row, sink);
}

/// The outputs of a token that is not active: no experts, weights 0.
template <class Real, class Problem, class TileT>
MOEB_INLINE void store_nothing(const Problem& problem, const TileT& tile, std::int64_t token) {
  Chosen<Real, TileT, decltype(problem.top_k)::k> chosen;
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) chosen.expert[r] = -1;
  store_chosen(problem, tile, token, chosen, WeightRow<Real>{.finite = false});
}

/// The forward pass of an active token, whose logits `state` has.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void forward_loaded(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                                const float* bias, ForwardToken<Real, Problem, TileT, LayoutT>& state, Sink& sink) {
  Chosen<Real, TileT, decltype(problem.top_k)::k> chosen;
  score_loaded(problem, tile, layout, token, state);
  choose_active(problem, tile, layout, bias, state, chosen, sink);
  if constexpr (!LayoutT::in_registers) {
    if (is_balanced(problem, token))
      count_plain_top_k(problem, tile, layout, token, state.logits, state.scores, is_regular(state.row), sink);
  }
  if (weigh_active(problem, tile, layout, bias, state, chosen, sink)) add_losses(problem, tile, layout, state, sink);
}

/// The same of one whose logits were read ahead: it is row 0 of the problem's views.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void forward_read_token(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                    const Slots<Real, LayoutT>& logits, const float* bias, Sink& sink) {
  ForwardToken<Real, Problem, TileT, LayoutT> state;
  state.logits = logits;
  forward_loaded(problem, tile, layout, 0, bias, state, sink);
}

/// A token's whole forward pass.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void forward_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                               const float* bias, Sink& sink) {
  if (!is_active(problem, token)) return store_nothing<Real>(problem, tile, token);
  ForwardToken<Real, Problem, TileT, LayoutT> state;
  load_row(tile, layout, problem.logits, token, problem.rows_hold_quads, state.logits);
  forward_loaded(problem, tile, layout, token, bias, state, sink);
}

MOEB_NAMESPACE_END
