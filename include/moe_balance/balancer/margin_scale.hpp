// The bins in which margins are counted: which bin a margin is in, and which margin lies where in a bin.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// How wide the bins of margins are: of each octave of their size as many, from 2^-16 to 2^6 on either side of a bin of all that is smaller, whatever the scores'
/// scale; or all equally, from `low` to `high`. What lies beyond counts in the last bin.
enum class MarginBins : std::uint8_t { octaves, even };

/// How MarginScale finds bins.
struct MarginBinning {
  static constexpr int first_octave = -16;  ///< of sizes that are told apart, as a power of two
  bool is_even;                             ///< MarginBins::even
  float low;                                ///< even: the smallest margin that is told apart
  float bins;                               ///< of each expert
  float bins_per_unit;                      ///< even
  int middle;                               ///< octaves: bins of either sign, on either side of that of the smallest margins
  float bins_per_octave;                    ///< octaves

  /// The bin that a margin counts in.
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const {
    return choose(is_even, even_bin_of(margin), octave_bin_of(margin));  // both: loops of them are vectors
  }

 private:
  [[nodiscard]] MOEB_INLINE int even_bin_of(float margin) const {
    const float bin = mul(sub(margin, low), bins_per_unit);
    const float last = sub(bins, 1.0f);
    return static_cast<int>(choose(bin > 0.0f, choose(bin < last, bin, last), 0.0f));  // NaN is nowhere above
  }
  /// The logarithm to base 2 of a float's size, but that it is linear in each octave: the bits of the float themselves, exponent and fraction.
  [[nodiscard]] MOEB_INLINE int octave_bin_of(float margin) const {
    const auto last = static_cast<float>(middle - 1);
    const auto size_bits = static_cast<float>(bits_of(margin) & largest<std::int32_t>);
    const float octave = sub(mul(size_bits, 0x1p-23f), static_cast<float>(127 + first_octave));
    const float place = mul(octave, bins_per_octave);
    const int own = 1 + static_cast<int>(choose(place < last, place, last));
    return middle + choose(place < 0.0f, 0, choose(margin > 0.0f, own, -own));  // NaN: as -infinity
  }
};

/// The bins of QuantileBias and ThresholdBias, whose members these are.
struct MarginScale {
  MarginBins spacing;  ///< of the bins
  float low;           ///< even: the smallest margin that is told apart
  float high;          ///< even: the largest
  int bins;            ///< of each expert

  /// `policy` is the rule's name. Errors: InvalidArgument.
  void check(const char* call, const char* policy) const {
    MOEB_EXPECTS(spacing <= MarginBins::even, call, ArgumentName(policy, "spacing"), static_cast<int>(spacing),
                 "octaves, even");
    MOEB_EXPECTS(is_finite(low), call, ArgumentName(policy, "low"), std::to_string(low), "finite numbers");
    MOEB_EXPECTS(is_finite(sub(high, low)) && high > low, call, ArgumentName(policy, "high"), std::to_string(high),
                 "more than low, which is ", std::to_string(low), ", by a finite number");
    const int fewest = spacing == MarginBins::even ? 1 : 3;
    MOEB_EXPECTS(bins >= fewest && bins <= max_bins, call, ArgumentName(policy, "bins"), bins, fewest, " to ", max_bins);
  }

  /// Which bin a margin counts in, with the quotients that are the same for all margins.
  [[nodiscard]] MOEB_INLINE MarginBinning binning() const {
    const int middle = bins_of_sign();
    return {spacing == MarginBins::even,
            low,
            static_cast<float>(bins),
            div(static_cast<float>(bins), sub(high, low)),
            middle,
            div(static_cast<float>(middle), static_cast<float>(octaves))};
  }
  /// The bin that a margin counts in.
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const { return binning().bin_of(margin); }
  /// The margin that lies there.
  [[nodiscard]] MOEB_INLINE float margin_at(const MarginPosition& at) const {
    return spacing == MarginBins::even ? even_margin_at(at) : octave_margin_at(at);
  }

 private:
  static constexpr int first_octave = MarginBinning::first_octave;
  static constexpr int octaves = 22;
  /// Bins of either sign, on either side of that of the smallest margins.
  [[nodiscard]] MOEB_INLINE int bins_of_sign() const { return (bins - 1) / 2; }

  [[nodiscard]] MOEB_INLINE float even_margin_at(const MarginPosition& at) const {
    const float share = div(add(static_cast<float>(at.bin), at.part), static_cast<float>(bins));
    return fma(sub(high, low), share, low);
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

/// What has a rule's bin_of: the rule, or for those of the library what has its quotients at hand.
template <class Rule>
[[nodiscard]] MOEB_INLINE const Rule& binning_of(const Rule& rule) {
  return rule;
}

MOEB_NAMESPACE_END
