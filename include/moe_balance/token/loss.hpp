// The value of the balancing losses of one forward call, from its integer sums. One tile computes it, in double and in the canonical
// order.
#pragma once

#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/token/saved.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// The counts that a part's loss reads, with their total. `sums`: the selection may keep fewer than K experts, and their sum is asked.
template <class Balancer, class Part, class TileT>
[[nodiscard]] MOEB_INLINE LoadView load_of_part(const TileT& tile, const SavedView& saved, int experts, int top_k, int ranks,
                                                bool sums, std::int64_t segment) {
  constexpr LossScope scope = loss_scope<Part>;
  LoadView load;
  const std::int64_t* const counts = scope == LossScope::global_batch ? saved.global_counts
                                     : scope == LossScope::sequence
                                         ? saved.segment_counts + segment * count_sets<Balancer> * experts
                                         : saved.counts;
  load.counts = counts_arrivals<Part> ? counts + experts : counts;
  load.expert_count = experts;
  // K T assignments, replayed empty slots included, or those made; of the global batch only the counts are known.
  load.assignments = sums || scope == LossScope::global_batch
                         ? integer_sum(tile, experts, [&](std::int64_t i) MOEB_LAMBDA { return counts[i]; })
                         : top_k * (scope == LossScope::sequence ? saved.segment_tokens[segment] : *saved.tokens);
  load.assignments_per_token = top_k;
  constexpr int choices = counts_plain_top_k<Part> ? plain_choices<Part> : 0;
  if constexpr (choices > 0) {
    load.assignments_per_token = choices;
    if (scope == LossScope::sequence)
      load.assignments = choices * saved.segment_tokens[segment];
    else if (scope == LossScope::micro_batch)
      load.assignments = choices * *saved.tokens;
  }
  load.rank_count = scope == LossScope::global_batch ? ranks : 1;
  const bool of_sequence = scope == LossScope::sequence;
  load.probability_sums = of_sequence ? saved.segment_probabilities + segment * experts : saved.probabilities;
  load.token_count = of_sequence ? saved.segment_tokens[segment] : *saved.tokens;
  return load;
}

/// The same as a part's slopes read it: experts that it takes together are added up once, by all lanes.
template <class Part, class TileT>
[[nodiscard]] MOEB_INLINE LoadView joined([[maybe_unused]] const Part& part, [[maybe_unused]] const TileT& tile,
                                          LoadView load) {
  if constexpr (KnowsZeroExperts<Part>) {
    const std::int64_t* first = load.counts + (load.experts() - part.zero_experts);
    load.joined_count = integer_sum(tile, part.zero_experts, [&](std::int64_t i) MOEB_LAMBDA { return first[i]; });
  }
  return load;
}

template <class Balancer>
struct LossProblem {
  Balancer balancer;
  SavedView saved;
  int experts;
  int top_k;
  int ranks;
  bool sums_counts;  ///< see load_of_part
  std::int64_t sequences;
  float* value;
  float* part_values;
};

/// sum_i slope_i P_i over the load's tokens, or what the part makes of that; 0 without tokens.
template <class Part, class TileT>
[[nodiscard]] MOEB_INLINE double loss_over(const Part& part, const TileT& tile, const LoadView& load) {
  if (load.token_count == 0) return 0.0;
  const LoadView joined_load = joined(part, tile, load);
  const double sum = strided_sum(tile, load.experts(), [&](std::int64_t i) MOEB_LAMBDA {
    const double probability = from_fixed<probability_fraction_bits>(load.probability_sums[i]);
    return mul(static_cast<double>(part.slope(static_cast<int>(i), joined_load)), probability);
  });
  const double mean = div(sum, static_cast<double>(load.token_count));
  if constexpr (ValuedLoss<Part>)
    return static_cast<double>(part.value(mean, joined_load));
  else
    return mean;
}

template <class Part, class Problem, class TileT>
[[nodiscard]] MOEB_INLINE double loss_of_part(const Part& part, const Problem& problem, const TileT& tile) {
  constexpr LossScope scope = loss_scope<Part>;
  const auto load_of_segment = [&](std::int64_t segment) MOEB_LAMBDA {
    return load_of_part<decltype(problem.balancer), Part>(tile, problem.saved, problem.experts, problem.top_k, problem.ranks,
                                                          problem.sums_counts, segment);
  };
  if constexpr (scope != LossScope::sequence) {
    return loss_over(part, tile, load_of_segment(0));
  } else {
    double sum = 0.0;
    for (std::int64_t s = 0; s < problem.sequences; ++s) sum = add(sum, loss_over(part, tile, load_of_segment(s)));
    return div(sum, static_cast<double>(problem.sequences));
  }
}

/// The mean of one token loss.
[[nodiscard]] MOEB_INLINE double token_loss_mean(const SavedView& saved, int index) {
  if (*saved.tokens == 0) return 0.0;
  return div(from_fixed<token_loss_fraction_bits>(saved.token_losses[index]), static_cast<double>(*saved.tokens));
}

/// Writes each loss's value, in the order of Combine (a part with several kinds: its balancing loss, its token loss, its entropy loss), and their sum.
template <class Problem, class TileT>
MOEB_INLINE void evaluate_losses(const Problem& problem, const TileT& tile) {
  double total = 0.0;
  int index = 0;
  int token_index = 0;
  const auto add_loss = [&](double value) MOEB_LAMBDA {
    if (problem.part_values != nullptr && tile.lane() == 0) problem.part_values[index] = static_cast<float>(value);
    ++index;
    total = add(total, value);
  };
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (LossBalancer<Part>) add_loss(loss_of_part(part, problem, tile));
    if constexpr (TokenLossBalancer<Part>) add_loss(token_loss_mean(problem.saved, token_index++));
    if constexpr (EntropyLossBalancer<Part>) add_loss(token_loss_mean(problem.saved, token_index++));
  });
  if (problem.value != nullptr && tile.lane() == 0) *problem.value = static_cast<float>(total);
}

MOEB_NAMESPACE_END
