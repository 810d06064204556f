// What forward leaves for backward and loss: integer sums over the call's tokens, in one block of 64-bit words.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Pointers into a SavedRef. All sums are over active tokens; probabilities and token losses are fixed-point.
struct SavedView {
  std::int64_t* tokens = nullptr;        ///< [1] active tokens
  std::int64_t* token_losses = nullptr;  ///< [token losses]
  std::int64_t* counts = nullptr;  ///< [count_sets, E] this call's assignments; then its arrivals, where a loss counts those
  std::int64_t* probabilities = nullptr;   ///< [E]
  std::int64_t* global_counts = nullptr;   ///< [E] load after this call, then its sum over ranks; global-batch losses only
  std::int64_t* segment_tokens = nullptr;  ///< [S]; sequence losses only, like the next two
  std::int64_t* segment_counts = nullptr;  ///< [S, count_sets, E]
  std::int64_t* segment_probabilities = nullptr;  ///< [S, E]
};

/// What forward counts by expert for losses: assignments; and arrivals, if a loss counts those.
template <class Balancer>
inline constexpr int count_sets = 1 + (BalancerTraits<Balancer>::arrival_losses > 0 ? 1 : 0);

template <class Balancer>
struct SavedLayout {
  using Traits = BalancerTraits<Balancer>;
  static constexpr bool is_used = Traits::losses + Traits::token_losses > 0;

  std::int64_t experts = 0;
  std::int64_t sequences = 1;

  [[nodiscard]] MOEB_INLINE constexpr std::int64_t words() const {
    if (!is_used) return 0;
    const std::int64_t sums = (count_sets<Balancer> + 1) * experts;
    return 1 + Traits::token_losses + sums + (Traits::reads_global_batch ? experts : 0) +
           (Traits::reads_sequences ? sequences * (1 + sums) : 0);
  }

  [[nodiscard]] MOEB_INLINE SavedView view(void* data) const {
    SavedView saved;
    if (!is_used) return saved;
    auto* next = static_cast<std::int64_t*>(data);
    saved.tokens = next;
    saved.token_losses = next += 1;
    saved.counts = next += Traits::token_losses;
    saved.probabilities = next += count_sets<Balancer> * experts;
    next += experts;
    if (Traits::reads_global_batch) {
      saved.global_counts = next;
      next += experts;
    }
    if (Traits::reads_sequences) {
      saved.segment_tokens = next;
      saved.segment_counts = next += sequences;
      saved.segment_probabilities = next + sequences * count_sets<Balancer> * experts;
    }
    return saved;
  }
};

MOEB_NAMESPACE_END
