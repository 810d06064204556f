// Random numbers on logits, on the CPU.
#include "engine_host.hpp"

#include "bodies/noise.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(noise_numbers, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_on_logits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_of_parts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_backward, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_distribution, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_errors, HostEngine);

TEST_CASE("philox: the words of Random123's known answers") {
  const auto same = [](const std::array<std::uint32_t, 4>& counter, std::uint64_t key,
                       const std::array<std::uint32_t, 4>& want) {
    std::uint32_t words[4][2] = {{7, counter[0]}, {8, counter[1]}, {9, counter[2]}, {10, counter[3]}};
    mb::philox(words, key);
    for (std::size_t w = 0; w < 4; ++w) CHECK(words[w][1] == want[w]);
    CHECK(PhiloxOracle::words(counter, static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)) == want);
  };
  constexpr std::uint32_t ones = 0xffffffffu;
  same({0, 0, 0, 0}, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  same({ones, ones, ones, ones}, ~std::uint64_t{0}, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  same({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0x299f31d0a4093822ull,
       {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("uniform numbers are never 0 or 1, and their Gumbel and normal numbers never infinite") {
  for (const std::uint32_t word : {0u, 1u, 511u, 512u, 0x7fffffffu, 0x80000000u, 0xfffffe00u, 0xffffffffu}) {
    const float uniform = mb::uniform_of(word);
    CHECK(uniform >= 0x1p-24f);
    CHECK(uniform <= 1.0f - 0x1p-24f);
    CHECK(std::abs(mb::gumbel_of(uniform)) <= 16.64f);
    CHECK(std::abs(mb::normal_of(uniform)) <= 5.3f);
    CHECK(mb::normal_of(1.0f - uniform) == -mb::normal_of(uniform));
  }
  CHECK(mb::normal_of(0.5f) == 0.0f);
}

TEST_CASE("add_noise in float64: the same numbers, without a rounding of the sum to float32") {
  const mb::NoiseSource noise{.seed = 30};
  const std::vector<float> numbers = numbers_of(HostEngine{}, noise, 3, 5);
  const std::vector<double> logits = Random(162).normals<double>(15);
  std::vector<double> noisy(15);
  mb::add_noise({.logits = mb::MatrixView<const double>(logits.data(), 3, 5),
                 .noisy = mb::MatrixView<double>(noisy.data(), 3, 5),
                 .noise = noise},
                {}, mb::Host{});
  for (std::size_t i = 0; i < noisy.size(); ++i) CHECK(noisy[i] == logits[i] + static_cast<double>(numbers[i]));
}

}  // namespace testing
