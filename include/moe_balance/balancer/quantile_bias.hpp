// QuantileBias: quantile balancing. An expert's bias goes to where the step's tokens would have been balanced, minus the margin that T K / E of them exceed, and
// `momentum` says how much of the way it leaves to later steps. No step size has to fit the scores:
//   alpha_t = the (K + 1)-th largest of s_t + b;  q_i = the (T K / E + 1)-th largest of s_ti - alpha_t over the step's tokens, all micro-batches and ranks;
//   b_i = momentum * b_i - (1 - momentum) * q_i;  b_i -= mean of all b.
// Margins are counted in bins, integers that add up over ranks, and taken to be evenly spread over their bin: q_i is less than a bin off.
// Source: Su 2026, "Quantile Balancing", where beta is -b; Megatron-Core's qb_dual_update. For any scoring.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// How wide the bins of margins are: of each octave of their size as many, from 2^-16 to 2^6 on either side of a bin of all that is smaller, whatever the scores'
/// scale; or all equally, from `low` to `high`. What lies beyond counts in the last bin.
enum class MarginBins : std::uint8_t { octaves, even };

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
    MOEB_EXPECTS(spacing <= MarginBins::even, call, ArgumentName("QuantileBias", "spacing"), static_cast<int>(spacing),
                 "octaves, even");
    MOEB_EXPECTS(is_finite(low), call, ArgumentName("QuantileBias", "low"), std::to_string(low), "finite numbers");
    MOEB_EXPECTS(is_finite(sub(high, low)) && high > low, call, ArgumentName("QuantileBias", "high"), std::to_string(high),
                 "more than low, which is ", std::to_string(low), ", by a finite number");
    const int fewest = spacing == MarginBins::even ? 1 : 3;
    MOEB_EXPECTS(bins >= fewest && bins <= max_bins, call, ArgumentName("QuantileBias", "bins"), bins, fewest, " to ",
                 max_bins);
    check_centring(call, "QuantileBias", centring);
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const {
    return choose(spacing == MarginBins::even, even_bin_of(margin),
                  octave_bin_of(margin));  // both: loops of them are vectors
  }

  /// See BiasFromMargins.
  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const LoadView& load, const MarginView& margins) const {
    const MarginPosition at = margins.position(expert, margins.tokens() * load.top_k() / load.experts());
    const float quantile = spacing == MarginBins::even ? even_margin_at(at) : octave_margin_at(at);
    return sub(mul(momentum, bias), mul(sub(1.0f, momentum), quantile));
  }

 private:
  static constexpr int first_octave = -16;
  static constexpr int octaves = 22;
  /// Bins of either sign, on either side of that of the smallest margins.
  [[nodiscard]] MOEB_INLINE int bins_of_sign() const { return (bins - 1) / 2; }

  [[nodiscard]] MOEB_INLINE int even_bin_of(float margin) const {
    const auto count = static_cast<float>(bins);
    const float bin = mul(sub(margin, low), div(count, sub(high, low)));
    const float last = sub(count, 1.0f);
    return static_cast<int>(choose(bin > 0.0f, choose(bin < last, bin, last), 0.0f));  // NaN is nowhere above
  }
  [[nodiscard]] MOEB_INLINE float even_margin_at(const MarginPosition& at) const {
    const float share = div(add(static_cast<float>(at.bin), at.part), static_cast<float>(bins));
    return fma(sub(high, low), share, low);
  }

  /// The logarithm to base 2 of a float's size, but that it is linear in each octave: the bits of the float themselves, exponent and fraction.
  [[nodiscard]] MOEB_INLINE int octave_bin_of(float margin) const {
    const int middle = bins_of_sign();
    const auto last = static_cast<float>(middle - 1);
    const auto size_bits = static_cast<float>(bits_of(margin) & largest<std::int32_t>);
    const float octave = sub(mul(size_bits, 0x1p-23f), static_cast<float>(127 + first_octave));
    const float place = mul(octave, div(static_cast<float>(middle), static_cast<float>(octaves)));
    const int own = 1 + static_cast<int>(choose(place < last, place, last));
    return middle + choose(place < 0.0f, 0, choose(margin > 0.0f, own, -own));  // NaN: as -infinity
  }
  [[nodiscard]] MOEB_INLINE float octave_margin_at(const MarginPosition& at) const {
    const int middle = bins_of_sign();
    constexpr float smallest = 0x1p-16f;
    if (at.bin == middle) return mul(fma(2.0f, at.part, -1.0f), smallest);
    const bool is_above = at.bin > middle;
    const float place =
        is_above ? add(static_cast<float>(at.bin - middle - 1), at.part) : sub(static_cast<float>(middle - at.bin), at.part);
    const float octave = mul(place, div(static_cast<float>(octaves), static_cast<float>(middle)));  // from the first one on
    const int whole = static_cast<int>(octave);
    const float size = mul(float_of((127 + first_octave + whole) << 23), add(1.0f, sub(octave, static_cast<float>(whole))));
    return is_above ? size : -size;
  }
};
static_assert(BiasBalancer<QuantileBias>);

MOEB_NAMESPACE_END
