// A balancer made of every part that the library has, so that one router type exercises them all.
#pragma once

#include "../agreement.hpp"
#include "../make_inputs.hpp"

namespace testing {

inline auto everything() {
  return mb::Combine{
      mb::AuxLoss{.coefficient = 0.3f}, mb::SequenceLoss{.coefficient = 0.2f, .scale = mb::LossScale::per_token},
      mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::ZLoss{.coefficient = 0.1f}, mb::LossFreeBias{.update_rate = 1e-3f}};
}
inline constexpr int everything_losses = 4;

/// Inputs for routers with `everything()`.
inline Inputs full_inputs(std::uint64_t seed, std::int64_t tokens, int experts, int k, double skew = 0.5) {
  Inputs inputs = normal_inputs(seed, tokens, experts, k, skew);
  inputs.bias = normal_bias(seed + 1, experts);
  inputs.load = zero_load(experts);
  Random random(seed + 2);
  for (std::int64_t& count : inputs.load) count = random.integer(0, 100);
  inputs.active = random.flags(static_cast<std::size_t>(tokens), 0.2);
  inputs.loss_parts = everything_losses;
  return inputs;
}

}  // namespace testing
