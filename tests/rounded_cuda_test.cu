// The GPU's short division and square root against the CPU's correctly rounded ones: every mantissa, the exponents at both ends of their range
// and between.
#include <moe_balance/tile/rounded.hpp>

#include "engine_cuda.cuh"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace mb = moe_balance;

namespace {

enum class Operation { reciprocal, quotient, square_root };

template <Operation Of>
__global__ void apply(const float* a, const float* b, float* result, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= size) return;
  if constexpr (Of == Operation::reciprocal) result[i] = mb::reciprocal_in_range(a[i]);
  if constexpr (Of == Operation::quotient) result[i] = mb::div_in_range(a[i], b[i]);
  if constexpr (Of == Operation::square_root) result[i] = mb::sqrt_in_range(a[i]);
}

constexpr std::uint32_t mantissas = 1u << 23;

float with_mantissa(std::uint32_t mantissa, int exponent) {
  return std::bit_cast<float>((static_cast<std::uint32_t>(exponent + 127) << 23) | mantissa);
}

std::vector<float> every_mantissa(int exponent) {
  std::vector<float> values(mantissas);
  for (std::uint32_t i = 0; i < mantissas; ++i) values[i] = with_mantissa(i, exponent);
  return values;
}

/// How many results differ from `expected(a, b)`.
template <Operation Of, class Expected>
std::int64_t wrong_results(const std::vector<float>& a, const std::vector<float>& b, const Expected& expected) {
  const testing::CudaEngine engine;
  testing::CudaEngine::Array<float> a_there(engine, a), b_there(engine, b), result(engine, std::vector<float>(a.size()));
  const int size = static_cast<int>(a.size());
  apply<Of><<<(size + 255) / 256, 256, 0, engine.place()>>>(a_there.data(), b_there.data(), result.data(), size);
  testing::cuda_check(cudaGetLastError(), "launch");
  const std::vector<float> values = result.values();
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < a.size(); ++i) wrong += values[i] != expected(a[i], b[i]) ? 1 : 0;
  return wrong;
}

}  // namespace

TEST_CASE("reciprocal_in_range is correctly rounded: every mantissa") {
  for (const int exponent : {-126, -125, -1, 0, 1, 60, 125}) {
    CAPTURE(exponent);
    const std::vector<float> a = every_mantissa(exponent);
    CHECK(wrong_results<Operation::reciprocal>(a, a, [](float value, float) { return 1.0f / value; }) == 0);
  }
}

TEST_CASE("sqrt_in_range is correctly rounded: every mantissa, odd and even exponents") {
  for (const int exponent : {-100, -99, -1, 0, 1, 2, 126, 127}) {
    CAPTURE(exponent);
    const std::vector<float> a = every_mantissa(exponent);
    CHECK(wrong_results<Operation::square_root>(a, a, [](float value, float) { return std::sqrt(value); }) == 0);
  }
}

TEST_CASE("div_in_range is correctly rounded: every divisor's mantissa, numerators of all kinds") {
  std::mt19937 random(1);
  for (const int exponent : {-50, 0, 49}) {
    CAPTURE(exponent);
    const std::vector<float> b = every_mantissa(exponent);
    std::vector<float> a;
    for (std::uint32_t i = 0; i < mantissas; ++i) {
      const auto bits = static_cast<std::uint32_t>(random());
      const std::uint32_t mantissa = bits % 4 == 0 ? i ^ 1u : bits % 4 == 1 ? mantissas - 1 : bits % mantissas;
      a.push_back(with_mantissa(mantissa, static_cast<int>(bits >> 24) % 98 - 49));
    }
    CHECK(wrong_results<Operation::quotient>(a, b, [](float x, float y) { return x / y; }) == 0);
  }
}
