// Ranking values as integers: a larger key ranks first. Below every number lies NaN, and below NaN an expert that a policy excludes.
// -0 and +0 have one key, so that ties between them go to the smaller expert id.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/tile/rounded.hpp>

#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

/// The integer type of a real type's keys.
template <class Real>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = std::int32_t;
};
template <>
struct KeyOf<double> {
  using type = std::int64_t;
};
template <class Real>
using Key = typename KeyOf<Real>::type;

template <class K>
inline constexpr K excluded_key = std::numeric_limits<K>::min();
template <class K>
inline constexpr K nan_key = std::numeric_limits<K>::min() + 1;

/// The key of a value that is neither NaN nor -0.
template <class Real>
[[nodiscard]] MOEB_INLINE Key<Real> key_without_minus_zero(Real value) {
  using K = Key<Real>;
  const K bits = bits_of(value);
  return bits ^ ((bits >> (8 * sizeof(K) - 1)) & largest<K>);
}

/// The key of a value that is not NaN.
template <class Real>
[[nodiscard]] MOEB_INLINE Key<Real> key_of_number(Real value) {
  return key_without_minus_zero(add(value, Real(0)));  // adding +0 turns -0 into +0
}

/// The same for a value that is not below +0, nor -0.
template <class Real>
[[nodiscard]] MOEB_INLINE Key<Real> key_of_non_negative(Real value) {
  return bits_of(value);
}

template <class Real>
[[nodiscard]] MOEB_INLINE Key<Real> ordered_key(Real value) {
  return value != value ? nan_key<Key<Real>> : key_of_number(value);
}

/// The value that a key stands for; NaN for nan_key. -0 comes back as +0.
template <class Real>
[[nodiscard]] MOEB_INLINE Real value_of_key(Key<Real> key) {
  using K = Key<Real>;
  const K bits = key ^ ((key >> (8 * sizeof(K) - 1)) & largest<K>);
  if constexpr (sizeof(K) == 4)
    return float_of(bits);
  else
    return double_of(bits);
}

MOEB_NAMESPACE_END
