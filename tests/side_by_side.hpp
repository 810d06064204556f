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

}  // namespace side_by_side
