// EntropyLoss: coefficient * mean over tokens of the entropy of their probabilities, -sum_i p_i log p_i. Positive, it makes the router decide, which is what
// holds down the number of experts that TopP keeps; negative, it keeps the router open. It balances nothing.
// Source: Huang et al. 2024, arXiv 2403.07652, the dynamic loss.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct EntropyLoss {
  float coefficient = 1e-4f;  ///< multiplies the mean over active tokens, in nats

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("EntropyLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
  }

  /// See EntropyLossBalancer.
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real entropy_loss(Real entropy) const {
    return mul(static_cast<Real>(coefficient), entropy);
  }
  /// See EntropyLossBalancer.
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real entropy_slope(Real /*entropy*/) const {
    return static_cast<Real>(coefficient);
  }
};
static_assert(EntropyLossBalancer<EntropyLoss>);

MOEB_NAMESPACE_END
