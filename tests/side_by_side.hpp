// Tokens side by side, which the CPU engine has for few experts, beside the same tokens row by row, which is all that it has for baseline x86-64: the same
// bits. On other processors both are side by side, and the other tests have to do.
#pragma once

#include "engine_host.hpp"
#include "make_inputs.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace side_by_side {

namespace mb = moe_balance;

inline constexpr std::int64_t tokens = 13 * 41;  // more than 512, which sums of 32-bit halves hold, and no multiple of 16

enum class Kind { normal, ties, large, negative, zeros, rare_faults, many_faults, masked, alone, device_count };

inline testing::Inputs make_inputs(Kind kind, int experts, int k, std::uint64_t seed) {
  testing::Inputs inputs = testing::normal_inputs(seed, tokens, experts, k);
  testing::Random random(seed + 1);
  constexpr double infinite = std::numeric_limits<double>::infinity();
  const double faults[] = {infinite, -infinite, std::numeric_limits<double>::quiet_NaN()};
  for (double& logit : inputs.logits) {
    switch (kind) {
      case Kind::ties:
        logit = random.integer(-1, 1);
        break;
      case Kind::large:
        logit = static_cast<float>(random.chance(0.5) ? logit * 50 : logit * 1e37);
        break;
      case Kind::negative:
        logit = static_cast<float>(logit * 10 - 90);
        break;
      case Kind::zeros:
        logit = random.chance(0.5) ? -0.0 : 0.0;
        break;
      case Kind::rare_faults:
        if (random.chance(0.02 / experts)) logit = faults[random.integer(0, 2)];
        break;
      case Kind::many_faults:
        if (random.chance(0.2)) logit = faults[random.integer(0, 2)];
        break;
      default:
        break;
    }
  }
  if (kind == Kind::masked) inputs.active = random.flags(static_cast<std::size_t>(tokens), 0.05);
  if (kind == Kind::alone) {
    for (std::int64_t t = 0; t < tokens; ++t) inputs.logits[static_cast<std::size_t>(t * experts + t % experts)] = 200;
  }
  if (kind == Kind::device_count) inputs.tokens_on_device = tokens - 101;
  return inputs;
}

inline constexpr Kind kinds[] = {Kind::normal,      Kind::ties,        Kind::large,  Kind::negative, Kind::zeros,
                                 Kind::rare_faults, Kind::many_faults, Kind::masked, Kind::alone,    Kind::device_count};

template <class Router>
void check(const Router& router, const testing::Inputs& inputs) {
  const testing::HostEngine one_by_one{.threads = 1, .instructions = mb::InstructionSet::baseline};
  const testing::Outcome expected = testing::train(one_by_one, router, inputs);
  for (const mb::InstructionSet instructions : {mb::InstructionSet::x86_64_v3, mb::InstructionSet::automatic}) {
    for (const int threads : {1, 3}) {
      const testing::HostEngine engine{.threads = threads, .instructions = instructions};
      const testing::Outcome together = testing::train(engine, router, inputs);
      CHECK(testing::same_bits(together, expected));
      CHECK(together.saved == expected.saved);
      CHECK(together.padding_untouched);
    }
  }
}

/// Many numbers of experts, and every kind of logits.
template <class Router>
void check_all(const Router& router, bool has_bias = false) {
  constexpr int k = Router::k;
  constexpr bool only_chosen = mb::touches_only_chosen<decltype(Router::scoring), decltype(Router::balancer)>;
  std::uint64_t seed = 1;
  int count = 0;
  for (const int experts : {1, 2, 3, 8, 13, 17, 32, 33, 60, 64, 65, 100, 257}) {
    if (experts < k || (experts > 65 && !only_chosen)) continue;
    CAPTURE(experts);
    ++count;
    for (const Kind kind : kinds) {
      // Of many experts, whose rows one by one take most of the time, a kind meets every other number.
      if (experts >= 32 && (static_cast<int>(kind) + count) % 2 == 0) continue;
      CAPTURE(static_cast<int>(kind));
      testing::Inputs inputs = make_inputs(kind, experts, k, ++seed);
      if (has_bias) {
        inputs.bias = testing::normal_bias(seed, experts);
        inputs.load = testing::zero_load(experts);
        if (kind == Kind::ties) inputs.bias[0] = std::numeric_limits<float>::quiet_NaN();
        if (kind == Kind::large) inputs.bias[static_cast<std::size_t>(experts - 1)] = std::numeric_limits<float>::infinity();
      }
      check(router, inputs);
    }
  }
}

}  // namespace side_by_side
