// One face for elementwise and row-wise scorings, and the two things that a token's scores lead to: probabilities and weights.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/concepts.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/softmax.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// An elementwise scoring's score and derivative; a scoring written for float only serves double too, at float's precision.
template <class Scoring, class Real>
[[nodiscard]] MOEB_INLINE Real elementwise_score(const Scoring& scoring, Real logit) {
  if constexpr (requires {
                  { scoring(logit) } -> std::same_as<Real>;
                })
    return scoring(logit);
  else
    return static_cast<Real>(scoring(static_cast<float>(logit)));
}
template <class Scoring, class Real>
[[nodiscard]] MOEB_INLINE Real elementwise_derivative(const Scoring& scoring, Real logit, Real score) {
  if constexpr (requires {
                  { scoring.derivative(logit, score) } -> std::same_as<Real>;
                })
    return scoring.derivative(logit, score);
  else
    return static_cast<Real>(scoring.derivative(static_cast<float>(logit), static_cast<float>(score)));
}

struct NoRow {};
template <class Scoring, class Real>
struct RowOf {
  using type = NoRow;
};
template <RowScoring Scoring, class Real>
struct RowOf<Scoring, Real> {
  using type = typename Scoring::template Row<Real>;
};

/// What softmax_row found of a row, be it of the logits or of what a user's scoring made of them.
template <class Row>
inline constexpr bool is_softmax_row = false;
template <class Real>
inline constexpr bool is_softmax_row<SoftmaxRow<Real>> = true;

/// Whether a row is known to have no logit that is +inf or NaN; its scores are then numbers.
template <class Row>
[[nodiscard]] MOEB_INLINE bool is_regular(const Row& row) {
  if constexpr (is_softmax_row<Row>)
    return row.regular;
  else
    return false;
}

/// Whether no score of a row is infinite or NaN, as far as the row says.
template <class LayoutT, class Row>
[[nodiscard]] MOEB_INLINE bool has_numbers(const Row& row) {
  if constexpr (!LayoutT::in_registers && is_softmax_row<Row>)
    return row.numbers;
  else
    return is_regular(row);
}

/// Scores of all slots; padding, whose logits are NaN (-inf in registers), and NaN have whatever the scoring makes of these.
template <class Scoring, class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE typename RowOf<Scoring, Real>::type prepare_scores(const Scoring& scoring, const TileT& tile,
                                                                             const LayoutT& layout,
                                                                             const Slots<Real, LayoutT>& logits,
                                                                             Slots<Real, LayoutT>& scores) {
  if constexpr (RowScoring<Scoring>) {
    auto row = scoring.prepare(tile, layout, logits, scores);
    if constexpr (is_softmax_row<decltype(row)> && !has_softmax_scores<Scoring>) {  // known of other logits or scores
      row.regular = false;
      row.numbers = false;
    }
    return row;
  } else {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = elementwise_score(scoring, logits[slot]); });
    return {};
  }
}

template <class Scoring, class Real, class Row>
[[nodiscard]] MOEB_INLINE Real score_of(const Scoring& scoring, Real logit, const Row& row) {
  if constexpr (RowScoring<Scoring>)
    return scoring.score(logit, row);
  else
    return elementwise_score(scoring, logit);
}

/// grad: in dL/dscores, out dL/dlogits.
template <class Scoring, class TileT, class LayoutT, class Real, class Row>
MOEB_INLINE void scores_backward(const Scoring& scoring, const TileT& tile, const LayoutT& layout,
                                 const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores,
                                 Slots<Real, LayoutT>& grad, const Row& row) {
  if constexpr (RowScoring<Scoring>) {
    scoring.backward(tile, layout, logits, scores, grad, row);
  } else {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      grad[slot] = mul(grad[slot], elementwise_derivative(scoring, logits[slot], scores[slot]));
    });
  }
}

/// Which slots hold finite logits. A bit each for slots in registers, so that the logits need not stay there.
template <class LayoutT>
struct FiniteSlots {
  static constexpr bool is_used = LayoutT::in_registers;
  static constexpr int words = is_used ? (LayoutT::capacity + 63) / 64 : 1;
  std::uint64_t bits[words] = {};

  MOEB_INLINE void set(int slot, bool finite) { bits[slot / 64] |= static_cast<std::uint64_t>(finite) << (slot % 64); }
  template <class Real>
  [[nodiscard]] MOEB_INLINE bool holds(int slot, const Slots<Real, LayoutT>& logits) const {
    if constexpr (is_used)
      return (bits[slot / 64] >> (slot % 64) & 1u) != 0;
    else
      return is_finite(logits[slot]);
  }
};

