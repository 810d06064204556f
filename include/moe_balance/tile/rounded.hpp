// Arithmetic in which every operation is rounded exactly once, to nearest, on the CPU and on the GPU alike.
// Compilers may contract a * b + c into a fused multiply-add, and differ in when they do. Code whose bits matter calls `fma` where
// it means one, and `mul`, `add`, `sub` where it does not: none of these is ever contracted with another.
#pragma once

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "moe_balance does not work with -ffast-math or a part of it: NaN and rounding are part of what it promises"
#endif

#include <moe_balance/config.hpp>
#include <moe_balance/tile/constants.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

#if defined(__CUDA_ARCH__)

__device__ inline float fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
__device__ inline float mul(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline float add(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ inline float sub(float a, float b) {
  return __fsub_rn(a, b);
}
__device__ inline float div(float a, float b) {
  return __fdiv_rn(a, b);
}
__device__ inline float sqrt(float a) {
  return __fsqrt_rn(a);
}
__device__ inline double fma(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
__device__ inline double mul(double a, double b) {
  return __dmul_rn(a, b);
}
__device__ inline double add(double a, double b) {
  return __dadd_rn(a, b);
}
__device__ inline double sub(double a, double b) {
  return __dsub_rn(a, b);
}
__device__ inline double div(double a, double b) {
  return __ddiv_rn(a, b);
}
__device__ inline double sqrt(double a) {
  return __dsqrt_rn(a);
}
__device__ inline std::int32_t bits_of(float a) {
  return __float_as_int(a);
}
__device__ inline float float_of(std::int32_t a) {
  return __int_as_float(a);
}
__device__ inline std::int64_t bits_of(double a) {
  return __double_as_longlong(a);
}
__device__ inline double double_of(std::int64_t a) {
  return __longlong_as_double(a);
}

template <class Real>
__device__ inline bool either_is_nan(Real a, Real b) {
  return a != a || b != b;
}

/// Nearest integer, ties to even; |a| < 2^51.
__device__ inline std::int64_t round_to_int64(float a) {
  return __float2ll_rn(a);
}
__device__ inline std::int64_t round_to_int64(double a) {
  return __double2ll_rn(a);
}

#else

MOEB_INLINE float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
MOEB_INLINE double fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
// A product is written as a fused multiply-add of -0, which changes no result and leaves nothing to contract.
MOEB_INLINE float mul(float a, float b) {
  return __builtin_fmaf(a, b, -0.0f);
}
MOEB_INLINE double mul(double a, double b) {
  return __builtin_fma(a, b, -0.0);
}
MOEB_INLINE float add(float a, float b) {
  return a + b;
}
MOEB_INLINE double add(double a, double b) {
  return a + b;
}
MOEB_INLINE float sub(float a, float b) {
  return a - b;
}
MOEB_INLINE double sub(double a, double b) {
  return a - b;
}
MOEB_INLINE float div(float a, float b) {
  return a / b;
}
MOEB_INLINE double div(double a, double b) {
  return a / b;
}
MOEB_INLINE double sqrt(double a) {
  return __builtin_sqrt(a);
}
MOEB_INLINE std::int32_t bits_of(float a) {
  return __builtin_bit_cast(std::int32_t, a);
}
MOEB_INLINE float float_of(std::int32_t a) {
  return __builtin_bit_cast(float, a);
}
MOEB_INLINE std::int64_t bits_of(double a) {
  return __builtin_bit_cast(std::int64_t, a);
}
MOEB_INLINE double double_of(std::int64_t a) {
  return __builtin_bit_cast(double, a);
}

/// Whether a or b is NaN, by one comparison.
template <class Real>
MOEB_INLINE bool either_is_nan(Real a, Real b) {
  return __builtin_isunordered(a, b);
}

/// Nearest integer, ties to even; |a| < 2^51. Adding 1.5 * 2^52 leaves the integer in the low bits; unlike a conversion
/// instruction this vectorises on every x86-64.
MOEB_INLINE std::int64_t round_to_int64(double a) {
  constexpr double magic = 6755399441055744.0;
  return bits_of(a + magic) - bits_of(magic);
}
MOEB_INLINE std::int64_t round_to_int64(float a) {
  return round_to_int64(static_cast<double>(a));
}

#endif

/// a and b, with both computed.
MOEB_INLINE constexpr bool both(bool a, bool b) {
  return (static_cast<int>(a) & static_cast<int>(b)) != 0;
}

/// condition ? a : b, with both computed. On the CPU by bit masks: a conditional expression would let the compiler compute only the chosen
/// one, behind a branch, which does not vectorise.
#if defined(__CUDA_ARCH__)
template <class Real>
__device__ inline Real choose(bool condition, Real a, Real b) {
  return condition ? a : b;
}
#else
MOEB_INLINE float choose(bool condition, float a, float b) {
  const std::int32_t mask = condition ? -1 : 0;
  return float_of((bits_of(a) & mask) | (bits_of(b) & ~mask));
}
MOEB_INLINE double choose(bool condition, double a, double b) {
  return condition ? a : b;
}
MOEB_INLINE std::int32_t choose(bool condition, std::int32_t a, std::int32_t b) {
  const std::int32_t mask = condition ? -1 : 0;
  return (a & mask) | (b & ~mask);
}
MOEB_INLINE std::int64_t choose(bool condition, std::int64_t a, std::int64_t b) {
  return condition ? a : b;
}
#endif

/// The larger, the smaller of a and b; b where one is NaN. On the CPU one instruction each.
template <class Real>
MOEB_INLINE Real larger_of(Real a, Real b) {
  return a > b ? a : b;
}
template <class Real>
MOEB_INLINE Real smaller_of(Real a, Real b) {
  return a < b ? a : b;
}

/// The larger of a and b; a NaN that is positive where one of them is NaN.
MOEB_INLINE float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return either_is_nan(a, b) ? quiet_nan<float> : larger_of(a, b);
#endif
}

// Division and square root in a range that needs no special cases: the instruction sequences of CUDA's own correctly rounded ones, without
// their calls to slow paths for subnormal and overflowing operands, which cost registers at every use. Each refines what an approximate
// instruction gave. tests/rounded_test shows that the result is correctly rounded whatever that was within its documented error, but for one
// reciprocal and two square roots; there, as CUDA's own, it trusts the instruction, of which rounded_cuda_test asks every mantissa.
/// 1 / a from an approximation of it within an ulp.
MOEB_INLINE float refined_reciprocal(float a, float approximation) {
  return fma(approximation, fma(-a, approximation, 1.0f), approximation);
}
/// a / b from 1 / b, correctly rounded.
MOEB_INLINE float refined_quotient(float a, float b, float reciprocal) {
  float q = mul(a, reciprocal);
  q = fma(reciprocal, fma(-b, q, a), q);
  return fma(reciprocal, fma(-b, q, a), q);
}
/// Square root of a from an approximation of 1 / sqrt(a) within 2^-22.9 of it.
MOEB_INLINE float refined_sqrt(float a, float approximation) {
  const float root = mul(a, approximation);
  return fma(fma(-root, root, a), mul(0.5f, approximation), root);
}

/// 1 / a, correctly rounded; 2^-126 <= |a| <= 2^126.
MOEB_INLINE float reciprocal_in_range(float a) {
#if defined(__CUDA_ARCH__)
  float approximation;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(approximation) : "f"(a));
  return refined_reciprocal(a, approximation);
#else
  return 1.0f / a;
#endif
}
/// a / b, correctly rounded; |a|, |b| and the quotient's magnitude in 2^-100 to 2^100.
MOEB_INLINE float div_in_range(float a, float b) {
#if defined(__CUDA_ARCH__)
  return refined_quotient(a, b, reciprocal_in_range(b));
#else
  return a / b;
#endif
}
/// 1 / sqrt(a) within 2^-22.9 of it, by two steps of third order from a guess that a's bits give; a is finite and at least 2^-100.
MOEB_INLINE float approximate_inverse_sqrt(float a) {
  float y = float_of(static_cast<std::int32_t>(0x5f375a86u - (static_cast<std::uint32_t>(bits_of(a)) >> 1)));
  for (int step = 0; step < 2; ++step) {
    const float error = fma(-mul(a, y), y, 1.0f);
    y = fma(fma(error, 0.375f, 0.5f), mul(y, error), y);
  }
  return y;
}
/// Square root, correctly rounded; a is finite and at least 2^-100. Not the C library's on the CPU: that sets errno, so that no loop which calls it vectorises.
MOEB_INLINE float sqrt_in_range(float a) {
#if defined(__CUDA_ARCH__)
  float approximation;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(approximation) : "f"(a));
  return refined_sqrt(a, approximation);
#else
  return refined_sqrt(a, approximate_inverse_sqrt(a));
#endif
}
#if !defined(__CUDA_ARCH__)
/// Square root, correctly rounded, of any a.
MOEB_INLINE float sqrt(float a) {
  const bool is_small = a < 7.88860905e-31f;  // 2^-100; times 2^64 then, exactly
  const float root = sqrt_in_range(choose(is_small, mul(a, 18446744073709551616.0f), a));
  const float scaled = choose(is_small, mul(root, 2.32830644e-10f), root);
  return choose(both(a > 0.0f, a < infinity<float>), scaled, choose(a < 0.0f, quiet_nan<float>, a));
}
#endif

// Double is for checks: its full-range operations serve everywhere.
MOEB_INLINE double reciprocal_in_range(double a) {
  return div(1.0, a);
}
MOEB_INLINE double div_in_range(double a, double b) {
  return div(a, b);
}
MOEB_INLINE double sqrt_in_range(double a) {
  return sqrt(a);
}

/// 1 / a where |a| is 2^-126 to 2^126, NaN elsewhere (NaN and infinity included): a sum outside that range weighs nothing.
template <class Real>
MOEB_INLINE Real reciprocal_or_nan(Real a) {
#if defined(__CUDA_ARCH__)
  const Real magnitude = fabs(a);
  const bool in_range = magnitude >= Real(1.17549435e-38f) && magnitude <= Real(8.50705917e37f);
#else
  const Real magnitude = choose(a < Real(0), -a, a);
  const bool in_range = both(magnitude >= Real(1.17549435e-38f), magnitude <= Real(8.50705917e37f));
#endif
  return choose(in_range, reciprocal_in_range(choose(in_range, a, Real(1))), quiet_nan<Real>);
}

MOEB_NAMESPACE_END
