// The GPU's short division and square root round correctly whatever the approximate instructions that they start from give, within the error
// that the CUDA documentation states for them. Simulated here with every mantissa; rounded_cuda_test has the instructions themselves.
#include <moe_balance/tile/rounded.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace mb = moe_balance;

namespace {

constexpr std::uint32_t mantissas = 1u << 23;

float with_mantissa(std::uint32_t mantissa, int exponent) {
  return std::bit_cast<float>((static_cast<std::uint32_t>(exponent + 127) << 23) | mantissa);
}

/// `ulps` floats above a positive value.
float moved(float value, int ulps) {
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(value) + ulps);
}

}  // namespace

namespace {

/// A value and the distance of an approximation, in floats, from the nearest one.
using Case = std::pair<float, int>;

/// Where refined_reciprocal is wrong, over every `step`-th mantissa, the last one among them, and every approximation within the one ulp that the
/// PTX manual states for rcp.approx.
std::vector<Case> wrong_reciprocals(int exponent, std::uint32_t step) {
  std::vector<Case> wrong;
  for (std::uint32_t mantissa = mantissas - 1; mantissa < mantissas; mantissa -= step) {
    const float a = with_mantissa(mantissa, exponent);
    const double exact = 1.0 / static_cast<double>(a);
    const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    const float correct = 1.0f / a;
    for (int ulps = -2; ulps <= 2; ++ulps) {
      const float approximation = moved(correct, ulps);
      if (std::abs(static_cast<double>(approximation) - exact) > ulp) continue;
      if (mb::refined_reciprocal(a, approximation) != correct) wrong.emplace_back(a, ulps);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("a reciprocal refined from any value within an ulp is correctly rounded, but for one mantissa") {
  // At the largest mantissa it is wrong when the instruction gives the float below the nearest one, which only rounded_cuda_test can tell.
  CHECK(wrong_reciprocals(0, 1) == std::vector<Case>{{with_mantissa(mantissas - 1, 0), -1}});
  for (const int exponent : {-126, -125, 124}) {
    CHECK(wrong_reciprocals(exponent, 61) == std::vector<Case>{{with_mantissa(mantissas - 1, exponent), -1}});
  }
}

TEST_CASE(
    "a square root refined from any value within 2^-22.9 of 1 / sqrt(a) is correctly rounded, but for two values of a") {
  // At those two it is wrong when the instruction gives the float above the nearest one, which only rounded_cuda_test can tell.
  std::vector<Case> wrong;
  for (int exponent = 0; exponent <= 1; ++exponent) {
    for (std::uint32_t mantissa = 0; mantissa < mantissas; ++mantissa) {
      const float a = with_mantissa(mantissa, exponent);
      const double exact = 1.0 / std::sqrt(static_cast<double>(a));
      const auto nearest = static_cast<float>(exact);
      for (int ulps = -3; ulps <= 3; ++ulps) {  // 2^-22.9 is up to 2.2 ulps
        const float approximation = moved(nearest, ulps);
        if (std::abs(static_cast<double>(approximation) - exact) > 0x1.1262p-23 * exact) continue;
        if (mb::refined_sqrt(a, approximation) != std::sqrt(a)) wrong.emplace_back(a, ulps);
      }
    }
  }
  CHECK(wrong == std::vector<Case>{{with_mantissa(0x7c114a, 0), 1}, {with_mantissa(0x6e9372, 1), 1}});
}

TEST_CASE("a quotient refined from the correctly rounded reciprocal is correctly rounded: every divisor's mantissa") {
  std::mt19937 random(1);
  std::int64_t wrong = 0;
  for (std::uint32_t mantissa = 0; mantissa < mantissas; ++mantissa) {
    const float b = with_mantissa(mantissa, 0);
    const float reciprocal = 1.0f / b;
    const auto bits = static_cast<std::uint32_t>(random());
    for (const std::uint32_t numerator : {bits % mantissas, mantissa ^ 1u, mantissas - 1}) {
      const float a = with_mantissa(numerator, static_cast<int>(bits >> 24) % 100 - 50);
      wrong += mb::refined_quotient(a, b, reciprocal) != a / b ? 1 : 0;
    }
  }
  CHECK(wrong == 0);
}
