// The step of a bias balancer: from one layer's counts to its next bias and what its rule keeps, then the counts are cleared. One tile serves one layer.
#pragma once

#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/token/saved.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class Balancer>
struct UpdateProblem {
  Balancer balancer;
  BiasRef bias;
  LoadRef load;
  int top_k;
  int ranks;
  const std::int32_t* failure_flag;  ///< null, or not 0 where the sum over ranks has failed: then nothing is written
};

template <class Part>
[[nodiscard]] MOEB_INLINE constexpr Centring centring_of(const Part& part) {
  if constexpr (requires { part.centring; }) {
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(part.centring)>, Centring>,
                  "the balancer's centring, which the library reads, is not a moe_balance::Centring");
    return part.centring;
  } else {
    static_assert(
        !requires { &Part::centring; }, "the balancer's centring, which the library reads, is not a moe_balance::Centring");
    return Centring::none;
  }
}

/// The biases of one layer; value n that the rule keeps for bias[i] is bias[(n + 1) * table + i].
struct BiasRow {
  float* bias;
  std::int64_t table;
};

/// The rule's step for one expert, and nothing written.
template <class Part>
[[nodiscard]] MOEB_INLINE BiasStep<bias_memory<Part>> next_step(const Part& part, const BiasRow& row, std::int64_t expert,
                                                                const LoadView& load) {
  constexpr int values = bias_memory<Part>;
  const float bias = row.bias[expert];
  if constexpr (values == 0) {
    return {static_cast<float>(part.next_bias(bias, static_cast<int>(expert), load))};
  } else {
    float memory[values];
    for (int n = 0; n < values; ++n) memory[n] = row.bias[(n + 1) * row.table + expert];
    return part.next_bias(bias, static_cast<int>(expert), load, memory);
  }
}

/// The mean of term(i) over the experts for which it is a number: a bias of -infinity or NaN has no part in what others are moved by.
template <class TileT, class Function>
[[nodiscard]] MOEB_INLINE float mean_of_numbers(const TileT& tile, int experts, const Function& term) {
  std::int64_t numbers = 0;
  const double sum = strided_sum(tile, experts, [&](std::int64_t i) MOEB_LAMBDA {
    const float value = term(i);
    if (!is_finite(value)) return 0.0;
    ++numbers;
    return static_cast<double>(value);
  });
  numbers =
      butterfly<TileT::width>(tile, numbers, [](std::int64_t own, std::int64_t other) MOEB_LAMBDA { return own + other; });
  return numbers == 0 ? 0.0f : static_cast<float>(div(sum, static_cast<double>(numbers)));
}

/// What is subtracted from every new bias.
template <class Part, class TileT>
[[nodiscard]] MOEB_INLINE float common_drift(const Part& part, const TileT& tile, const BiasRow& row, const LoadView& load) {
  const Centring centring = centring_of(part);
  if (centring == Centring::none) return 0.0f;
  return mean_of_numbers(tile, load.experts(), [&](std::int64_t i) MOEB_LAMBDA {
    const float next = next_step(part, row, i, load).bias;
    return centring == Centring::bias ? next : sub(next, row.bias[i]);
  });
}

/// Nothing moves in a step without counts, not even by centring or by what a rule has kept.
template <class Part, class TileT>
MOEB_INLINE void step_bias(const Part& part, const TileT& tile, const BiasRow& row, const LoadView& load) {
  if (is_frozen(part) || load.total() == 0) return;
  constexpr int values = bias_memory<Part>;
  const float drift = common_drift(part, tile, row, load);
  tile.barrier();
  for (int i = tile.lane(); i < load.experts(); i += TileT::width) {
    const BiasStep<values> step = next_step(part, row, i, load);
    row.bias[i] = sub(step.bias, drift);
    if constexpr (values > 0) {
      for (int n = 0; n < values; ++n) row.bias[(n + 1) * row.table + i] = step.memory[n];
    }
  }
}

/// The same from margins. A rule looks through many bins: once for each expert, and what centring subtracts follows.
template <class Part, class TileT>
MOEB_INLINE void step_bias_from_margins(const Part& part, const TileT& tile, float* bias, const LoadView& load,
                                        const MarginView& margins) {
  if (is_frozen(part) || margins.tokens() == 0) return;
  const Centring centring = centring_of(part);
  const float drift = mean_of_numbers(tile, load.experts(), [&](std::int64_t i) MOEB_LAMBDA {
    const float before = bias[i];
    const auto next = static_cast<float>(part.next_bias(before, static_cast<int>(i), load, margins));
    bias[i] = next;
    return centring == Centring::bias ? next : sub(next, before);
  });
  if (centring == Centring::none) return;
  for (int i = tile.lane(); i < load.experts(); i += TileT::width)
    bias[i] = sub(bias[i], drift);  // those that this lane wrote
}

/// The experts that a layer has of its row. A number out of range (on a device nobody could refuse it) counts as the whole row.
[[nodiscard]] MOEB_INLINE int experts_of(const LoadRef& load, std::int64_t layer) {
  if (load.experts_of_layer == nullptr) return load.experts;
  const std::int32_t experts = load.experts_of_layer[layer];
  return experts >= 1 && experts <= load.experts ? experts : load.experts;
}

/// The margins of a layer of so many experts, which the load has behind its counts.
template <class TileT>
[[nodiscard]] MOEB_INLINE MarginView margins_of(const TileT& tile, const LoadRef& load, const std::int64_t* counts,
                                                int experts) {
  MarginView margins;
  margins.histogram = counts + experts;
  margins.bin_count = load.bins;
  margins.token_count = integer_sum(tile, load.bins, [&](std::int64_t bin) MOEB_LAMBDA { return margins.histogram[bin]; });
  return margins;
}

template <class Problem, class TileT>
MOEB_INLINE void update_layer(const Problem& problem, const TileT& tile, std::int64_t layer) {
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  if (problem.failure_flag != nullptr && *static_cast<const volatile std::int32_t*>(problem.failure_flag) != 0) return;
  std::int64_t* counts = problem.load.layer(layer).counts;
  const int experts = experts_of(problem.load, layer);
  if constexpr (Traits::biases > 0) {
    LoadView load;
    load.counts = counts;
    load.expert_count = experts;
    load.assignments = integer_sum(tile, experts, [&](std::int64_t i) MOEB_LAMBDA { return counts[i]; });
    load.assignments_per_token = problem.top_k;
    load.rank_count = problem.ranks;
    const BiasRow row{problem.bias.layer(layer).data, problem.bias.layers * problem.bias.stride};
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      using Part = std::remove_cvref_t<decltype(part)>;
      if constexpr (BiasFromMargins<Part>)
        step_bias_from_margins(part, tile, row.bias, load, margins_of(tile, problem.load, counts, experts));
      else if constexpr (BiasBalancer<Part>)
        step_bias(part, tile, row, load);
    });
  }
  tile.barrier();
  const std::int64_t cells = Traits::reads_margins ? problem.load.row_size() : problem.load.experts;
  for (std::int64_t i = tile.lane(); i < cells; i += TileT::width) counts[i] = 0;
}

MOEB_NAMESPACE_END
