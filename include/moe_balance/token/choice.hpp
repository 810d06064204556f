// From a token's scores to the experts that are chosen, and what is known of those: their logits and scores.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/select_k.hpp>
#include <moe_balance/token/forward_problem.hpp>
#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstdint>

#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Whether scores alone show where logits are not finite: 0, infinity or NaN.
template <class Scoring>
inline constexpr bool shows_non_finite = is_normalised<Scoring>&& is_non_negative<Scoring>;

/// The key of one value, a score, or a logit where the scoring ranks by those. The sum with a bias is written as value * 1 + bias, so that a user's score
/// that ends in a product is rounded before the bias is added. A bias that multiplies is 1 less than its factor, which is not negative.
template <class Scoring, class Balancer, class Real>
struct RankingKeys {
  static constexpr bool are_non_negative = is_non_negative<Scoring> && !is_over_selected<Scoring>;
  static constexpr bool is_factor = BalancerTraits<Balancer>::bias_is_factor;

  [[nodiscard]] MOEB_INLINE static Real with_bias(Real value, Real bias) {
    if constexpr (is_factor) {
      const Real factor = add(bias, Real(1));
      return mul(value, choose(factor < Real(0), Real(0), factor));
    } else {
      return fma(value, Real(1), bias);
    }
  }
  [[nodiscard]] MOEB_INLINE static Key<Real> of_sum(Real ranking) {  // +0 and any zero are +0
    return are_non_negative && !is_factor ? key_without_minus_zero(ranking) : key_of_number(ranking);
  }
  [[nodiscard]] MOEB_INLINE static Key<Real> of_value(Real ranking) {
    return are_non_negative ? key_of_non_negative(ranking) : key_of_number(ranking);
  }
};

/// Ranking keys: score + bias, or logit + bias where the scoring says so. `bias` has a value for every slot's expert, padding included, or is
/// null for none. `regular`: no logit, and no score, is NaN.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void rank_keys(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                           const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, bool regular,
                           const float* bias, Slots<Key<Real>, LayoutT>& keys) {
  using Scoring = decltype(problem.scoring);
  using Ranking = RankingKeys<Scoring, decltype(problem.balancer), Real>;
  const auto rank = [&](const auto& ranking_of, const auto& key_of) MOEB_LAMBDA {
    for_each_logit(tile, layout, problem.logits, token, problem.rows_hold_quads, logits,
                   [&](int slot, Real logit) MOEB_LAMBDA {
                     const Real ranking = ranking_of(is_over_selected<Scoring> ? logit : scores[slot], slot);
                     keys[slot] = choose(either_is_nan(ranking, logit), nan_key<Key<Real>>, key_of(ranking));
                   });
  };
  const auto key_of_value = [](Real ranking) MOEB_LAMBDA { return Ranking::of_value(ranking); };
  if (LayoutT::rereads_logits || bias != nullptr) {  // one way where registers are scarce
    rank(
        [&](Real value, int slot) MOEB_LAMBDA {
          return Ranking::with_bias(value, bias == nullptr ? Real(0) : static_cast<Real>(bias[layout.expert(slot)]));
        },
        [](Real ranking) MOEB_LAMBDA { return Ranking::of_sum(ranking); });
  } else if (regular) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      keys[slot] = key_of_value(is_over_selected<Scoring> ? logits[slot] : scores[slot]);
    });
  } else {
    rank([](Real value, int) MOEB_LAMBDA { return value; }, key_of_value);
  }
  // Where scores show that a logit is -inf, padding, behind all experts, ranks last as it is.
  constexpr bool may_stay = shows_non_finite<Scoring> && Ranking::are_non_negative && !is_narrowing<decltype(problem.top_k)>;
  const bool ranks_last = may_stay && regular && bias == nullptr;
  if (!ranks_last && layout.has_padding()) {
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

/// Whether a lane of registers can read a score off its key, where no bias was added, and see by it that the logit is finite.
template <class Scoring, class LayoutT>
inline constexpr bool keys_are_scores =
    LayoutT::in_registers && !LayoutT::rereads_logits && shows_non_finite<Scoring> && !is_over_selected<Scoring>;

/// The largest key of a regular row of normalised scores where no bias is added. They are 2 at most, see unit_to_fixed.
inline constexpr std::int32_t largest_unit_key = 0x40000000;

/// A token on its way through the forward pass.
template <class Real, class Problem, class TileT, class LayoutT>
struct ForwardToken {
  using Scoring = decltype(Problem::scoring);
  struct Nothing {};

  std::int64_t token;
  bool active = false;  ///< used by lanes of memory
  bool replayed = false;
  Slots<Real, LayoutT> logits;
  Slots<Real, LayoutT> scores;
  FiniteSlots<LayoutT> finite;
  typename RowOf<Scoring, Real>::type row{};
  std::conditional_t<LayoutT::in_registers, Nothing, Slots<Key<Real>, LayoutT>> keys;  ///< its ranking keys, in memory
};

/// The ranking keys of the experts that may be chosen.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void candidate_keys(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                const ForwardToken<Real, Problem, TileT, LayoutT>& state, bool regular, const float* bias,
                                Slots<Key<Real>, LayoutT>& keys) {
  rank_keys(problem, tile, layout, state.token, state.logits, state.scores, regular, bias, keys);
  problem.top_k.template narrow<Real>(tile, layout, keys);
}

