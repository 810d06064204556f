// bfloat16 and float16 to and from float32 by integer operations: the same bits everywhere, NaN and subnormals included, and no
// use of operators that frameworks switch off (__CUDA_NO_HALF_CONVERSIONS__ and its kin).
#pragma once

#include <moe_balance/tile/rounded.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] MOEB_INLINE float to_float(bfloat16 value) {
  return float_of(static_cast<std::int32_t>(static_cast<std::uint32_t>(value.bits) << 16));
}

[[nodiscard]] MOEB_INLINE float to_float(float16 value) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fff) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  // Scaling by 2^112 rebiases the exponent and makes subnormals normal, exactly.
  const float scaled = mul(float_of(static_cast<std::int32_t>(magnitude)), float_of(0x77800000));
  const auto finite = static_cast<std::uint32_t>(bits_of(scaled));
  const std::uint32_t result = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return float_of(static_cast<std::int32_t>(result | sign));
}

/// Round to nearest, ties to even; NaN stays a NaN.
[[nodiscard]] MOEB_INLINE bfloat16 to_bfloat16(float value) {
  const auto bits = static_cast<std::uint32_t>(bits_of(value));
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t result = value != value ? ((bits >> 16) | 0x40u) : rounded;
  return {static_cast<std::uint16_t>(result)};
}

/// Round to nearest, ties to even; too large becomes infinity, NaN stays a NaN.
[[nodiscard]] MOEB_INLINE float16 to_float16(float value) {
  const auto bits = static_cast<std::uint32_t>(bits_of(value));
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent by 112 and round the 13 bits that go.
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 puts units of 2^-24 into the low bits, rounded to nearest even.
  const float shifted = add(float_of(static_cast<std::int32_t>(magnitude)), 0.5f);
  const std::uint32_t subnormal = static_cast<std::uint32_t>(bits_of(shifted)) - 0x3f000000u;
  std::uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<std::uint16_t>(result | sign)};
}

MOEB_NAMESPACE_END
