// Conversions of 16-bit types beside the tests' own (elements.hpp): every value of them, and for each the floats halfway to the next one.
#include "elements.hpp"

#include <moe_balance/numeric/convert.hpp>
#include <moe_balance/token/elements.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

namespace mb = moe_balance;

constexpr std::uint32_t all_16_bits = 1u << 16;

/// A float's own bits, so that NaN can be compared.
std::uint32_t bits_of(double value) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(value));
}

/// All floats that are halfway between two neighbours of a 16-bit type, and their neighbours; and floats of all sizes, every 9973rd.
template <class Value>
std::vector<float> hard_floats(const Value& value_of) {
  std::vector<float> floats;
  for (std::uint32_t bits = 0; bits + 1 < all_16_bits; ++bits) {
    const double low = value_of(static_cast<std::uint16_t>(bits));
    const double high = value_of(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float value :
         {static_cast<float>(low), std::nextafter(middle, -HUGE_VALF), middle, std::nextafter(middle, HUGE_VALF)})
      floats.push_back(value);
  }
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 9973)
    floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (const float value :
       {65504.0f, 65519.996f, 65520.0f, 65536.0f, 3.4e38f, 0x1p-14f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f, 0x1p-149f}) {
    floats.push_back(value);
    floats.push_back(-value);
  }
  for (const std::uint32_t bits : {0x7f800000u, 0x7f800001u, 0x7fffffffu, 0x7fc00000u}) {  // infinity, and NaN of both kinds
    floats.push_back(std::bit_cast<float>(bits));
    floats.push_back(std::bit_cast<float>(bits | 0x80000000u));
  }
  return floats;
}

/// Where `to` and the tests' own conversion differ, counted; a loop over an array, as the engine's, which vectorises.
template <class T, class Expected>
std::int64_t count_wrong(const std::vector<float>& floats, const Expected& expected) {
  std::vector<T> converted(floats.size());
  for (std::size_t i = 0; i < floats.size(); ++i) converted[i] = mb::from_real<T>(floats[i]);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < floats.size(); ++i) wrong += converted[i].bits != expected(floats[i]) ? 1 : 0;
  return wrong;
}

}  // namespace

TEST_CASE("float16 to float: every value, exactly") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < all_16_bits; ++bits) {
    const mb::float16 value{static_cast<std::uint16_t>(bits)};
    const double expected = testing::float16_value(value.bits);
    const float found = mb::to_float(value);
    const bool same = std::bit_cast<std::uint32_t>(found) == bits_of(expected);
    wrong += same || (std::isnan(found) && std::isnan(expected)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("bfloat16 to float: every value, exactly") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < all_16_bits; ++bits)
    wrong +=
        std::bit_cast<std::uint32_t>(mb::to_float(mb::bfloat16{static_cast<std::uint16_t>(bits)})) != bits << 16 ? 1 : 0;
  CHECK(wrong == 0);
}

TEST_CASE("float to float16: to nearest, ties to even, subnormal, infinite and NaN") {
  const std::vector<float> floats = hard_floats(testing::float16_value);
  CHECK(floats.size() > 600000);
  CHECK(count_wrong<mb::float16>(floats, [](float value) { return testing::float16_bits(value); }) == 0);
}

TEST_CASE("float to bfloat16: to nearest, ties to even, subnormal, infinite and NaN") {
  const std::vector<float> floats = hard_floats(testing::bfloat16_value);
  CHECK(count_wrong<mb::bfloat16>(floats, [](float value) {
          return std::isnan(value) ? static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) >> 16) | 0x40u)
                                   : testing::bfloat16_bits(value);
        }) == 0);
}
