// LossFreeBias: no loss. Each expert has a bias that is added to its ranking value and never to its weight; after each step it moves
// by update_rate towards balance: b_i += update_rate * sign(mean - c_i), with c_i the tokens of expert i on all ranks in the step.
// Source: Wang et al. 2024, arXiv 2408.15664, Algorithm 1; DeepSeek-V3. Some public texts have the sign wrong.
// Choose it with Sigmoid; the bias moves at most update_rate per step, so short runs need a larger rate at first.
#pragma once

#include <moe_balance/concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// What Router::update subtracts so that biases do not drift together: nothing, the mean of the new biases, or the mean of the steps.
enum class Centring : std::uint8_t { none, bias, step };

/// The options that rules of a bias share; `policy` is the rule's name. Errors: InvalidArgument.
inline void check_bias_options(const char* call, const char* policy, float update_rate, Centring centring) {
  MOEB_EXPECTS(is_finite(update_rate), call, ArgumentName(policy, "update_rate"), std::to_string(update_rate),
               "finite numbers");
  MOEB_EXPECTS(centring <= Centring::step, call, ArgumentName(policy, "centring"), static_cast<int>(centring),
               "none, bias, step");
}

struct LossFreeBias {
  float update_rate = 1e-3f;           ///< u, the step of each bias, in units of scores
  Centring centring = Centring::none;  ///< against a common drift
  bool frozen = false;                 ///< update leaves the bias as it is (and still clears the load)

  /// Errors: InvalidArgument.
  void check(const char* call) const { check_bias_options(call, "LossFreeBias", update_rate, centring); }

  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load) const {
    const std::int64_t excess = load.count(expert) * load.experts() - load.total();  // E (c_i - mean), exact
    if (frozen || excess == 0) return bias;
    return add(bias, excess < 0 ? update_rate : -update_rate);
  }
};
static_assert(BiasBalancer<LossFreeBias>);

MOEB_NAMESPACE_END
