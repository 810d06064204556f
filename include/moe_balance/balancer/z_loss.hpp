// ZLoss: coefficient * mean over tokens of (log sum_i exp(x_i))^2. Keeps logits small; balances nothing by itself.
// Source: ST-MoE (Zoph et al. 2022), eq. (5).
// The value (Router::loss) counts at most 16384 per token; the gradient is not bounded.
#pragma once

#include <moe_balance/concepts.hpp>

MOEB_NAMESPACE_BEGIN

struct ZLoss {
  float coefficient = 1e-3f;  ///< multiplies the mean over active tokens

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