/// Whether losses leave a tile narrower than a warp enough registers to select by words: not beside scores that are no softmax, whose probabilities are
/// found apart, nor beside a bias, nor a token's own losses where keys have to stay for the rounds that take the place of a selection which fails.
template <class Scoring, class Balancer, class TileT>
inline constexpr bool has_room_for_words = [] {
  using Traits = BalancerTraits<Balancer>;
  constexpr bool is_softmax = has_softmax_scores<Scoring>;
  return TileT::width == 32 || Traits::losses + Traits::token_losses == 0 ||
         (is_softmax && Traits::biases == 0 && (Traits::token_losses == 0 || !is_over_selected<Scoring>));
}();

/// choose() for lanes of registers, by calls of emit(k, expert, key) on the lane that has rank k.
template <class Real, class Problem, class TileT, class LayoutT, class Emit>
MOEB_INLINE void choose_in_registers(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                     const ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias,
                                     const Emit& emit) {
  using Scoring = decltype(problem.scoring);
  constexpr int k_count = decltype(problem.top_k)::k;
  constexpr bool has_room = has_room_for_words<Scoring, decltype(problem.balancer), TileT>;
  constexpr bool has_unit_keys = has_room && keys_are_scores<Scoring, LayoutT> &&
                                 BalancerTraits<decltype(problem.balancer)>::biases == 0 &&
                                 selects_packed<k_count, TileT, LayoutT, Key<Real>>;
  Slots<Key<Real>, LayoutT> keys;
  if constexpr (has_unit_keys) {
    if (is_regular(state.row) && bias == nullptr) {
      using Packed = PackedSelection<k_count, TileT, LayoutT>;
      candidate_keys(problem, tile, layout, state, true, nullptr, keys);
      if (Packed::select(tile, keys, Packed::lowest_for(largest_unit_key), emit)) return;
    }
  }
  candidate_keys(problem, tile, layout, state, is_regular(state.row), bias, keys);
  select_k<k_count, !has_unit_keys && has_room, has_unit_keys>(tile, layout, keys, emit);
}

/// Fills `chosen.expert`, and `chosen.score` where keys are scores: key_of_non_negative changes no bit, and what it did not make, NaN's key, is
/// below 0.
template <class Real, class Problem, class TileT, class LayoutT, class ChosenT>
MOEB_INLINE void choose(const Problem& problem, const TileT& tile, const LayoutT& layout,
                        ForwardToken<Real, Problem, TileT, LayoutT>& state, const float* bias, ChosenT& chosen) {
  if constexpr (LayoutT::in_registers) {
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      chosen.expert[r] = -1;
      chosen.score[r] = Real(0);
    }
    choose_in_registers(problem, tile, layout, state, bias, [&](int k, std::int32_t expert, Key<Real> key) MOEB_LAMBDA {
      MOEB_UNROLL
      for (int r = 0; r < ChosenT::per_lane; ++r) {
        const bool is_own = TileT::width * r == k - tile.lane();
        chosen.expert[r] = is_own ? expert : chosen.expert[r];
        if constexpr (keys_are_scores<decltype(problem.scoring), LayoutT>)
          chosen.score[r] = is_own ? float_of(key) : chosen.score[r];
      }
    });
  } else {
    candidate_keys(problem, tile, layout, state, is_regular(state.row), bias, state.keys);
    select_k<decltype(problem.top_k)::k, false>(tile, layout, state.keys,
                                                [&](int k, std::int32_t expert, Key<Real> /*key*/)
                                                    MOEB_LAMBDA { chosen.expert[k] = expert; });
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

MOEB_NAMESPACE_END
