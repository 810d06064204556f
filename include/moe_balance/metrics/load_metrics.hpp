// How evenly experts, or the ranks that hold them, are used: numbers for logs, from tokens per expert. On the host; counts of a GPU are copied first.
//
//   const mb::LoadMetrics metrics = mb::load_metrics({counts.data(), experts});
//   log(metrics.max_violation, mb::expected_max_violation(tokens, experts, top_k));  // the second is what chance alone gives
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/views.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// Of one layer. Without tokens all are as of an even load.
struct LoadMetrics {
  std::int64_t total = 0;  ///< tokens of all experts
  double max_violation =
      0;  ///< MaxVio = (largest count - mean) / mean: 0 to experts - 1. Wang et al. 2024, arXiv 2408.15664, eq. (4)
  double min_over_mean = 1;  ///< smallest count / mean: 0 to 1
  double variation = 0;      ///< coefficient of variation: standard deviation (of all experts, not of a sample) / mean
  double entropy = 1;        ///< of the experts' shares, divided by log(experts): 0 (one expert has all) to 1
  double gini = 0;           ///< Gini coefficient: 0 to (experts - 1) / experts
  std::int64_t starved = 0;  ///< experts with less than a tenth of the mean
};

/// `counts`: tokens per expert, host memory, none negative, with a sum that fits int64. Errors: InvalidArgument.
[[nodiscard]] inline LoadMetrics load_metrics(VectorView<const std::int64_t> counts) {
  const char* const call = "load_metrics";
  MOEB_EXPECTS(counts.size >= 1, call, "counts.size", counts.size, "1 or more experts");
  MOEB_EXPECTS(counts.data != nullptr, call, "counts.data", "null", "a pointer to host memory");
  std::vector<std::int64_t> sorted(counts.data, counts.data + counts.size);
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    MOEB_EXPECTS(sorted[i] >= 0, call, ArgumentName("counts", static_cast<std::int64_t>(i)), sorted[i], "0 or more tokens");
  }
  std::sort(sorted.begin(), sorted.end());
  LoadMetrics metrics;
  metrics.total = std::accumulate(sorted.begin(), sorted.end(), std::int64_t{0});
  if (metrics.total == 0) return metrics;

  const auto experts = static_cast<double>(sorted.size());
  const double mean = static_cast<double>(metrics.total) / experts;
  metrics.max_violation = static_cast<double>(sorted.back()) / mean - 1;
  metrics.min_over_mean = static_cast<double>(sorted.front()) / mean;
  double squares = 0, entropy = 0, ranked = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const double load = static_cast<double>(sorted[i]) / mean;  // 1 where all are even
    squares += (load - 1) * (load - 1);
    if (load > 0) entropy -= load / experts * std::log(load / experts);
    ranked += (2 * static_cast<double>(i + 1) - experts - 1) * load;
    if (load < 0.1) ++metrics.starved;
  }
  metrics.variation = std::sqrt(squares / experts);
  if (sorted.size() > 1) metrics.entropy = std::clamp(entropy / std::log(experts), 0.0, 1.0);
  metrics.gini = ranked / (experts * experts);
  return metrics;
}

/// The same over `ranks` ranks of expert parallelism that hold equal blocks of experts, the first block on rank 0: how long the others wait for the
/// busiest. Errors: InvalidArgument.
[[nodiscard]] inline LoadMetrics rank_load_metrics(VectorView<const std::int64_t> counts, std::int64_t ranks) {
  const char* const call = "rank_load_metrics";
  MOEB_EXPECTS(counts.size >= 1, call, "counts.size", counts.size, "1 or more experts");
  MOEB_EXPECTS(counts.data != nullptr, call, "counts.data", "null", "a pointer to host memory");
  MOEB_EXPECTS(ranks >= 1 && counts.size % ranks == 0, call, "ranks", ranks, "a divisor of the ", counts.size, " experts");
  const std::int64_t share = counts.size / ranks;
  std::vector<std::int64_t> loads(static_cast<std::size_t>(ranks));
  for (std::int64_t e = 0; e < counts.size; ++e) {
    MOEB_EXPECTS(counts.data[e] >= 0, call, ArgumentName("counts", e), counts.data[e], "0 or more tokens");
    loads[static_cast<std::size_t>(e / share)] += counts.data[e];
  }
  return load_metrics({loads.data(), ranks});
}

/// About the MaxVio of `tokens` tokens that choose `top_k` of `experts` experts evenly and at random: c sqrt((1 - K / E) E / (T K)), with c the mean of
/// the largest of E normal numbers. No balancer gets a single batch below it; where an expert expects less than about ten tokens, chance gives
/// more. 0 without tokens. Errors: InvalidArgument.
[[nodiscard]] inline double expected_max_violation(std::int64_t tokens, std::int64_t experts, std::int64_t top_k) {
  const char* const call = "expected_max_violation";
  MOEB_EXPECTS(tokens >= 0, call, "tokens", tokens, "0 or more");
  MOEB_EXPECTS(experts >= 1, call, "experts", experts, "1 or more");
  MOEB_EXPECTS(top_k >= 1 && top_k <= experts, call, "top_k", top_k, "1 to the ", experts, " experts");
  if (tokens == 0 || top_k == experts) return 0;
  const auto e = static_cast<double>(experts);
  const auto k = static_cast<double>(top_k);
  // The mean of the largest: for x > 0 the chance that it is above x, less the chance that it is below -x.
  constexpr double step = 1.0 / 128;
  double largest = 0;
  for (int i = 0; i < 16 * 128; ++i) {
    const double x = (i + 0.5) * step;
    const double above = std::erfc(x / std::sqrt(2.0)) / 2;  // of one normal number
    largest += step * (-std::expm1(e * std::log1p(-above)) - std::exp(e * std::log(above)));
  }
  return largest * std::sqrt((1 - k / e) * e / (static_cast<double>(tokens) * k));
}

MOEB_NAMESPACE_END