template <class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE FiniteSlots<LayoutT> finite_slots(const LayoutT& layout, const Slots<Real, LayoutT>& logits) {
  FiniteSlots<LayoutT> finite;
  if constexpr (finite.is_used)
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { finite.set(slot, is_finite(logits[slot])); });
  return finite;
}

/// Whether a tile has seen that all of its row is finite; false, too, where padding is among it that is no whole quad. `regular`: no logit is +inf or NaN.
template <class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE bool is_known_finite(const TileT& tile, const LayoutT& layout, const Slots<Real, LayoutT>& logits,
                                               bool regular) {
  if constexpr (LayoutT::rereads_logits || !std::is_same_v<Real, float>) {
    return false;
  } else if constexpr (LayoutT::in_registers) {
    if (!regular) return false;
    Real smallest = infinity<Real>;
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      const bool is_seen = !LayoutT::whole_quads || layout.holds_expert(slot / 4 * 4);
      smallest = is_seen ? smaller_of(logits[slot], smallest) : smallest;
    });
    return !tile.any(smallest == -infinity<Real>);
  } else {
    constexpr int columns = LayoutT::block_size;
    std::uint32_t faults[columns];
    for (int c = 0; c < columns; ++c) faults[c] = 0;
    const int slots = layout.blocks() * LayoutT::block_size;
    for (int first = 0; first < slots; first += columns) {
      for (int c = 0; c < columns; ++c) faults[c] |= fault_of(logits[first + c]);
    }
    std::uint32_t any = 0;
    for (int c = 0; c < columns; ++c) any |= faults[c];
    return any >> 31 == 0;
  }
}

/// The slot's score; 0 where it or its logit is not finite, padding among them: these take no part in sums over a row.
template <class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE Real silenced(const LayoutT& /*layout*/, const FiniteSlots<LayoutT>& finite,
                                        const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, int slot) {
  return choose(both(finite.holds(slot, logits), is_finite(scores[slot])), scores[slot], Real(0));
}

template <class LayoutT, class Real>
MOEB_INLINE void silence_non_finite(const LayoutT& layout, const FiniteSlots<LayoutT>& finite,
                                    const Slots<Real, LayoutT>& logits, Slots<Real, LayoutT>& scores) {
  for_each_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = silenced(layout, finite, logits, scores, slot); });
}

/// 1 / (sum + 2^-100), what turns scores of this sum into probabilities; 0 where the sum is out of range. Small beside the sigmoids of any logits
/// above -60: a larger number would be a loss's way down, by lowering all scores of a token.
template <class Real>
[[nodiscard]] MOEB_INLINE Real inverse_of_sum(Real sum) {
  const Real inverse = reciprocal_or_nan(add(sum, Real(0x1p-100)));
  return inverse == inverse ? inverse : Real(0);
}

/// The same of silenced scores.
template <class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE Real inverse_of_total(const TileT& tile, const LayoutT& layout,
                                                const Slots<Real, LayoutT>& scores) {
  return inverse_of_sum(
      canonical_sum<Real>(tile, layout, [&](int slot, auto sum) MOEB_LAMBDA { return add(sum, scores[slot]); }));
}

/// The K chosen experts of a token: lane l of a tile holds those with k = l, l + width, ...
template <class Real, class TileT, int K>
struct Chosen {
  static constexpr int per_lane = (K + TileT::width - 1) / TileT::width;
  std::int32_t expert[per_lane];  ///< -1 for an empty slot
  Real logit[per_lane];
  Real score[per_lane];

  [[nodiscard]] MOEB_INLINE static constexpr int rank(const TileT& tile, int r) { return tile.lane() + TileT::width * r; }
};

/// Sum over the K chosen of term(r), in the canonical order with virtual lane k. Lanes that no k reaches would add +0 to sums that are
/// never -0: only those below the next power of two are added, and have the sum; all others have 0.
template <class Real, int K, class TileT, class Function>
[[nodiscard]] MOEB_INLINE Real sum_over_chosen(const TileT& tile, Function&& term) {
  constexpr int per_lane = (K + TileT::width - 1) / TileT::width;
  constexpr int used = per_lane > 16 ? 32 : per_lane > 8 ? 16 : per_lane > 4 ? 8 : per_lane > 2 ? 4 : per_lane;
  constexpr int reached = K > 16 ? 32 : K > 8 ? 16 : K > 4 ? 8 : K > 2 ? 4 : K;
  Real partial[used];
  MOEB_UNROLL
  for (int r = 0; r < used; ++r) partial[r] = r < per_lane ? add(Real(0), term(r < per_lane ? r : 0)) : Real(0);
  return sum_of_virtual_lanes<(reached < TileT::width ? reached : TileT::width)>(tile, partial);
}

