// The GPU's short division and square root round correctly whatever the approximate instructions that they start from give, within the error
// that the CUDA documentation states for them. Simulated here with every mantissa; rounded_cuda_test has the instructions themselves.
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
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

/// All of a tile that a layout asks for.
struct TwoLanes {
  static constexpr int width = 2;
  static constexpr bool slots_in_registers = true;
};

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

TEST_CASE("square roots on the CPU are the C library's: every mantissa, every exponent, and what is no positive number") {
  std::int64_t wrong = 0;
  for (int exponent = 0; exponent <= 1; ++exponent) {
    for (std::uint32_t mantissa = 0; mantissa < mantissas; ++mantissa) {
      const float a = with_mantissa(mantissa, exponent);
      wrong += mb::sqrt_in_range(a) != std::sqrt(a) ? 1 : 0;
    }
  }
  CHECK(wrong == 0);
  for (int exponent = -100; exponent <= 127; ++exponent) {
    for (std::uint32_t mantissa = mantissas - 1; mantissa < mantissas; mantissa -= 4099) {
      const float a = with_mantissa(mantissa, exponent);
      wrong += mb::sqrt_in_range(a) != std::sqrt(a) ? 1 : 0;
    }
  }
  CHECK(wrong == 0);
  for (std::uint64_t bits = 0; bits < 1ULL << 32;
       bits += 997) {  // any bits: subnormal, infinite, negative and NaN among them
    const auto a = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const float root = mb::sqrt(a);
    const float expected = std::sqrt(a);
    const bool same = std::bit_cast<std::uint32_t>(root) == std::bit_cast<std::uint32_t>(expected);
    wrong += same || (root != root && expected != expected) ? 0 : 1;
  }
  CHECK(wrong == 0);
  for (const float a :
       {0.0f, -0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(),
        std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min(), 0x1p-100f, 0x1.fffffep-101f}) {
    CAPTURE(a);
    CHECK(std::bit_cast<std::uint32_t>(mb::sqrt(a)) == std::bit_cast<std::uint32_t>(std::sqrt(a)));
  }
  CHECK(std::isnan(mb::sqrt(-1.0f)));
  CHECK(std::isnan(mb::sqrt(-std::numeric_limits<float>::infinity())));
  CHECK(std::isnan(mb::sqrt(std::numeric_limits<float>::quiet_NaN())));
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

TEST_CASE("a probability in two halves is the same fixed-point number as in 64 bits") {
  std::mt19937 random(2);
  std::int64_t wrong = 0;
  const auto check = [&](float value) {
    const mb::UnitFixed halves = mb::unit_to_fixed(value);
    const bool in_range = halves.high >= 0 && halves.high <= 2048 && std::abs(halves.low) <= 1 << 21;
    wrong += !in_range || halves.value() != mb::to_fixed<mb::probability_fraction_bits>(value) ? 1 : 0;
  };
  for (int exponent = -40; exponent <= 0; ++exponent) {
    for (int i = 0; i < 20000; ++i) check(with_mantissa(static_cast<std::uint32_t>(random()) % mantissas, exponent));
    for (const std::uint32_t mantissa : {0u, 1u, mantissas / 2, mantissas - 1}) check(with_mantissa(mantissa, exponent));
  }
  for (int i = 0; i < 4096; ++i) {
    check(static_cast<float>(i) / 2048.0f);         // halfway between the high half's steps
    check(std::ldexp(static_cast<float>(i), -33));  // halfway between the low half's
  }
  for (const float value : {0.0f, 1.0f, 2.0f}) check(value);
  CHECK(wrong == 0);
}

TEST_CASE("a probability in 64 bits without checks is the same fixed-point number as with them, from 0 to 2") {
  std::int64_t wrong = 0;
  const auto two = std::bit_cast<std::uint32_t>(2.0f);
  for (std::uint32_t bits = 0; bits <= two; bits += 37) {
    const auto value = std::bit_cast<float>(bits);
    wrong += mb::unit_to_int64(value) != mb::to_fixed<mb::probability_fraction_bits>(value) ? 1 : 0;
  }
  CHECK(wrong == 0);
  CHECK(mb::unit_to_int64(0.0f) == 0);
  CHECK(mb::unit_to_int64(1.0f) == std::int64_t{1} << 32);
  CHECK(mb::unit_to_int64(2.0f) == std::int64_t{1} << 33);
}

namespace {

/// How many units in the last place of a float a value is from the exact one, which is a normal number.
double ulps_between(float value, double exact) {
  return std::abs(static_cast<double>(value) - exact) / std::ldexp(1.0, std::ilogb(exact) - 23);
}

/// The largest such distance of f from the exact function over every `step`-th float between two of one sign, with the last one.
template <class Function, class Exact>
double largest_error(float nearer_to_zero, float farther, std::uint32_t step, const Function& f, const Exact& exact) {
  const auto last = std::bit_cast<std::uint32_t>(farther);
  double largest = ulps_between(f(farther), exact(static_cast<double>(farther)));
  for (auto bits = std::bit_cast<std::uint32_t>(nearer_to_zero); bits < last; bits += step) {
    const auto x = std::bit_cast<float>(bits);
    largest = std::max(largest, ulps_between(f(x), exact(static_cast<double>(x))));
  }
  return largest;
}

}  // namespace

TEST_CASE("exp is accurate to 2 units in the last place, and exact at 0, beyond its range and for NaN") {
  const auto exact = [](double x) { return std::exp(x); };
  const auto whole = [](float x) { return mb::exp(x); };
  const auto of_difference = [](float x) { return mb::exp_of_difference(x); };
  const auto or_zero = [](float x) { return mb::exp_of_difference_or_zero(x); };
  const auto both = [](float x) { return mb::exp_of_difference_or_zero(mb::TwoFloats{-1.0f, x}).second; };
  CHECK(largest_error(-0.0f, -87.33f, 101, whole, exact) <= 2);
  CHECK(largest_error(0.0f, 88.72283f, 101, whole, exact) <= 2);
  CHECK(largest_error(-0.0f, -87.33f, 1009, of_difference, exact) <= 2);
  CHECK(largest_error(-0.0f, -87.33f, 1009, or_zero, exact) <= 2);
  CHECK(largest_error(-0.0f, -87.33f, 1009, both, exact) <= 2);
  for (const float zero : {0.0f, -0.0f}) CHECK(mb::exp(zero) == 1.0f);
  CHECK(mb::exp(-87.34f) == 0.0f);
  CHECK(mb::exp(-HUGE_VALF) == 0.0f);
  CHECK(mb::exp(88.73f) == HUGE_VALF);
  CHECK(std::isnan(mb::exp(std::nanf(""))));
  CHECK(mb::exp_of_difference_or_zero(std::nanf("")) == 0.0f);
}

TEST_CASE("tanh is accurate to 2 units in the last place, odd, and 1 beyond its range") {
  const auto exact = [](double x) { return std::tanh(x); };
  const auto tanh = [](float x) { return mb::tanh(x); };
  CHECK(largest_error(1.18e-38f, 20.0f, 1009, tanh, exact) <= 2);
  CHECK(largest_error(-0.01f, -9.5f, 101, tanh, exact) <= 2);
  for (const float x : {0.0f, 1e-40f, 0.3f, 0.625f, 2.0f, 9.0f, 50.0f}) CHECK(mb::tanh(-x) == -mb::tanh(x));
  for (const float x : {9.011f, 10.0f, 50.0f, 3e38f, static_cast<float>(HUGE_VALF)}) CHECK(mb::tanh(x) == 1.0f);
  CHECK(mb::tanh(0.0f) == 0.0f);
  CHECK(std::isnan(mb::tanh(std::nanf(""))));
}

TEST_CASE("exp of a difference never exceeds 1") {
  // Near 0, where a polynomial's error could; probabilities rank as keys of which none is above 2.
  std::int64_t above = 0;
  for (auto bits = std::bit_cast<std::uint32_t>(-0.0f); bits <= std::bit_cast<std::uint32_t>(-0.5f); bits += 7) {
    above += mb::exp_of_difference_or_zero(std::bit_cast<float>(bits)) > 1.0f ? 1 : 0;
  }
  CHECK(above == 0);
}

TEST_CASE("sums of probabilities in registers stay exact however many tokens are added") {
  using LayoutT = mb::Layout<TwoLanes, 8>;
  std::mt19937 random(3);
  for (const int tokens : {1, mb::most_unit_sums - 1, mb::most_unit_sums, 5 * mb::most_unit_sums + 7}) {
    std::int64_t row[8] = {};
    std::int64_t sums[8] = {};
    mb::RegisterSums<LayoutT> lane{row, LayoutT{8, 1}};
    lane.clear();
    for (int token = 0; token < tokens; ++token) {
      for (int slot = 0; slot < LayoutT::capacity; ++slot) {
        const float value = random() % 2 == 0 ? 1.0f : 0x1.ffdfffp-1f;  // the largest halves of both signs
        sums[slot] += mb::to_fixed<mb::probability_fraction_bits>(value);
        lane.unit_probability(slot, value);
      }
    }
    lane.flush();
    for (int slot = 0; slot < LayoutT::capacity; ++slot) CHECK(row[mb::place_in_row<LayoutT::width>(1, slot)] == sums[slot]);
  }
}

TEST_CASE("scores that are promised not to be negative have no sign, whatever the logit") {
  std::int64_t signs = 0;
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 9973) {
    const auto logit = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    for (const float score :
         {mb::Sigmoid{}(logit), mb::SqrtSoftplus{}(logit), mb::exp_of_difference_or_zero(-std::fabs(logit))}) {
      signs += std::signbit(score) && score == score ? 1 : 0;
    }
  }
  CHECK(signs == 0);
}
