// How evenly experts, or the ranks that hold them, are used: numbers for logs, from tokens per expert. On the host; counts of a GPU are copied first.
//
//   const mb::LoadMetrics metrics = mb::load_metrics(counts);  // a std::vector<std::int64_t>, say
//   log(metrics.max_violation, mb::expected_max_violation(tokens, experts, top_k));  // the second is what chance alone gives
// The C library by the compiler's names for it: see numeric/math.hpp.
#pragma once

#include <moe_balance/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// Of one layer. Without tokens all are as of an even load. MaxVio is Wang et al.'s, arXiv 2408.15664.
struct LoadMetrics {
  std::int64_t total = 0;    ///< tokens of all experts
  double max_violation = 0;  ///< MaxVio = (largest count - mean) / mean: 0 to experts - 1
  double min_over_mean = 1;  ///< smallest count / mean: 0 to 1
  double variation = 0;      ///< coefficient of variation: standard deviation (of all experts, not of a sample) / mean
  double entropy = 1;        ///< of the experts' shares, divided by log(experts): 0 (one expert has all) to 1
  double gini = 0;           ///< Gini coefficient: 0 to (experts - 1) / experts
  std::int64_t starved = 0;  ///< experts with less than a tenth of the mean
};

/// \cond
// Tokens per expert, summed over blocks of `share` experts and put into ascending order; `total` is their sum.
[[nodiscard]] inline std::vector<std::int64_t> sorted_loads(const char* call, std::span<const std::int64_t> counts,
                                                            std::size_t share, std::int64_t& total) {
  std::vector<std::int64_t> loads(counts.size() / share);
  total = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    MOEB_EXPECTS(counts[e] >= 0, call, ArgumentName("counts", static_cast<std::int64_t>(e)), counts[e], "0 or more tokens");
    MOEB_EXPECTS(!__builtin_add_overflow(total, counts[e], &total), call,
                 ArgumentName("counts", static_cast<std::int64_t>(e)), counts[e], "counts with a sum that fits int64");
    loads[e / share] += counts[e];
  }
  std::sort(loads.begin(), loads.end());
  return loads;
}

[[nodiscard]] inline LoadMetrics metrics_of_sorted(const std::vector<std::int64_t>& loads, std::int64_t total) {
  LoadMetrics metrics;
  metrics.total = total;
  if (loads.front() == loads.back()) return metrics;
  const auto experts = static_cast<double>(loads.size());
  const double mean = static_cast<double>(total) / experts;
  metrics.max_violation = static_cast<double>(loads.back()) / mean - 1;
  metrics.min_over_mean = static_cast<double>(loads.front()) / mean;
  double squares = 0, divergence = 0, ranked = 0;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    const double load = static_cast<double>(loads[i]) / mean;  // 1 where all are even
    squares += (load - 1) * (load - 1);
    if (load > 0) divergence += load * __builtin_log(load);
    ranked += (2 * static_cast<double>(i + 1) - experts - 1) * load;
    if (load < 0.1) ++metrics.starved;
  }
  metrics.variation = __builtin_sqrt(squares / experts);
  metrics.entropy = std::clamp(1 - divergence / (experts * __builtin_log(experts)), 0.0, 1.0);
  metrics.gini = ranked / (experts * experts);
  return metrics;
}
/// \endcond

/// `counts`: tokens per expert, one expert or more, in host memory; none negative, with a sum that fits int64. Errors: InvalidArgument.
[[nodiscard]] inline LoadMetrics load_metrics(std::span<const std::int64_t> counts) {
  const char* const call = "load_metrics";
  MOEB_EXPECTS(!counts.empty(), call, "counts.size", counts.size(), "1 or more experts");
  std::int64_t total = 0;
  const std::vector<std::int64_t> loads = sorted_loads(call, counts, 1, total);
  return metrics_of_sorted(loads, total);
}

/// The same over `ranks` ranks of expert parallelism that hold equal blocks of experts, the first block on rank 0: how long the others wait for the
/// busiest. Errors: InvalidArgument.
[[nodiscard]] inline LoadMetrics rank_load_metrics(std::span<const std::int64_t> counts, std::int64_t ranks) {
  const char* const call = "rank_load_metrics";
  MOEB_EXPECTS(!counts.empty(), call, "counts.size", counts.size(), "1 or more experts");
  const auto experts = static_cast<std::int64_t>(counts.size());
  MOEB_EXPECTS(ranks >= 1 && experts % ranks == 0, call, "ranks", ranks, "a divisor of the ", experts, " experts");
  std::int64_t total = 0;
  const std::vector<std::int64_t> loads = sorted_loads(call, counts, static_cast<std::size_t>(experts / ranks), total);
  return metrics_of_sorted(loads, total);
}

/// About the MaxVio of `tokens` tokens that choose `top_k` of `experts` experts evenly and at random: c sqrt((1 - K / E) E / (T K)), with c the mean of
/// the largest of E normal numbers: an average over batches, below which no balancer can be expected to stay in a batch that it has not seen. Where an
/// expert expects few tokens chance gives more, where K is near E less. 0 without tokens. Errors: InvalidArgument.
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
    const double above = __builtin_erfc(x / __builtin_sqrt(2.0)) / 2;  // of one normal number
    largest += step * (-__builtin_expm1(e * __builtin_log1p(-above)) - __builtin_exp(e * __builtin_log(above)));
  }
  return largest * __builtin_sqrt((1 - k / e) * e / (static_cast<double>(tokens) * k));
}

MOEB_NAMESPACE_END
