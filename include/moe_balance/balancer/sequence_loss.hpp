// SequenceLoss: the mean over sequences of coefficient * E * sum_i f_i P_i, with f and P of one sequence each. A sequence without active tokens
// adds 0 and counts in the mean.
// A guard against extreme imbalance inside a sequence, meant to be weak beside another balancer.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.2.3; DeepSeek-V3, arXiv 2412.19437, eq. (17)-(20), where f counts as FromPlainTopK does. Sequences are given by ForwardArgs::sequences.
#pragma once

#include <moe_balance/balancer/loss_scale.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct SequenceLoss {
  static constexpr LossScope scope = LossScope::sequence;

  float coefficient = 1e-4f;                    ///< a balanced router's loss
  LossScale scale = LossScale::per_assignment;  ///< whether `coefficient` is that, or a K-th of it

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("SequenceLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
    MOEB_EXPECTS(scale <= LossScale::per_token, call, ArgumentName("SequenceLoss", "scale"), static_cast<int>(scale),
                 "per_assignment, per_token");
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    return switch_slope(coefficient, scale, expert, load);
  }
};
static_assert(LossBalancer<SequenceLoss>);

MOEB_NAMESPACE_END
