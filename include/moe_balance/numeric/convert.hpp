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
  const std::int32_t magnitude = (value.bits & 0x7fff) << 13;
  const auto sign = static_cast<std::int32_t>(static_cast<std::uint32_t>(value.bits & 0x8000) << 16);
  // Scaling by 2^112 rebiases the exponent and makes subnormals normal, exactly.
  const std::int32_t finite = bits_of(mul(float_of(magnitude), float_of(0x77800000)));
  const std::int32_t not_finite = ((0x0f7fffff - magnitude) >> 31) & 0x7f800000;
  return float_of(finite | not_finite | sign);
}

/// Round to nearest, ties to even; NaN stays a NaN.
[[nodiscard]] MOEB_INLINE bfloat16 to_bfloat16(float value) {
  const auto bits = static_cast<std::uint32_t>(bits_of(value));
  const auto rounded = static_cast<std::int32_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  const auto nan = static_cast<std::int32_t>((bits >> 16) | 0x40u);
  return {static_cast<std::uint16_t>(choose(value != value, nan, rounded))};
}

/// Round to nearest, ties to even; too large becomes infinity, NaN stays a NaN. Masks are made of signs: g++ would make branches of comparisons, and those
/// do not vectorise.
[[nodiscard]] MOEB_INLINE float16 to_float16(float value) {
  const std::int32_t magnitude = bits_of(value) & 0x7fffffff;
  const std::int32_t sign = (bits_of(value) >> 16) & 0x8000;
  // Normal results: rebias the exponent by 112 and round the 13 bits that go; 2^16 becomes infinity.
  const std::int32_t bounded = smaller_of(magnitude, std::int32_t{0x47800000});
  const std::int32_t normal = (bounded - 0x38000000 + 0xfff + ((bounded >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 puts units of 2^-24 into the low bits, rounded to nearest even.
  const std::int32_t subnormal = bits_of(add(float_of(magnitude), 0.5f)) - 0x3f000000;
  const std::int32_t is_subnormal = (magnitude - 0x38800000) >> 31;
  const std::int32_t nan = ((0x7f800000 - magnitude) >> 31) & 0x200;
  return {static_cast<std::uint16_t>((subnormal & is_subnormal) | (normal & ~is_subnormal) | nan | sign)};
}

MOEB_NAMESPACE_END
