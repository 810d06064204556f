// The entropy of a token's softmax, -sum_i p_i log p_i, and its gradient p_i (-log p_i - entropy), for losses that read it.
#pragma once

#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/softmax.hpp>
#include <moe_balance/token/row_io.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// p of a logit, 0 where it is not finite, and -log p, which means nothing where p is 0.
template <class Real>
struct Surprise {
  Real probability;
  Real size;

  MOEB_INLINE Surprise(const SoftmaxRow<Real>& row, Real log_of_sum, Real logit, Real p)
      : probability(choose(is_finite(logit), p, Real(0))), size(sub(log_of_sum, sub(logit, row.maximum))) {}
  /// p * f(-log p); 0 where p is.
  [[nodiscard]] MOEB_INLINE Real weighted(Real factor) const {
    return choose(probability > Real(0), mul(probability, factor), Real(0));
  }
};

/// `logits`: the row, where lanes hold it; `terms` are overwritten.
template <class Real, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE Real entropy_of_row(const ConstAnyMatrix& matrix, bool quads, const TileT& tile,
                                              const LayoutT& layout, std::int64_t token, const SoftmaxRow<Real>& row,
                                              const Slots<Real, LayoutT>& logits, Slots<Real, LayoutT>& terms) {
  const Real log_of_sum = log(row.sum);
  for_each_logit(tile, layout, matrix, token, quads, logits, [&](int slot, Real logit) MOEB_LAMBDA {
    const Surprise<Real> surprise(row, log_of_sum, logit, row.probability(logit));
    terms[slot] = surprise.weighted(surprise.size);
  });
  return canonical_sum<Real>(tile, layout, [&](int slot, Real sum) MOEB_LAMBDA { return add(sum, terms[slot]); });
}

/// The same where the scores are the probabilities and a lane has the row's logits, too.
template <class Real, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE Real entropy_of_scores(const TileT& tile, const LayoutT& layout, const SoftmaxRow<Real>& row,
                                                 const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores) {
  const Real log_of_sum = log(row.sum);
  return canonical_sum<Real>(tile, layout, [&](int slot, Real sum) MOEB_LAMBDA {
    const Surprise<Real> surprise(row, log_of_sum, logits[slot], scores[slot]);
    return add(sum, surprise.weighted(surprise.size));
  });
}

/// Adds slope * d entropy / d logit to the gradient. `probability_of(slot, logit)`: row.probability(logit), or where it is known already.
template <class Real, class TileT, class LayoutT, class ProbabilityOf>
MOEB_INLINE void add_entropy_gradient(const ConstAnyMatrix& matrix, bool quads, const TileT& tile, const LayoutT& layout,
                                      std::int64_t token, const SoftmaxRow<Real>& row, Real entropy, Real slope,
                                      const Slots<Real, LayoutT>& logits, const ProbabilityOf& probability_of,
                                      Slots<Real, LayoutT>& grad) {
  const Real log_of_sum = log(row.sum);
  for_each_logit(tile, layout, matrix, token, quads, logits, [&](int slot, Real logit) MOEB_LAMBDA {
    const Surprise<Real> surprise(row, log_of_sum, logit, probability_of(slot, logit));
    grad[slot] = fma(slope, surprise.weighted(sub(surprise.size, entropy)), grad[slot]);
  });
}

MOEB_NAMESPACE_END
