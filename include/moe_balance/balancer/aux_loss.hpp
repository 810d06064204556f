// AuxLoss: coefficient * E * sum_i f_i P_i, with f_i expert i's share of this micro-batch's assignments and P_i its mean probability.
// The gradient flows through P only. It asks every micro-batch to be balanced on its own.
// Source: Switch Transformer (Fedus et al. 2021), eq. (4)-(6).
#pragma once

#include <moe_balance/balancer/loss_scale.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct AuxLoss {
  static constexpr LossScope scope = LossScope::micro_batch;

  float coefficient = 1e-2f;                    ///< a balanced router's loss
  LossScale scale = LossScale::per_assignment;  ///< whether `coefficient` is that, or a K-th of it

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("AuxLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
    MOEB_EXPECTS(scale <= LossScale::per_token, call, ArgumentName("AuxLoss", "scale"), static_cast<int>(scale),
                 "per_assignment, per_token");
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    return switch_slope(coefficient, scale, expert, load);
  }
};
static_assert(LossBalancer<AuxLoss>);

MOEB_NAMESPACE_END
