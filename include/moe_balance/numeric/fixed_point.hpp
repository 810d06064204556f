// Sums over tokens as integers: a probability becomes round(p * 2^32), so that the order of additions cannot matter.
#pragma once

#include <moe_balance/tile/rounded.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Binary digits behind the point. Probabilities: 2^31 tokens fit. Token losses have a coefficient in them, often a small one: more digits,
/// and 2^27 tokens of value 1 fit.
inline constexpr int probability_fraction_bits = 32;
inline constexpr int token_loss_fraction_bits = 36;

/// round(value * 2^bits); values outside +-2^18 (probability) or +-2^14 (token loss) saturate and NaN is 0, so that no conversion
/// overflows.
template <int Bits, class Real>
[[nodiscard]] MOEB_INLINE std::int64_t to_fixed(Real value) {
  constexpr Real limit = static_cast<Real>(std::int64_t{1} << (50 - Bits));
  const Real number = choose(value == value, value, Real(0));
  const Real clamped = larger_of(smaller_of(number, limit), -limit);
  return round_to_int64(mul(clamped, static_cast<Real>(std::int64_t{1} << Bits)));
}

template <int Bits>
[[nodiscard]] MOEB_INLINE double from_fixed(std::int64_t value) {
  return mul(static_cast<double>(value), 1.0 / static_cast<double>(std::int64_t{1} << Bits));
}

MOEB_NAMESPACE_END
