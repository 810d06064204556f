// LossFreeBias: no loss. Each expert has a bias that is added to its ranking value and never to its weight; after each step it moves
// by update_rate towards balance: b_i += update_rate * sign(mean - c_i), with c_i the tokens of expert i on all ranks in the step.
// Source: Wang et al. 2024, arXiv 2408.15664, Algorithm 1; DeepSeek-V3. Some public texts have the sign wrong.
// Choose it with Sigmoid; the bias moves at most update_rate per step, so short runs need a larger rate at first.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// What Router::update subtracts so that biases do not drift together: nothing, the mean of the new biases, or the mean of the steps.
enum class Centring : std::uint8_t { none, bias, step };

/// A factor of a step. Errors: InvalidArgument.
inline void check_rate(const char* call, const ArgumentName& name, float rate) {
  MOEB_EXPECTS(is_finite(rate), call, name, std::to_string(rate), "finite numbers");
}
/// `policy` is the rule's name. Errors: InvalidArgument.
inline void check_centring(const char* call, const char* policy, Centring centring) {
  MOEB_EXPECTS(centring <= Centring::step, call, ArgumentName(policy, "centring"), static_cast<int>(centring),
               "none, bias, step");
}

/// (mean - c_i) / mean, from an exact numerator. Of a load that is not empty.
[[nodiscard]] MOEB_INLINE float relative_error(int expert, const LoadView& load) {
  const std::int64_t error = load.total() - load.count(expert) * load.experts();
  return div(static_cast<float>(error), static_cast<float>(load.total()));
}

struct LossFreeBias {
  float update_rate = 1e-3f;           ///< u, the step of each bias, in units of scores
  Centring centring = Centring::none;  ///< against a common drift
  bool frozen = false;                 ///< update leaves the bias as it is (and still clears the load)

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    check_rate(call, {"LossFreeBias", "update_rate"}, update_rate);
    check_centring(call, "LossFreeBias", centring);
  }

  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load) const {
    const std::int64_t excess = load.count(expert) * load.experts() - load.total();  // E (c_i - mean), exact
    if (frozen || excess == 0) return bias;
    return add(bias, excess < 0 ? update_rate : -update_rate);
  }
};
static_assert(BiasBalancer<LossFreeBias>);

MOEB_NAMESPACE_END
