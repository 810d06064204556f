// Elementary functions that give the same bits on every CPU and GPU: only correctly rounded operations and explicit fma.
// Float versions are accurate to 2 units in the last place (tested); results below the smallest normal number become 0.
// Double versions are for checks on the CPU and use the C library, by the compiler's names for it: <cmath> would be a tenth of what a file with one
// router takes to compile.
// Polynomials: log and tanh, S. Moshier's Cephes Mathematical Library, single precision; exp, the least relative error of 1 + r + r^2 q(r) for q of degree 4
// (2^-28 where |r| <= ln(2) / 2).
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/tile/rounded.hpp>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] MOEB_INLINE bool is_finite(float x) {
  return (bits_of(x) & 0x7f800000) != 0x7f800000;
}
[[nodiscard]] MOEB_INLINE bool is_finite(double x) {
  return (bits_of(x) & 0x7ff0000000000000LL) != 0x7ff0000000000000LL;
}

/// The highest bit shows whether a number is not finite, also of several or-ed: an exponent of ones carries into it. For sums over rows in memory, where
/// a comparison for each would be a mask.
[[nodiscard]] MOEB_INLINE std::uint32_t fault_of(float x) {
  return (static_cast<std::uint32_t>(bits_of(x)) & 0x7fffffffu) + 0x00800000u;
}

/// Two values that go through the same steps in turns: a processor that looks only some hundred instructions ahead then has two chains of
/// dependent ones to work on.
struct TwoFloats {
  float first;
  float second;
  MOEB_EARLY_INLINE constexpr TwoFloats(float both) : first(both), second(both) {}
  MOEB_EARLY_INLINE constexpr TwoFloats(float a, float b) : first(a), second(b) {}
};
/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats fma(TwoFloats a, TwoFloats b, TwoFloats c) {
  return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)};
}
/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats mul(TwoFloats a, TwoFloats b) {
  return {mul(a.first, b.first), mul(a.second, b.second)};
}
/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats add(TwoFloats a, TwoFloats b) {
  return {add(a.first, b.first), add(a.second, b.second)};
}
/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats sub(TwoFloats a, TwoFloats b) {
  return {sub(a.first, b.first), sub(a.second, b.second)};
}

/// y * 2^n, where the last bits of `shifted` are n.
[[nodiscard]] MOEB_EARLY_INLINE float times_power_of_two(float y, float shifted) {
  const auto exponent = static_cast<std::uint32_t>(bits_of(shifted)) << 23;
  return float_of(static_cast<std::int32_t>(static_cast<std::uint32_t>(bits_of(y)) + exponent));
}
/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats times_power_of_two(TwoFloats y, TwoFloats shifted) {
  return {times_power_of_two(y.first, shifted.first), times_power_of_two(y.second, shifted.second)};
}

