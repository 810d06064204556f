// Elements of matrices, whatever their type: as real numbers, and one by one.
#pragma once

#include <moe_balance/numeric/convert.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] MOEB_INLINE float to_real(float value) {
  return value;
}
[[nodiscard]] MOEB_INLINE double to_real(double value) {
  return value;
}
[[nodiscard]] MOEB_INLINE float to_real(bfloat16 value) {
  return to_float(value);
}
[[nodiscard]] MOEB_INLINE float to_real(float16 value) {
  return to_float(value);
}

template <class T, class Real>
[[nodiscard]] MOEB_INLINE T from_real(Real value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return to_bfloat16(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, float16>)
    return to_float16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

/// Calls f with a null pointer of the element type; Real = double means that only float64 is possible.
template <class Real, class Function>
MOEB_INLINE void with_element_type(DataType type, Function&& f) {
  if constexpr (std::is_same_v<Real, double>) {
    f(static_cast<double*>(nullptr));
  } else {
    switch (type) {
      case DataType::bfloat16:
        return f(static_cast<bfloat16*>(nullptr));
      case DataType::float16:
        return f(static_cast<float16*>(nullptr));
      default:
        return f(static_cast<float*>(nullptr));
    }
  }
}

template <bool Const>
[[nodiscard]] MOEB_INLINE std::int64_t row_bytes(const BasicAnyMatrix<Const>& matrix) {
  return matrix.stride * static_cast<std::int64_t>(size_of(matrix.type));
}

/// One element, as a real number.
template <class Real>
[[nodiscard]] MOEB_INLINE Real load_element(const ConstAnyMatrix& matrix, std::int64_t row, std::int64_t column) {
  Real result{};
  with_element_type<Real>(matrix.type, [&](auto* type) MOEB_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    result = to_real(static_cast<const T*>(matrix.data)[row * matrix.stride + column]);
  });
  return result;
}

template <class Real>
MOEB_INLINE void store_element(const AnyMatrix& matrix, std::int64_t row, std::int64_t column, Real value) {
  with_element_type<Real>(matrix.type, [&](auto* type) MOEB_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    static_cast<T*>(matrix.data)[row * matrix.stride + column] = from_real<T>(value);
  });
}

MOEB_NAMESPACE_END
