// Where a call's integer sums go.
#pragma once

#include <moe_balance/token/saved.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Destinations of a forward call; any may be null.
struct Totals {
  std::int64_t* counts = nullptr;  ///< [E] of this call
  std::int64_t* load = nullptr;    ///< [E] accumulated
  SavedView saved{};
  Status* status = nullptr;
  /// What the kernel clears by itself first: of all that `saved` has, and of `counts`. 0 where that is done before.
  std::int64_t* saved_words = nullptr;
  std::int64_t words_to_clear = 0;
  int counts_to_clear = 0;
  /// Blocks that clear them, all of the grid's: more than one run at the same time and wait for each other before they add. 0: none has to.
  int clearing_blocks = 0;
  /// [blocks, words of `saved`], not cleared: each block of a fused call leaves its sums in a row of its own, and the next kernel adds rows. Null: all add up
  /// in `saved`. One segment only.
  std::int64_t* rows_of_sums = nullptr;
};

/// One expert's sums of a segment.
struct ExpertSums {
  std::int64_t count = 0;
  std::int64_t load_count = 0;  ///< of tokens that are balanced: the count itself, unless calls mark those
  std::int64_t loss_count = 0;  ///< what losses read: the same, unless they count a plain top-k
  std::int64_t arrivals = 0;    ///< where a loss counts those
  std::int64_t probability = 0;
};

/// Adds them to every destination, by `add(pointer, value)`, which is atomic.
template <class Balancer, class Add>
MOEB_INLINE void add_expert_totals(const Totals& totals, std::int64_t segment, int experts, int expert,
                                   const ExpertSums& sums, Add&& add) {
  using Traits = BalancerTraits<Balancer>;
  if (sums.count != 0 && totals.counts != nullptr) add(totals.counts + expert, sums.count);
  if (sums.load_count != 0 && totals.load != nullptr) add(totals.load + expert, sums.load_count);
  const std::int64_t cell = segment * count_sets<Balancer> * experts + expert;
  if (sums.loss_count != 0 && totals.saved.counts != nullptr) {
    add(totals.saved.counts + expert, sums.loss_count);
    if (Traits::reads_sequences) add(totals.saved.segment_counts + cell, sums.loss_count);
  }
  if (Traits::arrival_losses > 0 && sums.arrivals != 0 && totals.saved.counts != nullptr) {
    add(totals.saved.counts + experts + expert, sums.arrivals);
    if (Traits::reads_sequences) add(totals.saved.segment_counts + cell + experts, sums.arrivals);
  }
  if (Traits::losses > 0 && sums.probability != 0 && totals.saved.probabilities != nullptr) {
    add(totals.saved.probabilities + expert, sums.probability);
    if (Traits::reads_sequences) add(totals.saved.segment_probabilities + segment * experts + expert, sums.probability);
  }
}

/// Sums that are not per expert.
template <int TokenLosses>
struct TokenTotals {
  std::int64_t tokens = 0;
  std::int64_t non_finite_tokens = 0;
  std::int64_t invalid_experts = 0;
  std::int64_t token_losses[TokenLosses == 0 ? 1 : TokenLosses] = {};
};

template <class Balancer, int TokenLosses, class Add>
MOEB_INLINE void add_token_totals(const Totals& totals, std::int64_t segment, const TokenTotals<TokenLosses>& sums,
                                  Add&& add) {
  if (totals.saved.tokens != nullptr && sums.tokens != 0) {
    add(totals.saved.tokens, sums.tokens);
    if (BalancerTraits<Balancer>::reads_sequences) add(totals.saved.segment_tokens + segment, sums.tokens);
    MOEB_UNROLL
    for (int i = 0; i < TokenLosses; ++i) add(totals.saved.token_losses + i, sums.token_losses[i]);
  }
  if (totals.status != nullptr) {
    if (sums.non_finite_tokens != 0) add(&totals.status->non_finite_tokens, sums.non_finite_tokens);
    if (sums.invalid_experts != 0) add(&totals.status->invalid_experts, sums.invalid_experts);
  }
}

/// A row's sums of one expert, and those that are not per expert; of one segment, which has the same sums.
template <class Balancer>
MOEB_INLINE void set_expert_row(const SavedView& row, int experts, int expert, const ExpertSums& sums) {
  const auto set = [&](std::int64_t* counts, std::int64_t* probabilities) MOEB_LAMBDA {
    counts[expert] = sums.loss_count;
    if (BalancerTraits<Balancer>::arrival_losses > 0) counts[experts + expert] = sums.arrivals;
    probabilities[expert] = sums.probability;
  };
  set(row.counts, row.probabilities);
  if (row.segment_counts != nullptr) set(row.segment_counts, row.segment_probabilities);
}
template <int TokenLosses>
MOEB_INLINE void set_token_row(const SavedView& row, const TokenTotals<TokenLosses>& sums) {
  *row.tokens = sums.tokens;
  if (row.segment_tokens != nullptr) *row.segment_tokens = sums.tokens;
  MOEB_UNROLL
  for (int i = 0; i < TokenLosses; ++i) row.token_losses[i] = sums.token_losses[i];
}

/// After a call whose loss reads the step's load: load += counts where `accumulate` says so; counts becomes the load that the call saw.
MOEB_INLINE void publish_expert(std::int64_t* load, std::int64_t* counts, int expert, bool accumulate) {
  if (accumulate) load[expert] += counts[expert];
  counts[expert] = load[expert];
}

MOEB_NAMESPACE_END
