// The normal distribution, with the same bits on every CPU and GPU: only correctly rounded operations and explicit fma. float: probabilities to 1.8e-7,
// and, where they are small, to 5e-6 of themselves; tested. double is for checks on the CPU and uses the C library.
#pragma once

#include <moe_balance/numeric/math.hpp>

MOEB_NAMESPACE_BEGIN

/// Of a standard normal number.
template <class Real>
struct NormalAt {
  Real below;    ///< the probability that it is below z
  Real density;  ///< its derivative by z
};

/// The tail is density * t p(t) with t = 1 / (1 + 0.34375 |z|): p of degree 8 has the least relative error for |z| <= 13.4, where the tail leaves the range
/// of normal float32 numbers (2e-8).
[[nodiscard]] MOEB_INLINE NormalAt<float> normal_at(float z) {
  const float size = choose(z < 0.0f, -z, z);
  const float exponential = exp_of_difference(mul(mul(-0.5f, size), size));
  const float t = div(1.0f, fma(0.34375f, size, 1.0f));
  float p = fma(-0.028098329f, t, 0.145177529f);
  p = fma(p, t, -0.274298248f);
  p = fma(p, t, 0.193691713f);
  p = fma(p, t, -0.0410922737f);
  p = fma(p, t, 0.113363451f);
  p = fma(p, t, 0.116573944f);
  p = fma(p, t, 0.137563685f);
  p = fma(p, t, 0.137118526f);
  const float tail = mul(exponential, mul(p, t));
  return {choose(z < 0.0f, tail, sub(1.0f, tail)), mul(0.398942280f, exponential)};
}
/// The same in double.
[[nodiscard]] MOEB_INLINE NormalAt<double> normal_at(double z) {
  return {0.5 * __builtin_erfc(-0.70710678118654752 * z), 0.39894228040143268 * __builtin_exp(-0.5 * z * z)};
}

MOEB_NAMESPACE_END
