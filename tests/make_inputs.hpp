// Ordinary inputs for tests: seeded normal logits of any skew, with or without the optional arguments.
#pragma once

#include "call.hpp"
#include "random.hpp"

namespace testing {

/// Normal logits; `skew` lifts expert e by skew * (1 - e / E), so that low ids are favoured.
inline Inputs normal_inputs(std::uint64_t seed, std::int64_t tokens, int experts, int k, double skew = 0) {
  Random random(seed);
  Inputs inputs;
  inputs.tokens = tokens;
  inputs.experts = experts;
  inputs.logits = random.normals<double>(static_cast<std::size_t>(tokens * experts), 1.5);
  for (std::size_t i = 0; i < inputs.logits.size(); ++i) {
    const double place = static_cast<double>(i % static_cast<std::size_t>(experts)) / experts;
    inputs.logits[i] = static_cast<float>(inputs.logits[i] + skew * (1 - place));
  }
  inputs.grad_weights = random.normals<double>(static_cast<std::size_t>(tokens * k));
  for (double& value : inputs.grad_weights) value = static_cast<float>(value);
  return inputs;
}

inline Inputs with_types(Inputs inputs, mb::DataType logits, mb::DataType weights, mb::DataType grad) {
  inputs.logits_type = logits;
  inputs.weights_type = weights;
  inputs.grad_type = grad;
  return inputs;
}

/// The same in float64 throughout, CPU only.
inline Inputs in_float64(Inputs inputs) {
  return with_types(std::move(inputs), mb::DataType::float64, mb::DataType::float64, mb::DataType::float64);
}

inline std::vector<float> normal_bias(std::uint64_t seed, int experts, double deviation = 0.1) {
  return Random(seed).normals<float>(static_cast<std::size_t>(experts), deviation);
}

inline std::vector<std::int64_t> zero_load(int experts) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(experts), 0);
}

/// Distinct replayed ids for every token.
inline std::vector<std::int32_t> replayed_ids(std::uint64_t seed, std::int64_t tokens, int experts, int k) {
  Random random(seed);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const int id : random.distinct_ids(k, experts)) ids.push_back(id);
  }
  return ids;
}

inline std::vector<std::int64_t> random_load(std::uint64_t seed, std::size_t size, int most) {
  Random random(seed);
  std::vector<std::int64_t> load(size);
  for (std::int64_t& count : load) count = random.integer(0, most);
  return load;
}

inline Inputs rows_of_constant(std::int64_t tokens, int experts, double logit) {
  Inputs inputs;
  inputs.tokens = tokens;
  inputs.experts = experts;
  inputs.logits.assign(static_cast<std::size_t>(tokens * experts), logit);
  return inputs;
}

}  // namespace testing
