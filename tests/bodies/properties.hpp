// Random shapes, seeds, skews, types, masks and bit patterns: the oracle where the logits are ordinary, invariants always.
#pragma once

#include "everything.hpp"

#include <numeric>

namespace testing {

/// Inputs of a random shape with every optional argument present or absent by chance. `groups` divides E.
inline Inputs random_inputs(Random& random, int k, int groups, bool float64) {
  const int least = (k + groups - 1) / groups;
  const int most = random.chance(0.2) ? 2048 : random.chance(0.5) ? 300 : 40;
  const int experts = groups * random.integer(least, std::max(least, most / groups));
  const std::int64_t tokens = random.chance(0.05) ? 0 : random.integer(1, experts > 300 ? 8 : 48);
  Inputs inputs = normal_inputs(random.bits(), tokens, experts, k, random.chance(0.5) ? 4 * random.uniform() : 0.0);
  for (double& logit : inputs.logits) logit = static_cast<float>(0.5 + logit * 0.5);
  inputs.bias = normal_bias(random.bits(), experts, 0.2);
  inputs.load = zero_load(experts);
  for (std::int64_t& count : inputs.load) count = random.integer(0, 1000);
  if (random.chance(0.5)) inputs.active = random.flags(static_cast<std::size_t>(tokens), random.uniform());
  if (random.chance(0.3)) inputs.tokens_on_device = random.integer(0, static_cast<int>(tokens) + 2);
  if (random.chance(0.3)) inputs.row_padding = random.integer(1, 9);
  inputs.accumulate = random.chance(0.7);
  inputs.replay_experts = replayed_ids(random.bits(), tokens, experts, k);
  if (random.chance(0.7)) inputs.replay_tokens = random.flags(static_cast<std::size_t>(tokens), 0.5);
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.sequences = random.integer(1, 5);
  inputs.offsets.assign(static_cast<std::size_t>(inputs.sequences + 1), 0);
  inputs.offsets.back() = tokens;
  for (std::size_t s = 1; s + 1 < inputs.offsets.size(); ++s) {
    inputs.offsets[s] = inputs.offsets[s - 1] + random.integer(0, static_cast<int>(tokens - inputs.offsets[s - 1]));
  }
  const mb::DataType types[] = {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16, mb::DataType::float64};
  const mb::DataType logits = types[random.integer(0, float64 ? 3 : 2)];
  const bool wide = logits != mb::DataType::float64 && random.chance(0.5);
  return with_types(std::move(inputs), logits, wide ? mb::DataType::float32 : logits, wide ? mb::DataType::float32 : logits);
}

/// Whatever the logits are: distinct ids in range, counts that are their histogram, finite weights.
inline void check_invariants(const Outcome& outcome, const Inputs& inputs, int k, bool ids_may_be_empty) {
  std::vector<std::int64_t> histogram = zero_load(inputs.experts);
  bool sound = true;
  for (std::int64_t t = 0; t < inputs.tokens; ++t) {
    const bool active = (inputs.active.empty() || inputs.active[static_cast<std::size_t>(t)] != 0) &&
                        (inputs.tokens_on_device < 0 || t < inputs.tokens_on_device);
    std::vector<bool> seen(static_cast<std::size_t>(inputs.experts), false);
    for (int i = 0; i < k; ++i) {
      const std::int32_t id = outcome.experts[static_cast<std::size_t>(t * k + i)];
      const double weight = outcome.weights[static_cast<std::size_t>(t * k + i)];
      sound = sound && std::isfinite(weight) && (id >= 0 || weight == 0);
      if (id == -1 && (!active || ids_may_be_empty)) continue;
      sound = sound && active && id >= 0 && id < inputs.experts;
      if (!sound) break;
      sound = !seen[static_cast<std::size_t>(id)];
      seen[static_cast<std::size_t>(id)] = true;
      ++histogram[static_cast<std::size_t>(id)];
    }
  }
  CHECK(sound);
  CHECK(outcome.counts == histogram);
  std::vector<std::int64_t> load = inputs.load;
  for (std::size_t e = 0; inputs.accumulate && e < load.size(); ++e) load[e] += histogram[e];
  CHECK(outcome.load == load);
  CHECK(outcome.bias == inputs.bias);
  CHECK(outcome.padding_untouched);
  for (const double gradient : outcome.grad_logits) {
    if (std::isnan(gradient)) {
      CHECK_MESSAGE(false, "a gradient is NaN");
      break;
    }
  }
}

/// `rounds` random problems: ordinary logits against the oracle, then the same problem with arbitrary bits.
template <class Engine, class Scoring, class Selection, class Balancer>
void check_properties(std::uint64_t seed, int rounds, const Scoring& scoring, const Selection& selection,
                      const Balancer& balancer, int groups = 1) {
  constexpr int k = Selection::k;
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    Random random(seed * 1000 + static_cast<std::uint64_t>(round));
    Inputs inputs = random_inputs(random, k, groups, Engine::has_float64);
    CAPTURE(inputs.tokens);
    CAPTURE(inputs.experts);
    CAPTURE(static_cast<int>(inputs.logits_type));
    if constexpr (k == 1 && std::is_same_v<Scoring, mb::SoftmaxOverSelected>) inputs.backward = false;
    const Outcome ordinary = agrees(Engine(), scoring, selection, inputs, balancer);
    check_invariants(ordinary, inputs, k, false);

    const std::vector<float> bits = random.any_floats(inputs.logits.size());
    const double share = random.uniform();
    for (std::size_t i = 0; i < bits.size(); ++i) {
      if (random.chance(share)) inputs.logits[i] = static_cast<double>(bits[i]);
    }
    for (std::int32_t& id : inputs.replay_experts) {
      if (random.chance(0.1)) id = -1;
    }
    const mb::Router router{scoring, selection, balancer};
    const Outcome wild = train(Engine(), router, inputs);
    check_invariants(wild, inputs, k, mb::is_replaying<Selection>);
    CHECK(same_bits(wild, train(Engine(), router, inputs)));
  }
}

TEST_CASE_TEMPLATE_DEFINE("properties: Softmax, K = 8", Engine, properties_softmax) {
  check_properties<Engine>(1, 60, mb::Softmax{}, mb::TopK<8>{.scaling_factor = 1.5f}, everything());
}
TEST_CASE_TEMPLATE_DEFINE("properties: Sigmoid, group-limited K = 6", Engine, properties_groups) {
  check_properties<Engine>(2, 60, mb::Sigmoid{},
                           mb::GroupLimitedTopK<6>{.groups = 4, .groups_kept = 2, .scaling_factor = 2.5f}, everything(), 12);
}
TEST_CASE_TEMPLATE_DEFINE("properties: SqrtSoftplus, replayed K = 2", Engine, properties_replay) {
  check_properties<Engine>(3, 60, mb::SqrtSoftplus{}, mb::Replay{mb::TopK<2>{.renormalise = false}}, everything());
}
TEST_CASE_TEMPLATE_DEFINE("properties: SoftmaxOverSelected, K = 32", Engine, properties_over_selected) {
  check_properties<Engine>(4, 40, mb::SoftmaxOverSelected{}, mb::TopK<32>{}, everything());
}
TEST_CASE_TEMPLATE_DEFINE("properties: Identity, K = 1", Engine, properties_identity) {
  check_properties<Engine>(5, 40, mb::Identity{}, mb::TopK<1>{}, mb::NoBalancer{});
}

}  // namespace testing
