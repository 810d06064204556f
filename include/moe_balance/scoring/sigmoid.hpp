// Sigmoid: s = 1 / (1 + exp(-x)), each expert on its own. A token may like many experts or none.
// Source: DeepSeek-V3, arXiv 2412.19437, eq. (13); Kimi K2, GLM, MiniMax.
// Pair it with LossFreeBias, whose steps of 1e-3 suit scores in [0, 1].
#pragma once

#include <moe_balance/numeric/math.hpp>
#include <moe_balance/scoring_concepts.hpp>

MOEB_NAMESPACE_BEGIN

struct Sigmoid {
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real operator()(Real logit) const {
    return sigmoid(logit);
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real derivative(Real /*logit*/, Real score) const {
    return mul(score, sub(Real(1), score));
  }
};
static_assert(ElementwiseScoring<Sigmoid>);
/// \cond
template <>
inline constexpr bool is_non_negative<Sigmoid> = true;
/// \endcond

MOEB_NAMESPACE_END
