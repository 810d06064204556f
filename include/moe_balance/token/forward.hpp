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
  std::int64_t first_token = 0;  ///< which of the call's tokens row 0 of the views is
};

/// How far a problem's views move on with so many tokens. Rows that are a fixed step apart are reached by additions, where a row's address anew
/// is a multiplication of 64 bits for each view.
struct ForwardStep {
  std::int64_t tokens;
  std::int64_t active;
  std::int64_t logits_bytes;
  std::int64_t expert_ids;
  std::int64_t weights_bytes;

  template <class Problem>
  MOEB_INLINE ForwardStep(const Problem& problem, std::int64_t token_count)
      : tokens(token_count),
        active(problem.active == nullptr ? 0 : token_count),
        logits_bytes(opaque(token_count * row_bytes(problem.logits))),
        expert_ids(opaque(token_count * problem.experts.stride)),
        weights_bytes(opaque(token_count * row_bytes(problem.weights))) {}

  /// The same problem with so many rows fewer in front.
  template <class Problem>
  MOEB_INLINE void advance(Problem& problem) const {
    problem.logits.data = static_cast<const std::byte*>(problem.logits.data) + logits_bytes;
    problem.experts.data += expert_ids;
    problem.weights.data = static_cast<std::byte*>(problem.weights.data) + weights_bytes;
    problem.active += active;
    if constexpr (is_replaying<decltype(problem.top_k)>) {
      problem.replay.experts.data += tokens * problem.replay.experts.stride;
      problem.replay.tokens += problem.replay.tokens == nullptr ? 0 : tokens;
    }
    problem.first_token += tokens;
  }
};

template <class Problem>
[[nodiscard]] MOEB_INLINE bool is_active(const Problem& problem, std::int64_t row) {
  return (problem.active == nullptr || problem.active[row] != 0) &&
         (problem.tokens_on_device == nullptr || problem.first_token + row < *problem.tokens_on_device);
}

/// Ranking keys: score + bias, or logit + bias where the scoring says so. The sum is written as value * 1 + bias, so that a user's
/// score that ends in a product is rounded before the bias is added. `bias` has a value for every slot's expert, padding included, or is
/// null for none. `regular`: no logit, and no score, is NaN.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void rank_keys(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                           const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, bool regular,
                           const float* bias, Slots<Key<Real>, LayoutT>& keys) {
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
    const auto key_of = [](Real ranking) MOEB_LAMBDA {
      return ranks_non_negative ? key_of_non_negative(ranking) : key_of_number(ranking);
    };
    if (regular) {
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
        keys[slot] = key_of(is_over_selected<Scoring> ? logits[slot] : scores[slot]);
      });
    } else {
      rank([](Real value, int) MOEB_LAMBDA { return value; }, key_of);
    }
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

/// Whether scores alone show where logits are not finite: 0, infinity or NaN.
template <class Scoring>
inline constexpr bool shows_non_finite = is_normalised<Scoring>&& is_non_negative<Scoring>;

/// Whether a lane of registers can read a score off its key, where no bias was added, and see by it that the logit is finite.
template <class Scoring, class LayoutT>
inline constexpr bool keys_are_scores =
    LayoutT::in_registers && !LayoutT::rereads_logits && shows_non_finite<Scoring> && !is_over_selected<Scoring>;

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
MOEB_INLINE void candidate_keys(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                const ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias,
                                Slots<Key<Real>, LayoutT>& keys) {
  rank_keys(problem, tile, layout, state.token, state.logits, state.scores, is_regular(state.row), bias, keys);
  problem.top_k.template narrow<Real>(tile, layout, keys);
}

