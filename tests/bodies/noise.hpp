// Random numbers on logits: which they are, how they are distributed, and that nothing but their counter decides them.
#pragma once

#include "../engine_host.hpp"
#include "../philox_oracle.hpp"
#include "../random.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace testing {

/// Philox's words, and the numbers of these in double.
struct PhiloxOracle : Philox {
  static double uniform(std::uint64_t seed, std::uint64_t offset, std::uint64_t token, std::uint64_t expert) {
    const auto result =
        words({low(token), high(token) * 65536u + low(expert / 4), low(offset), high(offset)}, low(seed), high(seed));
    return (std::floor(result[expert % 4] / 512.0) + 0.5) / 8388608.0;
  }
  /// The number for which the normal distribution has this much below it, by bisection.
  static double normal(double uniform) {
    double low = -9, high = 9;
    for (int i = 0; i < 80; ++i) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle / std::sqrt(2.0)) < uniform ? low : high) = middle;
    }
    return low;
  }
  static double number(mb::NoiseKind kind, double uniform) {
    return kind == mb::NoiseKind::gumbel ? -std::log(-std::log(uniform)) : normal(uniform);
  }
};

inline mb::AnyMatrix typed(void* data, mb::DataType type, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  return {data, type, rows, columns, stride};
}

/// The numbers alone, [tokens, experts].
template <class Engine>
std::vector<float> numbers_of(const Engine& engine, const mb::NoiseSource& noise, std::int64_t tokens,
                              std::int64_t experts) {
  typename Engine::template Array<float> logits(engine, std::vector<float>(static_cast<std::size_t>(tokens * experts)));
  typename Engine::template Array<float> noisy(engine, logits.values());
  mb::add_noise({.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                 .noisy = mb::MatrixView<float>(noisy.data(), tokens, experts),
                 .noise = noise},
                {}, engine.place());
  engine.wait();
  return noisy.values();
}

