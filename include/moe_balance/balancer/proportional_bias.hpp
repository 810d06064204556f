// ProportionalBias: LossFreeBias with steps in proportion to the error instead of steps of one size: b_i += update_rate * (mean - c_i) / unit.
// Near balance the steps are small, which a sign rule's never are; far from it one popular expert may fall by update_rate * (E - 1) in a step.
// Source: Wang et al. 2024, arXiv 2408.15664, the variant of its ablations (its error in tokens); it recommends the sign.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// What an expert's error, mean - c_i, is divided by: the mean load, the load of all experts, or nothing, so that it counts tokens.
enum class ErrorUnit : std::uint8_t { mean_load, total_load, token };

struct ProportionalBias {
  float update_rate = 1e-3f;              ///< u, the step for an error of one unit, in units of scores
  ErrorUnit unit = ErrorUnit::mean_load;  ///< what an error is measured in; with mean_load an expert without tokens gains u
  Centring centring = Centring::none;     ///< against a common drift, which only roundings cause: these steps sum to 0
  bool frozen = false;                    ///< update leaves the bias as it is (and still clears the load)

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    check_rate(call, {"ProportionalBias", "update_rate"}, update_rate);
    check_centring(call, "ProportionalBias", centring);
    MOEB_EXPECTS(unit <= ErrorUnit::token, call, ArgumentName("ProportionalBias", "unit"), static_cast<int>(unit),
                 "mean_load, total_load, token");
  }

  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load) const {
    const std::int64_t error = load.total() - load.count(expert) * load.experts();  // E (mean - c_i), exact
    if (frozen || error == 0) return bias;
    const auto experts = static_cast<float>(load.experts());
    const auto total = static_cast<float>(load.total());
    float units = static_cast<float>(error);
    if (unit != ErrorUnit::mean_load) units = div(units, experts);
    if (unit != ErrorUnit::token) units = div(units, total);
    return fma(update_rate, units, bias);
  }
};
static_assert(BiasBalancer<ProportionalBias>);

MOEB_NAMESPACE_END