/// Fills `chosen.expert`, and `chosen.score` where keys are scores: key_of_non_negative changes no bit, and what it did not make, NaN's key, is
/// below 0.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
MOEB_INLINE void choose(const Problem& problem, const TileT& tile, const LayoutT& layout,
                        ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias, ChosenT& chosen) {
  constexpr int k_count = decltype(problem.top_k)::k;
  if constexpr (LayoutT::in_registers) {
    Slots<Key<Real>, LayoutT> keys;
    candidate_keys(problem, tile, layout, state, bias, keys);
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      chosen.expert[r] = -1;
      chosen.score[r] = Real(0);
    }
    select_k<k_count>(tile, layout, keys, [&](int k, std::int32_t expert, Key<Real> key) MOEB_LAMBDA {
      MOEB_UNROLL
      for (int r = 0; r < ChosenT::per_lane; ++r) {
        const bool is_own = ChosenT::rank(tile, r) == k;
        chosen.expert[r] = is_own ? expert : chosen.expert[r];
        if constexpr (keys_are_scores<decltype(problem.scoring), LayoutT>) {
          chosen.score[r] = is_own ? float_of(key) : chosen.score[r];
        }
      }
    });
  } else {
    state.early.selection.finish(state.early.keys);
    for (int k = 0; k < k_count; ++k) chosen.expert[k] = state.early.selection.slot(k);
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

/// Whether a score read off a regular row's key does not say that its logit is finite: 0 may be the score of -inf.
template <class ChosenT>
[[nodiscard]] MOEB_INLINE bool has_unclear_score(const ChosenT& chosen) {
  bool is_unclear = false;
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    using Real = std::remove_cvref_t<decltype(chosen.score[r])>;
    const bool is_clear = both(chosen.score[r] > Real(0), chosen.score[r] < infinity<Real>);
    is_unclear = is_unclear || (chosen.expert[r] >= 0 && !is_clear);
  }
  return is_unclear;
}

/// The scores of the chosen logits, which are read from the row; NaN where a logit is not finite.
template <class Problem, class Row, class ChosenT>
MOEB_INLINE void find_scores(const Problem& problem, std::int64_t token, const Row& row, ChosenT& chosen) {
  read_chosen_logits(problem.logits, token, chosen);
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    using Real = std::remove_reference_t<decltype(chosen.score[r])>;
    const Real score = score_of(problem.scoring, chosen.logit[r], row);
    chosen.score[r] = choose(is_finite(chosen.logit[r]), score, quiet_nan<Real>);
  }
}

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

/// A token's probabilities and token losses, added to the sink. `scores` are overwritten.
template <class Real, class Problem, class TileT, class LayoutT, class Row, class Sink>
MOEB_INLINE void add_losses(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                            const FiniteSlots<LayoutT>& finite, Slots<Real, LayoutT>& logits, Slots<Real, LayoutT>& scores,
                            const Row& row, Sink& sink) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if constexpr (Traits::losses > 0 && shows_non_finite<Scoring> && LayoutT::in_registers) {
    if (!is_regular(row)) {
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA {  // false for NaN, too
        scores[slot] = choose(scores[slot] < infinity<Real>, scores[slot], Real(0));
      });
    }
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { add_probability<Scoring>(slot, scores[slot], sink); });
  } else if constexpr (Traits::losses > 0 && is_normalised<Scoring>) {
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
                                   const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, bool regular,
                                   Sink& sink) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::plain_losses > 0) {
    Slots<Key<Real>, LayoutT> keys;
    rank_keys(problem, tile, layout, token, logits, scores, regular, nullptr, keys);
    select_k<decltype(problem.top_k)::k>(tile, layout, keys,
                                         [&](int /*k*/, std::int32_t expert, Key<Real> /*key*/) MOEB_LAMBDA {
                                           if (tile.lane() == 0) sink.loss_count(expert);
                                         });
  }
}

