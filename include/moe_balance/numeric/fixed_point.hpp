// Sums over tokens as integers: a probability becomes round(p * 2^32), so that the order of additions cannot matter.
#pragma once

#include <moe_balance/tile/rounded.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Binary digits behind the point. Probabilities: 2^31 tokens fit. Token losses have a coefficient in them, often a small one: more digits.
inline constexpr int probability_fraction_bits = 32;
inline constexpr int token_loss_fraction_bits = 33;

/// Larger values of a token's loss count as this one.
inline constexpr float most_token_loss = 16384.0f;
/// The largest that counts, so that the sum over `tokens` fits whatever they are.
[[nodiscard]] constexpr float largest_token_loss(std::int64_t tokens) {
  constexpr float sum = 1073741568.0f;  // 2^30, less than which the sum has to be, and what roundings may add
  return static_cast<float>(tokens) * most_token_loss < sum ? most_token_loss : sum / static_cast<float>(tokens);
}

/// round(value * 2^bits); values outside +-limit, at most 2^(50 - bits) as it is for probabilities, saturate and NaN is 0, so that no conversion overflows.
template <int Bits, class Real>
[[nodiscard]] MOEB_INLINE std::int64_t to_fixed(Real value, Real limit = static_cast<Real>(std::int64_t{1} << (50 - Bits))) {
  const Real number = choose(value == value, value, Real(0));
  const Real clamped = larger_of(smaller_of(number, limit), -limit);
  return round_to_int64(mul(clamped, static_cast<Real>(std::int64_t{1} << Bits)));
}

/// The same as to_fixed<probability_fraction_bits> for 0 <= value <= 2, without its checks.
[[nodiscard]] MOEB_INLINE std::int64_t unit_to_int64(float value) {
  return round_to_int64(mul(value, 4294967296.0f));
}

/// round(value * 2^32) as high * 2^22 + low, for 0 <= value <= 2: the same integer as to_fixed's, without a conversion to 64 bits.
/// 0 <= high <= 2^11 and |low| <= 2^21, so that 32 bits hold the sums of `most_unit_sums` of them.
struct UnitFixed {
  static constexpr int low_bits = 22;
  std::int32_t high;
  std::int32_t low;

  [[nodiscard]] MOEB_INLINE std::int64_t value() const { return (static_cast<std::int64_t>(high) << low_bits) + low; }
};
inline constexpr int most_unit_sums = 512;

/// The same with a constant added to each half, or n times the constants in sums of n, all modulo 2^32.
struct UnitBits {
  std::uint32_t high;
  std::uint32_t low;

  [[nodiscard]] MOEB_INLINE UnitFixed without_constants(std::uint32_t n) const {
    return {static_cast<std::int32_t>(high - n * 0x46400000u), static_cast<std::int32_t>(low - n * 0x4b400000u)};
  }
};

[[nodiscard]] MOEB_INLINE UnitBits unit_to_bits(float value) {
  constexpr float tenths = 12288.0f;       // 1.5 * 2^13: adding it rounds to a multiple of 2^-10, kept in the low bits
  constexpr float integers = 12582912.0f;  // 1.5 * 2^23: the same for integers
  const float shifted = add(value, tenths);
  const float rest = sub(value, sub(shifted, tenths));  // exact
  const float low = fma(rest, 4294967296.0f, integers);
  return {static_cast<std::uint32_t>(bits_of(shifted)), static_cast<std::uint32_t>(bits_of(low))};
}

[[nodiscard]] MOEB_INLINE UnitFixed unit_to_fixed(float value) {
  return unit_to_bits(value).without_constants(1);
}

template <int Bits>
[[nodiscard]] MOEB_INLINE double from_fixed(std::int64_t value) {
  return mul(static_cast<double>(value), 1.0 / static_cast<double>(std::int64_t{1} << Bits));
}

MOEB_NAMESPACE_END
