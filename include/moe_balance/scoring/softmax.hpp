// Softmax: s_i = exp(x_i - max) / sum_j exp(x_j - max). A token's scores compete: they sum to 1.
// Source: Switch Transformer (Fedus et al. 2021), eq. (1); Mixtral, Qwen, OLMoE, DeepSeek-V2.
// Choose it with a balancing loss; with LossFreeBias the fixed bias step is large beside scores near 1 / experts.
#pragma once

#include <moe_balance/numeric/softmax.hpp>
#include <moe_balance/scoring_concepts.hpp>

MOEB_NAMESPACE_BEGIN

/// ds_i/dx_j = s_i (delta_ij - s_j).
struct Softmax {
  static constexpr bool normalised = true;
  template <class Real>
  using Row = SoftmaxRow<Real>;

  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE SoftmaxRow<Real> prepare(const TileT& tile, const LayoutT& layout, const Slots<Real, LayoutT>& logits,
                                       Slots<Real, LayoutT>& scores) const {
    const SoftmaxRow<Real> row = softmax_row(tile, layout, logits, scores);
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = mul(scores[slot], row.inverse_sum); });
    return row;
  }

  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const SoftmaxRow<Real>& row) const {
    return row.probability(logit);
  }

  /// grad: in dL/ds, out dL/dx = s (dL/ds - sum_j dL/ds_j s_j). Scores must be finite.
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE void backward(const TileT& tile, const LayoutT& layout, const Slots<Real, LayoutT>& /*logits*/,
                            const Slots<Real, LayoutT>& scores, Slots<Real, LayoutT>& grad,
                            const SoftmaxRow<Real>& /*row*/) const {
    const Real mean = canonical_sum<Real>(
        tile, layout, [&](int slot, Real sum) MOEB_LAMBDA { return fma(grad[slot], scores[slot], sum); });
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = mul(scores[slot], sub(grad[slot], mean)); });
  }
};
static_assert(RowScoring<Softmax>);
/// \cond
template <>
inline constexpr bool has_softmax_scores<Softmax> = true;
template <>
inline constexpr bool is_non_negative<Softmax> = true;
template <>
inline constexpr bool is_finitely_scoring<Softmax> = true;
/// \endcond

MOEB_NAMESPACE_END
