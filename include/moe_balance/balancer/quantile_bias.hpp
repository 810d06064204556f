// QuantileBias: quantile balancing. An expert's bias goes where the step's tokens would have been balanced: to minus the margin that T K / E of them exceed,
// in one step instead of many small ones, without a rate to tune:
//   alpha_t = the (K + 1)-th largest of s_t + b;  q_i = the (T K / E + 1)-th largest of s_ti - alpha_t over the step's tokens, all micro-batches and ranks;
//   b_i = momentum * b_i - (1 - momentum) * q_i;  b_i -= mean of all b.
// Margins are counted in `bins` of equal width, integers that add up over ranks: q_i is as exact as a bin is narrow.
// Source: Su 2026, "Quantile Balancing", where beta is -b; Megatron-Core's qb_dual_update. Choose it with Sigmoid, whose scores fit the range as it is.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

struct QuantileBias {
  float momentum = 0.9f;               ///< the part of the bias that stays, 0 to below 1
  float low = -1.0f;                   ///< the smallest margin that is told apart, in units of scores
  float high = 1.0f;                   ///< the largest
  int bins = 500;                      ///< of each expert's histogram, 1 to 65536, in the load: 8 bytes each
  Centring centring = Centring::bias;  ///< as published: what all biases share moves no choice
  bool frozen = false;                 ///< update leaves the bias as it is (and still clears the load); forward counts no margins

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(momentum >= 0.0f && momentum < 1.0f, call, ArgumentName("QuantileBias", "momentum"),
                 std::to_string(momentum), "0 to below 1");
    MOEB_EXPECTS(is_finite(low), call, ArgumentName("QuantileBias", "low"), std::to_string(low), "finite numbers");
    MOEB_EXPECTS(is_finite(sub(high, low)) && high > low, call, ArgumentName("QuantileBias", "high"), std::to_string(high),
                 "more than low, which is ", std::to_string(low), ", by a finite number");
    MOEB_EXPECTS(bins >= 1 && bins <= max_bins, call, ArgumentName("QuantileBias", "bins"), bins, "1 to ", max_bins);
    check_centring(call, "QuantileBias", centring);
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const {
    const auto count = static_cast<float>(bins);
    const float bin = mul(sub(margin, low), div(count, sub(high, low)));
    return !(bin > 0.0f) ? 0 : bin < count ? static_cast<int>(bin) : bins - 1;  // NaN is nowhere above
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load, const MarginView& margins) const {
    const MarginPosition at = margins.position(expert, margins.tokens() * load.top_k() / load.experts());
    const float share = div(add(static_cast<float>(at.bin), at.part), static_cast<float>(bins));
    const float quantile = fma(sub(high, low), share, low);
    return sub(mul(momentum, bias), mul(sub(1.0f, momentum), quantile));
  }
};
static_assert(BiasBalancer<QuantileBias>);

MOEB_NAMESPACE_END
