// Where a thread of the CPU engine adds up what tokens contribute, and how its sums reach those of all threads.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>
#include <moe_balance/token/totals.hpp>

#include <atomic>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Adds to memory that other threads add to.
struct AtomicAdd {
  MOEB_NO_EXECUTION_CHECK
  MOEB_INLINE void operator()(std::int64_t* to, std::int64_t value) const {
    std::atomic_ref<std::int64_t>(*to).fetch_add(value, std::memory_order_relaxed);
  }
};

/// Adds to memory that other threads may add to.
struct SharedAdd {
  bool is_shared;
  MOEB_INLINE void operator()(std::int64_t* to, std::int64_t value) const {
    if (is_shared)
      AtomicAdd{}(to, value);
    else
      *to += value;
  }
};

/// One thread's sums over the tokens of one segment. `SumsUnits`: each finite token adds a probability of float32 to each slot, by unit_probability.
template <class Balancer, bool SumsUnits>
struct HostSink {
  using Traits = BalancerTraits<Balancer>;
  using Row = Layout<SerialTile, max_experts>;
  Row layout;
  Slots<std::int64_t, Row> counts;
  Slots<std::int64_t, Row> probabilities;
  Slots<std::uint32_t, Row> unit_high;  ///< with unit_low, the sum of UnitBits of the last `units` tokens that had losses
  Slots<std::uint32_t, Row> unit_low;
  int units = 0;
  static constexpr bool marks_tokens = Traits::marks_tokens;
  std::int64_t load_counts[marks_tokens ? max_experts : 1];
  static constexpr bool counts_apart = Traits::plain_losses > 0;
  std::int64_t loss_counts[counts_apart ? max_experts : 1];
  static constexpr bool counts_arrivals = Traits::arrival_losses > 0;
  std::int64_t arrivals[counts_arrivals ? max_experts : 1];
  TokenTotals<Traits::token_losses> tokens;

  MOEB_INLINE explicit HostSink(const Row& its_layout) : layout(its_layout) {}

  /// Before so many tokens, all of which have added what the ones before them had to.
  MOEB_INLINE void start_tokens(int count) {
    if constexpr (SumsUnits) {
      if (units + count > most_unit_sums) carry();
    }
  }
  MOEB_INLINE void token() { ++tokens.tokens; }
  /// Before its probabilities come by unit_probability.
  MOEB_INLINE void token_with_losses() {
    if constexpr (SumsUnits) ++units;
  }
  /// Tokens whose probabilities come by `probability`.
  MOEB_INLINE void tokens_apart(int count) { tokens.tokens += count; }
  MOEB_INLINE void unit_probability(int slot, float p) {
    const UnitBits bits = unit_to_bits(p);
    unit_high[slot] += bits.high;
    unit_low[slot] += bits.low;
  }
  /// The same of several tokens.
  template <class... Float>
  MOEB_INLINE void unit_probabilities(int slot, Float... p) {
    unit_high[slot] += (unit_to_bits(p).high + ...);
    unit_low[slot] += (unit_to_bits(p).low + ...);
  }
  MOEB_INLINE void unit_probability(int slot, double p) { probability(slot, to_fixed<probability_fraction_bits>(p)); }
  /// Empties the sums of halves before they overflow.
  MOEB_INLINE void carry() {
    const auto added = static_cast<std::uint32_t>(units);
    units = 0;
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      probabilities[slot] += UnitBits{unit_high[slot], unit_low[slot]}.without_constants(added).value();
      unit_high[slot] = 0;
      unit_low[slot] = 0;
    });
  }
  MOEB_INLINE void non_finite_token() { ++tokens.non_finite_tokens; }
  MOEB_INLINE void invalid_expert() { ++tokens.invalid_experts; }
  MOEB_INLINE void count(std::int32_t expert) { ++counts[expert]; }
  MOEB_INLINE void load_count(std::int32_t expert) { ++load_counts[expert]; }
  MOEB_INLINE void loss_count(std::int32_t expert) { ++loss_counts[expert]; }
  MOEB_INLINE void arrival(std::int32_t expert) { ++arrivals[expert]; }
  /// `count` arrivals, 0 where there is no expert, whatever it is.
  MOEB_INLINE void arrivals_of(std::int32_t expert, std::int32_t count) { arrivals[count > 0 ? expert : 0] += count; }
  MOEB_INLINE void probability(int slot, std::int64_t fixed) { probabilities[slot] += fixed; }
  MOEB_INLINE void token_loss(int index, std::int64_t fixed) { tokens.token_losses[index] += fixed; }

  MOEB_INLINE void clear() {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { counts[slot] = 0; });
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { probabilities[slot] = 0; });
    for (int e = 0; e < (marks_tokens ? layout.experts : 0); ++e) load_counts[e] = 0;
    for (int e = 0; e < (counts_apart ? layout.experts : 0); ++e) loss_counts[e] = 0;
    for (int e = 0; e < (counts_arrivals ? layout.experts : 0); ++e) arrivals[e] = 0;
    units = 0;
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { unit_high[slot] = 0; });
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { unit_low[slot] = 0; });
    tokens = {};
  }
  MOEB_INLINE void flush(const Totals& totals, std::int64_t segment, int experts) {
    if constexpr (SumsUnits) carry();
    for (int e = 0; e < experts; ++e) {
      ExpertSums sums{.count = counts[e], .load_count = counts[e], .loss_count = counts[e], .probability = probabilities[e]};
      if constexpr (marks_tokens) sums.load_count = sums.loss_count = load_counts[e];
      if constexpr (counts_apart) sums.loss_count = loss_counts[e];
      if constexpr (counts_arrivals) sums.arrivals = arrivals[e];
      add_expert_totals<Balancer>(totals, segment, experts, e, sums, AtomicAdd{});
    }
    add_token_totals<Balancer>(totals, segment, tokens, AtomicAdd{});
  }
};

MOEB_NAMESPACE_END
