// SqrtSoftplus: s = sqrt(log(1 + exp(x))); sqrt(x) for x > 20, where the two agree in float32.
// Source: DeepSeek-V4. Unbounded above, never zero for x > -174: gradients reach experts that sigmoid would have silenced.
#pragma once

#include <moe_balance/numeric/math.hpp>
#include <moe_balance/scoring_concepts.hpp>

MOEB_NAMESPACE_BEGIN

/// ds/dx = sigmoid(x) / (2 s). Below x = -17, log(1 + exp(x)) is exp(x) to float32's precision, so that s = exp(x / 2) and
/// ds/dx = s / 2, with no quotient of two vanishing numbers.
struct SqrtSoftplus {
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real operator()(Real logit) const {
    const bool vanishing = logit < very_negative<Real>;
    const Real exponential = exp(mul(choose(vanishing, logit, Real(0)), Real(0.5)));
    const Real argument = choose(vanishing, Real(1), logit);
    const Real square = choose(argument > linear<Real>, argument, softplus(argument));
    const bool infinite = square == infinity<Real>;
    const Real root = choose(infinite, square, sqrt_in_range(choose(infinite, Real(1), square)));
    return choose(vanishing, exponential, root);
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real derivative(Real logit, Real score) const {
    const bool vanishing = logit < very_negative<Real>;
    const Real slope = sigmoid(choose(vanishing, Real(0), logit));
    return choose(vanishing, mul(score, Real(0.5)), div_in_range(slope, choose(vanishing, Real(1), mul(Real(2), score))));
  }

 private:
  template <class Real>
  static constexpr Real very_negative = sizeof(Real) == 4 ? Real(-17) : Real(-38);
  template <class Real>
  static constexpr Real linear = sizeof(Real) == 4 ? Real(20) : Real(40);
};
static_assert(ElementwiseScoring<SqrtSoftplus>);
/// \cond
template <>
inline constexpr bool is_non_negative<SqrtSoftplus> = true;
/// \endcond

MOEB_NAMESPACE_END