TEST_CASE_TEMPLATE_DEFINE("add_noise: the numbers that seed, offset, token and expert say, whatever the shape", Engine,
                          noise_numbers) {
  struct Case {
    mb::NoiseSource noise;
    std::int64_t tokens;
    std::int64_t experts;
  };
  const std::uint64_t large = 0xfedcba9876543210ull;
  for (const mb::NoiseKind kind : {mb::NoiseKind::gumbel, mb::NoiseKind::normal}) {
    for (const Case& c : {Case{{kind}, 3, 8}, Case{{kind, 0.5f, 7, 9}, 5, 1}, Case{{kind, -2.0f, large, large / 3}, 2, 13},
                          Case{{.kind = kind, .seed = 1, .first_token = (std::int64_t{1} << 48) - 4}, 4, 6},
                          Case{{.kind = kind, .first_token = (std::int64_t{1} << 32) - 2}, 4, 2048}, Case{{kind}, 0, 3}}) {
      CAPTURE(c.tokens);
      CAPTURE(c.experts);
      const std::vector<float> got = numbers_of(Engine{}, c.noise, c.tokens, c.experts);
      double worst = 0;
      for (std::int64_t i = 0; i < c.tokens * c.experts; ++i) {
        const auto token = static_cast<std::uint64_t>(c.noise.first_token + i / c.experts);
        const double uniform =
            PhiloxOracle::uniform(c.noise.seed, c.noise.offset, token, static_cast<std::uint64_t>(i % c.experts));
        const double want = static_cast<double>(c.noise.scale) * PhiloxOracle::number(kind, uniform);
        const double error = std::abs(static_cast<double>(got[static_cast<std::size_t>(i)]) - want);
        worst = std::max(worst, error / (std::abs(static_cast<double>(c.noise.scale)) * (std::abs(want) + 1)));
        REQUIRE(error == error);
      }
      CHECK(worst < 1e-6);  // PPND7: 1 part in 10^7, and roundings of float32
      CHECK(got == numbers_of(HostEngine{.threads = 3}, c.noise, c.tokens, c.experts));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("add_noise: types, strides, scales of one's own, in place; NaN and infinities stay", Engine,
                          noise_on_logits) {
  const Engine engine;
  constexpr std::int64_t tokens = 6, experts = 10, stride = 13;
  const mb::NoiseSource noise{.kind = mb::NoiseKind::normal, .scale = 0.5f, .seed = 3, .offset = 4};
  const std::vector<float> numbers = numbers_of(engine, noise, tokens, experts);
  Random random(160);
  std::vector<float> logits = random.normals<float>(tokens * stride);
  const std::vector<float> scales = random.normals<float>(tokens * stride);
  logits[0] = std::numeric_limits<float>::infinity();
  logits[1] = -std::numeric_limits<float>::infinity();
  logits[2] = std::numeric_limits<float>::quiet_NaN();
  using Floats = typename Engine::template Array<float>;
  Floats x(engine, logits), factors(engine, scales), noisy(engine, std::vector<float>(tokens * stride, 77.0f));
  const mb::NoiseArgs args{.logits = typed(x.data(), mb::DataType::float32, tokens, experts, stride),
                           .noisy = typed(noisy.data(), mb::DataType::float32, tokens, experts, stride),
                           .noise = noise,
                           .scales = typed(factors.data(), mb::DataType::float32, tokens, experts, stride)};
  mb::add_noise(args, {}, engine.place());
  engine.wait();
  const std::vector<float> apart = noisy.values();
  for (std::size_t i = 0; i < apart.size(); ++i) {
    const std::size_t t = i / stride, e = i % stride;
    if (e >= experts)
      CHECK(apart[i] == 77.0f);
    else if (std::isnan(logits[i]))
      CHECK(std::isnan(apart[i]));
    else  // two roundings, which no compiler may contract to one in the library
      CHECK(apart[i] == static_cast<float>(logits[i] + static_cast<double>(
                                                           static_cast<float>(static_cast<double>(numbers[t * experts + e]) *
                                                                              static_cast<double>(scales[i])))));
  }
  mb::NoiseArgs in_place = args;
  in_place.noisy = typed(x.data(), mb::DataType::float32, tokens, experts, stride);
  mb::add_noise(in_place, {}, engine.place());
  engine.wait();
  const std::vector<float> same = x.values();
  for (std::size_t i = 0; i < same.size(); ++i) {
    const float want = i % stride < experts ? apart[i] : logits[i];
    CHECK((same[i] == want || (std::isnan(same[i]) && std::isnan(want))));
  }
  // 16-bit logits, noisy in float32 and in their own type.
  for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
    std::vector<std::uint16_t> halves(tokens * experts, type == mb::DataType::bfloat16 ? 0x3fc0 : 0x3e00);  // 1.5
    typename Engine::template Array<std::uint16_t> own(engine, halves);
    Floats wide(engine, std::vector<float>(tokens * experts));
    mb::add_noise({.logits = typed(own.data(), type, tokens, experts, experts),
                   .noisy = mb::MatrixView<float>(wide.data(), tokens, experts),
                   .noise = noise},
                  {}, engine.place());
    mb::add_noise({.logits = typed(own.data(), type, tokens, experts, experts),
                   .noisy = typed(own.data(), type, tokens, experts, experts),
                   .noise = noise},
                  {}, engine.place());
    engine.wait();
    for (std::size_t i = 0; i < halves.size(); ++i) {
      CHECK(wide.values()[i] == 1.5f + numbers[i]);
      const std::uint16_t bits = own.values()[i];
      const float rounded =
          type == mb::DataType::bfloat16 ? mb::to_float(mb::bfloat16{bits}) : mb::to_float(mb::float16{bits});
      CHECK(std::abs(rounded - (1.5f + numbers[i])) <=
            std::abs(1.5f + numbers[i]) * (type == mb::DataType::bfloat16 ? 0x1p-8f : 0x1p-11f));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("add_noise: a part of the batch has the numbers that the whole has; a device's offset is added",
                          Engine, noise_of_parts) {
  const Engine engine;
  mb::NoiseSource noise{.seed = 11, .offset = 6};
  const std::vector<float> whole = numbers_of(engine, noise, 20, 12);
  noise.first_token = 7;
  const std::vector<float> part = numbers_of(engine, noise, 9, 12);
  CHECK(std::equal(part.begin(), part.end(), whole.begin() + 7 * 12));
  typename Engine::template Array<std::uint64_t> offset(engine, {4});
  noise.offset = 2;
  noise.offset_on_device = offset.data();
  CHECK(numbers_of(engine, noise, 9, 12) == part);
  noise.offset = 3;
  CHECK(numbers_of(engine, noise, 9, 12) != part);
  noise.offset_on_device = nullptr;
  noise.offset = 6;
  noise.seed = 12;
  CHECK(numbers_of(engine, noise, 9, 12) != part);
}

TEST_CASE_TEMPLATE_DEFINE("add_noise_backward: the gradient of the scales is that of add_noise", Engine, noise_backward) {
  const Engine engine;
  constexpr std::int64_t tokens = 5, experts = 7;
  for (const mb::NoiseKind kind : {mb::NoiseKind::gumbel, mb::NoiseKind::normal}) {
    const mb::NoiseSource noise{.kind = kind, .scale = 0.25f, .seed = 5, .offset = 8, .first_token = 3};
    const std::vector<float> numbers = numbers_of(engine, noise, tokens, experts);
    const std::vector<float> grads = Random(161).normals<float>(tokens * experts);
    typename Engine::template Array<float> grad(engine, grads), grad_scales(engine, std::vector<float>(tokens * experts));
    mb::NoiseBackwardArgs args{.grad_noisy = mb::MatrixView<const float>(grad.data(), tokens, experts),
                               .grad_scales = mb::MatrixView<float>(grad_scales.data(), tokens, experts),
                               .noise = noise};
    mb::add_noise_backward(args, {}, engine.place());
    args.grad_scales = mb::MatrixView<float>(grad.data(), tokens, experts);
    mb::add_noise_backward(args, {}, engine.place());
    engine.wait();
    for (std::size_t i = 0; i < grads.size(); ++i) CHECK(grad_scales.values()[i] == grads[i] * numbers[i]);
    CHECK(grad.values() == grad_scales.values());
  }
}

TEST_CASE_TEMPLATE_DEFINE("add_noise: moments, and with Gumbel numbers the best expert is a sample of the softmax", Engine,
                          noise_distribution) {
  constexpr std::int64_t tokens = 4000, experts = 4;
  const auto moments = [](const std::vector<float>& values) {
    double sum = 0, squares = 0;
    for (const float value : values) {
      sum += static_cast<double>(value);
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    const double n = static_cast<double>(values.size());
    return std::pair{sum / n, squares / n - sum / n * sum / n};
  };
  const std::vector<float> gumbel = numbers_of(Engine{}, {.seed = 21}, tokens, experts);
  const auto [gumbel_mean, gumbel_variance] = moments(gumbel);
  // Five standard errors of 16000 numbers.
  CHECK(gumbel_mean == doctest::Approx(0.5772157).epsilon(0.051).scale(0));
  CHECK(gumbel_variance == doctest::Approx(1.6449341).epsilon(0.2).scale(0));
  const auto [mean, variance] = moments(numbers_of(Engine{}, {.kind = mb::NoiseKind::normal, .seed = 22}, tokens, experts));
  CHECK(std::abs(mean) < 0.04);
  CHECK(variance == doctest::Approx(1.0).epsilon(0.056).scale(0));
  const double logits[experts] = {1, 0, -1, 0.5};
  double all = 0;
  for (const double logit : logits) all += std::exp(logit);
  std::array<int, experts> best{};
  for (std::size_t t = 0; t < tokens; ++t) {
    std::size_t largest = 0;
    const auto noisy = [&](std::size_t e) { return logits[e] + static_cast<double>(gumbel[t * experts + e]); };
    for (std::size_t e = 1; e < experts; ++e) {
      if (noisy(e) > noisy(largest)) largest = e;
    }
    ++best[largest];
  }
  double chi_squared = 0;
  for (std::size_t e = 0; e < experts; ++e) {
    const double expected = tokens * std::exp(logits[e]) / all;
    chi_squared += (best[e] - expected) * (best[e] - expected) / expected;
  }
  CHECK(chi_squared < 21.1);  // three degrees of freedom: 1 in 10000
}

TEST_CASE_TEMPLATE_DEFINE("add_noise refuses bad views, sources and overlaps, and writes nothing then", Engine,
                          noise_errors) {
  const Engine engine;
  typename Engine::template Array<float> x(engine, std::vector<float>(40, 1.0f)), y(engine, std::vector<float>(40, 2.0f)),
      scales(engine, std::vector<float>(40, 3.0f));
  const auto refuse = [&](const std::string& argument, const auto& spoil) {
    CAPTURE(argument);
    mb::NoiseArgs args{.logits = mb::MatrixView<const float>(x.data(), 4, 8),
                       .noisy = mb::MatrixView<float>(y.data(), 4, 8),
                       .scales = mb::MatrixView<const float>(scales.data(), 4, 8)};
    spoil(args);
    CHECK_THROWS_WITH_AS(mb::add_noise(args, {}, engine.place()),
                         doctest::Contains(("add_noise: " + argument + " is ").c_str()), mb::InvalidArgument);
  };
  refuse("logits.columns", [](mb::NoiseArgs& args) { args.logits.columns = 0; });
  refuse("logits.columns", [](mb::NoiseArgs& args) { args.logits.columns = mb::max_experts + 1; });
  refuse("logits.data", [](mb::NoiseArgs& args) { args.logits.data = nullptr; });
  refuse("noisy.rows", [](mb::NoiseArgs& args) { args.noisy.rows = 3; });
  refuse("noisy.type", [](mb::NoiseArgs& args) { args.noisy.type = mb::DataType::float16; });
  refuse("scales.columns", [](mb::NoiseArgs& args) { args.scales.columns = 7; });
  refuse("scales.type", [](mb::NoiseArgs& args) { args.scales.type = mb::DataType::bfloat16; });
  refuse("noise.kind", [](mb::NoiseArgs& args) { args.noise.kind = mb::NoiseKind(2); });
  refuse("noise.scale", [](mb::NoiseArgs& args) { args.noise.scale = std::numeric_limits<float>::infinity(); });
  refuse("noise.first_token", [](mb::NoiseArgs& args) { args.noise.first_token = -1; });
  refuse("noise.first_token", [](mb::NoiseArgs& args) { args.noise.first_token = (std::int64_t{1} << 48) - 3; });
  refuse("noise.offset_on_device",
         [&](mb::NoiseArgs& args) { args.noise.offset_on_device = reinterpret_cast<const std::uint64_t*>(x.data() + 1); });
  refuse("noisy", [&](mb::NoiseArgs& args) { args.noisy.data = x.data() + 1; });
  refuse("noisy", [&](mb::NoiseArgs& args) { args.noisy = typed(x.data(), mb::DataType::float32, 4, 8, 9); });
  refuse("noisy", [&](mb::NoiseArgs& args) { args.noisy.data = scales.data(); });
  refuse("noisy",
         [&](mb::NoiseArgs& args) { args.noise.offset_on_device = reinterpret_cast<const std::uint64_t*>(y.data()); });
  if constexpr (!Engine::has_float64) {
    refuse("logits.type", [](mb::NoiseArgs& args) { args.logits.type = args.noisy.type = mb::DataType::float64; });
  }
  const mb::NoiseBackwardArgs backward{.grad_noisy = mb::MatrixView<const float>(x.data(), 4, 8),
                                       .grad_scales = mb::MatrixView<float>(x.data() + 1, 4, 8)};
  CHECK_THROWS_WITH_AS(mb::add_noise_backward(backward, {}, engine.place()),
                       doctest::Contains("add_noise_backward: grad_scales is memory that grad_noisy shares"),
                       mb::InvalidArgument);
  CHECK(y.values() == std::vector<float>(40, 2.0f));
  CHECK(x.values() == std::vector<float>(40, 1.0f));
}

}  // namespace testing