/// The first half of an active token's forward pass: its scores, and what of its selection does not wait for memory.
/// `bias`: one value per expert up to the layout's capacity, 0 where there is none; or null.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void begin_active(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                              const float* bias, ForwardToken<Real, Problem, TileT, LayoutT>& state) {
  using Scoring = decltype(problem.scoring);
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  state.token = token;
  load_row(layout, problem.logits, token, problem.rows_hold_quads, state.logits);
  if constexpr (Traits::losses > 0 && !shows_non_finite<Scoring>) state.finite = finite_slots(layout, state.logits);
  if constexpr (!is_over_selected<Scoring> || Traits::losses + Traits::token_losses > 0) {
    state.row = score_row(problem, tile, layout, token, problem.rows_hold_quads, state.logits, state.scores);
  }
  if constexpr (is_replaying<decltype(problem.top_k)>)
    state.replayed = problem.replay.tokens == nullptr || problem.replay.tokens[token] != 0;
  if constexpr (!LayoutT::in_registers) {
    if (state.replayed) return;
    candidate_keys(problem, tile, layout, state, bias, state.early.keys);
    state.early.selection.begin(layout, state.early.keys);
  }
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

/// The second half: selection, weights, and what the token adds to sums.
/// Sink: where the token's contributions go. count(expert), invalid_expert() are called by the lane that holds the choice, probability(
/// slot, fixed) by the lane that holds the slot, token(), non_finite_token(), loss_count(expert) and token_loss(index, fixed) by lane 0.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void finish_active(const Problem& problem, const TileT& tile, const LayoutT& layout, const float* bias,
                               ForwardToken<Real, Problem, TileT, LayoutT>& state, Sink& sink) {
  constexpr int k_count = decltype(problem.top_k)::k;
  const std::int64_t token = state.token;
  Chosen<Real, TileT, k_count> chosen;
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) chosen.expert[r] = -1;
  if constexpr (is_replaying<decltype(problem.top_k)>) {
    if (state.replayed) take_replayed(problem, tile, layout.experts, token, chosen, sink);
  }
  if (!state.replayed) choose(problem, tile, layout, state, bias, chosen);

  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) {
    if (chosen.expert[r] >= 0) sink.count(chosen.expert[r]);
  }
  count_plain_top_k(problem, tile, layout, token, state.logits, state.scores, is_regular(state.row), sink);
  const WeightRow<Real> weights = weigh_chosen(problem, tile, state, bias, chosen);
  store_chosen(problem, tile, token, chosen, weights);
  if (tile.lane() == 0) {
    sink.token();
    if (!weights.finite) sink.non_finite_token();
  }
  if (weights.finite) add_losses(problem, tile, layout, token, state.finite, state.logits, state.scores, state.row, sink);
}

/// The outputs of a token that is not active: no experts, weights 0.
template <class Real, class Problem, class TileT>
MOEB_INLINE void store_nothing(const Problem& problem, const TileT& tile, std::int64_t token) {
  Chosen<Real, TileT, decltype(problem.top_k)::k> chosen;
  MOEB_UNROLL
  for (int r = 0; r < chosen.per_lane; ++r) chosen.expert[r] = -1;
  store_chosen(problem, tile, token, chosen, WeightRow<Real>{.finite = false});
}

/// The first half of a token's forward pass. A CPU thread begins a token before it finishes the one before, so that one's chains of dependent
/// instructions run beside the other's.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void begin_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                             const float* bias, ForwardToken<Real, Problem, TileT, LayoutT>& state) {
  state.token = token;
  state.active = is_active(problem, token);
  if (state.active) begin_active(problem, tile, layout, token, bias, state);
}

/// The second half.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void finish_token(const Problem& problem, const TileT& tile, const LayoutT& layout, const float* bias,
                              ForwardToken<Real, Problem, TileT, LayoutT>& state, Sink& sink) {
  if (state.active)
    finish_active(problem, tile, layout, bias, state, sink);
  else
    store_nothing<Real>(problem, tile, state.token);
}

/// Both halves.
template <class Real, class Problem, class TileT, class LayoutT, class Sink>
MOEB_INLINE void forward_token(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                               const float* bias, Sink& sink) {
  if (!is_active(problem, token)) return store_nothing<Real>(problem, tile, token);
  ForwardToken<Real, Problem, TileT, LayoutT> state;
  begin_active(problem, tile, layout, token, bias, state);
  finish_active(problem, tile, layout, bias, state, sink);
}

MOEB_NAMESPACE_END
