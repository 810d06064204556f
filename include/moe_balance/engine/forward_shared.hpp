// What a block of the forward kernel adds up: its shared memory, and a lane's sums on the way there.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

// A lane's sums of probabilities. Its tile has a row of them in shared memory, which has all of them after flush(): rows of their own need no
// atomic additions, which for 64 bits would be loops of compare-and-swap. probability(slot, fixed) adds any, unit_probability(slot, probability)
// one of 0 to 2.

/// Where a row of a tile of `Width` lanes has a lane's slot. Neighbouring lanes have neighbouring words; in every other slot lanes change places by
/// eight, so that a warp that reads experts in their order, four slots of eight lanes, meets each bank as seldom as it can.
template <int Width>
[[nodiscard]] MOEB_HOST_DEVICE constexpr int place_in_row(int lane, int slot) {
  return slot * Width + (Width < 16 ? lane : lane ^ slot % 2 * 8);
}

/// In registers.
template <class LayoutT>
struct RegisterSums {
  static constexpr bool adds_to_row = false;
  std::int64_t* row;
  LayoutT layout;
  Slots<std::int64_t, LayoutT> sums{};

  MOEB_HOST_DEVICE void clear() { clear_slots(layout, sums); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums[slot] += fixed; }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {
    for_each_slot(layout, [&](int slot) { row[place_in_row<LayoutT::width>(layout.lane, slot)] = sums[slot]; });
  }
};

/// In the row itself, where they would not fit registers. It must be clear before.
template <class LayoutT>
struct SharedSums {
  static constexpr bool adds_to_row = true;
  std::int64_t* row;
  LayoutT layout;

  MOEB_HOST_DEVICE void clear() {}
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) {
    row[place_in_row<LayoutT::width>(layout.lane, slot)] += fixed;
  }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {}
};

/// Shared memory of the forward kernel, in this order: the token totals, counts, the losses' own counts where they differ, the bias, and a row
/// of probability sums for each tile.
template <class Balancer, int MaxExperts>
struct ForwardShared {
  using Traits = BalancerTraits<Balancer>;
  using Tokens = TokenTotals<Traits::token_losses>;
  static constexpr bool has_probabilities = Traits::losses > 0;
  static constexpr std::size_t counts_at = sizeof(Tokens);
  static constexpr bool counts_apart = Traits::plain_losses > 0;
  static constexpr std::size_t loss_counts_at = counts_apart ? counts_at + MaxExperts * sizeof(std::int32_t) : counts_at;
  static constexpr std::size_t bias_at = loss_counts_at + MaxExperts * sizeof(std::int32_t);
  static constexpr std::size_t rows_at = bias_at + MaxExperts * sizeof(float);
  static constexpr std::size_t row_bytes = has_probabilities ? MaxExperts * sizeof(std::int64_t) : 0;
  static_assert(rows_at % alignof(std::int64_t) == 0);
  static constexpr int words_of_thread = 2;  ///< of a tile's own memory

  /// `threads`: those that have words of their tile's memory.
  [[nodiscard]] static constexpr std::size_t bytes(int tiles, int threads) {
    return rows_at + row_bytes * static_cast<std::size_t>(tiles) +
           words_of_thread * sizeof(std::uint32_t) * static_cast<std::size_t>(threads);
  }

  std::byte* memory;
  [[nodiscard]] MOEB_HOST_DEVICE Tokens* tokens() const { return reinterpret_cast<Tokens*>(memory); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* counts() const { return reinterpret_cast<std::int32_t*>(memory + counts_at); }
  /// The same as counts() unless losses count apart.
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* loss_counts() const {
    return reinterpret_cast<std::int32_t*>(memory + loss_counts_at);
  }
  [[nodiscard]] MOEB_HOST_DEVICE float* bias() const { return reinterpret_cast<float*>(memory + bias_at); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int64_t* probabilities(int tile) const {
    return reinterpret_cast<std::int64_t*>(memory + rows_at) + static_cast<std::int64_t>(tile) * MaxExperts;
  }
  /// A tile's own, behind the rows of all; there are none in a tier that has no use for them on any architecture.
  [[nodiscard]] MOEB_HOST_DEVICE std::uint32_t* words(int tile, int tiles, int width) const {
    const std::size_t words_at = rows_at + row_bytes * static_cast<std::size_t>(tiles);
    return reinterpret_cast<std::uint32_t*>(memory + words_at) + tile * words_of_thread * width;
  }
};

/// The bytes a forward kernel of `Tier` asks for, with blocks of so many threads.
template <class Balancer, CudaTier Tier>
[[nodiscard]] constexpr std::size_t forward_shared_bytes(int threads = Tier.threads) {
  constexpr bool selects_by_words = Tier.max_experts / Tier.width <= (Tier.width == 32 ? 32 : 8);  // see PackedSelection
  return ForwardShared<Balancer, Tier.max_experts>::bytes(threads / Tier.width, selects_by_words ? threads : 0);
}

template <class BlockT, class SumsT, class Balancer>
struct KernelSink {
  using Traits = BalancerTraits<Balancer>;
  const BlockT& block;
  std::int32_t* counts;
  std::int32_t* loss_counts;
  SumsT& sums;
  TokenTotals<Traits::token_losses> tokens{};
  std::int32_t tokens_of_tile = 0;  ///< 32 bits hold what a kernel's block can see
  std::int32_t non_finite_of_tile = 0;
  std::int32_t invalid_of_lane = 0;

  MOEB_HOST_DEVICE void token() { ++tokens_of_tile; }
  MOEB_HOST_DEVICE void non_finite_token() { ++non_finite_of_tile; }
  MOEB_HOST_DEVICE void invalid_expert() { ++invalid_of_lane; }
  /// This lane's part of all totals.
  [[nodiscard]] MOEB_HOST_DEVICE TokenTotals<Traits::token_losses> part_of_lane(int lane) const {
    TokenTotals<Traits::token_losses> part = tokens;
    part.tokens = lane == 0 ? tokens_of_tile : 0;
    part.non_finite_tokens = lane == 0 ? non_finite_of_tile : 0;
    part.invalid_experts = invalid_of_lane;
    return part;
  }
  MOEB_HOST_DEVICE void count(std::int32_t expert) { block.add_shared(counts + expert, 1); }
  MOEB_HOST_DEVICE void loss_count(std::int32_t expert) { block.add_shared(loss_counts + expert, 1); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums.probability(slot, fixed); }
  MOEB_HOST_DEVICE void unit_probability(int slot, float probability) { sums.unit_probability(slot, probability); }
  MOEB_HOST_DEVICE void token_loss(int index, std::int64_t fixed) {
    MOEB_UNROLL
    for (int i = 0; i < Traits::token_losses; ++i) tokens.token_losses[i] += i == index ? fixed : 0;
  }
};

template <class BlockT, class Tokens>
MOEB_HOST_DEVICE inline void add_tokens_shared(const BlockT& block, Tokens* shared, const Tokens& own, int token_losses) {
  if (own.tokens != 0) block.add_shared(&shared->tokens, own.tokens);
  if (own.non_finite_tokens != 0) block.add_shared(&shared->non_finite_tokens, own.non_finite_tokens);
  if (own.invalid_experts != 0) block.add_shared(&shared->invalid_experts, own.invalid_experts);
  MOEB_UNROLL
  for (int i = 0; i < token_losses; ++i) {
    if (own.token_losses[i] != 0) block.add_shared(&shared->token_losses[i], own.token_losses[i]);
  }
}

MOEB_NAMESPACE_END
