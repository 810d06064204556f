// ImportanceLoss: coefficient * CV^2 of the experts' importance, which is the sum of their probabilities over the micro-batch: with P_i the mean probability,
// coefficient * (E sum_i P_i^2 - sum_i P_i), 0 for equal ones. It evens out what the router would like, not what experts get: counts have no part in it.
// Source: Shazeer et al. 2017, arXiv 1701.06538, eq. (6) and (7), where importance sums the gates of the chosen; of all experts' probabilities: V-MoE, arXiv 2106.05974.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct ImportanceLoss {
  static constexpr LossScope scope = LossScope::micro_batch;

  float coefficient = 0.1f;  ///< multiplies the squared coefficient of variation

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("ImportanceLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
  }

  /// The derivative by P_i but for a constant, which changes no gradient, because probabilities sum to 1.
  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    return mul(mul(2.0f, coefficient), fma(static_cast<float>(load.experts()), load.probability(expert), -1.0f));
  }
  /// `sum`: 2 * coefficient * (E sum_i P_i^2 - sum_i P_i).
  [[nodiscard]] MOEB_INLINE double value(double sum, const LoadView& /*load*/) const { return mul(0.5, sum); }
};
static_assert(ValuedLoss<ImportanceLoss>);

MOEB_NAMESPACE_END
