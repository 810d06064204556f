// PidBias: a proportional-integral-derivative controller's step: with e_i = (mean - c_i) / mean of each step,
//   b_i += proportional * e_i + integral * (sum of e_i over all steps) + derivative * (e_i - e_i of the step before).
// The bias adds up the steps: `proportional` alone (ProportionalBias) ends with no error, `derivative` damps what overshoots, and `integral`, a sum of a
// sum, makes up for scores that drift. Source: control of the bias as in LongCat-Flash's technical report, arXiv 2509.01322, which publishes the first term.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

MOEB_NAMESPACE_BEGIN

struct PidBias {
  static constexpr int memory = 2;     ///< the sum of errors; the last error
  float proportional = 1e-3f;          ///< of the error of this step, in units of scores
  float integral = 0.0f;               ///< of the sum of all errors, which is kept whatever this is, and without a bound
  float derivative = 0.0f;             ///< of this error less the last one, which is 0 before the first step
  Centring centring = Centring::none;  ///< against a common drift, which only roundings cause: these steps sum to 0
  bool frozen = false;                 ///< update leaves bias and memory as they are (and still clears the load)

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    check_rate(call, {"PidBias", "proportional"}, proportional);
    check_rate(call, {"PidBias", "integral"}, integral);
    check_rate(call, {"PidBias", "derivative"}, derivative);
    check_centring(call, "PidBias", centring);
  }

  /// See BiasBalancer.
  [[nodiscard]] MOEB_INLINE BiasStep<2> next_bias(float bias, int expert, const LoadView& load,
                                                  const float (&kept)[2]) const {
    const float error = relative_error(expert, load);
    const float sum = add(kept[0], error);
    float next = fma(proportional, error, bias);  // ProportionalBias's, bit for bit
    next = fma(integral, sum, next);
    next = fma(derivative, sub(error, kept[1]), next);
    return {next, {sum, error}};
  }
};
static_assert(BiasBalancer<PidBias>);

MOEB_NAMESPACE_END
