// SmebuBias: soft-clamped momentum expert bias updates. The step is the relative error through a tanh, so that it is at most update_rate far from
// balance and shrinks near it; centred, it is smoothed by a running mean over steps:
//   d_i = update_rate * tanh(slope * (mean - c_i) / mean);  d_i -= mean of all d;  m_i = momentum * m_i + (1 - momentum) * d_i;  b_i += m_i.
// Source: Trinity, arXiv 2602.17004, whose rates are the defaults.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct SmebuBias {
  static constexpr int memory = 1;  ///< m, before centring, which is linear: the mean of all m goes off the bias instead
  float update_rate = 5e-4f;  ///< lambda, the largest step before centring (less than twice that after), in units of scores
  float momentum = 0.5f;      ///< beta, the part of m that stays, 0 to below 1
  float slope = 2.0f;         ///< kappa: how soon errors count as large
  Centring centring = Centring::step;  ///< as published; none leaves a drift, because tanh is not linear
  bool frozen = false;                 ///< update leaves bias and memory as they are (and still clears the load)

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    check_rate(call, {"SmebuBias", "update_rate"}, update_rate);
    check_rate(call, {"SmebuBias", "slope"}, slope);
    check_centring(call, "SmebuBias", centring);
    MOEB_EXPECTS(momentum >= 0.0f && momentum < 1.0f, call, ArgumentName("SmebuBias", "momentum"), std::to_string(momentum),
                 "0 to below 1");
  }

  /// See BiasBalancer.
  [[nodiscard]] MOEB_INLINE BiasStep<1> next_bias(float bias, int expert, const LoadView& load,
                                                  const float (&kept)[1]) const {
    const float step = mul(update_rate, tanh(mul(slope, relative_error(expert, load))));
    const float mean_step = fma(momentum, kept[0], mul(sub(1.0f, momentum), step));
    return {add(bias, mean_step), {mean_step}};
  }
};
static_assert(BiasBalancer<SmebuBias>);

MOEB_NAMESPACE_END
