// Values of the library's element types as bytes and as doubles. The 16-bit conversions are the tests' own: round to nearest even.
#pragma once

#include <moe_balance/views.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace testing {

namespace mb = moe_balance;
using Bytes = std::vector<std::uint8_t>;

inline std::uint16_t bfloat16_bits(double value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline double bfloat16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// IEEE binary16 of a float32 value: 10 bits of fraction, exponents -14 to 15, subnormals down to 2^-24.
inline std::uint16_t float16_bits(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00u);
  const double size = std::abs(value);
  if (size >= 65520.0) return static_cast<std::uint16_t>(sign | 0x7c00u);
  const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
  const double in_units = std::nearbyint(std::ldexp(size, 10 - exponent));  // at most 2048: a carry runs into the exponent
  const auto units = static_cast<std::uint32_t>(in_units);
  const auto biased = static_cast<std::uint32_t>(exponent + 15);
  const std::uint32_t magnitude = units < 1024 ? units : (biased << 10) + (units - 1024);
  return static_cast<std::uint16_t>(sign | magnitude);
}
inline double float16_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  if (exponent == 31) size = fraction == 0 ? HUGE_VAL : std::nan("");
  return (bits & 0x8000) != 0 ? -size : size;
}

template <class T>
void append(Bytes& bytes, T value) {
  const std::size_t at = bytes.size();
  bytes.resize(at + sizeof(T));
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}
template <class T>
T element(const Bytes& bytes, std::size_t index) {
  T value{};
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

inline Bytes encoded(mb::DataType type, const std::vector<double>& values) {
  Bytes bytes;
  bytes.reserve(values.size() * mb::size_of(type));
  for (const double value : values) {
    switch (type) {
      case mb::DataType::float64:
        append(bytes, value);
        break;
      case mb::DataType::float32:
        append(bytes, static_cast<float>(value));
        break;
      case mb::DataType::bfloat16:
        append(bytes, bfloat16_bits(value));
        break;
      case mb::DataType::float16:
        append(bytes, float16_bits(value));
        break;
    }
  }
  return bytes;
}

inline std::vector<double> decoded(mb::DataType type, const Bytes& bytes) {
  std::vector<double> values(bytes.size() / mb::size_of(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    switch (type) {
      case mb::DataType::float64:
        values[i] = element<double>(bytes, i);
        break;
      case mb::DataType::float32:
        values[i] = element<float>(bytes, i);
        break;
      case mb::DataType::bfloat16:
        values[i] = bfloat16_value(element<std::uint16_t>(bytes, i));
        break;
      case mb::DataType::float16:
        values[i] = float16_value(element<std::uint16_t>(bytes, i));
        break;
    }
  }
  return values;
}

/// The values that a type can hold nearest to the given ones.
inline std::vector<double> rounded_to(mb::DataType type, const std::vector<double>& values) {
  return decoded(type, encoded(type, values));
}

/// Half the distance between neighbouring values of a type, relative to the value; what storing a result may cost.
inline double half_ulp(mb::DataType type) {
  switch (type) {
    case mb::DataType::float64:
      return 0x1p-53;
    case mb::DataType::float32:
      return 0x1p-24;
    case mb::DataType::bfloat16:
      return 0x1p-8;
    case mb::DataType::float16:
      return 0x1p-11;
  }
  return 0;
}

}  // namespace testing
