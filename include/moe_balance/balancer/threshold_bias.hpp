// ThresholdBias: the cutoffs of Threshold, minus the bias. An expert's cutoff is the running mean of the score that its share of a step's tokens exceeds:
//   q_i = the (T n / E + 1)-th largest of s_ti over the step's tokens, all micro-batches and ranks;
//   cutoff_i = momentum * cutoff_i + (1 - momentum) * q_i;  b_i = -cutoff_i.
// A token has n experts on the mean then, each expert T n / E tokens. Scores are counted in bins, integers that add up over ranks, and taken to be evenly
// spread over their bin: q_i is less than a bin off. A bias of 0 is one that has not moved yet: its first step goes all the way.
// Source: Sun et al. 2026, "Expert Threshold Routing", arXiv 2603.11535. For any scoring.
#pragma once

#include <moe_balance/balancer/margin_scale.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/top_k_concepts.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// Beside Threshold<K>, where K is the most experts that a token may have: where more would take it, an expert's tokens are fewer.
struct ThresholdBias {
  static constexpr bool margins_are_scores = true;  ///< see BiasFromMargins

  float experts_per_token =
      1.0f;                ///< n, the mean over tokens: more than 0, at most K; of n = E the smallest scores are left out
  float momentum = 0.99f;  ///< the part of a cutoff that stays, 0 to below 1
  MarginBins spacing = MarginBins::even;  ///< of the bins; octaves where scores have any scale
  float low = 0.0f;                       ///< even: the smallest score that is told apart
  float high = 1.0f;                      ///< even: the largest
  int bins = 512;                         ///< of each expert, 1 (octaves: 3) to 65536, 8 bytes each in the load
  bool frozen = false;  ///< update leaves the bias as it is (and still clears the load); forward counts no scores

  /// Errors: InvalidArgument.
  void check(const char* call) const { check(call, 0, max_top_k); }
  void check(const char* call, int /*experts*/, int k) const {
    MOEB_EXPECTS(experts_per_token > 0.0f && experts_per_token <= static_cast<float>(k), call,
                 ArgumentName("ThresholdBias", "experts_per_token"), std::to_string(experts_per_token),
                 "more than 0, at most K, here ", k);
    MOEB_EXPECTS(momentum >= 0.0f && momentum < 1.0f, call, ArgumentName("ThresholdBias", "momentum"),
                 std::to_string(momentum), "0 to below 1");
    scale().check(call, "ThresholdBias");
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE int bin_of(float score) const { return scale().bin_of(score); }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load, const MarginView& margins) const {
    const double assignments = mul(static_cast<double>(margins.tokens()), static_cast<double>(experts_per_token));  // exact
    const auto larger = static_cast<std::int64_t>(div(assignments, static_cast<double>(load.experts())));
    const std::int64_t last = margins.tokens() - 1;
    const float cutoff = scale().margin_at(margins.position(expert, larger < last ? larger : last));
    const float stays = bias == 0.0f ? 0.0f : momentum;
    return sub(mul(stays, bias), mul(sub(1.0f, stays), cutoff));
  }

 private:
  [[nodiscard]] MOEB_INLINE constexpr MarginScale scale() const { return {spacing, low, high, bins}; }
};
static_assert(BiasBalancer<ThresholdBias>);
/// See margin_scale.hpp. Of a class that is derived from it and may have another bin_of, the rule itself is asked.
[[nodiscard]] MOEB_INLINE MarginBinning binning_of(const ThresholdBias& rule) {
  return MarginScale{rule.spacing, rule.low, rule.high, rule.bins}.binning();
}

MOEB_NAMESPACE_END
