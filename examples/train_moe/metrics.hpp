// How evenly experts are used, from tokens per expert.
#pragma once

#include <moe_balance/metrics/load_metrics.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace train_moe {

using ExpertCounts = std::vector<std::int64_t>;  ///< [experts]: tokens per expert of one layer
using LayerCounts = std::vector<ExpertCounts>;   ///< [layers][experts]

[[nodiscard]] inline std::int64_t total(const ExpertCounts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

[[nodiscard]] inline double max_vio(const ExpertCounts& counts) {
  return moe_balance::load_metrics(counts).max_violation;
}

/// The share of the tokens that each expert gets; the shares sum to `chosen_per_token`.
[[nodiscard]] inline std::vector<double> token_shares(const ExpertCounts& counts, int chosen_per_token) {
  const auto assignments = static_cast<double>(std::max<std::int64_t>(total(counts), 1));
  std::vector<double> shares;
  for (const std::int64_t count : counts) shares.push_back(static_cast<double>(count) * chosen_per_token / assignments);
  return shares;
}

[[nodiscard]] inline double busiest_share(const ExpertCounts& counts, int chosen_per_token) {
  const std::vector<double> shares = token_shares(counts, chosen_per_token);
  return *std::max_element(shares.begin(), shares.end());
}

/// Kullback-Leibler divergence in nats of the experts' shares of all assignments from the uniform distribution.
[[nodiscard]] inline double divergence_from_uniform(const ExpertCounts& counts) {
  const auto assignments = static_cast<double>(total(counts));
  double sum = 0;
  for (const std::int64_t count : counts) {
    const double share = assignments > 0 ? static_cast<double>(count) / assignments : 0;
    if (share > 0) sum += share * std::log(share * static_cast<double>(counts.size()));
  }
  return sum;
}

/// Mean over layers of a number computed for each.
template <class Metric>
[[nodiscard]] double mean_of_layers(const LayerCounts& layers, Metric metric) {
  double sum = 0;
  for (const ExpertCounts& counts : layers) sum += metric(counts);
  return layers.empty() ? 0 : sum / static_cast<double>(layers.size());
}

inline void add(LayerCounts& sum, const LayerCounts& more) {
  if (sum.empty()) sum.resize(more.size());
  for (std::size_t layer = 0; layer < more.size(); ++layer) {
    sum[layer].resize(more[layer].size());
    for (std::size_t expert = 0; expert < more[layer].size(); ++expert) sum[layer][expert] += more[layer][expert];
  }
}

}  // namespace train_moe
