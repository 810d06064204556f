// The one convention on which papers and libraries differ by a factor K.
#pragma once

#include <moe_balance/balancer_concepts.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// per_assignment: f_i = count_i / (K T), so that a perfectly balanced router has loss `coefficient`. per_token: f_i = count_i / T
/// (Hugging Face), K times as much.
enum class LossScale : std::uint8_t { per_assignment, per_token };

/// coefficient * E * f_i, the slope that the Switch loss and its relatives share.
[[nodiscard]] MOEB_INLINE float switch_slope(float coefficient, LossScale scale, int expert, const LoadView& load) {
  const float factor = scale == LossScale::per_token ? static_cast<float>(load.top_k()) : 1.0f;
  const float experts = mul(static_cast<float>(load.experts()), factor);
  return mul(mul(coefficient, experts), load.share(expert));
}

MOEB_NAMESPACE_END