/// How the chosen scores share out: weight_k = score_k * factor * scaling. Not finite where a chosen logit, a score or a weight is not:
/// such a token gets weights and gradient 0.
template <class Real>
struct WeightRow {
  bool finite = true;
  Real factor = 1;
  Real scaling = 1;

  [[nodiscard]] MOEB_INLINE Real weight(Real score) const {
    return choose(finite, mul(mul(score, factor), scaling), Real(0));
  }
};

/// Whether weights are divided by their sum.
template <class Scoring, int K>
[[nodiscard]] MOEB_INLINE bool renormalises(const Weighting& weighting) {
  return is_over_selected<Scoring> || (weighting.renormalise && K > 1);
}

/// The largest logit of the chosen.
template <class Real, class TileT, int K>
[[nodiscard]] MOEB_INLINE Real maximum_over_chosen(const TileT& tile, const Chosen<Real, TileT, K>& chosen) {
  Real maximum = -infinity<Real>;
  MOEB_UNROLL
  for (int r = 0; r < Chosen<Real, TileT, K>::per_lane; ++r) {
    const bool larger = chosen.expert[r] >= 0 && chosen.logit[r] > maximum;
    maximum = larger ? chosen.logit[r] : maximum;
  }
  MOEB_UNROLL
  for (int distance = TileT::width / 2; distance >= 1; distance /= 2) {
    const Real other = tile.shuffle_xor(maximum, distance);
    maximum = other > maximum ? other : maximum;
  }
  return add(maximum, Real(0));
}

/// Fills `chosen.score` (0 for empty slots) with score(r), and finds what turns scores into weights.
template <class Scoring, class Real, class TileT, int K, class Score>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh_scores(const Weighting& weighting, const TileT& tile,
                                                       Chosen<Real, TileT, K>& chosen, Score&& score) {
  constexpr int per_lane = Chosen<Real, TileT, K>::per_lane;
  int fault[per_lane];
  MOEB_UNROLL
  for (int r = 0; r < per_lane; ++r) {
    const bool used = chosen.expert[r] >= 0;
    fault[r] = static_cast<int>(both(used, !is_finite(chosen.logit[r])));
    chosen.score[r] = choose(used, score(r), Real(0));
  }
  const Real sum = sum_over_chosen<Real, K>(tile, [&](int r) MOEB_LAMBDA { return chosen.score[r]; });
  WeightRow<Real> result;
  result.factor = renormalises<Scoring, K>(weighting) ? reciprocal_or_nan(add(sum, Real(1e-20))) : Real(1);
  result.scaling = static_cast<Real>(weighting.scaling_factor);
  int faults = 0;
  MOEB_UNROLL
  for (int r = 0; r < per_lane; ++r) faults |= fault[r] | static_cast<int>(!is_finite(result.weight(chosen.score[r])));
  result.finite = !tile.any(faults != 0 || !is_finite(sum));
  return result;
}

/// weigh_scores from the chosen logits.
template <class Scoring, class Row, class Real, class TileT, int K>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh(const Scoring& scoring, const Row& row, const Weighting& weighting,
                                                const TileT& tile, Chosen<Real, TileT, K>& chosen) {
  if constexpr (is_over_selected<Scoring>) {
    SoftmaxRow<Real> selected;
    selected.maximum = maximum_over_chosen(tile, chosen);
    return weigh_scores<Scoring>(weighting, tile, chosen,
                                 [&](int r) MOEB_LAMBDA { return selected.exponential(chosen.logit[r]); });
  } else {
    return weigh_scores<Scoring>(weighting, tile, chosen,
                                 [&](int r) MOEB_LAMBDA { return score_of(scoring, chosen.logit[r], row); });
  }
}

/// The same where the row's scores are at hand: a lane that has them in memory looks them up.
template <class Scoring, class Row, class Real, class TileT, class LayoutT, int K>
[[nodiscard]] MOEB_INLINE WeightRow<Real> weigh_in_row(const Scoring& scoring, const Row& row, const Weighting& weighting,
                                                       const TileT& tile, const Slots<Real, LayoutT>& scores,
                                                       Chosen<Real, TileT, K>& chosen) {
  if constexpr (LayoutT::in_registers || is_over_selected<Scoring>)
    return weigh(scoring, row, weighting, tile, chosen);
  else
    return weigh_scores<Scoring>(weighting, tile, chosen,
                                 [&](int r) MOEB_LAMBDA { return scores[chosen.expert[r] < 0 ? 0 : chosen.expert[r]]; });
}

MOEB_NAMESPACE_END
