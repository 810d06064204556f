// QuantileBias: quantile balancing. An expert's bias goes to where the step's tokens would have been balanced, minus the margin that T K / E of them exceed, and
// `momentum` says how much of the way it leaves to later steps. No step size has to fit the scores:
//   alpha_t = the (K + 1)-th largest of s_t + b;  q_i = the (T K / E + 1)-th largest of s_ti - alpha_t over the step's tokens, all micro-batches and ranks;
//   b_i = momentum * b_i - (1 - momentum) * q_i;  b_i -= mean of all b.
// Margins are counted in bins, integers that add up over ranks, and taken to be evenly spread over their bin: q_i is less than a bin off.
// Source: Su 2026, "Quantile Balancing", where beta is -b; Megatron-Core's qb_dual_update. For any scoring.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer/margin_scale.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

struct QuantileBias {
  float momentum = 0.9f;                     ///< the part of the bias that stays, 0 to below 1
  MarginBins spacing = MarginBins::octaves;  ///< of the bins
  float low = -1.0f;  ///< even: the smallest margin that is told apart, in units of scores (of logits, where those rank)
  float high = 1.0f;  ///< even: the largest
  int bins = 353;     ///< of each expert, 3 (even: 1) to 65536, 8 bytes each in the load; 353 are 8 an octave
  Centring centring = Centring::bias;  ///< as published: what all biases share moves no choice
  bool frozen = false;  ///< update leaves the bias as it is (and still clears the load); forward counts no margins

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(momentum >= 0.0f && momentum < 1.0f, call, ArgumentName("QuantileBias", "momentum"),
                 std::to_string(momentum), "0 to below 1");
    scale().check(call, "QuantileBias");
    check_centring(call, "QuantileBias", centring);
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const { return scale().bin_of(margin); }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load, const MarginView& margins) const {
    const MarginPosition at = margins.position(expert, margins.tokens() * load.top_k() / load.experts());
    return sub(mul(momentum, bias), mul(sub(1.0f, momentum), scale().margin_at(at)));
  }

 private:
  [[nodiscard]] MOEB_INLINE constexpr MarginScale scale() const { return {spacing, low, high, bins}; }
};
static_assert(BiasBalancer<QuantileBias>);
/// See margin_scale.hpp. Of a class that is derived from it and may have another bin_of, the rule itself is asked.
[[nodiscard]] MOEB_INLINE MarginBinning binning_of(const QuantileBias& rule) {
  return MarginScale{rule.spacing, rule.low, rule.high, rule.bins}.binning();
}

MOEB_NAMESPACE_END
