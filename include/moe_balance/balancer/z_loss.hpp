// ZLoss: coefficient * mean over tokens of (log sum_i exp(x_i))^2. Keeps logits small; balances nothing by itself.
// Source: ST-MoE (Zoph et al. 2022), eq. (5).
// The value (Router::loss) counts at most 16384 per token, or 2^30 / T if that is less; the gradient is not bounded.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct ZLoss {
  float coefficient = 1e-3f;  ///< multiplies the mean over active tokens

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("ZLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
  }

  template <class Real>
  [[nodiscard]] MOEB_INLINE Real token_loss(Real logsumexp) const {
    return mul(mul(static_cast<Real>(coefficient), logsumexp), logsumexp);
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real token_slope(Real logsumexp) const {
    return mul(mul(Real(2), static_cast<Real>(coefficient)), logsumexp);
  }
};
static_assert(TokenLossBalancer<ZLoss>);

MOEB_NAMESPACE_END