/// e^x for -87.33 <= x <= 88.72283, where the result is a normal number; elsewhere some number or NaN. Value: float or TwoFloats.
template <class Value>
[[nodiscard]] MOEB_EARLY_INLINE Value exp_in_range(Value x) {
  constexpr Value magic(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Value shifted = fma(x, Value(1.44269504088896341f), magic);
  const Value n = sub(shifted, magic);
  const Value r = fma(n, Value(2.12194440e-4f), fma(n, Value(-0.693359375f), x));
  Value p = fma(Value(1.38186978e-3f), r, Value(8.36871602e-3f));
  p = fma(p, r, Value(4.16682921e-2f));
  p = fma(p, r, Value(1.66665211e-1f));
  p = fma(p, r, Value(4.99999940e-1f));
  p = fma(p, r, Value(1.0f));
  return times_power_of_two(fma(p, r, Value(1.0f)), shifted);
}

/// e^x. exp(0) is exactly 1.
[[nodiscard]] MOEB_INLINE float exp(float x) {
  const float bounded = choose(x > 88.72283f, infinity<float>, choose(x < -87.33f, 0.0f, exp_in_range(x)));
  return choose(x != x, x, bounded);
}

/// e^x for x <= 0; x itself where it is not: infinity or NaN in what calls this.
[[nodiscard]] MOEB_INLINE float exp_of_difference(float x) {
  return choose(x <= 0.0f, choose(x < -87.33f, 0.0f, exp_in_range(x)), x);
}

/// The same where x is not above 0, and 0 where x is NaN.
[[nodiscard]] MOEB_INLINE float exp_of_difference_or_zero(float x) {
  return choose(x >= -87.33f, exp_in_range(x), 0.0f);
}

/// Each of the two.
[[nodiscard]] MOEB_EARLY_INLINE TwoFloats exp_of_difference_or_zero(TwoFloats x) {
  const TwoFloats e = exp_in_range(x);
  return {choose(x.first >= -87.33f, e.first, 0.0f), choose(x.second >= -87.33f, e.second, 0.0f)};
}

/// Natural logarithm of a normal, positive x.
[[nodiscard]] MOEB_INLINE float log(float x) {
  // x = 2^n * m with m in [sqrt(1/2), sqrt(2)); 0x3f3504f3 is sqrt(1/2).
  const std::int32_t offset = bits_of(x) - 0x3f3504f3;
  const std::int32_t n = offset >> 23;
  const float m = float_of((offset & 0x007fffff) + 0x3f3504f3);
  const float z = sub(m, 1.0f);
  float p = fma(7.0376836292e-2f, z, -1.1514610310e-1f);
  p = fma(p, z, 1.1676998740e-1f);
  p = fma(p, z, -1.2420140846e-1f);
  p = fma(p, z, 1.4249322787e-1f);
  p = fma(p, z, -1.6668057665e-1f);
  p = fma(p, z, 2.0000714765e-1f);
  p = fma(p, z, -2.4999993993e-1f);
  p = fma(p, z, 3.3333331174e-1f);
  const float z2 = mul(z, z);
  const auto nf = static_cast<float>(n);
  float y = mul(mul(p, z), z2);
  y = fma(nf, -2.12194440e-4f, y);
  y = fma(-0.5f, z2, y);
  return fma(nf, 0.693359375f, add(z, y));
}

/// log(1 + u) for u in [0, 1], accurate for the smallest u (Kahan's correction of the rounding of 1 + u).
[[nodiscard]] MOEB_INLINE float log1p(float u) {
  const float w = add(1.0f, u);
  const float rounded = sub(w, 1.0f);
  const bool lost = rounded == 0.0f;
  const float corrected = mul(log(w), div_in_range(choose(lost, 1.0f, u), choose(lost, 1.0f, rounded)));
  return choose(lost, u, corrected);
}

/// 1 / (1 + e^-x); 0 below x = -87.33.
[[nodiscard]] MOEB_INLINE float sigmoid(float x) {
  const float exponential = choose(x > 87.33f, 0.0f, exp_in_range(-x));
  const float result = choose(x < -87.33f, 0.0f, reciprocal_in_range(add(1.0f, exponential)));
  return choose(x != x, x, result);
}

/// Hyperbolic tangent, accurate for the smallest x; 1 or -1 from |x| = 9.011 on.
[[nodiscard]] MOEB_INLINE float tanh(float x) {
  const float magnitude = choose(x < 0.0f, -x, x);
  const float squared = mul(x, x);
  float p = fma(-5.70498872745e-3f, squared, 2.06390887954e-2f);
  p = fma(p, squared, -5.37397155531e-2f);
  p = fma(p, squared, 1.33314422036e-1f);
  p = fma(p, squared, -3.33332819422e-1f);
  const float near_zero = fma(mul(p, squared), x, x);
  const float exponential = exp_in_range(choose(magnitude < 10.0f, mul(2.0f, magnitude), 20.0f));
  const float far = sub(1.0f, mul(2.0f, reciprocal_in_range(add(exponential, 1.0f))));
  const float result = choose(magnitude < 0.625f, near_zero, choose(x < 0.0f, -far, far));
  return choose(x != x, x, result);
}

/// log(1 + e^x), without overflow for large x and without loss for very negative x.
[[nodiscard]] MOEB_INLINE float softplus(float x) {
  const float magnitude = choose(x < 0.0f, -x, x);
  return add(choose(x > 0.0f, x, 0.0f), log1p(exp_of_difference(-magnitude)));
}

MOEB_INLINE double exp(double x) {
  return __builtin_exp(x);
}
MOEB_INLINE double exp_of_difference(double x) {
  return __builtin_exp(x);
}
MOEB_INLINE double exp_of_difference_or_zero(double x) {
  return x == x ? __builtin_exp(x) : 0.0;
}
MOEB_INLINE double log(double x) {
  return __builtin_log(x);
}
MOEB_INLINE double log1p(double x) {
  return __builtin_log1p(x);
}
MOEB_INLINE double sigmoid(double x) {
  return 1.0 / (1.0 + __builtin_exp(-x));
}
MOEB_INLINE double softplus(double x) {
  return (x > 0.0 ? x : 0.0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(x)));
}

MOEB_NAMESPACE_END
